"""cbnorm.dask: any chunks give what one array gives, in threads and worker processes, also where one of them dies."""

import os

import numpy as np
import pytest
from cases import DTYPES, assert_same_bits, sample

import cbnorm

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
import cbnorm.dask  # noqa: E402

CHUNKS = {
    "one": (40, 6, 5),
    "rows": (7, 6, 5),
    "everywhere": (9, 4, 2),
    "uneven, with empty ones": ((0, 1, 30, 0, 9), (6,), (5, 0)),
}


def assert_same_moments(got, want):
    assert got.count == want.count
    std = np.sqrt(want.var())
    assert np.all(np.abs((got.mean - want.mean) + (got.mean_lo - want.mean_lo)) <= 1e-12 * std)
    np.testing.assert_allclose(got.var(), want.var(), rtol=1e-11)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("axis", [0, 1, (0, 2), (0, 1, 2), None, -1])
@pytest.mark.parametrize("dtype", [*DTYPES, np.uint8, np.float16])
def test_moments_and_standardize_over_any_chunks(chunks, axis, dtype):
    offset = 1e6 if np.dtype(dtype).itemsize >= 4 else 10
    x = sample((40, 6, 5), dtype, offset)
    lazy = da.from_array(x, chunks=CHUNKS[chunks])
    assert_same_moments(cbnorm.dask.moments(lazy, axis).compute(), cbnorm.moments(x, axis))
    kept = cbnorm.dask.moments(lazy, axis, keepdims=True).compute()
    assert kept.mean.shape == cbnorm.moments(x, axis, keepdims=True).mean.shape
    y, m = cbnorm.dask.standardize(lazy, axis)
    want, _ = cbnorm.standardize(x, axis)
    assert y.dtype == want.dtype
    assert y.chunks == lazy.chunks
    np.testing.assert_allclose(y.compute(), want, rtol=0, atol={2: 2e-3, 4: 3e-6}.get(want.itemsize, 1e-9))
    back = m.unstandardize(y, axis).compute()
    np.testing.assert_allclose(back, x.astype(back.dtype), rtol=1e-3 if want.itemsize == 2 else 2e-7)


def test_unknown_sizes_merging_and_several_results_at_once():
    x = sample((50, 3), offset=5)
    lazy = da.from_array(x, chunks=(8, 3))
    some = lazy[lazy[:, 0] > 5]
    m = cbnorm.dask.moments(some)
    assert_same_moments(m.compute(), cbnorm.moments(x[x[:, 0] > 5]))
    both = sum([cbnorm.dask.moments(lazy), cbnorm.dask.moments(lazy + 1)])
    assert_same_moments(both.compute(), cbnorm.moments(x) + cbnorm.moments(x + 1))
    moments, var = dask.compute(m, m.var(ddof=1))
    np.testing.assert_allclose(var, moments.var(ddof=1), rtol=1e-12)
    assert_same_bits(m.persist().compute().mean, moments.mean)


def test_bits_depend_on_chunks_alone():
    x = da.from_array(sample((1000, 4), np.float32, 1e4), chunks=(37, 4))
    found = []
    for scheduler in ("synchronous", "threads"):
        m = cbnorm.dask.moments(x).compute(scheduler=scheduler)
        found.append([m.mean, m.mean_lo, m.m2])
    with dask.config.set({"split_every": 2}):
        m = cbnorm.dask.moments(x).compute()
        found.append([m.mean, m.mean_lo, m.m2])
    for other in found[1:]:
        assert_same_bits(other, found[0])


def test_population_statistics_of_chunks():
    x = sample((20, 3, 4), offset=2)
    p = cbnorm.dask.population_stats(da.from_array(x, chunks=(6, 2, 4))).compute()
    assert (p.batches, p.count) == (4, 80)
    np.testing.assert_allclose(p.var(), x.var(axis=(0, 2)))
    p.update(x)
    assert p.count == 160


def test_wrong_arguments_are_refused_before_anything_is_computed():
    x = da.ones((4, 3), chunks=2)
    for call, error, words in (
        (lambda: cbnorm.dask.moments(np.ones((4, 3))), TypeError, "x: expected a dask.array.Array, got ndarray"),
        (lambda: cbnorm.dask.moments(x, axis=2), ValueError, "axis: expected -2 to 1"),
        (lambda: cbnorm.dask.moments(x, axis=(0, 0)), ValueError, "axis: expected each axis once"),
        (lambda: cbnorm.dask.moments(x.astype("c16")), TypeError, "x: expected real numbers"),
        (lambda: cbnorm.dask.moments(x, split_every=1), ValueError, "split_every: expected an integer"),
        (lambda: cbnorm.dask.standardize(x, ddof="1"), TypeError, "ddof: expected a number"),
        (lambda: cbnorm.dask.moments(x).standardize(da.ones((2, 2, 2))), ValueError, "x: expected 1 axes"),
    ):
        with pytest.raises(error, match=words):
            call()


@pytest.mark.launch
@pytest.mark.parametrize("dies", [False, True])
def test_worker_processes_even_where_one_dies(dies, tmp_path):
    distributed = pytest.importorskip("distributed")
    x = sample((400, 8), np.float32, 1e6)

    def chunk_of(block, mark):
        if mark is not None and block[0, 0] == x[200, 0] and not mark.exists():
            mark.touch()
            os._exit(1)  # as if it were killed
        return block

    mark = tmp_path / "died" if dies else None
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit="1GB"
        ) as cluster,
        distributed.Client(cluster),
    ):
        lazy = da.from_array(x, chunks=(50, 8)).map_blocks(chunk_of, mark, dtype=x.dtype, meta=x[:0])
        m = cbnorm.dask.moments(lazy).compute()
    assert mark is None or mark.exists()
    want = cbnorm.dask.moments(da.from_array(x, chunks=(50, 8))).compute(scheduler="synchronous")
    assert_same_bits([m.mean, m.mean_lo, m.m2], [want.mean, want.mean_lo, want.m2])
    assert_same_moments(m, cbnorm.moments(x))
