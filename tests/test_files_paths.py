"""Any path that the system takes works; errors name the path as it was given."""

import copy
import io
import os
from pathlib import Path

import numpy as np
import pytest
from layer_cases import randomize
from processes import linux
from saved import holds, posix

import cbnorm


@pytest.fixture
def layer():
    return randomize(cbnorm.BatchNorm(4), seed=1)


NAMES = ["a\nb", " ", "*", "-", "é" * 127, "n" * 255, b"\xff\xfe", "\\", "~", "\udcff"]


@linux
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_that_the_system_has_works(layer, tmp_path, way, name):
    path = os.path.join(os.fsencode(tmp_path), name) if isinstance(name, bytes) else tmp_path / name
    for _ in range(2):
        layer.save(path)
        assert holds(path, layer)
    assert os.listdir(os.fsencode(tmp_path)) == [os.fsencode(name)]


def test_a_name_alone_is_one_in_the_working_folder(layer, tmp_path, way, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layer.save("state.npz")
    assert holds("state.npz", layer)
    assert os.listdir(tmp_path) == ["state.npz"]


class Broken:
    def __fspath__(self):
        raise LookupError("lost")


NO_PATHS = {
    "number": (3, TypeError, "path: expected str, bytes or os.PathLike, got int"),
    "none": (None, TypeError, "path: expected str, bytes or os.PathLike, got NoneType"),
    "text file": (io.StringIO(), TypeError, "path: expected a path or a file opened in binary mode, got <_io.StringIO"),
    "raising": (Broken(), TypeError, r"path: expected str, bytes or os.PathLike, got Broken \(lost\)"),
    "null": ("a\0b", ValueError, "path: expected a name without null characters, got 'a"),
    "surrogate": ("\ud800", ValueError, "path: expected a name in this system's encoding, got"),
}


@pytest.mark.parametrize("operation", ["save", "load"])
@pytest.mark.parametrize("case", NO_PATHS)
def test_what_is_no_path_is_named(layer, operation, case):
    path, error, message = NO_PATHS[case]
    with pytest.raises(error, match=message):
        getattr(layer, operation)(path)


BAD_PATHS = {
    "": FileNotFoundError,
    "folder": IsADirectoryError,
    "link to folder": IsADirectoryError,
    ".": IsADirectoryError,
    "missing" + os.sep: IsADirectoryError,
    "missing/state.npz": FileNotFoundError,
    "missing/.": IsADirectoryError,
    "missing/../state.npz": FileNotFoundError,
    "file/": NotADirectoryError,
    "file/state.npz": NotADirectoryError,
    "loop": OSError,
    "n" * 256: OSError,
    b"missing/state.npz": FileNotFoundError,
}


@posix
@pytest.mark.parametrize("path", BAD_PATHS, ids=lambda path: repr(path)[:20])
def test_errors_name_the_path_as_it_was_given(layer, tmp_path, way, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder")
    os.symlink("folder", "link to folder")
    os.symlink("loop", "loop")
    Path("file").touch()
    before = sorted(os.listdir())
    with pytest.raises(BAD_PATHS[path]) as caught:
        layer.save(path)
    assert (caught.value.filename, caught.value.filename2) == (path, None)
    assert repr(path) in str(caught.value)
    assert ".tmp" not in str(caught.value)
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("unbuffered", [False, True])
def test_open_files_are_written_and_read_where_they_stand(layer, tmp_path, unbuffered):
    path = tmp_path / "state"
    with open(path, "wb", *([0] if unbuffered else [])) as file:
        file.write(b"before")
        layer.save(file)
        assert not file.closed
    other = copy.deepcopy(layer)
    other.gamma += 1
    with open(path, "rb", *([0] if unbuffered else [])) as file:
        file.seek(6)
        other.load(file)
    np.testing.assert_array_equal(other.gamma, layer.gamma)
    memory = io.BytesIO()
    layer.save(memory)
    with pytest.raises(ValueError, match="path: expected a file of this"):
        cbnorm.LayerNorm(99).load(io.BytesIO(memory.getvalue()))
