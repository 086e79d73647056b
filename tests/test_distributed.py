"""Ranks that merge what each has found: threads here, so that what travels can be seen."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from cases import assert_same_bits, random_arrays, sample

import cbnorm
from cbnorm import parts
from cbnorm._distributed import backward, forward, merge_ranks, message_length, moved

SPLITS = {
    "even": (10, 10),
    "many even ones": (3,) * 16,
    "even, of twelve": (2,) * 12,
    "uneven": (17, 1, 2),
    "empty ranks": (0, 9, 0, 11),
    "one row in all": (0, 1, 0),
    "one rank": (20,),
}
every_split = pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)


class Together:
    """Ranks whose messages meet in a list."""

    def __init__(self, size, one_length=False):
        self.messages = [None] * size
        self.sent = [[] for _ in range(size)]
        self._one_length = one_length
        self._barrier = threading.Barrier(size, timeout=20)

    def gather(self, rank, message):
        self.sent[rank].append(message.copy())
        self.messages[rank] = message
        self._barrier.wait()
        rows = list(self.messages)
        self._barrier.wait()
        return np.stack(rows) if self._one_length else rows

    def run(self, work):
        """What ``work(rank, gather)`` returns on each rank, or the error that it raised."""

        def attempt(rank):
            try:
                return work(rank, partial(self.gather, rank))
            except Exception as error:
                self.error = error
                return error

        with ThreadPoolExecutor(len(self.messages)) as pool:
            return list(pool.map(attempt, range(len(self.messages))))


def arguments_of(
    x, gamma=None, beta=None, eps=1e-5, momentum=0.9, mean=None, var=None, axis=1, ddof=0, out=None, weights=None
):
    return x, gamma, beta, eps, momentum, mean, var, "train", axis, ddof, out, weights


@every_split
@pytest.mark.parametrize("one_length", [False, True])
def test_a_forward_and_a_backward_pass_are_those_of_the_whole(split, one_length):
    x, dout, gamma, beta, mean, var = random_arrays((sum(split), 5), (sum(split), 5), (5,), (5,), (5,), (5,))
    var = np.abs(var)
    cuts = np.cumsum(split)[:-1]
    xs, douts = np.split(x, cuts), np.split(dout, cuts)
    together = Together(len(split), one_length)
    lengths = [message_length(kind, 5) for kind in (cbnorm.Moments, parts.GradientSums)]

    def work(rank, gather):
        call = partial(arguments_of, xs[rank], gamma, beta, mean=mean, var=var)
        y, cache, *moving = forward(gather, call, lengths[0] if one_length else None)
        gradients = backward(
            gather, lambda: (douts[rank], cache, (True,) * 3, None), lengths[1] if one_length else None
        )
        return [y, gradients[0]], [*moving, *gradients[1:], cache.moments.mean, cache.moments.mean_lo, cache.moments.m2]

    results = together.run(work)
    y, cache, *moving = cbnorm.batchnorm_forward(x, gamma, beta, moving_mean=mean, moving_var=var)
    dx, dgamma, dbeta = cbnorm.batchnorm_backward(dout, cache)
    for number, want in enumerate((y, dx)):
        got = np.concatenate([of_rank[0][number] for of_rank in results])
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    for of_rank in results:
        assert_same_bits(of_rank[1], results[0][1])
    for got, want in zip(results[0][1], (*moving, dgamma, dbeta), strict=False):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    assert [[message.size for message in sent] for sent in together.sent] == [[17, 12]] * len(split)


@every_split
def test_messages_are_merged_in_the_order_of_ranks(split):
    """A rerun and every rank give the same bits, and the order is one that `Moments` themselves can follow."""
    x = random_arrays((sum(split), 3))[0] + 1e6
    found = [parts.moments(part) for part in np.split(x, np.cumsum(split)[:-1])]
    results = Together(len(split)).run(lambda rank, gather: merge_ranks(gather, lambda: (found[rank], "")))
    records = found
    while len(records) >= 8 and len(records) % 2 == 0 and len({each.count for each in records}) == 1:
        records = [first + second for first, second in zip(records[::2], records[1::2], strict=True)]
    want = sum(records)
    for got in results:
        assert got.count == want.count
        assert_same_bits([got.mean, got.mean_lo, got.m2], [want.mean, want.mean_lo, want.m2])


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,), (0, 4)])
def test_moments_keep_any_shape(shape):
    found = [cbnorm.moments(random_arrays((5 + rank, *shape), seed=rank)[0]) for rank in range(3)]
    for got in Together(3).run(lambda rank, gather: merge_ranks(gather, lambda: (found[rank], ""))):
        want = sum(found)
        assert_same_bits([got.mean, got.mean_lo, got.m2], [want.mean, want.mean_lo, want.m2])


@pytest.mark.parametrize("one_length", [False, True])
@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ValueError("gamma: expected shape (5,), got (4,)"), ValueError, "gamma: expected shape (5,), got (4,)"),
        (TypeError("x: expected nümbers"), TypeError, "x: expected nümbers"),
        (MemoryError("no room"), RuntimeError, "MemoryError: no room"),
        (ValueError(), ValueError, ""),
        (UnicodeError("a kind of ValueError"), ValueError, "a kind of ValueError"),
    ],
)
def test_an_error_on_one_rank_is_raised_on_all_with_its_words(error, kind, text, one_length):
    part = cbnorm.Moments(1, [1.0] * 9, [0.0] * 9)

    def work(rank, gather):
        def find():
            if rank == 1:
                raise error
            return part, "call"

        return merge_ranks(gather, find, message_length(cbnorm.Moments, 9) if one_length else None)

    results = Together(3, one_length).run(work)
    assert results[1] is error
    for other in (results[0], results[2]):
        assert type(other) is kind
        assert str(other) == f"{text} (on rank 1)"


@pytest.mark.parametrize("channels", [0, 1, 2])
def test_a_text_that_is_longer_than_the_message_is_cut(channels):
    text = "x: " + "ä" * 100
    length = message_length(parts.GradientSums, channels)

    def work(rank, gather):
        def find():
            if rank == 1:
                raise ValueError(text)
            return parts.GradientSums(1, [0.0] * channels, [0.0] * channels), ""

        return merge_ranks(gather, find, length)

    told = str(Together(2, True).run(work)[0])
    assert told.endswith(" (on rank 1)")
    assert text.startswith(told.removesuffix(" (on rank 1)"))
    assert len(told.encode()) > 8 * (length - 1)


def test_of_several_errors_each_rank_raises_its_own_and_the_others_the_first():
    def work(rank, gather):
        def find():
            if rank:
                raise (ValueError, TypeError)[rank - 1](f"of {rank}")
            return cbnorm.Moments(1, [1.0], [0.0]), ""

        return merge_ranks(gather, find)

    assert [repr(error) for error in Together(3).run(work)] == [
        "ValueError('of 1 (on rank 1)')",
        "ValueError('of 1')",
        "TypeError('of 2')",
    ]


@pytest.mark.parametrize("different", [{"eps": 1e-3}, {"momentum": 0.5}, {"ddof": 1}, {"x": np.ones((4, 3))}])
def test_calls_that_differ_raise_on_every_rank(different):
    def work(rank, gather):
        return forward(gather, partial(arguments_of, **{"x": np.ones((4, 2)), **(different if rank == 2 else {})}))

    results = Together(4).run(work)
    assert all(isinstance(error, ValueError) for error in results)
    assert all("comm: expected the same call on every rank" in str(error) for error in results)
    assert [str(error).rpartition("others on: ")[2] for error in results] == ["2", "2", "0, 1, 3", "2"]


def test_one_value_on_all_ranks_has_no_unbiased_variance():
    def work(ranks_with_a_row, rank, gather):
        x = np.ones((1 if rank in ranks_with_a_row else 0, 2))
        return forward(gather, partial(arguments_of, x, ddof=1, mean=[0, 0], var=[1, 1]))

    for error in Together(2).run(partial(work, [1])):
        assert str(error).startswith("ddof: expected 0 for one value a channel on all ranks")
    for _, _, mean, var in Together(2).run(partial(work, [0, 1])):
        np.testing.assert_allclose((mean, var), ([0.1] * 2, [0.9] * 2), rtol=1e-15)


def test_nothing_on_all_ranks_leaves_the_moving_statistics():
    def work(rank, gather):
        x = np.empty((0, 2), np.float32)
        y, cache, *moving = forward(gather, partial(arguments_of, x, mean=[1, 2], var=[3, 4]))
        return [y, *moving, *backward(gather, lambda: (x, cache, (True,) * 3, None))]

    for y, mean, var, dx, dgamma, dbeta in Together(3).run(work):
        assert (y.shape, dx.shape, y.dtype, dgamma.dtype) == ((0, 2), (0, 2), np.float32, np.float32)
        assert (mean.tolist(), var.tolist()) == ([1, 2], [3, 4])
        assert (dgamma.tolist(), dbeta.tolist()) == ([0, 0], [0, 0])


def test_moving_averages_are_those_of_batch_normalization_to_the_bit():
    x = random_arrays((7, 3))[0]
    merged = parts.moments(x)
    nan = np.full(3, np.nan)
    for momentum in (0.0, 0.3, 0.9, 1.0):
        for ddof in (0, 1):
            for old in ([1.0, 2.0, 3.0], nan):
                _, _, *want = cbnorm.batchnorm_forward(x, momentum=momentum, moving_mean=old, moving_var=old, ddof=ddof)
                old = np.array(old)
                got = moved(old, merged.mean, 1, momentum), moved(old, merged.m2, merged.count - ddof, momentum)
                assert_same_bits(got, want)
    assert moved(None, merged.mean, 1, 0.5) is None


@pytest.mark.parametrize("split", [(7, 3, 10), (0, 20), (20,)])
def test_weighted_parts_are_the_whole(split):
    x, dout = sample((20, 3, 4), offset=2), sample((20, 3, 4), seed=1)
    weights = np.random.default_rng(0).random((20, 4)) * (np.arange(20) % 3 > 0)[:, np.newaxis]
    cuts = np.cumsum(split)[:-1]
    cut = [np.split(each, cuts) for each in (x, dout, weights)]
    moving = {"mean": np.zeros(3), "var": np.ones(3)}

    def rank_does(rank, gather):
        given, gradient, counts = (each[rank] for each in cut)
        y, cache, *averages = forward(gather, partial(arguments_of, given, **moving, ddof=1, weights=counts))
        return [y, *averages, *backward(gather, lambda: (gradient, cache, (True,) * 3, None))]

    results = Together(len(split)).run(rank_does)
    options = {"moving_mean": np.zeros(3), "moving_var": np.ones(3), "ddof": 1, "weights": weights}
    y, cache, *averages = cbnorm.batchnorm_forward(x, **options)
    dx, *sums = cbnorm.batchnorm_backward(dout, cache)
    for number, want in ((0, y), (3, dx)):
        np.testing.assert_allclose(np.concatenate([each[number] for each in results]), want, rtol=0, atol=1e-12)
    for each in results:
        for got, want in zip((*each[1:3], *each[4:]), (*averages, *sums), strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)


def test_where_nothing_counts_nothing_is_learned():
    def rank_does(rank, gather):
        call = partial(arguments_of, np.ones((3, 2)), None, [5.0, 6.0], mean=[1, 2], var=[3, 4], weights=np.zeros(3))
        y, cache, *averages = forward(gather, call)
        return [y, *averages, *backward(gather, lambda: (np.ones((3, 2)), cache, (True,) * 3, None))]

    for y, mean, var, *gradients in Together(2).run(rank_does):
        np.testing.assert_array_equal(y, [[5, 6]] * 3)
        assert (mean.tolist(), var.tolist()) == ([1, 2], [3, 4])
        assert not any(np.any(gradient) for gradient in gradients)
