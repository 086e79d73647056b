"""Hostile calls of the functions: a right number or a named error, whatever the arguments are.

`HYPOTHESIS_PROFILE=long` tries other examples each time, and many more: `.ci/fuzz` runs it for minutes.
"""

import numpy as np
from guarded import attempt, call, refuse
from hostile_calls import KINDS, cases, check_backward, check_forward, check_moving, computed_in, run
from hypothesis import given, note
from hypothesis import strategies as st
from strategies import FLOATS, Given, arrays, views
from wrong import (
    WRONG_ARRAYS,
    WRONG_CHOICES,
    WRONG_INTEGERS,
    WRONG_NEEDS,
    WRONG_NUMBERS,
    WRONG_OUT_FORMS,
    WRONG_OUTS,
    WRONG_SHAPES,
    wrong,
)

import cbnorm

DOUT_RECIPES = ["plain", "plain", "small integers", "zeros of both signs", "of many scales", "one NaN", "one infinity"]


@given(cases(), st.data())
def test_numbers_are_right_in_every_form(case, data):
    out = None
    _, result_dtype = computed_in(case.x)
    if data.draw(st.booleans(), "out"):
        out = np.full(case.x.shape, 7, result_dtype)
    y, cache, *moving = run(case, out)
    assert out is None or y is out
    found, xhat = check_forward(case, y, cache)
    if case.kind == "batch":
        check_moving(case, *moving, found)

    names = 2 if case.kind == "rms" else 3
    need = tuple(data.draw(st.tuples(*[st.booleans()] * names), "need"))
    dout = data.draw(arrays(case.x.shape, (*FLOATS, "int8"), DOUT_RECIPES), "dout")
    out = np.full(case.x.shape, 7, result_dtype) if need[0] and data.draw(st.booleans(), "out for dx") else None
    kinds = ["tuple", "list", "array", "iterator"]
    make = {"tuple": tuple, "list": list, "array": np.array, "iterator": iter}[
        data.draw(st.sampled_from(kinds), "kind")
    ]
    for _ in range(2):  # a cache may be used twice
        got = call(case.backward, dout=dout.thing, cache=cache, need=make(need), out=out)
        check_backward(case, dout, got, need, found, xhat)


def spoilers(case, out):
    """For each argument of a forward call: wrong values."""
    x, where = case.x, case.where
    bad_x = wrong(WRONG_ARRAYS, x)
    tables = {"x": bad_x, "eps": wrong(WRONG_NUMBERS, 1)}
    parameter = np.ones(where.parameter_shape)
    for name in ("gamma", "beta", "moving_mean", "moving_var"):
        if name in case.arguments:
            tables[name] = st.one_of(wrong(WRONG_ARRAYS, parameter), wrong(WRONG_SHAPES, parameter))
    if "moving_var" in tables and parameter.size:
        tables["moving_var"] |= st.just(np.full(parameter.shape, -1.0)).map(lambda a: Given(a, None, "negative"))
    for name, table in (("momentum", WRONG_NUMBERS), ("axis", WRONG_INTEGERS), ("num_groups", WRONG_INTEGERS)):
        if name in case.arguments:
            tables[name] = wrong(table, 1)
    if case.name == "batchnorm":
        tables["mode"] = tables["ddof"] = wrong(WRONG_CHOICES, 0)
    tables["out"] = wrong(WRONG_OUTS, out)
    if out.size > 1:
        forms = [name for name in WRONG_OUT_FORMS if name != "Fortran order" or sum(n > 1 for n in out.shape) > 1]
        tables["out"] |= wrong({name: WRONG_OUT_FORMS[name] for name in forms}, out)
    return tables


@given(cases(recipes=["plain"]), st.data())
def test_wrong_arguments_are_refused_by_name(case, data):
    tables = spoilers(case, np.zeros(case.x.shape, computed_in(case.x)[1]))
    culprits = data.draw(st.lists(st.sampled_from(sorted(tables)), min_size=1, max_size=2, unique=True), "culprits")
    keywords = case.keywords | {name: data.draw(tables[name], name).thing for name in culprits}
    refuse(case.forward, culprits, **keywords)


@given(cases(recipes=["plain"]), st.data())
def test_wrong_arguments_of_backward_are_refused_by_name(case, data):
    y, cache, *_ = run(case)
    dout, names = np.ones(y.shape), 2 if case.kind == "rms" else 3
    other = cbnorm.rmsnorm_forward if case.kind != "rms" else cbnorm.layernorm_forward
    caches = st.sampled_from([None, 1, "cache", y, object(), cbnorm.Cache, (), other(np.ones((2, 2)))[1]])
    needs = wrong(WRONG_NEEDS, None).map(lambda g: g.thing)
    outs = wrong(WRONG_OUTS, np.zeros_like(y)).map(lambda g: g.thing)
    douts = st.one_of(wrong(WRONG_ARRAYS, dout), wrong(WRONG_SHAPES, dout)).map(lambda g: g.thing)
    tables = {"dout": douts, "cache": caches, "need": needs, "out": outs}
    culprits = data.draw(st.lists(st.sampled_from(sorted(tables)), min_size=1, max_size=2, unique=True), "culprits")
    right = {"dout": dout, "cache": cache, "need": (True,) * names}
    refuse(case.backward, culprits, **right | {name: data.draw(tables[name], name) for name in culprits})


def same(got, want):
    """The same bits, or None both."""
    return (got is None) == (want is None) and (
        got is None or (got.dtype == want.dtype and got.tobytes() == want.tobytes())
    )


