"""Layers against the functions they stand for; their state, files, modes, buffers, and threads that share them."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference

import cbnorm

SHAPE = (6, 4, 5)


class Case:
    """A way to make a layer, with the function it stands for."""

    def __init__(self, make, forward, backward, names=("gamma", "beta")):
        self.make = make
        self.forward = forward  # of x, parameters by name
        self.backward = backward
        self.names = names


CASES = {
    "batch": Case(
        lambda **options: cbnorm.BatchNorm(4, **options),
        lambda x, **parameters: cbnorm.batchnorm_forward(x, **parameters)[:2],
        cbnorm.batchnorm_backward,
    ),
    "batch, channels last": Case(
        lambda **options: cbnorm.BatchNorm(5, axis=-1, **options),
        lambda x, **parameters: cbnorm.batchnorm_forward(x, **parameters, axis=2)[:2],
        cbnorm.batchnorm_backward,
    ),
    "layer": Case(
        lambda **options: cbnorm.LayerNorm(5, **options),
        lambda x, **parameters: cbnorm.layernorm_forward(x, **parameters),
        cbnorm.layernorm_backward,
    ),
    "layer, two axes": Case(
        lambda **options: cbnorm.LayerNorm((4, 5), **options),
        lambda x, **parameters: cbnorm.layernorm_forward(x, **parameters, axis=1),
        cbnorm.layernorm_backward,
    ),
    "group": Case(
        lambda **options: cbnorm.GroupNorm(2, 4, **options),
        lambda x, gamma=None, beta=None, **rest: cbnorm.groupnorm_forward(x, gamma, beta, 2, **rest),
        cbnorm.groupnorm_backward,
    ),
    "instance": Case(
        lambda **options: cbnorm.InstanceNorm(4, **options),
        lambda x, **parameters: cbnorm.instancenorm_forward(x, **parameters),
        cbnorm.instancenorm_backward,
    ),
    "rms": Case(
        lambda **options: cbnorm.RMSNorm((4, 5), **options),
        lambda x, **parameters: cbnorm.rmsnorm_forward(x, **parameters, axis=1),
        cbnorm.rmsnorm_backward,
        names=("gamma",),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def numbers(seed, shape=SHAPE, dtype=np.float32):
    return (np.random.default_rng(seed).standard_normal(shape) * 3 + 2).astype(dtype)


def randomize(layer, seed=0):
    """Give a layer parameters and moving statistics unlike those of a new one."""
    rng = np.random.default_rng(seed)
    for array in layer.parameters().values():
        array[...] = rng.normal(1, 0.5, array.shape)
    if isinstance(layer, cbnorm.BatchNorm):
        layer.moving_mean = rng.normal(size=layer.num_channels)
        layer.moving_var = rng.uniform(0.5, 2, layer.num_channels)
        layer.num_batches = 5
    return layer


def same_state(a, b):
    """Whether two layers, or states, hold the same bits."""
    a, b = (each.state_dict() if isinstance(each, cbnorm.layers.Layer) else each for each in (a, b))
    return list(a) == list(b) and all(
        a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes() for name in a
    )


def assert_same_bits(got, want):
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert got.tobytes() == want.tobytes()


# --- forward and backward


@pytest.mark.parametrize("reuse_output", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_layers_give_the_bits_of_their_functions(case, dtype, affine, reuse_output):
    layer = randomize(case.make(affine=affine, eps=1e-3, reuse_output=reuse_output))
    x, dout = (10 * numbers(1)).astype(dtype), numbers(2)
    y, cache = case.forward(x, eps=1e-3, **layer.parameters())
    assert_same_bits(layer(x), y)
    dx, *gradients = case.backward(dout, cache)
    assert_same_bits(layer.backward(dout), dx)
    assert list(layer.parameters()) == list(layer.grads) == (list(case.names) if affine else [])
    for got, want in zip(layer.grads.values(), gradients, strict=False):
        assert_same_bits(got, want)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("ddof", "momentum"), [(0, 0.9), (1, 0.75)])
def test_batch_norm_keeps_moving_statistics_as_the_function_returns_them(dtype, training, frozen, ddof, momentum):
    layer = randomize(cbnorm.BatchNorm(4, momentum=momentum, ddof=ddof, frozen=frozen))
    layer.train() if training else layer.eval()
    mean, var = layer.moving_mean, layer.moving_var
    uses_batch = training and not frozen
    for seed in range(3):
        x, dout = numbers(seed, dtype=dtype), numbers(9)
        y, cache, mean, var = cbnorm.batchnorm_forward(
            x, layer.gamma, layer.beta, momentum=momentum, moving_mean=mean, moving_var=var,
            mode="train" if uses_batch else "test", ddof=ddof,
        )  # fmt: skip
        assert_same_bits(layer.forward(x), y)
        assert_same_bits(layer.moving_mean, mean)
        assert_same_bits(layer.moving_var, var)
        dx, dgamma, dbeta = cbnorm.batchnorm_backward(dout, cache)
        assert_same_bits(layer.backward(dout), dx)
        assert_same_bits(layer.grads["gamma"], dgamma)
        assert_same_bits(layer.grads["beta"], dbeta)
    assert layer.num_batches == 5 + 3 * uses_batch


def test_frozen_statistics_count_as_constants_in_backward():
    layer = randomize(cbnorm.BatchNorm(4, frozen=True, dtype=np.float64))
    before = layer.state_dict()
    x, dout = numbers(1, dtype=np.float64), numbers(2, dtype=np.float64)
    layer(x)
    factor = layer.gamma / np.sqrt(layer.moving_var + layer.eps)
    np.testing.assert_allclose(layer.backward(dout), dout * factor[:, None], rtol=1e-12)
    assert same_state(layer, before)
    layer.frozen = False
    layer(x)
    assert layer.num_batches == 6


def test_momentum_none_averages_batches_equally_whatever_their_size():
    layer = cbnorm.BatchNorm(4, momentum=None, ddof=1)
    batches = [numbers(seed, (3 + 5 * seed, 4), np.float64) for seed in range(5)]
    for x in [*batches[:2], np.empty((0, 4)), *batches[2:]]:
        layer(x)
    assert layer.num_batches == 5
    np.testing.assert_allclose(layer.moving_mean, np.mean([x.mean(axis=0) for x in batches], axis=0), rtol=1e-12)
    np.testing.assert_allclose(layer.moving_var, np.mean([x.var(axis=0, ddof=1) for x in batches], axis=0), rtol=1e-12)


def test_momentum_none_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    module = torch.nn.BatchNorm1d(4, momentum=None, dtype=torch.float64)
    layer = cbnorm.BatchNorm.from_torch(module.state_dict(), momentum=None)
    for seed in range(4):
        x = numbers(seed, (3 + seed, 4), np.float64)
        module(torch.from_numpy(x))
        layer(x)
    for name, array in layer.to_torch()["state_dict"].items():
        np.testing.assert_allclose(array, module.state_dict()[name].numpy(), rtol=1e-12)


def test_an_optimizer_updates_parameters_in_place():
    layer = cbnorm.LayerNorm(5)
    x = numbers(1)
    before = layer(x)
    layer.backward(np.ones_like(x))
    for name, parameter in layer.parameters().items():
        parameter -= 0.1 * layer.grads[name]
    np.testing.assert_allclose(layer.beta, -0.1 * 24, rtol=1e-6)
    assert not np.array_equal(layer(x), before)


def test_train_and_eval_return_the_layer():
    layer = cbnorm.BatchNorm(4)
    assert layer.training
    assert layer.eval() is layer
    assert not layer.training
    assert layer.train() is layer
    assert layer.training


# --- reuse_output


def test_fresh_results_by_default(case):
    layer = case.make()
    x = numbers(1)
    first, second = layer(x), layer(x)
    assert not np.shares_memory(first, second)
    first_dx, second_dx = layer.backward(x), layer.backward(x)
    assert not np.shares_memory(first_dx, second_dx)


def test_reused_results_are_overwritten_by_the_next_call(case):
    layer = case.make(reuse_output=True)
    first = layer(numbers(1))
    kept = first.copy()
    first_dx = layer.backward(numbers(2))
    second = layer(3 * numbers(3) ** 2)
    assert second is first
    assert not np.array_equal(first, kept)
    assert layer.backward(numbers(4)) is first_dx
    assert not np.shares_memory(first, first_dx)


def test_reused_results_follow_shape_and_dtype():
    layer = cbnorm.BatchNorm(4, reuse_output=True)
    for shape, dtype in [((6, 4), np.float32), ((3, 4), np.float32), ((3, 4), np.float64), ((3, 4, 2), np.float16)]:
        x = numbers(1, shape, dtype)
        assert_same_bits(layer(x), cbnorm.batchnorm_forward(x)[0])
        assert_same_bits(layer.backward(x), cbnorm.batchnorm_backward(x, cbnorm.batchnorm_forward(x)[1])[0])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_reused_result_may_be_the_next_input(case, mode):
    layers = [getattr(randomize(case.make(reuse_output=reuse)), mode)() for reuse in (True, False)]
    results = []
    for layer in layers:
        twice = layer(layer(numbers(1)))
        results.append((twice, layer.backward(layer.backward(numbers(2)))))
    for got, want in zip(*results, strict=True):
        assert_same_bits(got, want)


# --- what does not fit


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: cbnorm.BatchNorm(0), ValueError, "num_channels: expected at least 1, got 0"),
        (lambda: cbnorm.BatchNorm(2.0), TypeError, "num_channels: expected an integer, got 2.0"),
        (lambda: cbnorm.BatchNorm(2, axis="C"), TypeError, "axis: expected an integer, got 'C'"),
        (lambda: cbnorm.BatchNorm(2, eps=-1), ValueError, "eps: expected"),
        (lambda: cbnorm.BatchNorm(2, momentum=1.5), ValueError, "momentum: expected a number from 0 to 1, got 1.5"),
        (lambda: cbnorm.BatchNorm(2, ddof=2), ValueError, "ddof: expected 0 or 1, got 2"),
        (lambda: cbnorm.BatchNorm(2, dtype=int), TypeError, "dtype: expected float16, float32 or float64, got"),
        (lambda: cbnorm.BatchNorm(2, dtype="f5"), TypeError, "dtype: expected .* got 'f5'"),
        (lambda: cbnorm.LayerNorm(()), ValueError, "shape: expected at least one length"),
        (lambda: cbnorm.LayerNorm((3, 0)), ValueError, "shape: expected at least 1, got 0"),
        (lambda: cbnorm.RMSNorm("5"), TypeError, "shape: expected an integer, got '5'"),
        (lambda: cbnorm.GroupNorm(3, 4), ValueError, "num_groups: expected a divisor of 4 channels, got 3"),
        (lambda: cbnorm.GroupNorm(0, 4), ValueError, "num_groups: expected at least 1, got 0"),
        (lambda: cbnorm.InstanceNorm(-1), ValueError, "num_channels: expected at least 1, got -1"),
    ],
)
def test_constructors_name_the_argument(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("layer", "x", "error", "words"),
    [
        (cbnorm.BatchNorm(3), np.zeros((5, 4)), ValueError, r"x: expected length 3 on axis 1, got shape \(5, 4\)"),
        (cbnorm.BatchNorm(3, axis=-1), np.zeros((3, 4)), ValueError, "x: expected length 3 on axis -1"),
        (cbnorm.BatchNorm(3, axis=-3), np.zeros((3, 3)), ValueError, "x: expected length 3 on axis -3"),
        (cbnorm.BatchNorm(3), np.zeros(3), ValueError, "x: expected at least 2 dimensions"),
        (cbnorm.BatchNorm(3, ddof=1), np.zeros((1, 3)), ValueError, "ddof: expected 0"),
        (cbnorm.BatchNorm(3), np.zeros((2, 3), complex), TypeError, "x: expected real numbers"),
        (cbnorm.LayerNorm(3, affine=False), np.zeros((2, 4)), ValueError, "x: expected length 3 on axis -1"),
        (cbnorm.LayerNorm((2, 3)), np.zeros((4, 3)), ValueError, r"x: expected length \(2, 3\) on the axes from -2"),
        (cbnorm.LayerNorm((2, 3)), np.zeros(3), ValueError, r"x: expected length \(2, 3\)"),
        (cbnorm.RMSNorm(3, affine=False), np.zeros((3, 1)), ValueError, "x: expected length 3 on axis -1"),
        (cbnorm.GroupNorm(2, 4, affine=False), np.zeros((2, 6)), ValueError, "x: expected length 4 on axis 1"),
        (cbnorm.InstanceNorm(4, affine=False), np.zeros((2, 3, 4)), ValueError, "x: expected length 4 on axis 1"),
    ],
)
def test_an_input_that_does_not_fit_is_an_error_and_changes_nothing(layer, x, error, words):
    before = layer.state_dict()
    with pytest.raises(error, match=words):
        layer(x)
    assert same_state(layer, before)
    with pytest.raises(ValueError, match="backward: expected a forward call of this thread before it"):
        layer.backward(x)


def test_a_gradient_that_does_not_fit_leaves_the_old_ones(case):
    layer = case.make()
    assert layer.grads == {}
    layer(numbers(1))
    layer.backward(numbers(2))
    before = layer.grads
    with pytest.raises(ValueError, match="dout: expected shape"):
        layer.backward(np.zeros(3))
    assert layer.grads is before


# --- state


def test_state_dict_holds_copies(case):
    layer = randomize(case.make())
    state = layer.state_dict()
    moving = ["moving_mean", "moving_var", "num_batches"] if isinstance(layer, cbnorm.BatchNorm) else []
    assert list(state) == [*case.names, *moving]
    for array in state.values():
        array[...] = 7
    assert not any(np.any(array == 7) for array in layer.state_dict().values())


def test_load_state_dict_writes_parameters_where_they_are(case):
    source, target = randomize(case.make()), case.make()
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
def test_copies_and_pickles_work_on_their_own(case, duplicate):
    layer = randomize(case.make(reuse_output=True, eps=1e-2)).eval()
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
    assert same_state(layer, randomize(case.make()))
    assert not layer.training


# --- files


def test_a_saved_layer_loads_to_the_bit(case, tmp_path):
    source, target = randomize(case.make()), case.make()
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
        with subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, path], stdout=subprocess.PIPE, text=True
        ) as process:
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


# --- threads


@pytest.fixture
def hasty_threads():
    """Let threads take turns after microseconds, so that they meet wherever they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("momentum", [None, 1.0])
