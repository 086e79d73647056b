"""Hostile arguments of layers' constructors, and of those that make layers of what other libraries hold."""

import numpy as np
from guarded import refuse
from hypothesis import given
from hypothesis import strategies as st
from wrong import WRONG_ARRAYS, WRONG_CHOICES, WRONG_INTEGERS, WRONG_NUMBERS, wrong

import cbnorm

CONSTRUCTORS = {
    cbnorm.BatchNorm: ({"num_channels": 3}, ("num_channels", "axis", "eps", "momentum", "ddof", "dtype")),
    cbnorm.LayerNorm: ({"shape": 3}, ("shape", "eps", "dtype")),
    cbnorm.RMSNorm: ({"shape": 3}, ("shape", "eps", "dtype")),
    cbnorm.GroupNorm: ({"num_groups": 2, "num_channels": 4}, ("num_groups", "num_channels", "eps", "dtype")),
    cbnorm.InstanceNorm: ({"num_channels": 3}, ("num_channels", "eps", "dtype")),
}
NO_LENGTH = {
    name: make
    for name, make in WRONG_INTEGERS.items()
    if name not in ("100", "a list", "just beyond 64 bits", "far too large")
}
NO_AXIS = {name: make for name, make in NO_LENGTH.items() if name not in ("-100", "far too small")}
NO_DTYPE = ["f16", "int32", int, complex, "no dtype", 3, object(), np.longdouble, [], "M8", np.ndarray]
TABLES = {
    "num_channels": NO_LENGTH,
    "shape": NO_LENGTH,
    "num_groups": NO_LENGTH,
    "axis": NO_AXIS,
    "ddof": WRONG_CHOICES,
}


@given(st.sampled_from(sorted(CONSTRUCTORS, key=lambda cls: cls.__name__)), st.data())
def test_constructors_refuse_wrong_arguments_by_name(cls, data):
    right, names = CONSTRUCTORS[cls]
    name = data.draw(st.sampled_from(names), "argument")
    if name == "dtype":
        value = data.draw(st.sampled_from(NO_DTYPE), name)
    else:
        table = TABLES.get(name, WRONG_NUMBERS)
        if name == "momentum":  # None is a momentum
            table = {key: make for key, make in table.items() if key != "None"}
        value = data.draw(wrong(table, 1), name).thing
    refuse(cls, (name,), **right | {name: value})


WRONG_STATES = {
    "torch": [
        {},
        None,
        [],
        {"weight": 1},
        {"running_mean": np.ones(2)},
        {"running_mean": np.ones(2), "running_var": 1},
        "text",
    ],
    "keras": [
        None,
        3,
        [],
        [np.ones(2)] * 3,
        [1, 2, 3, 4],
        "text",
        [np.ones(2)] * 3 + [np.ones(3)],
        [np.ones(2)] * 3 + [-np.ones(2)],
    ],
}


@given(st.sampled_from(["torch", "keras", "onnx"]), st.data())
def test_converters_refuse_wrong_arguments_by_name(library, data):
    ones = np.ones(2)
    make = getattr(cbnorm.BatchNorm, f"from_{library}")
    right = {
        "torch": {
            "state_dict": {"weight": ones, "bias": ones, "running_mean": ones, "running_var": ones},
            "eps": 1e-5,
        },
        "keras": {"weights": [ones] * 4},
        "onnx": {"scale": ones, "B": ones, "input_mean": ones, "input_var": ones},
    }[library]
    name = data.draw(
        st.sampled_from([*right, "momentum", "axis", *([] if library == "torch" else ["epsilon"])]), "argument"
    )
    if name in ("state_dict", "weights"):
        value = data.draw(st.sampled_from(WRONG_STATES[library]), name)
        if data.draw(st.booleans(), "one array of it"):
            bad = data.draw(wrong(WRONG_ARRAYS, ones), "array").thing
            key = data.draw(st.sampled_from(["weight", "running_var"]), "key")
            value = right[name] | {key: bad} if library == "torch" else [ones, bad, ones, ones]
    elif name == "axis":
        value = data.draw(wrong(NO_AXIS, 1), name).thing
    elif name in right and name != "eps":
        value = data.draw(wrong(WRONG_ARRAYS, ones), name).thing
    else:
        table = {
            key: each for key, each in WRONG_NUMBERS.items() if (library, name, key) != ("torch", "momentum", "None")
        }
        value = data.draw(wrong(table, 1), name).thing
    refuse(make, (name,), **right | {name: value})
