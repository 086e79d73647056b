"""scikit-learn's StandardScaler on cbnorm's statistics: one pass, accurate at any offset, scalers that merge."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

import cbnorm
from cbnorm._frames import columns_apart, is_copy, is_frame, is_polars

try:
    import sklearn
    import sklearn.preprocessing
    from scipy.sparse import issparse
    from sklearn.base import _fit_context
    from sklearn.utils import assert_all_finite, check_array
    from sklearn.utils.validation import FLOAT_DTYPES, _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("cbnorm.sklearn needs scikit-learn 1.6 or later: pip install 'cbnorm[sklearn]'") from error

__all__ = ["StandardScaler"]

MOST_ROUNDED = 1e4  # samples from which scikit-learn's bound of a constant feature grows no more


class StandardScaler(sklearn.preprocessing.StandardScaler):
    """Standardize features: scikit-learn's class, whose fit and transform read each number once.

    NaN is left out in `fit` and stays in `transform`; a feature without spread is only centred. Sparse input goes to
    scikit-learn's own code, as do other libraries' arrays where its `array_api_dispatch` is on.

    Parameters
    ----------
    copy, with_mean, with_std
        As in `sklearn.preprocessing.StandardScaler`.

    Attributes
    ----------
    mean_, var_, scale_, n_samples_seen_, n_features_in_, feature_names_in_
        As in `sklearn.preprocessing.StandardScaler`; float64.

    Notes
    -----
    Statistics are those of `cbnorm.moments`, which `partial_fit` and `merge` add up. `sample_weight` must not be
    negative. With ``copy=False`` a writable float array is transformed in place, without other memory if it has no
    gaps.

    A feature is constant where the standard deviation is at most n·2^-52 times the mean, as in scikit-learn, but n is
    taken to be no more than 10^4: that bound is one of errors which grow with n, and here do not.

    Examples
    --------
    >>> import numpy as np
    >>> from cbnorm.sklearn import StandardScaler
    >>> X = np.array([[1.0, 10.0], [3.0, np.nan], [8.0, 30.0]])
    >>> StandardScaler().fit(X).mean_
    array([ 4., 20.])
    """

    n_samples_seen_: Any
    mean_: Any
    var_: Any
    scale_: Any
    _moments: cbnorm.Moments  # what was seen; not there once scikit-learn's code has changed the attributes

    def _reset(self) -> None:
        super()._reset()
        self.__dict__.pop("_moments", None)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Take in a batch of samples.

        Parameters
        ----------
        X : {array-like, data frame, sparse matrix} of shape (n_samples, n_features)
            The samples. Contiguous float arrays, and columns of data frames, are read where they are.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), optional
            What each sample counts, from 0 up.

        Returns
        -------
        StandardScaler
            This one.

        Raises
        ------
        ValueError, TypeError
            If X is not numbers, holds an infinity, or does not fit what was seen before.
        """
        if _is_foreign(X):
            self.__dict__.pop("_moments", None)
            return super().partial_fit(X, y, sample_weight)
        first = not hasattr(self, "n_samples_seen_")
        columns = columns_apart(X)
        if columns is not None:
            validate_data(self, X, reset=first, skip_check_array=True)
            samples = columns[0]
        else:
            X = samples = self._checked(X, reset=first, ensure_all_finite=False)
        told = {"estimator": self, "X": X, "y": y, "metadata": {"sample_weight": sample_weight}}
        callbacks = self._init_callback_context() if getattr(self, "_skl_callbacks", None) else None  # from 1.9 on
        if callbacks:
            callbacks.call_on_fit_task_begin(**told)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, samples, dtype=np.float64)
        seen = _moments_of(X, weights) if columns is None else _joined([_moments_of(each, weights) for each in columns])
        self._take(seen if first else self._gathered() + seen)
        if callbacks:
            callbacks.call_on_fit_task_end(**told, reconstruction_attributes={})
        return self

    def fit_transform(self, X: ArrayLike, y: Any = None, **fit_params: Any) -> NDArray[Any]:
        """Fit, then transform the same samples, without looking twice for infinities.

        Parameters
        ----------
        X : {array-like, data frame, sparse matrix} of shape (n_samples, n_features)
            The samples.
        y : None
            Ignored.
        **fit_params : dict
            `sample_weight`.

        Returns
        -------
        {ndarray, sparse matrix} of shape (n_samples, n_features)
            As from `transform`.

        Raises
        ------
        ValueError, TypeError
            As from `partial_fit`.
        """
        if fit_params:  # samples of weight 0 were not read
            return super().fit_transform(X, y, **fit_params)
        self.fit(X, y)
        with sklearn.config_context(assume_finite=True):
            return self.transform(X)

    def transform(self, X: ArrayLike, copy: bool | None = None) -> NDArray[Any]:
        """Centre and scale.

        Parameters
        ----------
        X : {array-like, data frame, sparse matrix} of shape (n_samples, n_features)
            The samples.
        copy : bool, optional
            Whether X stays as it is; by default what the scaler was made with.

        Returns
        -------
        {ndarray, sparse matrix} of shape (n_samples, n_features)
            In the dtype of X, or float64 for integers; an array in the order in which X lies.

        Raises
        ------
        ValueError, TypeError
            If X is not numbers, holds an infinity, or has other features; nothing is written then.
        """
        if _is_foreign(X) or not (self.with_mean or self.with_std):
            return super().transform(X, copy)
        check_is_fitted(self)
        copy = self.copy if copy is None else copy
        values = self._checked(X, reset=False, ensure_all_finite="allow-nan", force_writeable=not copy)
        mean, mean_lo = np.zeros((2, self.n_features_in_))
        if self.with_mean:
            mean = self.mean_
            if "_moments" in self.__dict__ and np.array_equal(mean, self._moments.mean):
                mean_lo = self._moments.mean_lo
        variance = self.scale_**2 if self.with_std else np.ones(self.n_features_in_)
        units = cbnorm.Moments(1, mean, variance, mean_lo)
        return _written(units, values, not copy or is_copy(values, X))

    def inverse_transform(self, X: ArrayLike, copy: bool | None = None) -> NDArray[Any]:
        """Lead back: X·scale_ + mean_.

        Parameters
        ----------
        X : {array-like, data frame, sparse matrix} of shape (n_samples, n_features)
            Standardized samples.
        copy : bool, optional
            As in `transform`.

        Returns
        -------
        {ndarray, sparse matrix} of shape (n_samples, n_features)
            As from `transform`.

        Raises
        ------
        ValueError, TypeError
            As from `transform`.
        """
        if _is_foreign(X) or not (self.with_mean or self.with_std):
            return super().inverse_transform(X, copy)
        check_is_fitted(self)
        scale = self.scale_ if self.with_std else np.ones(self.n_features_in_)
        origin = -self.mean_ / scale if self.with_mean else np.zeros(self.n_features_in_)
        if not (np.abs(origin) < 1e30).all() or not ((scale > 1e-30) & (scale < 1e30)).all():
            return super().inverse_transform(X, copy)  # where float32 would not hold what comes in between
        copy = self.copy if copy is None else copy
        checks = {"dtype": FLOAT_DTYPES, "ensure_all_finite": "allow-nan", "force_writeable": not copy}
        values = check_array(X.to_numpy() if is_polars(X) else X, **checks)  # whatever its names
        if values.shape[1] != self.n_features_in_:
            raise ValueError(f"X: expected {self.n_features_in_} features, got {values.shape[1]}")
        units = cbnorm.Moments(1, origin, scale**-2)  # (X + mean/scale) / (1/scale)
        return _written(units, values, not copy or is_copy(values, X))

    def merge(self, other: sklearn.preprocessing.StandardScaler) -> Self:
        """Take in what another fitted scaler has seen, as if its samples had come to `partial_fit` here.

        Parameters
        ----------
        other : StandardScaler
            Fitted to the same features; scikit-learn's too.

        Returns
        -------
        StandardScaler
            This one.

        Raises
        ------
        ValueError, TypeError
            If `other` is not a scaler, is not fitted, has other features, or lacks a mean or variance that this one
            keeps.

        Examples
        --------
        >>> import numpy as np
        >>> from cbnorm.sklearn import StandardScaler
        >>> a, b = StandardScaler().fit([[1.0], [3.0]]), StandardScaler().fit([[8.0]])
        >>> a.merge(b).mean_
        array([4.])
        """
        other = self.from_sklearn(other, "other")
        lacking = {"with_mean": other.mean_ is None, "with_std": other.var_ is None}
        for option, lacks in lacking.items():
            if getattr(self, option) and lacks and "_moments" not in other.__dict__:
                raise ValueError(f"other: expected a scaler with {option}=True, as this one has, got {option}=False")
        if not hasattr(self, "n_samples_seen_"):
            for name in ("n_features_in_", "feature_names_in_"):
                if hasattr(other, name):
                    setattr(self, name, getattr(other, name))
            self._take(other._gathered())
            return self
        if other.n_features_in_ != self.n_features_in_:
            raise ValueError(f"other: expected {self.n_features_in_} features, got {other.n_features_in_}")
        names, others = (getattr(each, "feature_names_in_", None) for each in (self, other))
        if names is not None and others is not None and list(names) != list(others):
            raise ValueError(f"other: expected the features {list(names)}, got {list(others)}")
        self._take(self._gathered() + other._gathered())
        return self

    @classmethod
    def from_sklearn(cls, scaler: sklearn.preprocessing.StandardScaler, name: str = "scaler") -> Self:
        """Return a copy of a fitted scaler, scikit-learn's or one of these; `name` is what errors call it."""
        if not isinstance(scaler, sklearn.preprocessing.StandardScaler):
            raise TypeError(f"{name}: expected a StandardScaler, got {type(scaler).__name__}")
        check_is_fitted(scaler)
        return _filled(cls(**scaler.get_params()), scaler)

    def to_sklearn(self) -> sklearn.preprocessing.StandardScaler:
        """Return the same as scikit-learn's own class."""
        check_is_fitted(self)
        scaler = _filled(sklearn.preprocessing.StandardScaler(**self.get_params()), self)
        scaler.__dict__.pop("_moments", None)
        return scaler

    def _checked(self, X: Any, reset: bool, **checks: Any) -> NDArray[Any]:
        """X as an array, if it passes scikit-learn's checks."""
        if is_polars(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            return check_array(X.to_numpy(), dtype=FLOAT_DTYPES, estimator=self, input_name="X", **checks)
        return validate_data(self, X, dtype=FLOAT_DTYPES, reset=reset, **checks)

    def _gathered(self) -> cbnorm.Moments:
        """What was seen so far, also by scikit-learn's code; NaN for what that did not keep."""
        if "_moments" not in self.__dict__:
            count = np.broadcast_to(self.n_samples_seen_, (self.n_features_in_,))
            lacking = np.full(count.shape, np.nan)
            mean = lacking if self.mean_ is None else self.mean_
            var = lacking if self.var_ is None else self.var_
            self._moments = cbnorm.Moments(count, mean, np.where(count == 0, 0.0, var * count))
        return self._moments

    def _take(self, moments: cbnorm.Moments) -> None:
        """Set the attributes from what was seen: arrays of their own, as scikit-learn's code may write to them."""
        self._moments = moments
        count = np.array(moments.count)
        same = count.ndim == 0 or (count == count.flat[0]).all()
        self.n_samples_seen_ = count.flat[0] if same else count
        self.mean_ = np.array(moments.mean) if self.with_mean or self.with_std else None
        self.var_ = self.scale_ = None
        if self.with_std:
            self.var_ = moments.var()
            eps = np.finfo(np.float64).eps
            with np.errstate(all="ignore"):
                bound = count * eps * self.var_ + (np.minimum(count, MOST_ROUNDED) * self.mean_ * eps) ** 2
                constant = (self.var_ <= bound) & np.isfinite(self.var_)  # else NaN in transform
                self.scale_ = np.where(constant, 1.0, np.sqrt(self.var_))


def _is_foreign(X: Any) -> bool:
    """Whether scikit-learn's own code takes it."""
    if issparse(X):
        return True
    own = isinstance(X, np.ndarray | list | tuple) or is_frame(X)
    return not own and sklearn.get_config()["array_api_dispatch"]


def _moments_of(X: NDArray[Any], weights: NDArray[np.float64] | None) -> cbnorm.Moments:
    """Those of each column of a table, or of one column; as most hold no NaN, only these are read again without it."""
    seen = cbnorm.moments(X, weights=weights)
    if not _are_finite(seen):
        seen = cbnorm.moments(X, weights=weights, nan_policy="omit")
        if not _are_finite(seen):  # infinities in X, or squares that float64 does not hold
            assert_all_finite(X, allow_nan=True, estimator_name="StandardScaler", input_name="X")
    if weights is None:
        return seen
    count = np.broadcast_to(np.float64(seen.count), seen.mean.shape)  # whole numbers too are weights, not samples
    return cbnorm.Moments(count, seen.mean, seen.m2, seen.mean_lo)


def _are_finite(moments: cbnorm.Moments) -> bool:
    return bool((np.isfinite(moments.mean + moments.m2) | (np.asarray(moments.count) == 0)).all())


def _joined(columns: list[cbnorm.Moments]) -> cbnorm.Moments:
    """The moments of a table from those of its columns."""
    count = np.array([each.count for each in columns])
    mean, m2, mean_lo = (np.array([getattr(each, name) for each in columns]) for name in ("mean", "m2", "mean_lo"))
    return cbnorm.Moments(count, mean, m2, mean_lo)


def _written(units: cbnorm.Moments, values: NDArray[Any], in_place: bool) -> NDArray[Any]:
    """(values - mean) / std, in place where they may go."""
    if not in_place:
        return units.standardize(values)
    if values.flags.forc:
        return units.standardize(values, out=values)
    values[...] = units.standardize(values)
    return values


def _filled(scaler: Any, other: Any) -> Any:
    """The scaler with copies of all that another one has besides its parameters."""
    state = {name: np.copy(value) if isinstance(value, np.ndarray) else value for name, value in vars(other).items()}
    scaler.__dict__.update(state)
    return scaler