def test_every_batch_counts_once_when_threads_train_together(hasty_threads, momentum):
    layer = cbnorm.BatchNorm(3, momentum=momentum)
    spread = np.array([[-1.0], [1.0]] * 200)
    offsets = np.arange(240.0).reshape(8, 30)

    def train(own):
        for offset in own:
            layer(offset + spread * [[1, 2, 3]])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(train, offsets))
    assert layer.num_batches == 240
    if momentum is None:  # the average of all batches does not depend on their order
        np.testing.assert_allclose(layer.moving_mean, offsets.mean(), rtol=1e-12)
        np.testing.assert_allclose(layer.moving_var, [1, 4, 9], rtol=1e-12)
    else:
        np.testing.assert_array_equal(layer.moving_mean, 0)


@pytest.mark.parametrize("reuse_output", [False, True])
def test_backward_belongs_to_the_forward_of_the_same_thread(hasty_threads, case, reuse_output):
    layer = randomize(case.make(reuse_output=reuse_output))
    barrier = threading.Barrier(4, timeout=10)

    def step(seed):
        x, dout = numbers(seed), numbers(seed + 100)
        want_y, cache = case.forward(x, **layer.parameters())
        want_dx, *want_gradients = case.backward(dout, cache)
        for _ in range(20):
            y = layer(x)
            barrier.wait()  # all have called forward
            dx = layer.backward(dout)
            barrier.wait()  # all have called backward
            assert_same_bits(y, want_y)
            assert_same_bits(dx, want_dx)
            for name, want in zip(case.names, want_gradients, strict=True):
                assert_same_bits(layer.grads[name], want)
        return y, dx

    with ThreadPoolExecutor(4) as pool:
        results = [array for pair in pool.map(step, range(4)) for array in pair]
    for i, array in enumerate(results):
        assert not any(np.shares_memory(array, other) for other in results[i + 1 :])
    assert layer.grads == {}


