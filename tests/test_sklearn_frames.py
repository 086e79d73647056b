"""cbnorm.sklearn.StandardScaler of data frames: read where their columns lie, and what memory that takes."""

import tracemalloc

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn import preprocessing

from cbnorm._frames import columns_apart
from cbnorm.sklearn import StandardScaler

ROWS, COLUMNS = 100_000, 8
BYTES = ROWS * COLUMNS * 4


@pytest.fixture(name="X", scope="module")
def numbers():
    return np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32) + 100


def pandas_table(X):
    return pytest.importorskip("pandas").DataFrame(X, columns=list("abcdefgh"))


def pandas_apart(X):
    frame = pytest.importorskip("pandas").DataFrame(index=range(len(X)))
    for name, values in zip("abcdefgh", X.T, strict=True):
        frame[name] = values.copy()
    return frame


def polars_table(X):
    return pytest.importorskip("polars").DataFrame(np.asfortranarray(X), schema=list("abcdefgh"))


def polars_apart(X):
    columns = {name: values.copy() for name, values in zip("abcdefgh", X.T, strict=True)}
    return pytest.importorskip("polars").DataFrame(columns)


FRAMES = [pandas_table, pandas_apart, polars_table, polars_apart]


def peak(function):
    """What a call takes at most, and its result."""
    tracemalloc.start()
    result = function()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most, result


@pytest.mark.parametrize("make", FRAMES)
def test_frames_give_what_arrays_give(make, X):
    frame, of_array = make(X), StandardScaler().fit(X)
    scaler = StandardScaler().fit(frame)
    np.testing.assert_allclose(scaler.mean_, of_array.mean_, rtol=1e-12)
    np.testing.assert_allclose(scaler.scale_, of_array.scale_, rtol=1e-12)
    assert (scaler.n_samples_seen_, list(scaler.feature_names_in_)) == (ROWS, list("abcdefgh"))
    y = scaler.transform(frame)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, of_array.transform(X), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(frame), X)
    kind = type(frame).__module__.split(".")[0]
    out = scaler.set_output(transform=kind).transform(frame)
    assert (type(out), list(out.columns)) == (type(frame), list("abcdefgh"))
    np.testing.assert_array_equal(np.asarray(out), y)


@pytest.mark.not_sanitized(reason="counts memory")
@pytest.mark.parametrize("make", FRAMES)
def test_no_copy_of_the_frame_is_made(make, X):
    frame = make(X)
    scaler = StandardScaler().fit(frame)
    assert peak(lambda: StandardScaler().fit(frame))[0] < BYTES / 10
    assert peak(lambda: scaler.transform(frame))[0] < BYTES * 1.1  # the result


@pytest.mark.parametrize("make", [pandas_apart, polars_apart])
def test_columns_of_several_dtypes_and_missing_values(make, X):
    frame = make(X[:50])
    pandas = hasattr(frame, "iloc")
    if pandas:
        frame = frame.astype({"b": np.float64, "c": np.int32})
        frame.loc[3, "a"] = np.nan
    else:
        import polars

        frame = frame.cast({"b": polars.Float64, "c": polars.Int32})
        frame[3, "a"] = None
    assert columns_apart(frame) is not None
    weights = np.random.default_rng(1).random(50)
    for sample_weight in (None, weights):
        got, want = (
            each.fit(frame, sample_weight=sample_weight) for each in (StandardScaler(), preprocessing.StandardScaler())
        )
        np.testing.assert_allclose(got.mean_, want.mean_, rtol=1e-9)
        np.testing.assert_allclose(got.var_, want.var_, rtol=1e-6)
        np.testing.assert_allclose(got.n_samples_seen_, want.n_samples_seen_, rtol=1e-6)
        np.testing.assert_allclose(got.transform(frame), want.transform(frame), rtol=0, atol=1e-6)
    if pandas:
        frame.loc[4, "h"] = np.inf
    else:
        frame[4, "h"] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        StandardScaler().fit(frame)
    with pytest.raises(ValueError, match="feature names"):
        got.partial_fit(frame[["b", "a"]])


def test_columns_of_other_kinds():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": pandas.array([1, None, 5], dtype="Int64"), "b": [True, False, True]})
    got, want = StandardScaler().fit(frame), preprocessing.StandardScaler().fit(frame)
    np.testing.assert_allclose(got.mean_, want.mean_)
    words = pandas.DataFrame({"a": ["one"], "b": ["two"]})
    assert columns_apart(words) is None
    with pytest.raises(ValueError, match="convert"):
        StandardScaler().fit(words)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.not_sanitized(reason="counts memory")
def test_memory_of_arrays(X, order):
    X = np.array(X, order=order)
    scaler = StandardScaler().fit(X)
    assert peak(lambda: StandardScaler().fit(X))[0] < BYTES / 10
    most, y = peak(lambda: scaler.transform(X))
    assert most < BYTES * 1.1
    assert y.strides == X.strides
    for name in ("transform", "inverse_transform"):
        most, y = peak(lambda name=name: getattr(scaler, name)(X, copy=False))
        assert np.shares_memory(X, y)
        assert most < BYTES / 10


def test_lists_and_integers_are_transformed_in_their_copy():
    X = np.arange(24_000).reshape(-1, 3)
    scaler = StandardScaler().fit(X)
    most, y = peak(lambda: scaler.transform(X))
    assert y.dtype == np.float64
    assert most < X.nbytes * 1.5
    np.testing.assert_allclose(y, preprocessing.StandardScaler().fit_transform(X))
    np.testing.assert_allclose(scaler.transform(X.tolist()), y)