@given(st.sampled_from(KINDS), st.sampled_from(["float32", "float64"]), st.integers(0, 99), st.data())
def test_out_that_shares_memory_is_refused_or_right(kind, dtype, seed, data):
    """Arguments and `out` are views of one block; what is not refused has the bits of the same call on copies."""
    shape = data.draw(st.sampled_from([(4, 3), (3, 4, 2), (2, 6, 1, 2), (5, 1), (1, 4)]), "shape")
    if kind in ("batch", "batch test"):
        channels, options = (shape[1],), {"mode": "test" if kind == "batch test" else "train"}
    elif kind in ("layer", "rms"):
        channels, options = (shape[-1],), {}
    else:
        channels, options = (shape[1],), {"num_groups": 1} if kind == "group" else {}
    name = "batchnorm" if kind.startswith("batch") else f"{kind}norm"
    forward, backward = (getattr(cbnorm, f"{name}_{way}") for way in ("forward", "backward"))
    block = np.abs(np.random.default_rng(seed).normal(2, 1, 3 * np.prod(shape)).astype(dtype))

    arguments = {"x": data.draw(views(block, shape), "x")}
    for each in ("gamma", "beta")[: 1 if kind == "rms" else 2]:
        arguments[each] = data.draw(views(block, channels), each) if data.draw(st.booleans(), each) else None
    if kind.startswith("batch"):
        for each in ("moving_mean", "moving_var"):
            arguments[each] = data.draw(views(block, channels), each)
    if kind == "group":
        arguments.setdefault("gamma", None)
    out = data.draw(st.one_of(views(block, shape), st.just(arguments["x"])), "out")
    copies = {key: None if value is None else value.copy() for key, value in arguments.items()}
    want = call(forward, **copies, **options)
    outcome = attempt(forward, **arguments, **options, out=out)
    shared = [key for key, value in arguments.items() if value is not None and np.shares_memory(out, value)]
    itself = out is arguments["x"] and kind == "batch test" and shared == ["x"]
    if outcome.error is None:
        assert not shared or (kind == "batch test" and shared == ["x"]), f"out shares {shared}"
        assert outcome.result[0] is out
        assert all(same(*pair) for pair in zip(outcome.result[2:], want[2:], strict=True))
        assert same(out, want[0])
    else:
        assert outcome.names == "out"
        usable = out.flags.c_contiguous and out.flags.writeable
        assert not usable or (shared and not itself), f"refused without a reason: {outcome.error}"

    block[:] = np.random.default_rng(seed).normal(2, 1, len(block)).astype(dtype)
    copies = {key: None if value is None else value.copy() for key, value in arguments.items()}
    gamma = arguments["gamma"]
    fixed = {"moving_mean": np.ones(channels), "moving_var": np.ones(channels)} if kind.startswith("batch") else {}
    cache = forward(arguments["x"], gamma=gamma, **fixed, **options, **({"beta": None} if kind == "group" else {}))[1]
    dout = data.draw(views(block, shape), "dout")
    want = call(backward, dout=dout.copy(), cache=cache)
    out = data.draw(st.one_of(views(block, shape), st.just(dout)), "out for dx")
    outcome = attempt(backward, dout=dout, cache=cache, out=out)
    inputs = {"dout": dout, "x": arguments["x"], "gamma": gamma}
    shared = [key for key, value in inputs.items() if value is not None and np.shares_memory(out, value)]
    if outcome.error is None:
        assert set(shared) <= {"dout", "gamma"}  # the cache has a gamma of its own
        assert all(same(*pair) for pair in zip(outcome.result, want, strict=True))
    else:
        assert outcome.names == "out"


def changed_forms(x):
    """What may happen to an array between forward and backward; each name says it."""
    return {
        "x resized smaller": lambda: x.resize((1,) * x.ndim, refcheck=False),
        "x resized larger": lambda: x.resize([n + 1 for n in x.shape], refcheck=False),
        "x of another dtype": lambda: setattr(x, "dtype", f"i{x.dtype.itemsize}"),
        "x of another shape": lambda: setattr(x, "shape", (x.size,)),
        "x read-only": lambda: x.setflags(write=False),
    }


@given(cases(recipes=["plain"], forms=["plain"]), st.data())
def test_backward_survives_what_happened_to_the_arrays(case, data):
    """No crash: a named error, or gradients."""
    x = case.arguments["x"].thing.copy()
    if not x.size:
        return
    _, cache, *_ = call(case.forward, **case.keywords | {"x": x})
    want = call(case.backward, dout=np.ones(x.shape), cache=cache)
    shape, changes = x.shape, changed_forms(x)
    happened = data.draw(st.sampled_from(list(changes)), "happened")
    note(happened)
    changes[happened]()
    outcome = attempt(case.backward, dout=np.ones(shape), cache=cache)
    if happened == "x read-only":
        assert all(same(*pair) for pair in zip(outcome.result, want, strict=True))
    if outcome.error is not None:
        assert outcome.names == "cache"


@given(cases(recipes=["plain"]), st.sampled_from(["x", "gamma", "kind"]), st.data())
def test_a_cache_cannot_be_replaced_piece_by_piece(case, attribute, data):
    """Setting an attribute fails, or what is there is checked like any other argument."""
    y, cache, *_ = run(case)
    value = data.draw(wrong(WRONG_ARRAYS | WRONG_SHAPES, case.x), attribute).thing
    try:
        setattr(cache, attribute, value)
    except AttributeError:
        return
    attempt(case.backward, dout=np.ones(y.shape), cache=cache)
