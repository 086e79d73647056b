"""How a call sees its array, and what its statistics are taken over: made by a forward call, kept by its cache."""

import math
from copy import copy

cimport cython
from cpython.pyport cimport PY_SSIZE_T_MAX


cdef class Plan:
    """What a call knows besides its arrays.

    Any array is (outer, channels, inner), C-contiguous, with one gamma and one beta a channel. Each channel has
    statistics of its own, or each of the `groups` groups of neighbouring channels at each of the `outer` places:
    then a group of one place is called a row.

    Attributes
    ----------
    outer, channels, inner : int
        The array's sizes.
    size : int
        Numbers of the array.
    groups : int
        Groups of channels that have statistics at each place; 0 where each channel has its own over all places.
    samples : int
        Where channels come last, and groups of them have statistics in each sample: how many there are. Else 0.
    sets : int
        Sets of numbers that share their statistics: channels, or rows.
    axis : int
        The channel axis, or the first of the axes that make a row.
    shape, statistics_shape, parameter_shape : tuple of int
        Of x, of what there is one of for each set, and of gamma and beta.
    centred : bool
        False holds the mean at 0: RMS normalization.
    statistics_given : bool
        Whether the statistics are not those of the array: constants, in the gradient.
    count : float
        Numbers of a set: what m2 is divided by. Of more than this array, where sets of several were merged.
    eps : float
        Added to the variance.
    weights : ndarray or None
        (outer * inner,), float64: what the numbers at each place count; None: 1.
    heaviest : float
        The largest of them.
    omit : bool
        Whether NaN does not count.
    ddof : float
        What is taken from the numbers that count in a set, where they count differently, for their variance.
    kinds : int
        Of statistics: mean, mean_lo, m2, inv_std, and the counts of the sets where their numbers count differently.
    """

    def count_by(self, weights, double total, double heaviest, bint omit=False, double ddof=0):
        """Let numbers count differently, together `total` a channel unless NaN is among them; the plan itself."""
        self.weights = weights
        self.heaviest = heaviest
        self.omit = omit
        self.ddof = ddof
        self.kinds = 5
        self.count = total
        return self

    def of_part(self, double total):
        """Let the statistics be those of several parts, given, which count together `total`; the plan itself."""
        self.kinds = 4
        self.count = total
        return self

    def whole_count(self):
        """`count` as an integer, if it is one."""
        return int(self.count) if self.count == math.floor(self.count) else self.count

    def with_eps(self, double eps):
        """The same with another eps."""
        cdef Plan plan = copy(self)
        plan.eps = eps
        return plan


cdef Plan new_plan(tuple shape, Py_ssize_t axis, Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner, double eps):
    cdef Plan plan = Plan.__new__(Plan)
    # The kernels trust a plan, and count bytes of several such arrays.
    if outer < 0 or channels < 0 or inner < 0 or <double>outer * channels * inner > PY_SSIZE_T_MAX // 64:
        raise ValueError(f"shape: expected that of an array that memory can hold, got {shape}")
    plan.size = outer * channels * inner
    plan.shape = shape
    plan.axis = axis
    plan.outer = outer
    plan.channels = channels
    plan.inner = inner
    plan.eps = eps
    plan.centred = True
    plan.kinds = 4
    return plan


@cython.boundscheck(True)
def plan_channels(tuple shape not None, Py_ssize_t axis, double eps=0.0, bint statistics_given=False, count=None):
    """Statistics of each channel, on `axis`, counted from 0. `count` is that of given or merged statistics."""
    cdef Py_ssize_t channels = shape[axis]
    cdef Plan plan
    if len(shape) == 2 and axis == 1:  # the commonest, in a third of the time
        plan = new_plan(shape, axis, shape[0], channels, 1, eps)
    else:
        plan = new_plan(shape, axis, math.prod(shape[:axis]), channels, math.prod(shape[axis + 1:]), eps)
    plan.sets = channels
    plan.statistics_shape = plan.parameter_shape = (channels,)
    plan.statistics_given = statistics_given
    plan.count = plan.outer * plan.inner if count is None else count
    return plan


def plan_rows(tuple shape not None, Py_ssize_t axis, double eps=0.0, bint centred=True):
    """Statistics of each row, over the axes from `axis` on, counted from 0; a gamma for each number of a row."""
    cdef tuple rows = shape[:axis], columns = shape[axis:]
    cdef Plan plan = new_plan(shape, axis, math.prod(rows), math.prod(columns), 1, eps)
    plan.groups = 1
    plan.sets = plan.outer
    plan.statistics_shape = rows
    plan.parameter_shape = columns
    plan.centred = centred
    plan.count = plan.channels
    return plan


@cython.boundscheck(True)
@cython.boundscheck(True)
def plan_groups(tuple shape not None, Py_ssize_t groups, double eps=0.0, Py_ssize_t axis=1):
    """Statistics of each group of channels of each sample; `groups` divides channels.

    For (samples, channels, *), or (samples, *, channels) where `axis` is the last and not the second.
    """
    cdef Plan plan
    if axis == 1:
        plan = new_plan(shape, 1, shape[0], shape[1], math.prod(shape[2:]), eps)
    else:
        plan = new_plan(shape, axis, math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1:]), eps)
        if plan.inner != 1:
            raise ValueError(f"axis: expected the second or the last of {shape}, got {axis}")
        plan.samples = shape[0]
    if groups < 0 or (plan.channels % groups if groups else plan.channels):
        raise ValueError(f"groups: expected a divisor of {plan.channels} channels, got {groups}")
    plan.groups = groups
    plan.sets = <Py_ssize_t>shape[0] * groups
    plan.statistics_shape = (shape[0], groups)
    plan.parameter_shape = (plan.channels,)
    plan.count = plan.channels // groups * math.prod(shape[1:]) // plan.channels if groups and plan.channels else 0
    return plan
