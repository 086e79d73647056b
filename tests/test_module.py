"""The kernels themselves, called wrongly: they raise, write nothing, and never take the process with them."""

import pickle
from functools import partial

import numpy as np
import pytest
from cases import assert_same_bits

import cbnorm
from cbnorm import _kernels
from cbnorm._plan import Plan, plan_channels, plan_groups, plan_rows

COLUMNS, PLANES = plan_channels((6, 4), 1, 1e-5), plan_channels((2, 4, 3), 1, 1e-5)
GIVEN = plan_channels((6, 4), 1, 1e-5, True, 1)
LAYERS, GROUPS = plan_rows((6, 4), 1, 1e-5), plan_groups((2, 4, 3), 2, 1e-5)
PLANS = {"columns": COLUMNS, "planes": PLANES, "given": GIVEN, "layers": LAYERS, "groups": GROUPS}


def filled(*shape, dtype=np.float32):
    return np.full(shape, 7, dtype)


def read_only(array):
    array.flags.writeable = False
    return array


def swapped(array):
    return array.astype(array.dtype.newbyteorder("S"))


def unaligned(array):
    return np.frombuffer(bytearray(array.nbytes + 1), array.dtype, offset=1)


def arguments(function, plan):
    """What a right call takes, by name."""
    channels, x = plan.channels, partial(filled, *plan.shape)
    common = {"plan": plan, "statistics": filled(4, plan.sets, dtype=np.float64), "threads": 1}
    averages = None if plan.groups else (*filled(2, channels, dtype=np.float64), 0.9, 0)
    gamma, sums = filled(channels), filled(2, channels, dtype=np.float64)
    return common | {
        "forward": {"x": x(), "out": x(), "gamma": gamma, "beta": filled(channels), "moving": averages},
        "backward": {"dout": x(), "x": x(), "dx": x(), "gamma": gamma, "gradients": tuple(filled(2, channels))},
        "gradient_sums": {"dout": x(), "x": x(), "sums": sums},
        "input_gradient": {"dout": x(), "x": x(), "dx": x(), "gamma": gamma, "sums": sums},
    }[function]  # fmt: skip


def refuses(function, takes, /, **wrong):
    """Whether the call raises, and leaves all it was given as it was; for a plan that takes the other arguments."""
    given = arguments(function, takes) | wrong
    arrays = [array for value in given.values() for array in (value if isinstance(value, tuple) else (value,))]
    arrays = [array for array in arrays if isinstance(array, np.ndarray)]
    before = [array.copy() for array in arrays]
    with pytest.raises((TypeError, ValueError)):
        getattr(_kernels.active, function)(**given)
    assert_same_bits(arrays, before)


