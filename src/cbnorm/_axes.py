"""Any axes of any array as the kernels see them: (outer, channels, inner), read where it lies if that can be."""

import math

from cbnorm._arrays import as_array, as_input, check_axis, check_integer, shown
from cbnorm._plan import plan_channels


def check_axes(axis, ndim):
    """The axes reduced, counted from 0, in order."""
    axes = range(ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    reduced = [check_axis(number, ndim) for number in axes]
    if len(set(reduced)) != len(reduced):
        raise ValueError(f"axis: expected each axis once, got {axis!r}")
    return sorted(reduced)


def rows_last(axis, ndim):
    """Where the rows begin, and the order of axes in which those that make a row come last; None if they do already.

    An integer is where the rows begin; a tuple names the axes that make one.
    """
    if not isinstance(axis, tuple):
        return check_axis(axis, ndim), None
    rows = check_axes(axis, ndim)
    if not rows:
        raise ValueError("axis: expected at least one axis, got ()")
    begin = ndim - len(rows)
    if rows == list(range(begin, ndim)):
        return begin, None
    return begin, (*(number for number in range(ndim) if number not in rows), *rows)


def check_row_axes(axis, shape):
    """The axes of these lengths, or None for the last ones."""
    if axis is None:
        return None
    if not isinstance(axis, tuple) or len(axis) != len(shape):
        raise ValueError(f"axis: expected None or a tuple of {len(shape)} axes, one for each length, got {shown(axis)}")
    return tuple(check_integer("axis", number) for number in axis)


def along_row(axis, shape, x):
    """What a forward function takes as its axis, and x, which must have the lengths there."""
    if axis is None:
        return -len(shape), as_input(x, 1, -len(shape), shape)
    array = as_array(x, len(shape))
    lengths = tuple(array.shape[number] for number in check_axes(axis, array.ndim))
    if lengths != shape:
        raise ValueError(f"x: expected lengths {shape} on axes {axis}, got shape {array.shape}")
    return axis, array


class Channels:
    """An array whose axes, but for those reduced, count its channels.

    Axes are taken in the order in which they lie in memory, so that Fortran's order is read as it is; only where
    reduced axes lie between others are they brought to the front, for which the kernels' caller makes a copy.

    Attributes
    ----------
    reduced : list of int
        The axes reduced, counted from 0.
    sizes : tuple of int
        outer, channels, inner.
    order_reduced : list of int
        The axes reduced, as they lie in memory.
    shape : tuple of int
        Of what there is one of for each channel.
    """

    def __init__(self, array, reduced):
        ndim, sizes, strides = array.ndim, array.shape, array.strides
        order = list(range(ndim))
        if not array.flags.c_contiguous:  # axes of length 1 lie anywhere
            order = sorted((axis for axis in order if sizes[axis] != 1), key=lambda axis: -abs(strides[axis]))
        kept = [axis for axis in order if axis not in reduced]
        first = order.index(kept[0]) if kept else 0
        if order[first : first + len(kept)] != kept:
            kept.sort()
            order = [axis for axis in reduced if axis in order] + kept
            first = len(order) - len(kept)
        before, after = order[:first], order[first + len(kept) :]
        self.reduced = reduced
        self.sizes = tuple(math.prod(sizes[axis] for axis in axes) for axes in (before, kept, after))
        self.shape = tuple(sizes[axis] for axis in range(ndim) if axis not in reduced)
        self._order = order + [axis for axis in range(ndim) if axis not in order]
        self.order_reduced = [axis for axis in self._order if axis in reduced]
        self._kept = kept
        self._lengths = [sizes[axis] for axis in kept]

    @property
    def count(self):
        """Numbers of a channel."""
        return self.sizes[0] * self.sizes[2]

    def plan(self, eps=0.0, statistics_given=False, count=None):
        """How the kernels see the array that `arranged` gives."""
        return plan_channels(self.sizes, 1, eps, statistics_given, count)

    def arranged(self, array):
        """A view in the order of the kernels of an array of this shape; it may have other strides."""
        return array.transpose(self._order)

    def restored(self, array):
        """The inverse, of an array that has the order of the kernels."""
        return array.transpose(sorted(range(array.ndim), key=self._order.__getitem__))

    def by_channel(self, values):
        """(channels,) in the shape of the axes that are kept."""
        order = sorted(self._kept)
        return values.reshape(self._lengths).transpose([self._kept.index(axis) for axis in order]).reshape(self.shape)

    def of_channels(self, values):
        """The inverse: of an array in the shape of the axes that are kept, (channels,)."""
        order = sorted(self._kept)
        lengths = dict(zip(self._kept, self._lengths, strict=True))
        values = values.reshape([lengths[axis] for axis in order])
        return values.transpose([order.index(axis) for axis in self._kept]).reshape(-1)
