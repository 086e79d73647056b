"""The kernel builds: which one runs, that all give the same bits, and what importing them leaves alone."""

import json

import numpy as np
import pytest
from cases import DTYPES, MODES, along, assert_same_bits, moving_statistics
from processes import run_python

import cbnorm
from cbnorm import _cpu, _kernels

CONFIG = "import json, cbnorm; print(json.dumps(cbnorm.show_config('dicts')))"
# In a process that runs this first, the CPU seems to run the baseline build alone.
PLAIN_CPU = f"""
import sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("cbnorm._cpu", {_cpu.__file__!r})
sys.modules["cbnorm._cpu"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["cbnorm._cpu"])
sys.modules["cbnorm._cpu"].supported_builds = lambda: ["baseline"]
"""


@pytest.mark.parametrize("name", _kernels.BUILDS)
def test_the_environment_forces_a_build(name):
    code = CONFIG + (
        "\nimport sys; print(json.dumps([key for key in sys.modules if key.startswith('cbnorm._kernels.')]))"
        "\nprint(cbnorm._kernels.active.__name__)"
    )
    config, modules, active = run_python(code, CBNORM_KERNELS=name).stdout.splitlines()
    assert json.loads(config)["kernels"] == name
    assert json.loads(config)["builds"] == _kernels.BUILDS
    # A build that the CPU may not run is not even loaded.
    assert json.loads(modules) == [f"cbnorm._kernels.{name}"]
    assert active == f"cbnorm._kernels.{name}"


@pytest.mark.parametrize("environment", [{}, {"CBNORM_KERNELS": ""}])
def test_the_fastest_build_is_the_default(environment):
    config = json.loads(run_python(CONFIG, **environment).stdout)
    assert config["kernels"] == config["builds"][-1]
    assert config["builds"] == [name for name in ("baseline", "avx2", "avx512") if name in config["builds"]]
    assert config["builds"][0] == "baseline"


def test_the_default_on_a_plain_cpu():
    config = json.loads(run_python(PLAIN_CPU + CONFIG).stdout)
    assert (config["kernels"], config["builds"]) == ("baseline", ["baseline"])


@pytest.mark.parametrize(
    ("before", "name", "builds"),
    [
        ("", "sse", _kernels.BUILDS),
        ("", "AVX2", _kernels.BUILDS),
        ("", "../baseline", _kernels.BUILDS),
        (PLAIN_CPU, "avx2", ["baseline"]),
        (PLAIN_CPU, "avx512", ["baseline"]),
    ],
)
def test_a_build_that_cannot_run_is_refused(before, name, builds):
    failed = run_python(before + CONFIG, status=1, CBNORM_KERNELS=name)
    message = f"CBNORM_KERNELS: expected one of {', '.join(builds)} (what can run here), got '{name}'"
    assert failed.stderr.splitlines()[-1] == f"ImportError: {message}"


def test_a_cpu_too_old_is_told_what_it_lacks():
    failed = run_python(PLAIN_CPU.replace('["baseline"]', "[]") + CONFIG, status=1)
    assert failed.stderr.splitlines()[-1].startswith(
        "ImportError: cbnorm: this CPU is too old, expected one with SSE4.2"
    )


def test_a_refused_build_changes_nothing():
    before = _kernels.active, _kernels.active_name
    with pytest.raises(ImportError, match=r"^CBNORM_KERNELS: expected one of "):
        _kernels.use("sse")
    assert (_kernels.active, _kernels.active_name) == before


def results(x, dout, gamma, beta, mode, axis):
    """All that a user can read of a forward call, a backward call and the moments."""
    moving = moving_statistics(len(gamma))
    y, cache, mean, var = cbnorm.batchnorm_forward(
        x, gamma, beta, moving_mean=moving[0], moving_var=moving[1], mode=mode, axis=axis
    )
    dx, dgamma, dbeta = cbnorm.batchnorm_backward(dout, cache)
    moments = cbnorm.moments(x, axis=tuple(i for i in range(x.ndim) if i != axis % x.ndim))
    return {
        "y": y, "moving mean": mean, "moving variance": var, "dx": dx, "dgamma": dgamma, "dbeta": dbeta,
        "inv_std": cache.inv_std, "xhat": cache.xhat, "mean": moments.mean, "m2": moments.m2,
    }  # fmt: skip


ROWS = [(1, 5), (3, 1), (31, 3), (1001, 7), (300, 131), (67, 1023), (9, 4097)]


PLANES = [(3, 5, 7, 9), (2, 3, 33, 31), (1, 2, 129, 65), (19, 7, 1, 3), (5, 1, 3, 101), (3, 1001, 127)]


CHANNELS_LAST = [(3, 7, 9, 5), (5, 13, 17, 3), (2, 31, 33, 1), (2, 5, 3, 259)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [*((shape, 1) for shape in ROWS + PLANES), *((shape, -1) for shape in CHANNELS_LAST), ((5, 1201), 0)],
)
def test_every_build_gives_the_bits_of_the_baseline(kernels, shape, axis, dtype, mode):
    random = np.random.default_rng(0)
    channels = shape[axis]
    channelwise = along(axis, len(shape))
    # Scales from 1e-3 to 1e3 and means far from zero and near it: roundings of every kind.
    scale, mean = 10 ** random.uniform(-3, 3, channels), random.normal(0, 100, channels)
    x = (random.standard_normal(shape) + mean.reshape(channelwise)) * scale.reshape(channelwise)
    dout = random.standard_normal(shape).astype(dtype)
    gamma, beta = random.standard_normal((2, channels)).astype(dtype)
    got = results(x.astype(dtype), dout, gamma, beta, mode, axis)
    _kernels.use("baseline")
    want = results(x.astype(dtype), dout, gamma, beta, mode, axis)
    assert_same_bits(list(got.values()), list(want.values()))


# Flags such as -ffast-math would flush subnormal numbers to zero in every thread of the process.
FRESH = """
import json, sys
import numpy as np

def alive():
    return [bool(kind(tiny) * kind(1) != 0) for kind, tiny in ((np.float32, 1e-40), (np.float64, 1e-310))]

before = alive()
import cbnorm
modules = sorted(sys.modules)
after = alive()
kept = []
for kind, tiny in ((np.float32, 1e-40), (np.float64, 1e-310)):
    for shape in [(100_000, 3), (3, 3, 40_000)]:
        x = np.full(shape, tiny, kind)
        moving = dict(moving_mean=np.zeros(3), moving_var=np.ones(3))
        y, cache, _, _ = cbnorm.batchnorm_forward(x, mode="test", eps=0, **moving)
        dx, _, _ = cbnorm.batchnorm_backward(x, cache)
        kept.append(bool((y == x).all() and (dx == x).all() and x.all()))
print(json.dumps(dict(before=before, after=after, kept=kept, afterwards=alive(), modules=modules)))
"""


@pytest.fixture(scope="module", params=_kernels.BUILDS)
def fresh(request):
    """What a process that imports one build tells of itself."""
    return json.loads(run_python(FRESH, CBNORM_KERNELS=request.param, CBNORM_NUM_THREADS="4").stdout)


def test_subnormal_numbers_stay_alive(fresh):
    assert fresh["before"] == fresh["after"] == fresh["afterwards"] == [True, True]
    assert fresh["kept"] == [True] * 4


def test_the_import_is_light(fresh):
    heavy = {"sklearn", "scipy", "matplotlib", "rich", "torch", "dask", "cbnorm._cli"}
    assert heavy.isdisjoint(fresh["modules"])
