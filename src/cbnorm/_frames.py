"""Data frames whose columns lie apart in memory, read one by one: as one table they would be copied whole."""

import numpy as np


def is_frame(X):
    """Whether this is a data frame of pandas or polars, neither of which is imported."""
    return (hasattr(X, "iloc") or is_polars(X)) and hasattr(X, "columns")


def is_polars(X):
    """Whether it is a data frame of polars, whose dtype scikit-learn does not see: it makes float64 of all."""
    return hasattr(X, "to_series") and hasattr(X, "to_numpy") and hasattr(X, "schema")


def column(X, number):
    """One column, where it lies if NumPy can see it there."""
    return (X.iloc[:, number] if hasattr(X, "iloc") else X.to_series(number)).to_numpy()


def columns_apart(X):
    """The columns of a data frame as arrays of numbers; None if the frame is one table, or holds other things."""
    if not is_frame(X) or 0 in X.shape or _is_table(X):
        return None
    columns = []
    for number in range(X.shape[1]):
        values = column(X, number)
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
            return None
        columns.append(values)
    return columns


def is_copy(values, X):
    """Whether these numbers, made of X, lie in memory of their own, so that results may take their place."""
    if isinstance(X, np.ndarray):
        return not np.may_share_memory(values, X)
    if is_frame(X):  # of which one column tells: all are copied or none
        return not np.may_share_memory(values, column(X, 0))
    return isinstance(X, list | tuple)


def _is_table(X):
    if hasattr(X, "iloc"):  # of one block, which all its columns are views of
        base = column(X, 0).base
        return base is not None and base is column(X, X.shape[1] - 1).base
    try:
        X.to_numpy(allow_copy=False)
    except RuntimeError:
        return False
    return True
