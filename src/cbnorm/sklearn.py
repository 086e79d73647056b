"""scikit-learn's StandardScaler on cbnorm's statistics: one pass, accurate at any offset, scalers that merge."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

import cbnorm

try:
    import sklearn.preprocessing
    from scipy.sparse import issparse
    from sklearn.utils.validation import FLOAT_DTYPES, _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("cbnorm.sklearn needs scikit-learn 1.6 or later: pip install 'cbnorm[sklearn]'") from error

__all__ = ["StandardScaler"]


class StandardScaler(sklearn.preprocessing.StandardScaler):
    """Standardize features: scikit-learn's class, whose fit and transform read each number once.

    Sparse input goes to scikit-learn's own code. NaN is left out in `fit` and stays in `transform`; a feature without
    spread is only centred.

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
    Statistics are those of `cbnorm.moments`. With `copy=False` a C- or Fortran-contiguous float array is transformed in
    place. `sample_weight` must not be negative.

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

    def _reset(self) -> None:
        super()._reset()
        self.__dict__.pop("_moments", None)

    def partial_fit(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Take in a batch of samples.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The samples.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), optional
            What each sample counts.

        Returns
        -------
        StandardScaler
            This one.
        """
        if issparse(X):
            return super().partial_fit(X, y, sample_weight)
        first = not hasattr(self, "n_samples_seen_")
        X = validate_data(self, X, dtype=FLOAT_DTYPES, ensure_all_finite="allow-nan", reset=first)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        seen = cbnorm.moments(X, weights=sample_weight, nan_policy="omit")
        self._take(seen if first else self._gathered() + seen)
        return self

    def _gathered(self) -> cbnorm.Moments:
        """What was seen so far, also by scikit-learn's code."""
        if "_moments" not in self.__dict__:
            count = np.broadcast_to(self.n_samples_seen_, (self.n_features_in_,))
            mean = np.zeros(count.shape) if self.mean_ is None else self.mean_
            var = np.zeros(count.shape) if self.var_ is None else self.var_
            self._moments = cbnorm.Moments(count, mean, var * count)
        return self._moments

    def _take(self, moments: cbnorm.Moments) -> None:
        self._moments = moments
        counts = moments.count
        self.n_samples_seen_ = counts[0] if counts.size and (counts == counts[0]).all() else counts
        if not (self.with_mean or self.with_std):
            self.mean_ = self.var_ = self.scale_ = None
            return
        self.mean_, self.var_, self.scale_ = moments.mean, None, None
        if self.with_std:
            self.var_ = moments.var()
            # Without spread: no more than the rounding of the mean leaves, in scikit-learn's bound.
            eps = np.finfo(np.float64).eps
            with np.errstate(all="ignore"):
                constant = self.var_ <= counts * eps * self.var_ + (counts * self.mean_ * eps) ** 2
            self.scale_ = np.where(constant, 1.0, np.sqrt(self.var_))

    def transform(self, X: ArrayLike, copy: bool | None = None) -> NDArray[Any]:
        """Centre and scale.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The samples.
        copy : bool, optional
            Whether X stays as it is; by default what the scaler was made with.

        Returns
        -------
        {ndarray, sparse matrix} of shape (n_samples, n_features)
            In the dtype of X, or float64 for integers.
        """
        if issparse(X) or not (self.with_mean or self.with_std):
            return super().transform(X, copy)
        check_is_fitted(self)
        copy = self.copy if copy is None else copy
        given = X
        X = validate_data(
            self, X, reset=False, dtype=FLOAT_DTYPES, ensure_all_finite="allow-nan", force_writeable=not copy
        )
        features = X.shape[1]
        mean = self.mean_ if self.with_mean else np.zeros(features)
        var = self.scale_**2 if self.with_std else np.ones(features)
        fortran = X.flags.f_contiguous and not X.flags.c_contiguous
        rows, axis = (X.T, 0) if fortran else (X, 1)  # a data frame's columns are read as they lie
        in_place = not copy or not np.may_share_memory(X, np.asarray(given))
        out = rows if in_place and rows.flags.c_contiguous and rows.flags.writeable else None
        averages = {"moving_mean": mean, "moving_var": var, "mode": "test"}
        y, *_ = cbnorm.batchnorm_forward(rows, eps=0.0, axis=axis, out=out, **averages)
        if not copy and out is None:
            X[...] = y.T if fortran else y
            return X
        return y.T if fortran else y

    def merge(self, other: StandardScaler) -> Self:
        """Take in what another fitted scaler has seen, as if its samples had come here.

        Parameters
        ----------
        other : StandardScaler
            Fitted to as many features; scikit-learn's too.

        Returns
        -------
        StandardScaler
            This one.

        Examples
        --------
        >>> import numpy as np
        >>> from cbnorm.sklearn import StandardScaler
        >>> a, b = StandardScaler().fit([[1.0], [3.0]]), StandardScaler().fit([[8.0]])
        >>> a.merge(b).mean_
        array([4.])
        """
        check_is_fitted(self)
        self._take(self._gathered() + self.from_sklearn(other)._gathered())
        return self

    @classmethod
    def from_sklearn(cls, scaler: sklearn.preprocessing.StandardScaler) -> Self:
        """A copy of a fitted scaler, scikit-learn's or one of these."""
        check_is_fitted(scaler)
        new = cls(**scaler.get_params())
        new.__dict__.update(scaler.__dict__)
        return new

    def to_sklearn(self) -> sklearn.preprocessing.StandardScaler:
        """The same as scikit-learn's own class."""
        check_is_fitted(self)
        new = sklearn.preprocessing.StandardScaler(**self.get_params())
        new.__dict__.update({name: value for name, value in self.__dict__.items() if name != "_moments"})
        return new
