"""Hostile calls of moments, population statistics and the parts of batch normalization, and of the settings."""

import inspect
import math
from fractions import Fraction

import exact
import numpy as np
from exact import mp
from guarded import attempt, call, refuse
from hostile_calls import Case as ForwardCase
from hostile_calls import Y, check_backward, check_forward, computed_in
from hypothesis import given
from hypothesis import strategies as st
from strategies import EPS, FLOATS, Given, arrays, number_arrays, parameters, shapes
from wrong import WRONG_ARRAYS, WRONG_INTEGERS, WRONG_NUMBERS, WRONG_OUTS, WRONG_SHAPES, wrong

import cbnorm
from cbnorm import parts


def exact_numbers(array):
    """As they are: integers too, which float64 may not hold."""
    return [None if isinstance(v, float) and not math.isfinite(v) else Fraction(v) for v in array.ravel().tolist()]


def assert_moments(got, sets, shape, ddof=0):
    """Moments of sets of fractions, given by index, within the bounds."""
    assert got.mean.shape == got.m2.shape == got.mean_lo.shape == shape
    for index, values in sets.items():
        assert got.count == len(values)
        mean, m2 = got.mean[index], got.m2[index]
        if not values:
            assert np.isnan(mean)
            assert m2 == 0
            continue
        found = exact.statistics(values)
        if found is None:
            assert not np.isfinite(mean)
            assert not np.isfinite(m2)
            continue
        std = mp.sqrt(exact.real(found.var))
        whole = mp.mpf(float(mean)) + mp.mpf(float(got.mean_lo[index]))
        error = abs(whole - exact.real(found.mean))
        bound = 1e-12 * std * found.hardness + 2.0**-60 * abs(exact.real(found.mean)) + 5e-324
        assert error <= bound, f"mean {index}: {whole}, off by {mp.nstr(error / (bound or 1), 4)} bounds"
        want = exact.real(found.var * found.count)
        exact.assert_near(f"m2 {index}", m2, [want], [1e-12 * want * found.hardness], "float64")
        var = got.var(ddof)[index]
        if np.isinf(m2):  # as it must be: m2 has no float64, and the variance is made of it
            assert np.isinf(var)
        elif found.count > ddof:
            want = want / (found.count - ddof)
            exact.assert_near(f"var {index}", var, [want], [1e-12 * want * found.hardness], "float64")
        else:
            assert np.isnan(var)


def over(array, reduced):
    """The numbers of each set, where these axes are reduced."""
    kept = [axis for axis in range(array.ndim) if axis not in reduced]
    moved = array.transpose(kept + list(reduced))
    shape = tuple(array.shape[axis] for axis in kept)
    return {index: exact_numbers(moved[index]) for index in np.ndindex(*shape)}, shape


@given(shapes(0, 5), st.data())
def test_moments_are_right_in_every_form(shape, data):
    x = data.draw(arrays(shape), "x")
    axis = data.draw(st.sampled_from(["all", "one", "several", "none"]) if shape else st.just("all"), "axis")
    if axis == "one":
        number = data.draw(st.integers(-len(shape), len(shape) - 1), "number")
        axis, reduced = number, [number % len(shape)]
    elif axis == "all":
        axis, reduced = None, list(range(len(shape)))
    else:
        least = 0 if axis == "none" else 1
        most = 0 if axis == "none" else len(shape)
        numbers = st.lists(st.sampled_from(range(len(shape))), min_size=least, max_size=most, unique=True)
        reduced = data.draw(numbers, "numbers")
        axis = tuple(number - len(shape) * data.draw(st.booleans()) for number in reduced)
    got = call(cbnorm.moments, x=x.thing, axis=axis)
    sets, kept = over(x.means, reduced)
    assert_moments(got, sets, kept, data.draw(st.integers(0, 1), "ddof"))
    y, of_y = call(cbnorm.standardize, x=x.thing, axis=axis)
    assert_moments(of_y, sets, kept)
    assert_standardized(y, x.means, reduced, sets)


