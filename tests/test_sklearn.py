"""cbnorm.sklearn.StandardScaler beside scikit-learn's."""

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn")
from scipy import sparse
from sklearn import preprocessing
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from cbnorm.sklearn import StandardScaler


@parametrize_with_checks([StandardScaler(), StandardScaler(with_mean=False), StandardScaler(with_std=False)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def table(rows=300, columns=7, seed=0, offset=3.0):
    random = np.random.default_rng(seed)
    return random.standard_normal((rows, columns)) * np.arange(1, columns + 1) + offset


def assert_same_scaler(got, want):
    for name in ("mean_", "var_", "scale_"):
        mine, theirs = getattr(got, name), getattr(want, name)
        if theirs is None:
            assert mine is None
        else:
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(got.n_samples_seen_, want.n_samples_seen_)


@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize("with_std", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
@pytest.mark.parametrize("order", ["C", "F"])
def test_agrees_with_scikit_learn(with_mean, with_std, dtype, order):
    X = np.asarray(table(), dtype, order=order)
    if X.dtype.kind == "f":
        X[3, 2] = X[7, 0] = np.nan
    X[:, 4] = 5  # without spread
    options = {"with_mean": with_mean, "with_std": with_std}
    got, want = StandardScaler(**options), preprocessing.StandardScaler(**options)
    for part in (slice(0, 100), slice(100, 101), slice(101, 300)):
        got.partial_fit(X[part])
        want.partial_fit(X[part])
    assert_same_scaler(got, want)
    given = X.copy()
    y = got.transform(X)
    np.testing.assert_array_equal(X, given)
    assert y.dtype == want.transform(X).dtype
    tolerance = {np.float16: 2e-2, np.float32: 1e-5}.get(dtype, 1e-9)
    np.testing.assert_allclose(y, want.transform(X), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(got.inverse_transform(y), X, rtol=tolerance, atol=20 * tolerance)


@pytest.mark.parametrize("order", ["C", "F"])
def test_in_place_where_copy_is_false(order):
    X = np.asarray(table(), np.float32, order=order)
    want = StandardScaler().fit_transform(X)
    y = StandardScaler(copy=False).fit_transform(X)
    assert np.shares_memory(X, y)
    np.testing.assert_array_equal(X, want)


def test_sample_weights_are_repetitions():
    X, times = table(), np.random.default_rng(1).integers(0, 4, 300)
    got, want = StandardScaler().fit(X, sample_weight=times), preprocessing.StandardScaler().fit(np.repeat(X, times, 0))
    np.testing.assert_allclose(got.mean_, want.mean_, rtol=1e-12)
    np.testing.assert_allclose(got.var_, want.var_, rtol=1e-12)


def test_accuracy_far_from_zero():
    X = (table(20000, 5, offset=0) + 1e3).astype(np.float32)
    y = StandardScaler().fit_transform(X)
    assert np.abs(y.astype(np.float64).mean(axis=0)).max() < 1e-6
    exact = X.astype(np.float64)
    want = (exact - exact.mean(axis=0)) / exact.std(axis=0)
    np.testing.assert_allclose(y, want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_merges_and_converts_both_ways():
    X = table()
    whole, theirs = StandardScaler().fit(X), preprocessing.StandardScaler().fit(X[:100])
    for first in (StandardScaler().fit(X[:100]), StandardScaler.from_sklearn(theirs)):
        assert_same_scaler(first.merge(StandardScaler().fit(X[100:])), whole)
    assert_same_scaler(StandardScaler.from_sklearn(theirs).partial_fit(X[100:]), whole)
    back = whole.to_sklearn()
    assert type(back) is preprocessing.StandardScaler
    np.testing.assert_allclose(back.transform(X), whole.transform(X), rtol=0, atol=1e-12)
    back.partial_fit(X)


def test_sparse_input_is_scikit_learns():
    X = sparse.random_array((50, 4), density=0.3, rng=np.random.default_rng(0), format="csr")
    got, want = StandardScaler(with_mean=False).fit(X), preprocessing.StandardScaler(with_mean=False).fit(X)
    assert_same_scaler(got, want)
    np.testing.assert_array_equal(got.transform(X).toarray(), want.transform(X).toarray())


def test_pipelines_searches_copies_and_frames():
    X, target = table(), (table()[:, 0] > 3).astype(int)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression()),
        {"standardscaler__with_mean": [True, False]},
        n_jobs=2,
        cv=3,
    )
    assert search.fit(X, target).best_score_ > 0.9
    scaler = StandardScaler().fit(X)
    assert not hasattr(clone(scaler), "mean_")
    again = pickle.loads(pickle.dumps(scaler)).partial_fit(X)
    assert again.n_samples_seen_ == 600
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcdefg"))
    y = StandardScaler().set_output(transform="pandas").fit_transform(frame)
    assert list(y.columns) == list("abcdefg")
    np.testing.assert_allclose(y, scaler.transform(X), rtol=0, atol=1e-12)
