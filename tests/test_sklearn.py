"""cbnorm.sklearn.StandardScaler beside scikit-learn's."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")
from scipy import sparse
from sklearn import preprocessing
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
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


def test_dense_and_sparse_batches_mix():
    X = table(offset=0)
    got = StandardScaler(with_mean=False).partial_fit(X[:100])
    got.partial_fit(sparse.csr_array(X[100:200])).partial_fit(X[200:])
    assert_same_scaler(got, StandardScaler(with_mean=False).fit(X))


@pytest.mark.parametrize("with_std", [True, False])
def test_attributes_are_as_scikit_learn_may_write_them(with_std):
    X = table()
    X[3, 2] = np.nan
    got = StandardScaler(with_mean=False, with_std=with_std).fit(X).to_sklearn().partial_fit(X)
    want = preprocessing.StandardScaler(with_mean=False, with_std=with_std).fit(np.concatenate([X, X]))
    np.testing.assert_array_equal(got.n_samples_seen_, want.n_samples_seen_)


@pytest.mark.parametrize("name", ["fit", "transform", "fit_transform", "inverse_transform"])
@pytest.mark.parametrize("copy", [True, False])
def test_infinities_are_refused_as_by_scikit_learn(name, copy):
    scaler, X = StandardScaler(copy=copy).fit(table()), table()
    X[5, 1], X[6, 2] = np.nan, np.inf
    given = X.copy()
    with pytest.raises(ValueError, match="contains infinity"):
        getattr(scaler, name)(X)
    np.testing.assert_array_equal(X, given)


def test_squares_beyond_float64_are_not_taken_for_infinities():
    X = table()
    X[:, 1] *= 1e200
    scaler = StandardScaler().fit(X)
    assert np.isinf(scaler.var_[1])
    np.testing.assert_allclose(scaler.mean_, X.mean(axis=0))
    y = scaler.transform(X)
    assert np.isnan(y[:, 1]).all()  # as from scikit-learn
    assert np.isfinite(np.delete(y, 1, axis=1)).all()


def test_a_feature_far_from_zero_is_constant_only_if_it_is():
    X = np.random.default_rng(0).normal(1.7e9, 0.1, (1_000_000, 1))  # scikit-learn's bound is 0.38 here
    scaler = StandardScaler().fit(X)
    assert scaler.scale_.item() == pytest.approx(0.1, rel=1e-2)
    y = scaler.transform(X)
    assert (abs(y.mean()), y.std()) == (pytest.approx(0, abs=1e-9), pytest.approx(1))
    assert scaler.fit(np.full((1000, 1), 0.1)).scale_.item() == 1
    assert scaler.fit([[0.1 + 0.2], [0.3]] * 100).scale_.item() == 1  # apart by rounding


def test_rows_that_come_one_by_one_lose_nothing():
    X = np.random.default_rng(0).normal(1e6, 1, (3000, 2))
    got = StandardScaler()
    for row in X:
        got.partial_fit(row[np.newaxis])
    exact = X.astype(np.longdouble)
    mean = exact.mean(axis=0)
    std = np.sqrt(((exact - mean) ** 2).mean(axis=0))
    np.testing.assert_allclose(got.scale_, std.astype(float), rtol=1e-12)
    np.testing.assert_allclose(got.transform(X), ((exact - mean) / std).astype(float), rtol=0, atol=2e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("copy", [True, False])
def test_inverse_transform_leads_back(dtype, order, copy):
    X = np.asarray(table(offset=100), dtype, order=order)
    X[:, 4] = 5
    X[1, 1] = np.nan
    scaler = StandardScaler(copy=copy).fit(X)
    y = scaler.transform(X.copy(order="K"))
    back = scaler.inverse_transform(y)
    assert (back.dtype, np.shares_memory(back, y)) == (X.dtype, not copy)
    accuracy = (np.finfo(dtype).eps * 3 + (2e-3 if dtype is np.float16 else 0)) * 130
    np.testing.assert_allclose(back, X, rtol=0, atol=accuracy)
    with pytest.raises(ValueError, match="features"):
        scaler.inverse_transform(X[:, :3])


def test_arrays_with_gaps_are_transformed_in_place_too():
    wide = np.asarray(table(columns=14), np.float32)
    X, want = wide[:, ::2], StandardScaler().fit_transform(wide[:, ::2].copy())
    kept = wide[:, 1::2].copy()
    y = StandardScaler(copy=False).fit_transform(X)
    assert np.shares_memory(y, X)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(wide[:, 1::2], kept)


def test_merge_from_nothing_and_what_it_refuses():
    X = table()
    parts = [StandardScaler().fit(X[:100]), StandardScaler().fit(X[100:120]), StandardScaler().fit(X[120:])]
    whole = StandardScaler()
    for part in parts:
        whole.merge(part)
    assert_same_scaler(whole, StandardScaler().fit(X))
    with pytest.raises(TypeError, match="other: expected a StandardScaler, got int"):
        whole.merge(3)
    with pytest.raises(NotFittedError):
        whole.merge(StandardScaler())
    with pytest.raises(ValueError, match="other: expected 7 features, got 3"):
        whole.merge(StandardScaler().fit(X[:, :3]))
    plain = preprocessing.StandardScaler(with_std=False).fit(X)
    with pytest.raises(ValueError, match="other: expected a scaler with with_std=True"):
        whole.merge(plain)
    mean_only = StandardScaler.from_sklearn(plain).partial_fit(X).merge(plain)
    assert (mean_only.n_samples_seen_, mean_only.var_) == (900, None)
    np.testing.assert_allclose(mean_only.mean_, X.mean(axis=0), rtol=1e-12)


def test_weights_of_features_with_missing_values():
    X, weights = table(), np.random.default_rng(1).random(300)
    X[::3, 1] = np.nan
    got = StandardScaler().partial_fit(X[:50], sample_weight=weights[:50]).partial_fit(X[50:], None, weights[50:])
    assert_same_sums(got, preprocessing.StandardScaler().fit(X, sample_weight=weights))
    assert got.partial_fit(X).n_samples_seen_[1] == pytest.approx(weights[~np.isnan(X[:, 1])].sum() + 200)
    assert StandardScaler().fit(X[:, :1], sample_weight=np.ones(300)).n_samples_seen_.dtype == np.float64
    with pytest.raises(ValueError, match="weights"):
        got.fit(X, sample_weight=-weights)


def assert_same_sums(got, want):
    for name in ("mean_", "var_", "scale_", "n_samples_seen_"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-9)


def test_a_feature_that_is_missing_at_first():
    X = table()
    X[:100, 2] = np.nan
    got = StandardScaler().partial_fit(X[:100])
    assert np.isnan(got.mean_[2])
    assert (got.n_samples_seen_[2], np.isnan(got.transform(X)[:, 2]).all()) == (0, True)
    got.partial_fit(X[100:])
    np.testing.assert_allclose(got.mean_, np.nanmean(X, axis=0), rtol=1e-12)


def test_parameters_are_checked_and_callbacks_told():
    with pytest.raises(ValueError, match="with_mean"):
        StandardScaler(with_mean="yes").fit(table())
    base = pytest.importorskip("sklearn.callback", reason="from scikit-learn 1.9 on")

    class Heard:
        heard = ()

        def setup(self, *_, **__):
            pass

        teardown = setup

        def on_fit_task_begin(self, *_, **__):
            self.heard += ("begin",)

        def on_fit_task_end(self, *_, **__):
            self.heard += ("end",)

    callback = Heard()
    assert isinstance(callback, base.FitCallback)
    StandardScaler().set_callbacks(callback).fit(table())
    assert callback.heard == ("begin", "end")


def test_infinities_in_samples_that_do_not_count_are_refused_by_transform():
    X = table()
    X[5, 1] = np.inf
    weights = np.arange(300) != 5
    assert np.isfinite(StandardScaler().fit(X, sample_weight=weights).mean_).all()
    with pytest.raises(ValueError, match="Input X contains infinity"):
        StandardScaler().fit_transform(X, sample_weight=weights)


@pytest.mark.slow
def test_scikit_learns_tests_of_its_scaler():
    code = """
import sys
import pytest
import sklearn.preprocessing._data
from sklearn.preprocessing.tests import test_data
from cbnorm.sklearn import StandardScaler
for module in (sklearn.preprocessing, sklearn.preprocessing._data, test_data):
    module.StandardScaler = StandardScaler
chosen = "scaler or scale or partial or identity or center or copy or one_to_one or feature"
sys.exit(pytest.main(["-q", "-c", "/dev/null", "-p", "no:cacheprovider", "-k", chosen, test_data.__file__]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