def assert_standardized(y, x, reduced, sets):
    """(x - mean) / std of each set of fractions; 0 of equal ones, NaN where there is a NaN or an infinity."""
    dtype, result = computed_in(x)
    assert (y.dtype, y.shape) == (result, x.shape)
    moved = y.transpose([axis for axis in range(y.ndim) if axis not in reduced] + list(reduced))
    for index, values in sets.items():
        found = exact.statistics(values) if values else None
        if found is None:
            assert np.isnan(moved[index]).all()
            continue
        want = [exact.real(value - found.mean) * found.inv_std for value in values]
        bounds = [Y[dtype.name] * max(1, abs(each)) * found.hardness for each in want]
        exact.assert_near(f"y {index}", moved[index], want, bounds)


@given(shapes(2, 4), st.data())
def test_wrong_arguments_of_moments_are_refused_by_name(shape, data):
    right = {"x": np.ones(shape), "axis": 0}
    axes = wrong({name: make for name, make in WRONG_INTEGERS.items() if name != "None"}, 0).map(lambda g: g.thing)
    axes |= st.sampled_from([(0, 0), (0, -len(shape)), (0, 9), (None,), "01", (0, 1.5), [0, 1], range(2), {0}])
    tables = {"x": wrong(WRONG_ARRAYS, right["x"]).map(lambda g: g.thing), "axis": axes}
    name = data.draw(st.sampled_from(sorted(tables)), "argument")
    refuse(cbnorm.moments, (name,), **right | {name: data.draw(tables[name], name)})


class Batches:
    """Batches of three channels, in any form, and their numbers by channel."""

    def __init__(self, data, least=0):
        self.axis = data.draw(st.sampled_from([0, 1, -1]), "axis")
        self.given, self.channels = [], {(c,): [] for c in range(3)}
        for _ in range(data.draw(st.integers(least, 4), "batches")):
            shape = data.draw(st.sampled_from([(4, 3), (1, 3), (0, 3), (2, 3), (9, 3)]), "shape")
            shape = shape[::-1] if self.axis == 0 else shape
            x = data.draw(arrays(shape), "x")
            self.given.append(x)
            for channel, values in over(x.means, [1 if self.axis == 0 else 0])[0].items():
                self.channels[channel] += values


@given(st.data())
def test_population_statistics_are_those_of_all_values(data):
    batches = Batches(data)
    whole, halves = cbnorm.PopulationStats(batches.axis), [cbnorm.PopulationStats(batches.axis) for _ in range(2)]
    for number, x in enumerate(batches.given):
        call(whole.update, x=x.thing)
        halves[number % 2].update(x.thing)
        refuse(whole.update, ("x",), x=data.draw(wrong(WRONG_ARRAYS, x.means), "wrong").thing)
        refuse(whole.update, ("x",), x=np.ones((4, 4)))
    both = halves[0] + halves[1]
    assert whole.count == both.count == len(batches.channels[(0,)])
    for each in (whole, both):
        if not whole.count:
            assert attempt(each.var).names == "PopulationStats"
            continue
        assert_moments(each._pooled, batches.channels, (3,))


@given(st.data())
def test_sums_of_moments_are_those_of_all_values(data):
    batches = Batches(data, 1)
    each = [call(parts.moments, x=x.thing, axis=batches.axis) for x in batches.given]
    each = data.draw(st.permutations(each), "order")
    total = sum(each[1:], each[0]) if data.draw(st.booleans(), "from the left") else fold_right(each)
    assert_moments(total, batches.channels, (3,))


def fold_right(each):
    return each[0] if len(each) == 1 else each[0] + fold_right(each[1:])


