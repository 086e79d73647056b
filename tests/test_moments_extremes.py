"""Moments and population statistics where numbers end, and from many threads at once."""

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

import cbnorm

HUGE = 1.7e308


def bits(moments):
    return moments.count, moments.mean.tobytes(), moments.mean_lo.tobytes(), moments.m2.tobytes()


@pytest.mark.parametrize("sizes", [(5, 5), (5, 8)])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_merge_to_the_same_bits_in_either_order(sizes, offset):
    x = np.random.default_rng(0).standard_normal((13, 500)) + offset
    a, b = cbnorm.moments(x[: sizes[0]]), cbnorm.moments(x[-sizes[1] :])
    assert bits(a + b) == bits(b + a)
    a, b = a + cbnorm.moments(x[:3]), b + cbnorm.moments(x[:3])  # with something in mean_lo
    assert bits(a + b) == bits(b + a)


@pytest.mark.parametrize("counts", [(2, 2), (1, 3), (3, 1)])
def test_merged_infinities_of_one_sign_are_the_mean_and_of_both_have_none(counts):
    values = (1.0, np.inf, -np.inf, np.nan)
    for one, other in itertools.product(values, values):
        a, b = (
            cbnorm.Moments(count, [value], [0.0 if np.isfinite(value) else np.nan])
            for value, count in zip((one, other), counts, strict=True)
        )
        got = a + b
        want = one + other  # inf - inf is NaN
        if not np.isfinite(want):
            np.testing.assert_array_equal(got.mean, want)
            assert np.isnan(got.var())


@pytest.mark.parametrize("counts", [(1, 1), (1, 3), (3, 1)])
def test_the_mean_of_merged_huge_values_is_finite_and_right(counts):
    a, b = (cbnorm.Moments(count, [value, value], [0, 0]) for count, value in zip(counts, (HUGE, -HUGE), strict=True))
    got = a + b
    np.testing.assert_allclose(got.mean, HUGE * ((counts[0] - counts[1]) / sum(counts)), rtol=1e-15, atol=0)
    np.testing.assert_array_equal(got.var(), np.inf)
    got = a + cbnorm.Moments(counts[1], [HUGE, HUGE / 2], [0, 0])
    np.testing.assert_array_equal(got.mean[0], HUGE)
    assert got.mean[1] == pytest.approx(HUGE * ((counts[0] + counts[1] / 2) / sum(counts)), rel=1e-15)
    assert got.m2[0] == 0


def test_nothing_that_vanishes_or_overflows_raises_where_numpy_is_told_to():
    tiny, huge = np.array([[1e-300, 2e-308], [3e-300, 5e-324]]), np.array([[1e200, HUGE], [-1e200, -HUGE]])
    special = np.array([[np.nan, np.inf], [1.0, -np.inf]])
    for x in (tiny, huge, special):
        with np.errstate(all="raise"):
            p = cbnorm.PopulationStats()
            for _ in range(3):
                p.update(x)
            p = p + p
            p.var(1)
            p.batch_average()
            m = cbnorm.moments(x) + cbnorm.moments(tiny) + cbnorm.moments(huge)
            m.var(m.count - 1e-300)
            m.std(1)
            cbnorm.parts.normalize(x, m)
            sums = cbnorm.parts.gradient_sums(x, x, m)
            sums = sums + sums
            for forward in (cbnorm.layernorm_forward, cbnorm.rmsnorm_forward):
                forward(x, eps=0.0)
            cbnorm.batchnorm_forward(x, moving_mean=x[0], moving_var=abs(x[1]))


@pytest.mark.parametrize("count", [2**63, 10**400])
def test_a_count_of_any_size_is_refused_by_name(count):
    for record in (cbnorm.Moments, cbnorm.parts.GradientSums):
        with pytest.raises(ValueError, match=r"^count: expected 0 to 9223372036854775807, got 1?9?"):
            record(count, [1.0], [1.0])
    most = cbnorm.Moments(2**63 - 1, [1.0], [1.0])
    assert (most + most).var().item() == pytest.approx(2**-63)


def test_several_threads_update_population_statistics_and_no_batch_is_lost():
    p = cbnorm.PopulationStats()
    x = np.arange(6.0).reshape(3, 2)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(lambda: [p.update(x) for _ in range(2_000)]) for _ in range(8)]:
            done.result()
    assert (p.batches, p.count) == (16_000, 48_000)
    np.testing.assert_allclose(p.mean, [2.0, 3.0], rtol=1e-13)
    np.testing.assert_allclose(p.batch_average()[0], [2.0, 3.0], rtol=1e-12)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_of_a_process_whose_threads_update_goes_on_updating():
    p = cbnorm.PopulationStats()
    stop = threading.Event()

    def update():
        while not stop.is_set():
            p.update(np.ones((2, 1)))

    threads = [threading.Thread(target=update) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                before = p.batches
                p.update(np.ones((2, 1)))
                os._exit(0 if (p.batches, p.count) == (before + 1, 2 * before + 2) else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, ">i8"])
@pytest.mark.parametrize(("shape", "axis"), [((50, 3), 0), ((3, 50), 1), ((4, 3, 10), (0, 2)), ((5, 10), None)])
@pytest.mark.parametrize("place", [2**53 + 1, 1_700_000_000_123_456_789, 2**63 - 60_000])
def test_integers_that_no_float_holds_keep_their_variance(dtype, shape, axis, place):
    x = (np.random.default_rng(0).integers(0, 500, shape) * 100 + place).astype(dtype)
    got = cbnorm.moments(x, axis)
    small = cbnorm.moments((x.astype(object) - place).astype(np.int64), axis)  # exact
    np.testing.assert_allclose(got.var(), small.var(), rtol=1e-13)
    for mean, mean_lo, want in zip(got.mean.flat, got.mean_lo.flat, small.mean.flat, strict=True):
        assert abs(float(Fraction(mean.item()) + Fraction(mean_lo.item()) - place - Fraction(want.item()))) < 1e-9
    if len(shape) > 1 and axis == 0:
        p = cbnorm.PopulationStats()
        for part in np.array_split(x, 7):
            p.update(part)
        np.testing.assert_allclose(p.var(), small.var(), rtol=1e-12)
        np.testing.assert_allclose(cbnorm.parts.moments(x).var(), small.var(), rtol=1e-13)


def test_integers_as_far_apart_as_they_go():
    x = np.array([[-(2**63), 2**63 - 1, 5], [2**63 - 1, 2**63 - 1, 6]])
    got = cbnorm.moments(x)
    np.testing.assert_allclose(got.mean + got.mean_lo, [-0.5, 2.0**63, 5.5], atol=1)
    np.testing.assert_allclose(got.var(), [2.0**126, 0, 0.25], rtol=1e-15)
    got = cbnorm.moments(np.array([0, 2**64 - 1, 2**64 - 1], np.uint64), None)
    assert got.var() == pytest.approx(2.0**128 * 2 / 9, rel=1e-15)
