"""Layers called several times before backward: a record gives its own call's gradients, none an error if in doubt."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import numbers, randomize

import cbnorm

AMBIGUOUS = r"cache: expected the record of the call that dout belongs to, .* got None; .*layer\.cache"

MODES = {"train": "train", "eval": "test"}


def alone(layer_case, x, dout, frozen_at=None, **options):
    """dx and the gradients of one call, with nothing else between it and its backward."""
    layer = randomize(layer_case.make(**options))
    if frozen_at is not None:
        layer.load_state_dict(frozen_at)
        layer.eval()
    layer(x)
    return layer.backward(dout), layer.grads


def assert_gradients(layer, dx, want):
    assert_same_bits(dx, want[0])
    assert list(layer.grads) == list(want[1])
    for name, gradient in want[1].items():
        assert_same_bits(layer.grads[name], gradient)


@pytest.mark.parametrize("reuse_output", [False, True])
@pytest.mark.parametrize("shape", [(6, 4, 5), (9, 4, 5)])
def test_each_record_gives_the_gradients_of_its_own_call(layer_case, reuse_output, shape):
    layer = randomize(layer_case.make(reuse_output=reuse_output))
    inputs = [numbers(1), 100 + 7 * numbers(2, shape), numbers(3).astype(np.float64)]
    records = []
    for x in inputs:
        layer(x)
        records.append(layer.cache)
    assert len({id(record) for record in records}) == 3
    for index in (2, 0, 1, 0):
        dout = numbers(10 + index, inputs[index].shape)
        dx = layer.backward(dout, records[index])
        assert_gradients(layer, dx, alone(layer_case, inputs[index], dout))


def test_two_training_calls_before_backward_need_a_record(layer_case):
    layer = randomize(layer_case.make())
    layer(numbers(1))
    layer(numbers(2))
    with pytest.raises(ValueError, match=AMBIGUOUS):
        layer.backward(numbers(3))
    assert layer.grads == {}
    dx = layer.backward(numbers(3), layer.cache)  # what the message offers
    assert_gradients(layer, dx, alone(layer_case, numbers(2), numbers(3)))
    with pytest.raises(ValueError, match=AMBIGUOUS):  # the other call's, perhaps
        layer.backward(numbers(3))
    layer(numbers(4))
    assert_gradients(layer, layer.backward(numbers(5)), alone(layer_case, numbers(4), numbers(5)))


def test_a_validation_pass_inside_a_step_needs_a_record(layer_case):
    layer = randomize(layer_case.make())
    layer(numbers(1))
    record = layer.cache
    layer.eval()(numbers(2))
    layer.train()
    with pytest.raises(ValueError, match=AMBIGUOUS):
        layer.backward(numbers(3))
    assert_gradients(layer, layer.backward(numbers(3), record), alone(layer_case, numbers(1), numbers(3)))


def test_a_validation_pass_before_a_step_is_no_ambiguity(layer_case):
    layer = randomize(layer_case.make())
    for _ in range(2):
        layer.eval()
        for seed in range(3):
            layer(numbers(seed))
        layer.train()(numbers(4))
        for _ in range(2):
            assert_gradients(layer, layer.backward(numbers(5)), alone(layer_case, numbers(4), numbers(5)))


def test_a_second_backward_after_one_forward_is_right(layer_case):
    for mode in ("train", "eval"):
        layer = getattr(randomize(layer_case.make()), mode)()
        state = layer.state_dict() if mode == "eval" else None
        layer(numbers(1))
        for seed in (2, 3):
            want = alone(layer_case, numbers(1), numbers(seed), frozen_at=state)
            assert_gradients(layer, layer.backward(numbers(seed)), want)


def test_of_several_calls_in_test_mode_the_last_is_meant_once(layer_case):
    layer = randomize(layer_case.make()).eval()
    layer(numbers(1))
    first = layer.cache
    layer(numbers(2))
    want = alone(layer_case, numbers(2), numbers(3), frozen_at=layer.state_dict())
    assert_gradients(layer, layer.backward(numbers(3)), want)
    with pytest.raises(ValueError, match=AMBIGUOUS):  # shared weights in test mode: this is the first call's
        layer.backward(numbers(4))
    want = alone(layer_case, numbers(1), numbers(4), frozen_at=layer.state_dict())
    assert_gradients(layer, layer.backward(numbers(4), first), want)


def test_calls_of_a_frozen_layer_count_like_others():
    layer = randomize(cbnorm.BatchNorm(4, frozen=True))
    layer(numbers(1))
    layer(numbers(2))
    with pytest.raises(ValueError, match=AMBIGUOUS):
        layer.backward(numbers(3))


def test_a_record_is_of_the_last_forward_and_survives_errors(layer_case):
    layer = layer_case.make()
    assert layer.cache is None
    y = layer(numbers(1))
    record = layer.cache
    assert isinstance(record, cbnorm.Cache)
    with pytest.raises(ValueError, match="x: expected"):
        layer(np.ones((2, 7, 9)))
    with pytest.raises(ValueError, match="dout: expected"):
        layer.backward(np.ones(3))
    assert layer.cache is record
    assert copy.deepcopy(layer).cache is None
    layer.backward(y)


def test_a_reused_y_that_is_overwritten_does_not_change_its_record(layer_case):
    layer = randomize(layer_case.make(reuse_output=True))
    x = numbers(1)
    layer(x)
    first = layer.cache
    layer(layer(layer(numbers(2))))  # a y is an input of the same layer, too
    third = layer.cache
    layer(numbers(3))
    assert_gradients(layer, layer.backward(numbers(4), first), alone(layer_case, x, numbers(4)))
    twin = randomize(layer_case.make())
    twice = twin(twin(numbers(2)))
    assert_gradients(layer, layer.backward(numbers(5), third), alone(layer_case, twice, numbers(5)))


@pytest.mark.parametrize("replaced", [False, True])
def test_gradients_are_of_the_gamma_that_forward_saw(layer_case, replaced):
    layer = randomize(layer_case.make())
    layer(numbers(1))
    record = layer.cache
    layer(numbers(2))
    if replaced:
        layer.gamma = np.full_like(layer.gamma, 9)
    else:
        layer.gamma *= 3  # an optimizer's step
        layer.load_state_dict({"gamma": layer.gamma + 1}, strict=False)
    for x, cache in ((numbers(2), layer.cache), (numbers(1), record)):
        assert_gradients(layer, layer.backward(numbers(3), cache), alone(layer_case, x, numbers(3)))


def in_doubt(modes, answered):
    """Whether a backward without a record may mean another of these calls than the last."""
    if "train" in modes[:-1]:
        return True
    return modes[-1] == "eval" and len(modes) > 1 and answered


@given(st.lists(st.sampled_from(["train", "eval", "backward", "backward with a record"]), max_size=12), st.data())
def test_any_life_of_a_layer_gives_right_gradients_or_an_error(life, data):
    layer = randomize(cbnorm.BatchNorm(3))
    modes, answered, records, last = [], False, [], None
    for number, action in enumerate(life):
        if action in ("train", "eval"):
            x = numbers(number, (4, 3))
            want = cbnorm.batchnorm_forward(
                x, layer.gamma, moving_mean=layer.moving_mean, moving_var=layer.moving_var, mode=MODES[action]
            )[1]
            getattr(layer, action)()(x)
            modes = [action] if answered else [*modes, action]
            answered, last = False, (layer.cache, want)
            records.append(last)
            continue
        dout = numbers(50 + number, (4, 3))
        if action == "backward with a record" and records:
            record, want = data.draw(st.sampled_from(records))
            dx = layer.backward(dout, record)
        elif last is None or in_doubt(modes, answered):
            with pytest.raises(ValueError, match="backward: expected a forward call" if last is None else AMBIGUOUS):
                layer.backward(dout)
            continue
        else:
            want = last[1]
            dx = layer.backward(dout)
        answered = True
        assert_gradients(layer, dx, gradients_of(dout, want))


def gradients_of(dout, cache):
    dx, dgamma, dbeta = cbnorm.batchnorm_backward(dout, cache)
    return dx, {"gamma": dgamma, "beta": dbeta}


@pytest.mark.parametrize("reuse_output", [False, True])
def test_records_and_ambiguity_are_each_thread_s_own(layer_case, reuse_output):
    layer = randomize(layer_case.make(reuse_output=reuse_output))
    barrier = threading.Barrier(4, timeout=10)

    def step(seed):
        records = []
        for call in range(2):
            layer(numbers(10 * seed + call))
            records.append(layer.cache)
            barrier.wait()
        with pytest.raises(ValueError, match=AMBIGUOUS):
            layer.backward(numbers(seed))
        for call in (1, 0):
            want = alone(layer_case, numbers(10 * seed + call), numbers(seed))
            barrier.wait()
            assert_gradients(layer, layer.backward(numbers(seed), records[call]), want)
        return records[0]

    layer(numbers(99))  # awaits its backward in this thread alone
    with ThreadPoolExecutor(4) as pool:
        records = list(pool.map(step, range(4)))
    assert_gradients(layer, layer.backward(numbers(98)), alone(layer_case, numbers(99), numbers(98)))
    for seed, record in enumerate(records):  # a record may be answered in another thread
        assert_gradients(layer, layer.backward(numbers(5), record), alone(layer_case, numbers(10 * seed), numbers(5)))


@pytest.mark.parametrize(
    ("record", "error", "words"),
    [
        ("c1", TypeError, r"cache: expected the record of a call of this layer \(layernorm\), got str"),
        (cbnorm.rmsnorm_forward(np.ones((2, 3)))[1], TypeError, r"\(layernorm\), got rmsnorm"),
        (cbnorm.layernorm_forward(np.ones((2, 4)))[1], ValueError, r"parameters of shape \(3,\), got \(4,\)"),
    ],
)
def test_a_record_of_something_else_is_named(record, error, words):
    layer = cbnorm.LayerNorm(3)
    layer(np.eye(3))
    with pytest.raises(error, match=words):
        layer.backward(np.eye(3), record)
    assert layer.grads == {}
    layer.backward(np.eye(3))


def test_the_record_of_another_layer_of_its_kind_is_refused():
    ours, other = cbnorm.LayerNorm(3), cbnorm.LayerNorm(3)
    x = np.array([[1.0, 2.0, 4.0]])
    ours(x)
    other(2 * x)
    for layer, record in ((ours, other.cache), (other, ours.cache), (copy.deepcopy(ours), ours.cache)):
        with pytest.raises(ValueError, match="cache: expected the record of a call of this layer, got that of another"):
            layer.backward(x, record)
    for record in (ours.cache, copy.copy(other.cache), pickle.loads(pickle.dumps(other.cache))):
        assert ours.backward(x, record).shape == x.shape  # whose a copy is, nobody knows
