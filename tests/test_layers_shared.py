"""Layers that threads share, and processes forked meanwhile."""

import copy
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import assert_same_bits
from layer_cases import numbers, randomize
from processes import IN_A_CHILD, needs_two_cpus, words

import cbnorm


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
def test_backward_belongs_to_the_forward_of_the_same_thread(hasty_threads, layer_case, reuse_output):
    layer = randomize(layer_case.make(reuse_output=reuse_output))
    barrier = threading.Barrier(4, timeout=10)

    def step(seed):
        x, dout = numbers(seed), numbers(seed + 100)
        want_y, cache, *_ = layer_case.norm.forward(x, **layer.parameters())
        want_dx, *want_gradients = layer_case.norm.backward(dout, cache)
        for _ in range(20):
            y = layer(x)
            barrier.wait()  # all have called forward
            dx = layer.backward(dout)
            barrier.wait()  # all have called backward
            assert_same_bits(y, want_y)
            assert_same_bits(dx, want_dx)
            for name, want in zip(layer_case.names, want_gradients, strict=True):
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


LAYERS = """
import copy, pickle, threading
import numpy as np
import cbnorm

x = np.ones((8, 4, 3), np.float32)
layers = [cbnorm.BatchNorm(4), cbnorm.LayerNorm(3), cbnorm.RMSNorm(3), cbnorm.GroupNorm(2, 4), cbnorm.InstanceNorm(4)]
layers += copy.deepcopy(layers) + pickle.loads(pickle.dumps(layers))
held, leave = threading.Event(), threading.Event()

def hold():
    from contextlib import ExitStack
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer._lock)
        held.set()
        leave.wait()

other = threading.Thread(target=hold)
other.start()
held.wait()

def work():
    for layer in layers:
        layer.backward(layer(x))
        layer.load_state_dict(layer.state_dict())
        copy.deepcopy(layer), pickle.dumps(layer)
        layer.save("layer.npz"), layer.load("layer.npz")
    cbnorm.recompute_stats(layers[0], [x])
    print("done")

print(run_in_child(work))
leave.set()
other.join()
"""


@needs_two_cpus
def test_a_child_can_use_layers_that_another_thread_held(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words(IN_A_CHILD + LAYERS) == ["done", "0"]


@needs_two_cpus
def test_a_fork_finds_moving_statistics_of_one_moment():
    code = (
        IN_A_CHILD
        + """
import sys, threading
import numpy as np, cbnorm
sys.setswitchinterval(1e-6)
layer = cbnorm.BatchNorm(2)
states = [layer.state_dict() | {"moving_mean": np.full(2, v), "moving_var": np.full(2, v)} for v in (1.0, 2.0, 3.0)]

def change():
    while running:
        for state in states:
            layer.load_state_dict(state)

running = True
layer.load_state_dict(states[0])
other = threading.Thread(target=change)
other.start()

def work():
    assert (layer.moving_mean == layer.moving_var).all(), (layer.moving_mean, layer.moving_var)

print({run_in_child(work) for _ in range(200)})
running = False
other.join()
"""
    )
    assert words(code) == ["{0}"]
