"""Numbers of any size, in arguments and in the environment: an error names them, and no memory is taken for nothing."""

import re
import resource

import numpy as np
import pytest

import cbnorm
from cbnorm._environment import number_in_environment


@pytest.mark.parametrize("value", [10**30, 2**63, 10**5000], ids=["30 digits", "63 bits", "5000 digits"])
def test_sizes_that_no_memory_holds_are_refused_by_name(value):
    empty = np.zeros((2, 0, 3))
    with pytest.raises(ValueError, match=r"^num_groups: expected a divisor of 0 channels"):
        cbnorm.groupnorm_forward(empty, None, None, value)
    for shape in (value, (3, value), (2**32, 2**32), (1,) * 65):
        for make in (cbnorm.LayerNorm, cbnorm.RMSNorm):
            with pytest.raises(ValueError, match=r"^shape: expected "):
                make(shape)

    for make in (cbnorm.BatchNorm, cbnorm.InstanceNorm, lambda channels: cbnorm.GroupNorm(1, channels)):
        with pytest.raises(ValueError, match=r"^num_channels: expected "):
            make(value)


def test_groups_of_no_channels_take_no_memory():
    empty = np.zeros((12, 0))
    y, cache = cbnorm.groupnorm_forward(empty, None, None, 10**9)
    dx, dgamma, dbeta = cbnorm.groupnorm_backward(y, cache)
    assert (dx.shape, dgamma.shape, dbeta.shape) == ((12, 0), (0,), (0,))
    assert cbnorm.groupnorm_forward(empty, None, None, 3)[1].mean.shape == (12, 3)


@pytest.mark.parametrize("shape", [(10**9, 0), (10**15, 0), (2**40, 0)])
def test_rows_without_numbers_take_no_memory(shape):
    y, cache = cbnorm.layernorm_forward(np.empty(shape, np.float32))
    assert y.shape == shape
    assert cbnorm.layernorm_backward(y, cache)[0].shape == shape
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 << 20  # KiB


@pytest.mark.parametrize("text", ["100000000000000000000", "9" * 5000, "-1", "1.0", "1e3", "\u0663"])
@pytest.mark.parametrize("name", ["CBNORM_CACHE_BYTES", "CBNORM_POOL_BYTES", "CBNORM_NUM_THREADS"])
def test_the_environment_is_read_with_words_about_the_variable(name, text):
    with pytest.raises(ValueError, match=rf"^{name}: expected 1 to 8, got {re.escape(repr(text[:100]))}$"):
        number_in_environment(name, 1, 8, {name: text})


def test_numbers_in_the_environment():
    assert number_in_environment("NAME", 1, 8, {}) is None
    assert number_in_environment("NAME", 1, 8, {"NAME": " "}) is None
    assert number_in_environment("NAME", 1, 8, {"NAME": " 0008 "}) == 8
