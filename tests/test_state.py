"""What a layer holds: state dicts, copies and pickles."""

import copy
import pickle

import numpy as np
import pytest
from cases import assert_same_bits
from layer_cases import numbers, randomize, same_state

import cbnorm


def test_state_dict_holds_copies(layer_case):
    layer = randomize(layer_case.make())
    state = layer.state_dict()
    moving = ["moving_mean", "moving_var", "num_batches"] if isinstance(layer, cbnorm.BatchNorm) else []
    assert list(state) == [*layer_case.names, *moving]
    for array in state.values():
        array[...] = 7
    assert not any(np.any(array == 7) for array in layer.state_dict().values())


def test_load_state_dict_writes_parameters_where_they_are(layer_case):
    source, target = randomize(layer_case.make()), layer_case.make()
    held = target.parameters()
    state = source.state_dict()
    target.load_state_dict(state)
    assert same_state(target, source)
    for name, array in target.parameters().items():
        assert array is held[name]
    for array in state.values():
        array[...] = 7
    assert same_state(target, source)
    x = numbers(1)
    assert_same_bits(target.eval()(x), source.eval()(x))


BAD_STATES = {
    "missing": (lambda state: state.pop("moving_var"), ValueError, "got none for 'moving_var'"),
    "unknown": (lambda state: state.update(delta=1), ValueError, "got also 'delta'"),
    "shape": (lambda state: state.update(beta=np.zeros(5, np.float32)), ValueError, r"\['beta'\]: expected shape"),
    "dtype": (lambda state: state.update(beta=np.zeros(4)), TypeError, r"\['beta'\]: expected dtype float32, got"),
    "text": (lambda state: state.update(beta="four"), TypeError, r"state_dict\['beta'\]: expected"),
    "variance": (lambda state: state.update(moving_var=-np.ones(4)), ValueError, r"\['moving_var'\]: expected no neg"),
    "count": (lambda state: state.update(num_batches=-1), ValueError, r"\['num_batches'\]: expected no negative"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_STATES)
def test_a_bad_state_names_the_key_and_changes_nothing(bad):
    spoil, error, words = BAD_STATES[bad]
    state = randomize(cbnorm.BatchNorm(4), seed=1).state_dict()
    spoil(state)
    layer = randomize(cbnorm.BatchNorm(4), seed=2)
    before = layer.state_dict()
    with pytest.raises(error, match=words):
        layer.load_state_dict(state)
    assert same_state(layer, before)


def test_a_state_is_given_by_name():
    with pytest.raises(TypeError, match="state_dict: expected arrays by name, got list"):
        cbnorm.LayerNorm(4).load_state_dict([np.ones(4), np.zeros(4)])


READ_ONLY = {
    "flag": lambda array: array.setflags(write=False),
    "view": lambda array: np.broadcast_to(array.copy(), array.shape),
    "memmap": lambda array: np.memmap(array.tofile("beta.bin") or "beta.bin", array.dtype, "r", shape=array.shape),
    "no array": lambda array: array.tolist(),
}


@pytest.mark.parametrize("kind", READ_ONLY)
@pytest.mark.parametrize("strict", [False, True])
def test_parameters_that_cannot_be_written_are_named_and_nothing_changes(
    layer_case, kind, strict, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    layer = randomize(layer_case.make(dtype=np.float64))
    name = layer_case.names[-1]  # the others would be written before it
    other = READ_ONLY[kind](getattr(layer, name))
    if other is not None:
        setattr(layer, name, other)
    before = layer.state_dict()
    state = {key: array + 1 for key, array in before.items()}
    with pytest.raises(ValueError, match=rf"state_dict\['{name}'\]: expected a layer whose {name} can be written, got"):
        layer.load_state_dict(state, strict=strict)
    assert same_state(layer, before)
    del state[name]
    layer.load_state_dict(state, strict=False)  # what is not written need not be writeable
    assert same_state(layer, before | state)


def test_strictness_is_true_or_false():
    with pytest.raises(TypeError, match="strict: expected True or False, got 'no'"):
        cbnorm.LayerNorm(4).load_state_dict({}, strict="no")


def test_loading_that_is_not_strict_takes_what_is_there():
    layer = cbnorm.BatchNorm(4)
    layer.load_state_dict({"gamma": np.full(4, 3, np.float32), "delta": 1}, strict=False)
    np.testing.assert_array_equal(layer.gamma, 3)
    np.testing.assert_array_equal(layer.beta, 0)
    with pytest.raises(ValueError, match=r"state_dict\['gamma'\]: expected shape"):
        layer.load_state_dict({"gamma": np.ones(3, np.float32)}, strict=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_and_pickles_work_on_their_own(layer_case, duplicate):
    layer = randomize(layer_case.make(reuse_output=True, eps=1e-2)).eval()
    x = numbers(1)
    y = layer(x).copy()
    twin = duplicate(layer)
    assert same_state(twin, layer)
    with pytest.raises(ValueError, match="backward: expected a forward call"):
        twin.backward(x)
    assert_same_bits(twin(x), y)
    twin.train()(x)
    twin.backward(x)
    for array in twin.parameters().values():
        array += 1
    assert same_state(layer, randomize(layer_case.make()))
    assert not layer.training


def test_a_layer_that_version_0_1_pickled_keeps_its_flags():
    layer = randomize(cbnorm.BatchNorm(4, frozen=True, reuse_output=True)).eval()
    public = {name.removeprefix("_"): value for name, value in layer.__getstate__().items()}
    assert {"training", "frozen", "reuse_output"} < set(public)
    old = cbnorm.BatchNorm.__new__(cbnorm.BatchNorm)
    old.__setstate__(public)
    assert (old.training, old.frozen, old.reuse_output) == (False, True, True)
    assert same_state(old, layer)
    assert_same_bits(old(numbers(1)), layer(numbers(1)))
