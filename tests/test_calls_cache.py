"""A cache between forward and backward: nobody changes it, and an x that changed is noticed before it is read."""

import copy
import pickle

import numpy as np
import pytest
from arguments import SHAPE, make_arguments, make_dout
from cases import INSTANCE, assert_same_bits, batch, group, layer, make_case, rms

import cbnorm

NORMS = {
    "batch": batch(),
    "test mode": batch(mode="test"),
    "layer": layer(),
    "group": group(2),
    "instance": INSTANCE,
    "RMS": rms(),
}
READS_X = ["xhat", "backward", "many statistics"]


@pytest.fixture(params=NORMS)
def norm(request):
    return NORMS[request.param]


def shrunk(x):
    x.resize((1, 2), refcheck=False)


def reshaped(x):
    x.shape = x.shape[::-1]


def halved(x):
    x.dtype = f"f{x.dtype.itemsize // 2}"


def as_integers(x):
    x.dtype = f"i{x.dtype.itemsize}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy means to take some of these away
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("change", [shrunk, reshaped, halved, as_integers])
def test_x_that_is_another_array_by_now_is_refused(norm, change, dtype):
    if change is as_integers and dtype is np.int32:
        pytest.skip("it is of integers")
    x, dout, parameters = make_case(norm, (4, 6, 2), np.float64)
    x = x.astype(dtype)
    cache = norm.forward(x, *parameters)[1]
    dout = dout.astype(cache.xhat.dtype)
    want = norm.backward(dout, cache)
    change(x)
    with pytest.raises(ValueError, match=r"^cache: expected x as forward saw it, "):
        norm.backward(dout, cache)
    with pytest.raises(ValueError, match=rf"{np.dtype(dtype)} of shape \(4, 6, 2\), got "):
        _ = cache.xhat
    if norm.given:  # nothing of x is read
        need = (True, False, True)
        got = norm.backward(dout, cache, need=need)
        assert_same_bits([got[0], got[2]], [want[0], want[2]])


@pytest.mark.parametrize("name", ["mean", "inv_std"])
def test_statistics_that_would_be_computed_again_are_refused_too(name):
    x = np.random.default_rng(0).standard_normal((10_000, 2))
    cache = cbnorm.layernorm_forward(x)[1]
    x.shape = (2, 10_000)
    with pytest.raises(ValueError, match=r"^cache: expected x as forward saw it, "):
        getattr(cache, name)


@pytest.mark.parametrize("part", [slice(2, None), slice(None, None, -1), slice(None, None, 2)])
def test_a_view_of_an_array_that_was_resized_is_refused(norm, part):
    whole = np.random.default_rng(0).standard_normal((40, 6, 2))
    _, _, parameters = make_case(norm, whole[part].shape, np.float64)
    y, cache, *_ = norm.forward(whole[part], *parameters)
    norm.backward(y, cache)
    whole.resize((1, 1), refcheck=False)
    with pytest.raises(
        ValueError, match=r"^cache: expected x as forward saw it, got a view of an array that was resized"
    ):
        norm.backward(y, cache)


def test_gamma_may_change_in_any_way_before_backward(norm):
    x, dout, parameters = make_case(norm, (4, 6, 2), np.float32)
    want = list(norm.backward(dout, norm.forward(x, *parameters)[1]))
    for change in (lambda gamma: gamma.fill(np.nan), lambda gamma: gamma.resize((1,), refcheck=False)):
        gamma = parameters[0].copy()
        cache = norm.forward(x, gamma, *parameters[1:])[1]
        change(gamma)
        assert_same_bits(list(norm.backward(dout, cache)), want)


def test_attributes_cannot_be_set_or_deleted(norm):
    x, _, parameters = make_case(norm, (4, 6, 2), np.float32)
    cache = norm.forward(x, *parameters)[1]
    for name in ("x", "gamma", "kind", "axis", "mode", "mean", "inv_std", "xhat"):
        with pytest.raises(AttributeError):
            setattr(cache, name, getattr(cache, name))
        with pytest.raises(AttributeError):
            delattr(cache, name)


def copies(cache):
    return cache, copy.copy(cache), copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))


@pytest.mark.parametrize("rows", [4, 10_000])
def test_arrays_of_a_cache_and_of_its_copies_are_read_only(norm, rows):
    x, _, parameters = make_case(norm, (rows, 6, 2), np.float32)
    for cache in copies(norm.forward(x, *parameters)[1]):
        for name in ("gamma", "mean", "inv_std", "xhat"):
            array = getattr(cache, name)
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0


def test_a_changed_shape_of_what_a_cache_hands_out_changes_no_gradient(norm):
    x, dout, parameters = make_case(norm, (4, 6, 2), np.float32)
    cache = norm.forward(x, *parameters)[1]
    want = norm.backward(dout, cache)
    for name in ("gamma", "mean", "inv_std"):
        array = getattr(cache, name)
        array.shape = (1, *array.shape)
    assert_same_bits(list(norm.backward(dout, cache)), list(want))


@pytest.mark.parametrize("name", ["mean", "gamma"])
def test_out_is_none_of_the_arrays_of_a_cache(name):
    cache = cbnorm.batchnorm_forward(**make_arguments(shape=(1, 3)))[1]
    owner = getattr(cache, name).base
    owner.flags.writeable = True  # by force
    out = owner.reshape(-1, 3)[:1]
    before = owner.copy()
    with pytest.raises(ValueError, match=r"^out: expected memory of its own or dout itself, got some of cache"):
        cbnorm.batchnorm_backward(np.ones(out.shape), cache, out=out)
    assert_same_bits(owner, before)


def test_a_cache_made_by_hand_does_not_crash():
    cache = cbnorm.batchnorm_forward(**make_arguments())[1]
    for name, wrong in [("_gamma", np.ones(1)), ("_statistics", np.ones((4, 1))), ("_x", np.ones((1, 1)))]:
        other = copy.copy(cache)
        setattr(other, name, wrong)
        with pytest.raises((TypeError, ValueError)):
            cbnorm.batchnorm_backward(make_dout(), other, out=np.empty(SHAPE))
