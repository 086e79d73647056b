"""Peak memory: the arrays of a call and less than 5% more."""

import sys

import pytest

MEASURE = """
import resource
import numpy as np
import cbnorm

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

x, dout = (np.random.default_rng(0).standard_normal({shape}, np.float32) for _ in range(2))
small = np.ones((300, 300), np.float32)  # the threads and their stacks come up before the measurement
y, cache, *_ = cbnorm.batchnorm_forward(small)
cbnorm.batchnorm_backward(small, cache)
before = peak()
moving = dict(moving_mean=np.zeros({channels}), moving_var=np.ones({channels}))
y, cache, *_ = cbnorm.batchnorm_forward(x, axis={axis}, **moving)
forward = peak()
cbnorm.batchnorm_backward(dout, cache)
backward = peak()
print((forward - before - x.nbytes) / (2 * x.nbytes), (backward - forward - x.nbytes) / (3 * x.nbytes))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
@pytest.mark.parametrize(("shape", "axis"), [((4096, 4096), 1), ((16, 64, 128, 128), 1), ((64, 160, 160, 8), -1)])
def test_a_call_takes_its_arrays_and_less_than_5_percent_more(run_python, shape, axis):
    output = run_python(MEASURE.format(shape=shape, axis=axis, channels=shape[axis])).stdout
    forward, backward = map(float, output.split())
    assert forward < 0.05
    assert backward < 0.05
