"""What a layer holds: state dicts, copies and pickles, and files that are whole or refused."""

import copy
import os
import pickle
import signal
import sys
import time

import numpy as np
import pytest
from cases import assert_same_bits
from layer_cases import numbers, randomize, same_state
from processes import start_python

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


def test_a_saved_layer_loads_to_the_bit(layer_case, tmp_path):
    source, target = randomize(layer_case.make()), layer_case.make()
    for path in (tmp_path / "state.npz", str(tmp_path / "no suffix")):
        source.save(path)
        target.load(path)
        assert same_state(target, source)
        with np.load(path, allow_pickle=False) as archive:
            assert same_state(dict(archive), source.state_dict())
    assert sorted(os.listdir(tmp_path)) == ["no suffix", "state.npz"]


def test_a_damaged_file_is_a_value_error_and_changes_nothing(tmp_path):
    path = tmp_path / "state.npz"
    saved = randomize(cbnorm.BatchNorm(4), seed=1)
    saved.save(path)
    whole = path.read_bytes()
    layer = randomize(cbnorm.BatchNorm(4), seed=2)
    before = layer.state_dict()
    rng = np.random.default_rng(0)
    damaged = [whole[:length] for length in range(0, len(whole), 7)]
    for position in rng.integers(len(whole), size=300):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    messages = []
    for content in damaged:
        path.write_bytes(content)
        try:
            layer.load(path)
        except ValueError as error:
            messages.append(str(error))
            changed = not same_state(layer, before)
        else:  # a bit that says nothing, such as a date
            changed = not same_state(layer, saved)
            layer.load_state_dict(before)
        assert not changed
    assert all(message.startswith("path: expected a file of this BatchNorm's state, got") for message in messages)
    assert len(messages) > 0.75 * len(damaged)


def test_a_foreign_file_is_a_value_error(tmp_path):
    layer = randomize(cbnorm.BatchNorm(4))
    before = layer.state_dict()
    foreign = {
        "text": lambda path: path.write_text("gamma: 1, 1, 1, 1"),
        "array.npy": lambda path: np.save(path, np.ones(4)),
        "pickle": lambda path: path.write_bytes(pickle.dumps(before)),
        "pickle.npz": lambda path: np.savez(path, **before | {"gamma": np.array([{}] * 4)}),
        "another layer": lambda path: cbnorm.LayerNorm(4).save(path),
        "another size": lambda path: cbnorm.BatchNorm(5).save(path),
        "another dtype": lambda path: cbnorm.BatchNorm(4, dtype=np.float64).save(path),
        "negative.npz": lambda path: np.savez(path, **before | {"moving_var": -np.ones(4)}),
    }
    for name, write in foreign.items():
        write(tmp_path / name)
        with pytest.raises(ValueError, match="path: expected a file of this BatchNorm's state, got"):
            layer.load(tmp_path / name)
        assert same_state(layer, before)
    with pytest.raises(FileNotFoundError):
        layer.load(tmp_path / "nothing")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_a_file_is_unpickled(tmp_path):
    layer = cbnorm.BatchNorm(4)
    trap = np.array([Trap(str(tmp_path / "sprung"))])
    np.savez(tmp_path / "trap.npz", **layer.state_dict() | {"gamma": trap})
    with pytest.raises(ValueError, match="path: expected a file of this BatchNorm's state, got"):
        layer.load(tmp_path / "trap.npz")
    assert os.listdir(tmp_path) == ["trap.npz"]


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    layer = randomize(cbnorm.BatchNorm(4))
    layer.save(path)
    old = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    layer(numbers(1))
    with pytest.raises(OSError, match="No space left"):
        layer.save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["state.npz"]
    with pytest.raises(FileNotFoundError):
        layer.save(tmp_path / "no folder" / "state.npz")


SAVE_FOR_EVER = """
import sys
import numpy as np, cbnorm
layer = cbnorm.LayerNorm(1_000_000)
number = 0
while True:
    layer.gamma[:] = layer.beta[:] = number
    layer.save(sys.argv[1])
    print(number, flush=True)
    number += 1
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_save_that_is_killed_midway_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "state.npz"
    layer = cbnorm.LayerNorm(1_000_000)
    killed_midway = 0
    for delay in (0.0, 0.002, 0.005, 0.01, 0.02):
        with start_python(SAVE_FOR_EVER, path) as process:
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            reported = len(process.stdout.read().splitlines())
        assert process.returncode == -signal.SIGKILL
        layer.load(path)
        numbers_found = np.unique([layer.gamma, layer.beta])
        assert numbers_found.size == 1
        assert reported <= numbers_found[0] <= reported + 1
        unfinished = list(tmp_path.glob("*.tmp"))
        killed_midway += len(unfinished)
        for leftover in unfinished:
            leftover.unlink()
    assert killed_midway