@given(shapes(2, 4), st.data())
def test_parts_give_what_the_whole_gives(shape, data):
    """A batch in two parts, along an axis that is not that of the channels, against the truth of the whole."""
    dtypes = [data.draw(st.sampled_from((*FLOATS, "int16")), "dtype")]
    x = data.draw(number_arrays(shape, dtypes), "x")
    dout = data.draw(
        number_arrays(shape, dtypes, ["plain", "small integers"])
        if dtypes[0] in FLOATS
        else number_arrays(shape, dtypes),
        "dout",
    )
    axis = data.draw(st.integers(-len(shape), len(shape) - 1), "axis")
    along = data.draw(st.sampled_from([n for n in range(len(shape)) if n != axis % len(shape)]), "along")
    cut = data.draw(st.integers(0, shape[along]), "cut")
    where = exact.channels(shape, axis)
    arguments = {"x": Given(x, x), "eps": data.draw(EPS, "eps"), "axis": axis}
    arguments |= {name: data.draw(parameters(where.parameter_shape), name) for name in ("gamma", "beta")}
    case = ForwardCase("batch", arguments, where)
    options = {name: case.keywords[name] for name in ("eps", "axis")}
    gamma = case.keywords["gamma"]

    both = [tuple(np.split(each, [cut], along)[part] for each in (x, dout)) for part in range(2)]
    whole = sum(call(parts.moments, x=a, axis=axis) for a, _ in both)
    out = [np.empty(a.shape, computed_in(x)[1]) if data.draw(st.booleans()) else None for a, _ in both]
    y = [
        call(parts.normalize, x=a, moments=whole, gamma=gamma, beta=case.keywords["beta"], out=o, **options)
        for (a, _), o in zip(both, out, strict=True)
    ]
    if np.isinf(whole.m2).any():  # Moments hold no such sum of squares: NaN says so
        assert np.isnan(np.moveaxis(np.concatenate(y, along), axis, 0)[np.isinf(whole.m2)]).all()
        return
    if case.keywords["eps"] < 1e-290 and (whole.m2 < 1e-290).any() and dtypes[0] == "float64":
        return  # nor the squares of such deviations: as documented
    found, xhat = check_forward(case, np.concatenate(y, along), None)
    sums = sum(call(parts.gradient_sums, dout=d, x=a, moments=whole, **options) for a, d in both)
    dx = [
        call(parts.input_gradient, dout=d, x=a, moments=whole, sums=sums, gamma=gamma, out=o, **options)
        for (a, d), o in zip(both, out, strict=True)
    ]
    dtype = computed_in(x)[0]
    got = (np.concatenate(dx, along), sums.dout_xhat.astype(dtype), sums.dout.astype(dtype))
    check_backward(case, Given(dout, dout), got, (True, True, True), found, xhat)


@given(shapes(2, 4), st.data())
def test_wrong_arguments_of_parts_are_refused_by_name(shape, data):
    x = np.ones(shape)
    of_whole = parts.moments(x)
    sums = parts.gradient_sums(x, x, of_whole)
    right = {
        "x": x,
        "dout": x,
        "moments": of_whole,
        "sums": sums,
        "gamma": None,
        "beta": None,
        "eps": 1e-5,
        "axis": 1,
        "out": None,
    }
    takes = {
        parts.moments: ("x", "axis"),
        parts.normalize: ("x", "moments", "gamma", "beta", "eps", "axis", "out"),
        parts.gradient_sums: ("dout", "x", "moments", "eps", "axis"),
        parts.input_gradient: ("dout", "x", "moments", "sums", "gamma", "eps", "axis", "out"),
    }
    function = data.draw(st.sampled_from(list(takes)), "function")
    parameter = np.ones(shape[1])
    wrong_parameter = wrong(WRONG_ARRAYS, parameter) | wrong(WRONG_SHAPES, parameter)
    others = [None, 1, (1, 2), object(), "moments", cbnorm.Moments, of_whole.mean, cbnorm.Moments(1, 0.0, 0.0)]
    if x.size:
        others.append(cbnorm.Moments(0, np.zeros(shape[1]), np.zeros(shape[1])))
    tables = {
        "x": wrong(WRONG_ARRAYS, x),
        "dout": wrong(WRONG_ARRAYS, x) | wrong(WRONG_SHAPES, x),
        "moments": st.sampled_from([*others, sums]).map(lambda v: Given(v, None)),
        "sums": st.sampled_from([*others, of_whole]).map(lambda v: Given(v, None)),
        "gamma": wrong_parameter,
        "beta": wrong_parameter,
        "eps": wrong(WRONG_NUMBERS, 1),
        "axis": wrong(WRONG_INTEGERS, 1),
        "out": wrong(WRONG_OUTS, x),
    }
    names = takes[function]
    culprits = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True), "culprits")
    arguments = {name: right[name] for name in names} | {name: data.draw(tables[name], name).thing for name in culprits}
    refuse(function, culprits, **arguments)


WRONG_COUNTS = {
    name: make for name, make in WRONG_INTEGERS.items() if name not in ("100", "far too large", "just beyond 64 bits")
}


