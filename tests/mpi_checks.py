"""What test_mpi.py checks inside of a launch: `mpiexec -n 4 python -m mpi4py tests/mpi_checks.py` runs all of it.

Rank 0 prints the name of each check before it begins, and after it "passed", or what failed on which rank.
"""

import copy
import doctest
import pickle
import sys
import traceback
from dataclasses import replace

import numpy as np
from cases import DTYPES, assert_same_bits, batch, check, make_case, random_arrays
from layer_cases import randomize, same_state
from mpi4py import MPI

import cbnorm
import cbnorm.mpi
from cbnorm import _kernels

comm = MPI.COMM_WORLD
rank, ranks = comm.rank, comm.size

# Name: rows of each rank, as far as there are ranks; the last has the rest of 40.
SPLITS = {
    "even": [40 // ranks] * ranks,
    "uneven": [*(1, 17, 3)[: ranks - 1], 40 - sum((1, 17, 3)[: ranks - 1])],
    "an empty first rank": [0, 40 - 5 * (ranks - 2), *[5] * (ranks - 2)],
    "an empty last rank": [40 - 5 * (ranks - 2), *[5] * (ranks - 2), 0],
    "all on one rank": [40, *[0] * (ranks - 1)],
    "one row in all": [*[0] * (ranks - 1), 1],
    "nothing": [0] * ranks,
}
LAYOUTS = {
    "(N, C)": (1, lambda samples: (samples, 5)),
    "NCHW": (1, lambda samples: (samples, 5, 3, 4)),
    "NHWC": (-1, lambda samples: (samples, 3, 4, 5)),
}


def part_of(array, split):
    """This rank's rows."""
    return np.split(array, np.cumsum(split)[:-1])[rank]


def whole_of(part):
    """The rows of all ranks."""
    return np.concatenate(comm.allgather(part))


def assert_same_on_all(*arrays):
    for others in comm.allgather(arrays):
        assert_same_bits(others, arrays)


def raised(call, *arguments, **options):
    """The error of a call that must raise one."""
    try:
        call(*arguments, **options)
    except (ValueError, TypeError) as error:
        return error
    raise AssertionError(f"{call} did not raise")


def over_ranks(split, axis):
    """Batch normalization over the ranks of what each of them has in whole: called as `batch` of the shared cases."""

    def forward(x, gamma=None, beta=None, eps=1e-5):
        averages = 0.8, np.linspace(-1, 2, x.shape[axis]), np.linspace(0.5, 3, x.shape[axis])
        y, cache, *moving = cbnorm.mpi.batchnorm_forward(part_of(x, split), gamma, beta, eps, *averages, axis=axis)
        assert_same_on_all(*moving, cache.moments.mean, cache.moments.mean_lo, cache.moments.m2)
        return whole_of(y), cache, *moving

    def backward(dout, cache):
        dx, *sums = cbnorm.mpi.batchnorm_backward(part_of(dout, split), cache)
        assert_same_on_all(*sums)
        return whole_of(dx), *sums

    return replace(batch(axis), forward=forward, backward=backward)


def check_ranks_together_are_the_whole():
    for axis, make_shape in LAYOUTS.values():
        for split in SPLITS.values():
            for dtype in DTYPES:
                for offset in (0.0, 1e4, 1e6):
                    norm = over_ranks(split, axis)
                    x, dout, parameters = make_case(norm, make_shape(sum(split)), dtype, offset)
                    if sum(split):
                        check(norm, x, dout, parameters)
                    else:  # the reference has no mean of nothing
                        y, cache, *moving = norm.forward(x, *parameters)
                        dx, dgamma, dbeta = norm.backward(dout, cache)
                        assert y.shape == dx.shape == x.shape
                        assert dgamma.tolist() == dbeta.tolist() == [0] * 5
                        assert_same_bits(moving, [np.linspace(-1, 2, 5), np.linspace(0.5, 3, 5)])


def check_bits_are_those_of_any_number_of_threads_and_of_a_rerun():
    x, dout = (part_of(array, [40_000, *[9_000] * (ranks - 1)]) for array in random_arrays((67_000, 40), (67_000, 40)))
    _kernels.active.set_judging(False)
    found = []
    for threads in (1, 2, 3, 1):
        with cbnorm.threads(threads):
            y, cache, *_ = cbnorm.mpi.batchnorm_forward(x)
            found.append([y, *cbnorm.mpi.batchnorm_backward(dout, cache), cache.moments.m2])
    for again in found[1:]:
        assert_same_bits(again, found[0])


def check_nan_on_one_rank_stays_in_its_channel():
    split = [3] * ranks
    for axis, make_shape in LAYOUTS.values():
        for value in (np.nan, np.inf):
            x, dout = random_arrays(make_shape(sum(split)), make_shape(sum(split)))
            results = []
            for spoilt in (False, True):
                if spoilt:
                    np.moveaxis(x, axis, -1)[-1, ..., 2] = value
                y, cache, *moving = cbnorm.mpi.batchnorm_forward(
                    part_of(x, split), moving_mean=np.zeros(5), moving_var=np.ones(5), axis=axis
                )
                dx, dgamma, dbeta = cbnorm.mpi.batchnorm_backward(part_of(dout, split), cache)
                results.append([np.moveaxis(y, axis, -1), np.moveaxis(dx, axis, -1), dgamma, *moving])
                assert np.isfinite(dbeta).all()
            for clean, array in zip(*results, strict=True):
                assert_same_bits(np.delete(array, 2, -1), np.delete(clean, 2, -1))
            assert all(np.isnan(array[..., 2]).all() for array in results[1][:3])


def check_an_error_on_one_rank_is_raised_on_all_and_the_next_call_works():
    x, dout = random_arrays((6, 3), (6, 3))
    forward, backward = cbnorm.mpi.batchnorm_forward, cbnorm.mpi.batchnorm_backward
    cache = forward(x)[1]
    layer = cbnorm.mpi.BatchNorm(3)
    room = np.empty((6, 3))
    of_others, answered = forward(np.ones((6, 4)))[1], cbnorm.mpi.BatchNorm(3)
    answered(x)
    arrays = [([["a"]],), (x[0],), (x * 1j,), (x, np.ones(4)), (x, None, [1]), (x, None, None, -1)]
    numbers = [(x, None, None, 1e-5, 2.0), (x, None, None, 1e-5, 0.9, [0] * 3, [-1] * 3)]
    options = [{"mode": "tain"}, {"axis": 2}, {"ddof": 2}, {"out": x}, {"out": room[:3]}]
    needs = [{"need": (1, 2)}, {"out": x}, {"need": (False, True, True), "out": room}]
    calls = [  # a call that is right, and arguments that make it wrong
        (forward, (x,), arrays + numbers + options),
        (backward, (dout, cache), [(dout[1:], cache), (dout, None), (None, cache), (dout, "cache"), *needs]),
        (cbnorm.mpi.moments, (x,), [([1j],), {"axis": 2}, {"axis": (0, 0)}, {"keepdims": "no"}]),
        (cbnorm.mpi.standardize, (x,), [(["a"],), {"axis": 3}, {"ddof": "1"}, {"out": room[1:]}, {"out": x[::-1]}]),
        (layer, (x,), [(x[:, 1:],), (x[0],), (None,)]),
        (answered.backward, (dout,), [(dout[1:],), (None,), (dout, of_others), (dout, "cache")]),
    ]
    for call, arguments, mistakes in calls:
        call(*arguments)
        for mistake in mistakes:
            for wrong in range(ranks):
                given, changed = arguments, {}
                if rank == wrong:
                    given, changed = (mistake, {}) if isinstance(mistake, tuple) else (arguments, mistake)
                before, state = x.copy(), layer.state_dict()
                error = raised(call, *given, **changed)
                texts = comm.allgather(str(error))
                kinds = comm.allgather(type(error).__name__)
                assert len(set(kinds)) == 1, kinds
                for other, text in enumerate(texts):
                    assert other == wrong or text == f"{texts[wrong]} (on rank {wrong})", texts
                assert_same_bits(x, before)
                assert same_state(layer.state_dict(), state)
                call(*arguments)


def check_calls_that_differ_are_refused():
    x = np.ones((4, 3))
    cache = cbnorm.mpi.batchnorm_forward(x)[1]
    last = rank == ranks - 1
    for call in (
        lambda: cbnorm.mpi.batchnorm_forward(x[:, : 2 if last else 3]),
        lambda: cbnorm.mpi.batchnorm_forward(x, eps=1e-3 if last else 1e-5),
        lambda: cbnorm.mpi.moments(np.ones((3, 3)), axis=1 if last else 0),
        lambda: cbnorm.mpi.moments(np.ones((2, 3, 4) if last else (2, 4, 3))),
        lambda: cbnorm.mpi.moments(x) if last else cbnorm.mpi.standardize(x),
        lambda: cbnorm.mpi.batchnorm_backward(x, cache) if last else cbnorm.mpi.batchnorm_forward(x),
        lambda: cbnorm.mpi.batchnorm_backward(x, cache, need=(True, not last, True)),
        lambda: cbnorm.mpi.BatchNorm(2 if last else 3)(x[:, : 2 if last else 3]),
    ):
        assert "comm: expected the same call on every rank" in str(raised(call))
    assert cbnorm.mpi.moments(x).count == 4 * ranks


def check_moments_and_standardize_over_any_axes():
    split = SPLITS["uneven"]
    for axis in (0, 1, -1, (0, 1), (0, 2), None):
        for dtype in DTYPES:
            x = (random_arrays((40, 3, 4))[0] + 1e6).astype(dtype)
            if axis in (1, -1):  # the ranks' parts lie along what is reduced
                x = np.ascontiguousarray(np.moveaxis(x, 0, axis))
            parted = 0 if axis is None or isinstance(axis, tuple) else axis
            part = np.moveaxis(part_of(np.moveaxis(x, parted, 0), split), 0, parted)
            for keepdims in (False, True):
                want = cbnorm.moments(x, axis, keepdims=keepdims)
                got = cbnorm.mpi.moments(part, axis, keepdims=keepdims)
                assert got.count == want.count
                assert got.mean.shape == want.mean.shape
                std = want.std()
                assert np.all(np.abs(got.mean - want.mean + (got.mean_lo - want.mean_lo)) <= 1e-12 * std)
                assert np.all(np.abs(got.std() - std) <= 1e-12 * std)
                assert_same_on_all(got.mean, got.mean_lo, got.m2)
            for ddof in (0, 1):
                y, m = cbnorm.mpi.standardize(part, axis, ddof=ddof)
                assert_same_bits(y, m.standardize(part, axis, ddof=ddof))
                want, _ = cbnorm.standardize(x, axis, ddof=ddof)
                got = np.concatenate(comm.allgather(np.moveaxis(y, parted, 0)))
                tolerance = 1e-12 if dtype == np.float64 else 2e-6
                np.testing.assert_allclose(got, np.moveaxis(want, parted, 0), rtol=0, atol=8 * tolerance)
                place = np.array(part, order="C")
                assert cbnorm.mpi.standardize(place, axis, ddof=ddof, out=place)[0] is place
                assert_same_bits(place, np.ascontiguousarray(y))


def check_layers_are_those_of_the_whole():
    for options in ({}, {"momentum": None}, {"ddof": 1}, {"affine": "beta"}, {"axis": -1}, {"reuse_output": True}):
        single = randomize(cbnorm.BatchNorm(5, dtype=np.float64, **options))
        layer = cbnorm.mpi.BatchNorm(5, dtype=np.float64, **options)
        layer.load_state_dict(single.state_dict())
        for step, split in enumerate((SPLITS["uneven"], SPLITS["an empty last rank"], SPLITS["nothing"])):
            x, dout = random_arrays((sum(split), 5), (sum(split), 5), seed=step)
            y, want_y = layer(part_of(x, split)), single(x)
            dx, want_dx = layer.backward(part_of(dout, split)), single.backward(dout)
            for got, want in ((y, part_of(want_y, split)), (dx, part_of(want_dx, split))):
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
            assert list(layer.grads) == list(single.grads)
            for name, gradient in layer.grads.items():
                np.testing.assert_allclose(gradient, single.grads[name], rtol=0, atol=1e-12)
            for name, value in single.state_dict().items():
                np.testing.assert_allclose(layer.state_dict()[name], value, rtol=1e-12, atol=1e-12)
            assert_same_on_all(*layer.state_dict().values(), *layer.grads.values())
        assert layer.num_batches == 7


def check_layers_in_test_mode_and_frozen():
    x, dout = random_arrays((40, 5), (40, 5))
    split = SPLITS["uneven"]
    for frozen in (False, True):
        single, layer = (randomize(kind(5, frozen=frozen)) for kind in (cbnorm.BatchNorm, cbnorm.mpi.BatchNorm))
        if not frozen:
            single.eval()
            layer.eval()
        before = layer.state_dict()
        assert_same_bits(layer(part_of(x, split)), part_of(single(x), split))
        assert_same_bits(layer.backward(part_of(dout, split)), part_of(single.backward(dout), split))
        for name, gradient in layer.grads.items():
            np.testing.assert_allclose(gradient, single.grads[name], rtol=1e-12)
        assert same_state(layer.state_dict(), before)
    if rank == 0:  # test mode sends nothing
        layer.eval()
        layer(x)
        y, cache, *_ = cbnorm.mpi.batchnorm_forward(x, moving_mean=[0] * 5, moving_var=[1] * 5, mode="test")
        assert_same_bits(y, cbnorm.batchnorm_forward(x, moving_mean=[0] * 5, moving_var=[1] * 5, mode="test")[0])
        assert cache.mode == "test"


def check_layers_have_records_and_copies():
    a, b = random_arrays((6 + rank, 3), (2, 3))
    layer = cbnorm.mpi.BatchNorm(3)
    layer(a)
    first = layer.cache
    layer(b)
    assert "cache: expected the record" in str(raised(layer.backward, b))
    assert layer.backward(a, first).shape == a.shape
    other = cbnorm.mpi.BatchNorm(3)
    assert "another one of its kind" in str(raised(other.backward, a, first))
    assert "a forward call of this thread" in str(raised(other.backward, a))
    assert "of 4 channels" in str(raised(cbnorm.mpi.BatchNorm(4).backward, a, first))
    for made in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert same_state(made, layer)
        assert_same_bits(made(a), copy.deepcopy(layer)(a))
    loaded = pickle.loads(pickle.dumps(first))
    assert_same_bits(cbnorm.mpi.batchnorm_backward(a, loaded), cbnorm.mpi.batchnorm_backward(a, first))
    own = cbnorm.mpi.BatchNorm(3, comm=comm.Dup())
    assert copy.deepcopy(own).comm is own.comm
    assert "serialize" in str(raised(pickle.dumps, own))
    own.comm.Free()
    made = cbnorm.mpi.BatchNorm.from_keras([np.ones(3), np.zeros(3), np.zeros(3), np.ones(3)], axis=1)
    assert type(made) is cbnorm.mpi.BatchNorm
    assert made(a).shape == a.shape


def check_communicators_are_apart():
    x = random_arrays((5, 3), seed=rank)[0]
    halves = comm.Split(rank % 2)
    assert cbnorm.mpi.moments(x, comm=halves).count == 5 * halves.size
    assert cbnorm.mpi.moments(x, comm=MPI.COMM_SELF).count == 5
    for _ in range(20):  # freed ones give back what was made for them
        copied = halves.Dup()
        assert cbnorm.mpi.BatchNorm(3, comm=copied)(x).shape == x.shape
        copied.Free()
    halves.Free()
    # A receive of the user's from anyone takes none of our messages.
    box = np.zeros(1)
    request = comm.Irecv(box, MPI.ANY_SOURCE, MPI.ANY_TAG)
    assert cbnorm.mpi.moments(x).count == 5 * ranks
    assert not request.Test()
    comm.Barrier()
    comm.Send(np.array([7.0]), (rank + 1) % ranks)
    request.Wait()
    assert box[0] == 7
    for wrong in (0, "world", MPI.COMM_NULL, MPI.BYTE):
        assert str(raised(cbnorm.mpi.moments, x, comm=wrong)).startswith("comm: expected")


def check_weights_are_those_of_the_whole():
    for split in (SPLITS["uneven"], SPLITS["an empty first rank"]):
        x, dout = random_arrays((40, 5, 3), (40, 5, 3))
        drawn = np.random.default_rng(0).uniform(0, 2, 40)
        masked = np.repeat([True, False], [split[0] or 30, 40 - (split[0] or 30)])  # nothing counts on the last rank
        x[~masked, 2] = 1e9
        for weights in (drawn, masked, np.zeros(40), np.ones((40, 3))):
            part, mine = part_of(x, split), part_of(weights, split)
            averages = 0.9, np.zeros(5), np.ones(5)
            y, cache, *moving = cbnorm.mpi.batchnorm_forward(part, None, None, 1e-5, *averages, weights=mine)
            dx, *sums = cbnorm.mpi.batchnorm_backward(part_of(dout, split), cache)
            want_y, want_cache, *want_moving = cbnorm.batchnorm_forward(x, None, None, 1e-5, *averages, weights=weights)
            want_dx, *want_sums = cbnorm.batchnorm_backward(dout, want_cache)
            for got, want in ((whole_of(y), want_y), (whole_of(dx), want_dx), *zip(sums, want_sums, strict=True)):
                np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-11)
            np.testing.assert_allclose(moving, want_moving, rtol=1e-12)
            assert_same_on_all(*moving, *sums)
            m, want = cbnorm.mpi.moments(part, (0, 2), weights=mine), cbnorm.moments(x, (0, 2), weights=weights)
            np.testing.assert_allclose(m.count, want.count, rtol=1e-14)
            np.testing.assert_allclose(m.m2, want.m2, rtol=1e-11)
    error = raised(cbnorm.mpi.moments, np.ones((3, 2)), weights=[1, 2, -1 if rank == 1 else 3])
    assert str(error).startswith("weights: ")