class SlowToWrite(cbnorm.BatchNorm):
    """Sets its moving mean a moment before its moving variance."""

    @property
    def moving_var(self):
        return self.slow_var

    @moving_var.setter
    def moving_var(self, var):
        time.sleep(1e-3)
        self.slow_var = var


def batch_of(size):
    """Mean size, variance size²."""
    return size * np.array([[0.0], [2.0]]) * np.ones(3)


WRITERS = {
    "training": lambda layer, size: layer(batch_of(size)),
    "load_state_dict": lambda layer, size: layer.load_state_dict(
        {"moving_mean": np.full(3, size), "moving_var": np.full(3, size**2)}, strict=False
    ),
    "recompute_stats": lambda layer, size: cbnorm.recompute_stats(layer, [batch_of(size)]),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_readers_see_moving_statistics_of_one_moment(hasty_threads, writer):
    layer = SlowToWrite(3, momentum=0.0, eps=0.0)
    layer(batch_of(1.0))
    readers = [layer.state_dict, lambda: copy.deepcopy(layer).state_dict()]
    if writer != "training":
        layer.eval()
        readers.append(lambda: layer(np.zeros((1, 3), np.float64)))
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [WRITERS[writer](layer, size) for size in np.arange(2.0, 40.0)])
        while not writing.done():
            for reader in readers:
                result = reader()
                if isinstance(result, dict):
                    np.testing.assert_allclose(result["moving_mean"] ** 2, result["moving_var"], rtol=1e-12)
                else:
                    np.testing.assert_allclose(result, -1, rtol=1e-12)  # (0 - size) / sqrt(size²)
        writing.result()
    np.testing.assert_allclose(layer.moving_mean, 39)


