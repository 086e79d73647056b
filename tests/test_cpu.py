"""What the library learns of the processor: kernel builds and cache sizes."""

import os
from pathlib import Path

import pytest

from cbnorm import _cpu

LEVELS = [Path(f"/sys/devices/system/cpu/cpu0/cache/index{level}/size") for level in (2, 3)]


@pytest.fixture(autouse=True)
def no_override(monkeypatch):
    monkeypatch.delenv("CBNORM_CACHE_BYTES", raising=False)


def kernel_says(path):
    """Bytes, from text such as 32768K."""
    return int(path.read_text().strip().removesuffix("K")) * 1024


def silence_c_library(monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 0)


@pytest.mark.skipif(not all(path.exists() for path in LEVELS), reason="this kernel does not tell cache sizes")
def test_cache_sizes_come_from_the_kernel_where_the_c_library_says_0(monkeypatch):
    silence_c_library(monkeypatch)
    assert _cpu.core_cache() == kernel_says(LEVELS[0])
    assert _cpu.last_level_cache() == max(map(kernel_says, LEVELS))


def test_the_c_library_is_asked_first(monkeypatch):
    sizes = {"SC_LEVEL2_CACHE_SIZE": 1 << 20, "SC_LEVEL3_CACHE_SIZE": 96 << 20}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(os, "sysconf_names", sizes)
    assert (_cpu.core_cache(), _cpu.last_level_cache()) == (1 << 20, 96 << 20)


def test_the_environment_overrides_the_size_of_the_last_cache(monkeypatch):
    monkeypatch.setenv("CBNORM_CACHE_BYTES", " 12345 ")
    assert _cpu.last_level_cache() == 12345
    monkeypatch.setenv("CBNORM_CACHE_BYTES", "8M")
    with pytest.raises(ValueError, match=r"CBNORM_CACHE_BYTES: expected 0 to [0-9]+, got '8M'"):
        _cpu.last_level_cache()


def test_builds_are_named_slowest_first():
    builds = _cpu.supported_builds()
    assert builds == ["baseline", "avx2", "avx512"][: len(builds)]
    assert builds