def check_inputs_of_any_form():
    want = None
    x, dout = random_arrays((6, 4), (6, 4), seed=rank)
    forms = (np.asfortranarray, lambda a: np.repeat(a, 2, 0)[::2], lambda a: a.astype(">f8"), np.ndarray.tolist)
    for form in (np.asarray, *forms):
        y, cache, *_ = cbnorm.mpi.batchnorm_forward(form(x), form(x[0]), form(x[1]))
        got = [y, *cbnorm.mpi.batchnorm_backward(form(dout), cache)]
        want = want or got
        assert_same_bits(got, want)
        np.testing.assert_allclose(cbnorm.mpi.standardize(form(x))[1].m2, cache.moments.m2, rtol=1e-14)
    for dtype in (np.float16, np.int8, np.bool_):
        values = (np.abs(x * 10) % 2).astype(dtype)
        y, cache, *_ = cbnorm.mpi.batchnorm_forward(values)
        dx, dgamma, _ = cbnorm.mpi.batchnorm_backward(dout, cache)
        assert y.dtype == dx.dtype == (np.float16 if dtype is np.float16 else np.float64)
        assert dgamma.dtype == (np.float32 if dtype is np.float16 else np.float64)


def check_docstrings():
    assert doctest.testmod(cbnorm.mpi).failed == 0


def main(names):
    checks = {name.removeprefix("check_"): value for name, value in globals().items() if name.startswith("check_")}
    for name in names or checks:
        if rank == 0:
            print(name, end=": ", flush=True)
        failure = None
        try:
            checks[name]()
        except Exception:
            failure = traceback.format_exc()
        failures = [f"rank {other}: {text}" for other, text in enumerate(comm.allgather(failure)) if text]
        if rank == 0:
            print("failed\n" + "\n".join(failures) if failures else "passed", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
