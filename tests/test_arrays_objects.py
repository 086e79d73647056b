"""Objects that raise or lie when they are asked for numbers: an error of ours names the argument."""

from itertools import repeat

import numpy as np
import pytest
from arguments import SHAPE, make_arguments, make_dout
from cases import assert_same_bits

import cbnorm

X = make_arguments()["x"]
EVERY_ERROR = [RuntimeError, KeyError, AttributeError, OSError, ZeroDivisionError, UserWarning, ValueError, TypeError]


class Raising:
    """Raises at whatever it is asked for."""

    def __init__(self, error):
        self.error = error

    def fail(self, *_, **__):
        raise self.error("no")

    __array__ = __index__ = __float__ = __iter__ = __len__ = __repr__ = __eq__ = fail
    __hash__ = None
    dtype = property(fail)


class Word(str):
    """A string that cannot be compared."""

    __eq__ = Raising(RuntimeError).fail
    __hash__ = None


class Number(float):
    """A number that cannot be read."""

    __float__ = __repr__ = Raising(RuntimeError).fail


def undecodable(*_, **__):
    return b"\xff".decode()


CALLS = {
    "x": [
        lambda value: cbnorm.batchnorm_forward(value),
        lambda value: cbnorm.layernorm_forward(value),
        lambda value: cbnorm.groupnorm_forward(value, None, None, 1),
        lambda value: cbnorm.instancenorm_forward(value),
        lambda value: cbnorm.rmsnorm_forward(value),
        lambda value: cbnorm.moments(value),
        lambda value: cbnorm.parts.moments(value),
        lambda value: cbnorm.parts.normalize(value, cbnorm.moments(X)),
        lambda value: cbnorm.PopulationStats().update(value),
        lambda value: cbnorm.BatchNorm(3)(value),
        lambda value: cbnorm.RMSNorm(3)(value),
    ],
    "gamma": [lambda value: cbnorm.batchnorm_forward(X, value), lambda value: cbnorm.rmsnorm_forward(X, value)],
    "beta": [lambda value: cbnorm.layernorm_forward(X, None, value)],
    "moving_mean": [lambda value: cbnorm.batchnorm_forward(X, moving_mean=value)],
    "moving_var": [lambda value: cbnorm.batchnorm_forward(X, moving_var=value)],
    "dout": [
        lambda value: cbnorm.batchnorm_backward(value, cbnorm.batchnorm_forward(X)[1]),
        lambda value: cbnorm.parts.gradient_sums(value, X, cbnorm.moments(X)),
    ],
    "mean": [lambda value: cbnorm.Moments(1, value, [1.0])],
    "m2": [lambda value: cbnorm.Moments(1, [1.0], value)],
    "weight": [lambda value: cbnorm.fold_batchnorm(value, None, cbnorm.BatchNorm(3), channel_axis=0)],
    "axis": [
        lambda value: cbnorm.batchnorm_forward(X, axis=value),
        lambda value: cbnorm.layernorm_forward(X, axis=value),
        lambda value: cbnorm.rmsnorm_forward(X, axis=value),
        lambda value: cbnorm.moments(X, value),
        lambda value: cbnorm.PopulationStats(value),
        lambda value: cbnorm.BatchNorm(3, axis=value),
    ],
    "num_groups": [
        lambda value: cbnorm.groupnorm_forward(X, None, None, value),
        lambda value: cbnorm.GroupNorm(value, 4),
    ],
    "num_channels": [lambda value: cbnorm.BatchNorm(value), lambda value: cbnorm.InstanceNorm(value)],
    "shape": [lambda value: cbnorm.LayerNorm(value), lambda value: cbnorm.LayerNorm((3, value))],
    "count": [lambda value: cbnorm.Moments(value, [1.0], [1.0]), lambda value: cbnorm.parts.GradientSums(value, 1, 1)],
    "eps": [lambda value: cbnorm.batchnorm_forward(X, eps=value), lambda value: cbnorm.LayerNorm(3, eps=value)],
    "momentum": [lambda value: cbnorm.batchnorm_forward(X, momentum=value)],
    "ddof": [lambda value: cbnorm.batchnorm_forward(X, ddof=value), lambda value: cbnorm.moments(X).std(value)],
    "mode": [lambda value: cbnorm.batchnorm_forward(X, mode=value), lambda value: cbnorm.show_config(value)],
    "dtype": [lambda value: cbnorm.BatchNorm(3, dtype=value)],
    "need": [lambda value: cbnorm.batchnorm_backward(make_dout(), cbnorm.batchnorm_forward(X)[1], need=value)],
    "num_threads": [cbnorm.set_num_threads],
    "nbytes": [cbnorm.set_pool_limit],
    "out": [lambda value: cbnorm.batchnorm_forward(X, out=value)],
}
EACH = [pytest.param(name, call, id=f"{name}-{i}") for name, calls in CALLS.items() for i, call in enumerate(calls)]
NUMBERS = ("axis", "num_groups", "num_channels", "shape", "count", "eps", "momentum", "num_threads", "nbytes", "ddof")


