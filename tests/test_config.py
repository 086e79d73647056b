"""`show_config`: what runs here, as text and as a dict."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import cbnorm
from cbnorm import _kernels


def test_show_config_as_dict(kernels):
    config = cbnorm.show_config("dicts")
    cpu = config.pop("cpu")
    assert isinstance(cpu, str)
    assert cpu
    assert isinstance(config.pop("openmp"), bool)
    assert config.pop("pool").endswith(f" / {cbnorm.get_pool_limit()} bytes")
    assert isinstance(config.pop("threads_by"), str)
    runtime = config.pop("openmp_runtime")
    if _kernels.active.openmp and Path("/proc/self/maps").exists():
        assert Path(runtime).is_file()
        assert Path(runtime).name.startswith(("libgomp", "libomp", "libiomp"))
    assert min(config.pop("cache").values()) >= 0
    assert config.pop("python").startswith(platform.python_version())
    config.pop("settings")
    with cbnorm.threads(3):
        limited = cbnorm.show_config("dicts")
        if _kernels.active.openmp:
            assert (limited["threads"], limited["threads_by"]) == (3, "threads")
    assert config == {
        "cbnorm": version("cbnorm"),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "kernels": kernels,
        "builds": _kernels.BUILDS,
        "threads": cbnorm.get_num_threads(),
    }
    config["builds"].clear()
    assert cbnorm.show_config("dicts")["builds"]


def test_show_config_prints_the_same(kernels, capsys):
    assert cbnorm.show_config() is None
    by_default = capsys.readouterr().out
    cbnorm.show_config("stdout")
    assert capsys.readouterr().out == by_default
    printed = dict(line.split(maxsplit=1) for line in by_default.splitlines())
    config = cbnorm.show_config("dicts")
    why, runtime, cache = config.pop("threads_by"), config.pop("openmp_runtime"), config["cache"]
    settings = [f"{name}={value}" for name, value in config["settings"].items()]
    assert printed == {
        **{name: str(value) for name, value in config.items()},
        "openmp": f"{config['openmp']} ({runtime})" if runtime else str(config["openmp"]),
        "cache": f"{cache['last_level']} bytes, {cache['core']} a core",
        "threads": f"{config['threads']} ({why})" if why else str(config["threads"]),
        "builds": ", ".join(_kernels.BUILDS),
        "settings": ", ".join(settings) or "none",
    }


def test_settings_are_those_of_cbnorm_and_openmp(monkeypatch, capsys):
    for name in [name for name in os.environ if name.startswith(("CBNORM_", "OMP_", "GOMP_", "KMP_"))]:
        monkeypatch.delenv(name)
    cbnorm.show_config()
    assert "\nsettings none\n" in capsys.readouterr().out
    monkeypatch.setenv("CBNORM_POOL_BYTES", "0")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("ROMP_NO", "1")
    assert cbnorm.show_config("dicts")["settings"] == {"CBNORM_POOL_BYTES": "0", "OMP_WAIT_POLICY": "passive"}
    monkeypatch.setenv("CBNORM_POOL_BYTES", "µ\udcff")  # bytes that are no text
    cbnorm.show_config()
    assert "settings CBNORM_POOL_BYTES=\\xb5\\udcff, OMP_WAIT_POLICY=passive\n" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["dict", "", None, True])
def test_show_config_refuses_other_modes(mode):
    with pytest.raises(ValueError, match=r"^mode: expected 'stdout' or 'dicts', got "):
        cbnorm.show_config(mode)