# --- recompute_stats


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("axis", [1, -1])
def test_recomputed_statistics_are_those_of_the_whole_data_set(axis, ddof):
    shapes = [(5, 4, 3, 4), (0, 4, 3, 4), (1, 4, 2, 4), (9, 4, 1, 4)]
    batches = [100 + numbers(seed, shape) for seed, shape in enumerate(shapes)]
    layer = randomize(cbnorm.BatchNorm(4, axis=axis, ddof=ddof, momentum=None)).eval()
    parameters = [array.copy() for array in layer.parameters().values()]
    cbnorm.recompute_stats(layer, (x for x in batches))
    together = np.concatenate([reference.to_columns(x, axis) for x in batches])
    np.testing.assert_allclose(layer.moving_mean, together.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(layer.moving_var, together.var(axis=0, ddof=ddof), rtol=1e-9)
    for array, before in zip(layer.parameters().values(), parameters, strict=True):
        np.testing.assert_array_equal(array, before)
    assert not layer.training
    assert layer.num_batches == 3  # the next batch of training weighs 1/4
    mean = layer.moving_mean
    layer.train()(np.zeros((2, 4, 2, 4)))
    np.testing.assert_allclose(layer.moving_mean, 0.75 * mean, rtol=1e-12)


def failing_batches():
    yield numbers(1)
    raise RuntimeError("the disk is gone")


@pytest.mark.parametrize(
    ("batches", "error", "words"),
    [
        ([], ValueError, "batches: expected at least 2 values a channel, got 0"),
        ([np.empty((0, 4))], ValueError, "batches: expected at least 2 values a channel, got 0"),
        ([np.ones((1, 4))], ValueError, "batches: expected at least 2 values a channel, got 1"),
        ([np.ones((3, 5))], ValueError, "x: expected length 4 on axis 1"),
        ([numbers(1), np.ones((3, 5))], ValueError, "x: expected length 4 on axis 1"),
        ([numbers(1), "text"], TypeError, "x: expected"),
        (failing_batches(), RuntimeError, "the disk is gone"),
        (3, TypeError, "batches: expected an iterable of arrays, got int"),
    ],
)
def test_statistics_that_cannot_be_recomputed_stay_as_they_were(batches, error, words):
    layer = randomize(cbnorm.BatchNorm(4, ddof=1))
    before = layer.state_dict()
    with pytest.raises(error, match=words):
        cbnorm.recompute_stats(layer, batches)
    assert same_state(layer, before)


def test_only_batch_normalization_has_statistics_to_recompute():
    with pytest.raises(TypeError, match="layer: expected a BatchNorm, got LayerNorm"):
        cbnorm.recompute_stats(cbnorm.LayerNorm(4), [])