@pytest.mark.parametrize("error", EVERY_ERROR)
@pytest.mark.parametrize(("name", "call"), EACH)
def test_what_an_object_raises_becomes_an_error_that_names_the_argument(name, call, error):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: expected ") as failure:
        call(Raising(error))
    if name in ("x", "gamma", "beta", "axis", "dout", "need"):
        assert type(failure.value.__cause__) is error


@pytest.mark.parametrize("error", EVERY_ERROR)
def test_weights_of_other_libraries_that_raise_are_named(error):
    class Tensor(Raising):
        detach = Raising.fail

    with pytest.raises((TypeError, ValueError), match=r"^weights \(beta\): expected ") as failure:
        cbnorm.BatchNorm.from_keras([np.ones(2), Tensor(error), np.ones(2), np.ones(2)])
    assert type(failure.value.__cause__) is error


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RecursionError])
@pytest.mark.parametrize("name", ["x", "axis", "need"])
def test_what_is_about_the_process_is_not_turned_into_words_about_an_argument(name, error):
    with pytest.raises(error):
        CALLS[name][0](Raising(error))


@pytest.mark.parametrize("name", ["x", "gamma"])
def test_errors_whose_constructor_takes_other_arguments(name):
    class Text:
        __array__ = undecodable

    with pytest.raises(ValueError, match=f"^{name}: expected an array of numbers, got Text") as failure:
        CALLS[name][0](Text())
    assert type(failure.value) is ValueError


def test_numbers_and_words_that_cannot_be_read():
    for name in ("eps", "momentum"):
        with pytest.raises(TypeError, match=f"^{name}: expected a number, got an object of type Number"):
            CALLS[name][0](Number(0.5))
    for call in CALLS["mode"]:
        with pytest.raises(ValueError, match=r"^mode: expected "):
            call(Word("train"))


@pytest.mark.parametrize("value", [True, False, np.True_, np.array(True)])
@pytest.mark.parametrize(
    ("name", "call"),
    [pytest.param(name, call, id=f"{name}-{i}") for name in NUMBERS for i, call in enumerate(CALLS[name])],
)
def test_bools_are_no_numbers(name, call, value):
    with pytest.raises((TypeError, ValueError) if name == "ddof" else TypeError, match=rf"^{name}: expected "):
        call(value)


@pytest.mark.parametrize("name", ["axis", "num_groups", "eps", "momentum", "ddof", "num_threads", "nbytes"])
@pytest.mark.parametrize("value", [10**5000, -(10**5000)], ids=["large", "small"])
def test_numbers_of_thousands_of_digits_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: expected "):
        CALLS[name][0](value)


def test_a_long_value_does_not_make_a_long_message():
    with pytest.raises(ValueError, match=r"^need: expected ") as failure:
        CALLS["need"][0]([True] * 100_000)
    assert len(str(failure.value)) < 400


# What can be read only once.


@pytest.mark.parametrize("backward", ["batchnorm", "layernorm", "instancenorm", "rmsnorm"])
def test_need_may_be_read_only_once(backward):
    cache = getattr(cbnorm, f"{backward}_forward")(X)[1]
    function, dout = getattr(cbnorm, f"{backward}_backward"), make_dout()
    want = function(dout, cache)
    got = function(dout, cache, need=iter((True,) * len(want)))
    assert_same_bits(list(got), list(want))
    some = function(dout, cache, need=(flag for flag in [False] + [True] * (len(want) - 1)))
    assert some[0] is None
    assert_same_bits(list(some[1:]), list(want[1:]))


@pytest.mark.parametrize("need", [{True, False}, {True: 1, False: 2}, frozenset((True, False))])
def test_need_is_in_the_order_of_the_gradients(need):
    with pytest.raises(TypeError, match=r"^need: expected a bool each for dx, dgamma, got "):
        cbnorm.rmsnorm_backward(make_dout(), cbnorm.rmsnorm_forward(X)[1], need=need)


def test_need_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"^need: expected "):
        cbnorm.rmsnorm_backward(make_dout(), cbnorm.rmsnorm_forward(X)[1], need=repeat(True))


class Liar(np.ndarray):
    """A subclass with a shape of its own telling."""

    shape = property(lambda self: SHAPE)
    dtype = property(lambda self: np.dtype(np.float64))


def test_out_of_a_subclass_is_seen_as_it_is():
    for out in (np.zeros((2, 2)), np.zeros(SHAPE, np.float32)):
        with pytest.raises((TypeError, ValueError), match=r"^out: expected "):
            cbnorm.batchnorm_forward(X, out=out.view(Liar))
