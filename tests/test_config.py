"""`show_config`: what runs here, as text and as a dict."""

from importlib.metadata import version

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
    with cbnorm.threads(3):
        limited = cbnorm.show_config("dicts")
        if _kernels.active.openmp:
            assert (limited["threads"], limited["threads_by"]) == (3, "threads")
    assert config == {
        "cbnorm": version("cbnorm"),
        "numpy": np.__version__,
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
    why = config.pop("threads_by")
    assert printed == {
        **{name: str(value) for name, value in config.items()},
        "threads": f"{config['threads']} ({why})" if why else str(config["threads"]),
        "builds": ", ".join(_kernels.BUILDS),
    }


@pytest.mark.parametrize("mode", ["dict", "", None, True])
def test_show_config_refuses_other_modes(mode):
    with pytest.raises(ValueError, match=r"^mode: expected 'stdout' or 'dicts', got "):
        cbnorm.show_config(mode)