CALLS = [
    *((function, name) for function in ("forward", "backward") for name in PLANS),
    *(("gradient_sums", name) for name in ("columns", "planes", "given")),
    *(("input_gradient", name) for name in ("columns", "planes")),
]
WRONG = {
    "one number more": lambda array: filled(array.size + 1, dtype=array.dtype),
    "no numbers": lambda array: filled(0, dtype=array.dtype),
    "complex": lambda array: array.astype(np.complex64),
    "integers": lambda array: array.astype(f"i{array.itemsize}"),
    "the other precision": lambda array: array.astype(np.float64 if array.itemsize == 4 else np.float32),
    "long double": lambda array: array.astype(np.longdouble),
    "every other number": lambda array: filled(2 * array.size, dtype=array.dtype)[::2],
    "other byte order": swapped,
    "unaligned": unaligned,
    "a list": lambda array: array.tolist(),
    "a memoryview": memoryview,
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(("function", "plan"), CALLS)
def test_arrays_of_another_kind_are_refused(kernels, function, plan, wrong):
    plan = PLANS[plan]
    for name, value in arguments(function, plan).items():
        if isinstance(value, np.ndarray):
            refuses(function, plan, **{name: WRONG[wrong](value)})
        elif isinstance(value, tuple):
            for i in range(2):
                refuses(function, plan, **{name: (*value[:i], WRONG[wrong](value[i]), *value[i + 1 :])})


@pytest.mark.parametrize(("function", "plan"), CALLS)
def test_results_are_not_written_to_read_only_memory(kernels, function, plan):
    plan = PLANS[plan]
    given = arguments(function, plan)
    written = {"forward": ("out", "statistics"), "gradient_sums": ("sums",)}.get(function, ("dx",))
    for name in written:
        refuses(function, plan, **{name: read_only(given[name])})
    if function == "backward":
        refuses(function, plan, gradients=(given["gradients"][0], read_only(given["gradients"][1])))
    if function == "forward" and not plan.groups:
        refuses(function, plan, moving=(read_only(given["moving"][0]), *given["moving"][1:]))


@pytest.mark.parametrize(
    ("function", "plan", "names"),
    [
        ("forward", "columns", ("plan", "x", "statistics")),
        ("forward", "given", ("x",)),
        ("backward", "columns", ("plan", "dout", "x", "gradients", "statistics")),
        ("backward", "given", ("dout", "x")),
        ("backward", "layers", ("dout", "x")),
        ("backward", "groups", ("dout", "x")),
        ("gradient_sums", "columns", ("plan", "dout", "x", "sums", "statistics")),
        ("input_gradient", "planes", ("plan", "dout", "x", "dx", "sums", "statistics")),
    ],
)
def test_none_stands_only_for_what_may_be_missing(kernels, function, plan, names):
    for name in names:
        refuses(function, PLANS[plan], **{name: None})


def test_moving_averages_are_those_of_channels_and_both_where_they_are_given(kernels):
    mean, var = filled(2, 4, dtype=np.float64)
    for plan in (LAYERS, GROUPS, plan_rows((4, 4), 1)):
        refuses("forward", plan, moving=(mean, var, 0.9, 0))
    refuses("forward", GIVEN, moving=(mean, None, 0.9, 0))
    refuses("forward", GIVEN, moving=(None, var, 0.9, 0))
    refuses("forward", COLUMNS, moving=(mean, var))
    refuses("forward", COLUMNS, moving=(mean, var, "0.9", 0))


def test_sums_are_those_of_channels(kernels):
    refuses("gradient_sums", LAYERS)
    refuses("input_gradient", GROUPS)
    refuses("input_gradient", GIVEN)


@pytest.mark.parametrize("function", ["forward", "backward", "gradient_sums", "input_gradient"])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 4), (2, 3, 0), (0, 3, 4)])
def test_plans_without_numbers_are_refused(kernels, function, shape):
    none = {name: filled(0) for name in arguments(function, COLUMNS) if name in ("x", "out", "dout", "dx")}
    for plan in (plan_channels(shape, 1), plan_rows(shape, 1), plan_groups(shape, shape[1]), Plan()):
        refuses(function, COLUMNS, **none | {"plan": plan})


def test_there_is_no_plan_of_what_no_array_can_be():
    for make in (plan_channels, plan_rows):
        for shape in [(2**61 + 1, 8), (2**31, 2**31), (-2, 3), (-2, -3)]:  # the first has 8 numbers, modulo 2**64
            with pytest.raises(ValueError, match=r"^shape: "):
                make(shape, 1)
    for groups in (-1, 0, 3, 8):
        with pytest.raises(ValueError, match=f"^groups: expected a divisor of 4 channels, got {groups}$"):
            plan_groups((2, 4, 5), groups)
    with pytest.raises(IndexError):
        plan_channels((6, 4), 2)
    with pytest.raises(IndexError):
        plan_groups((6,), 1)


@pytest.mark.parametrize("threads", [0, -1, -(2**31), 2**31 - 1])
@pytest.mark.parametrize(("function", "plan"), CALLS)
def test_any_number_of_threads_will_do(kernels, function, plan, threads):
    plan = PLANS[plan]
    alone, other = arguments(function, plan), arguments(function, plan)
    getattr(_kernels.active, function)(**alone)
    before = _kernels.active.set_grain(1)
    try:
        getattr(_kernels.active, function)(**other | {"threads": threads})
    finally:
        _kernels.active.set_grain(before)
    for name, value in alone.items():
        if isinstance(value, np.ndarray):
            assert_same_bits(other[name], value)


def test_a_cache_may_lie_in_memory_that_cannot_be_written_to(kernels):
    x = np.arange(12.0).reshape(6, 2) ** 2
    _, cache, _, _ = cbnorm.batchnorm_forward(x)
    buffers = []
    kept = pickle.dumps(cache, protocol=5, buffer_callback=buffers.append)
    copy = pickle.loads(kept, buffers=[bytes(buffer) for buffer in buffers])
    assert_same_bits(cbnorm.batchnorm_backward(x, copy), cbnorm.batchnorm_backward(x, cache))