@given(st.sampled_from([cbnorm.Moments, parts.GradientSums]), st.data())
def test_records_refuse_wrong_arguments_by_name(cls, data):
    names = ("mean", "m2", "mean_lo") if cls is cbnorm.Moments else ("dout", "dout_xhat")
    right = {"count": 2} | {name: np.ones(3) for name in names}
    name = data.draw(st.sampled_from(list(right)), "argument")
    array = wrong(WRONG_ARRAYS, np.ones(3)) | wrong(WRONG_SHAPES, np.ones(3))
    if name == names[0]:  # its shape is that of the others
        array = wrong(WRONG_ARRAYS, np.ones(3))
    counts = {
        kind: make for kind, make in WRONG_COUNTS.items() if kind not in ("a float", "a NumPy float")
    }  # a sum of weights
    value = data.draw(wrong(counts, 1) if name == "count" else array, name).thing
    refuse(cls, (name,), **right | {name: value})


@given(st.data())
def test_the_ddof_of_var_and_std_is_checked(data):
    m = cbnorm.moments(np.ones((3, 2)))
    names = ("None", "text", "NaN", "a list", "an object", "a complex number", "a bool", "a number that raises")
    numbers = {name: WRONG_NUMBERS[name] for name in names}
    method = data.draw(st.sampled_from([m.var, m.std]), "method")
    refuse(method, ("ddof",), ddof=data.draw(wrong(numbers, 0), "ddof").thing)


@given(st.sampled_from([cbnorm.set_num_threads, cbnorm.threads, cbnorm.set_pool_limit]), st.data())
def test_settings_refuse_wrong_numbers_by_name(function, data):
    name = "nbytes" if function is cbnorm.set_pool_limit else "num_threads"
    table = {key: make for key, make in WRONG_INTEGERS.items() if key != "100"}
    value = data.draw(wrong(table, 1), name).thing

    def enter(**arguments):
        with cbnorm.threads(**arguments):
            pass

    enter.__signature__ = inspect.signature(cbnorm.threads)
    refuse(enter if function is cbnorm.threads else function, (name,), **{name: value})


WRONG_WEIGHTS = wrong(WRONG_ARRAYS, np.ones((3, 2))) | st.sampled_from([Given(np.ones((3, 4)), None), Given(1.0, None)])


@given(st.data())
def test_folding_refuses_wrong_arguments_by_name(data):
    right = {"weight": np.ones((3, 2)), "bias": np.ones(2), "layer": cbnorm.BatchNorm(2), "channel_axis": 1}
    tables = {
        "weight": WRONG_WEIGHTS,
        "bias": wrong(WRONG_ARRAYS, np.ones(2)) | wrong(WRONG_SHAPES, np.ones(2)),
        "layer": st.sampled_from([None, 1, cbnorm.LayerNorm(2), cbnorm.BatchNorm, "layer"]).map(
            lambda v: Given(v, None)
        ),
        "channel_axis": wrong(WRONG_INTEGERS, 1),
    }
    name = data.draw(st.sampled_from(sorted(tables)), "argument")
    refuse(cbnorm.fold_batchnorm, (name, "channel_axis"), **right | {name: data.draw(tables[name], name).thing})


@given(st.data())
def test_recomputing_refuses_wrong_arguments_by_name(data):
    right = {"layer": cbnorm.BatchNorm(2), "batches": [np.ones((3, 2))]}
    name = data.draw(st.sampled_from(sorted(right)), "argument")
    if name == "layer":
        value = data.draw(st.sampled_from([None, 1, cbnorm.LayerNorm(2), cbnorm.BatchNorm, "layer"]), name)
    else:
        values = st.sampled_from([None, 1, [], [np.ones((0, 2))], object()])
        values |= wrong(WRONG_ARRAYS, np.ones((3, 2))).map(lambda g: [np.ones((1, 2)), g.thing])
        values |= st.sampled_from(["batches", {1: 2}, [np.ones((2, 3))]])
        value = data.draw(values, name)
    refuse(cbnorm.recompute_stats, (name,), **right | {name: value})
    state = right["layer"].state_dict()
    assert state["num_batches"] == 0
    assert np.all(state["moving_mean"] == 0)
