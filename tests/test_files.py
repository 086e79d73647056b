"""Saving: a file keeps its rights, links stay, pipes and devices are written to."""

import contextlib
import errno
import io
import os
import stat
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from layer_cases import randomize, same_state
from processes import linux
from saved import holds, posix

import cbnorm
from cbnorm import _files

as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may do this")


@pytest.fixture
def layer():
    return randomize(cbnorm.BatchNorm(4), seed=1)


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_saved_layer_loads_to_the_bit(layer_case, tmp_path, way):
    source, target = randomize(layer_case.make()), layer_case.make()
    for path in (tmp_path / "state.npz", str(tmp_path / "no suffix"), os.fsencode(tmp_path / "bytes")):
        for _ in range(2):  # a new file, and one in the place of another
            source.save(path)
            target.load(path)
            assert same_state(target, source)
        with np.load(os.fsdecode(path), allow_pickle=False) as archive:
            assert same_state(dict(archive), source.state_dict())
    assert sorted(os.listdir(tmp_path)) == ["bytes", "no suffix", "state.npz"]


@posix
@pytest.mark.parametrize("before", [0o600, 0o640, 0o664, 0o444, 0o200, 0o000])
def test_the_mode_of_an_existing_file_is_kept(layer, tmp_path, way, before):
    path = tmp_path / "state.npz"
    path.touch()
    path.chmod(before)
    layer.save(path)
    assert mode(path) == before
    if os.access(path, os.R_OK):
        assert holds(path, layer)


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_that_the_umask_gives(layer, tmp_path, way, umask):
    before = os.umask(umask)
    try:
        layer.save(tmp_path / "state.npz")
    finally:
        os.umask(before)
    assert mode(tmp_path / "state.npz") == 0o666 & ~umask


@linux
@pytest.mark.parametrize("before", [0o600, 0o640, 0o200, None])
def test_an_unfinished_file_is_never_more_readable_than_the_result(layer, tmp_path, way, monkeypatch, before):
    path = tmp_path / "state.npz"
    if before is not None:
        path.touch()
        path.chmod(before)
    seen = []

    def watch(name):
        function = getattr(os, name)

        def watched(*args, **options):
            open_now = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
            for file in map(str, [*tmp_path.iterdir(), *open_now]):
                with contextlib.suppress(FileNotFoundError):  # of the listing itself
                    if file != str(path) and os.path.realpath(file).startswith(str(tmp_path)) and os.path.isfile(file):
                        seen.append(mode(file))
            return function(*args, **options)

        monkeypatch.setattr(os, name, watched)

    for name in ("fsync", "link", "fchown", "fchmod", "replace"):
        watch(name)
    layer.save(path)
    assert len(seen) > 2
    assert not any(each & ~mode(path) for each in seen)


@as_root
def test_the_owner_and_the_group_of_an_existing_file_are_kept(layer, tmp_path):
    path = tmp_path / "state.npz"
    path.touch()
    path.chmod(0o640)
    os.chown(path, 1234, 4321)
    layer.save(path)
    assert (path.stat().st_uid, path.stat().st_gid, mode(path)) == (1234, 4321, 0o640)


@posix
def test_rights_of_a_group_that_cannot_be_kept_are_not_given_to_another(layer, tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    path.touch()
    path.chmod(0o664)
    layer.save(path)
    old = os.stat(path)

    def refused(*_):
        raise PermissionError(errno.EPERM, "not the owner")

    monkeypatch.setattr(os, "fchown", refused)
    other_group = os.stat_result((*old[:5], old.st_gid + 1, *old[6:]))
    with open(path, "r+b") as file:
        _files.keep_rights(file.fileno(), path, other_group)
    assert mode(path) == 0o644


def access_list(*entries):
    """A POSIX access control list as Linux keeps it, of (tag, rights, who)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


# The owner reads and writes, user 1234 reads, the group reads nothing: stat calls this mode 0640.
LIST = access_list((1, 6, 2**32 - 1), (2, 4, 1234), (4, 0, 2**32 - 1), (16, 4, 2**32 - 1), (32, 0, 2**32 - 1))


@linux
@pytest.mark.parametrize("whose", ["file", "folder"])
def test_access_control_lists_are_kept_and_none_is_taken_from_the_folder(layer, tmp_path, way, whose):
    path = tmp_path / "state.npz"
    path.touch()
    path.chmod(0o640)
    name = "system.posix_acl_access"
    try:
        if whose == "file":
            os.setxattr(path, name, LIST)
        else:
            os.setxattr(tmp_path, "system.posix_acl_default", LIST)
    except OSError as error:
        pytest.skip(f"not on this file system ({error})")
    layer.save(path)
    assert mode(path) == 0o640
    assert (name in os.listxattr(path)) == (whose == "file")
    if whose == "file":
        assert os.getxattr(path, name) == LIST


@posix
def test_a_link_stays_and_its_target_is_replaced(layer, tmp_path, way):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old").touch(0o600)
    (tmp_path / "there" / "again").symlink_to("old")
    (tmp_path / "link").symlink_to(Path("there", "again"))
    (tmp_path / "to nothing").symlink_to(Path("there", "new"))
    for link, target in (("link", "old"), ("to nothing", "new")):
        layer.save(tmp_path / link)
        assert (tmp_path / link).is_symlink()
        assert not (tmp_path / "there" / target).is_symlink()
        assert holds(tmp_path / "there" / target, layer)
    assert mode(tmp_path / "there" / "old") == 0o600
    assert sorted(os.listdir(tmp_path / "there")) == ["again", "new", "old"]


@posix
def test_a_pipe_is_written_to_and_read_from(layer, tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # so that nothing waits for it
    layer.save(path)
    content = os.read(reader, 65_536)
    os.close(reader)
    with np.load(io.BytesIO(content)) as archive:
        assert same_state(dict(archive), layer.state_dict())
    assert stat.S_ISFIFO(os.stat(path).st_mode)
    assert os.listdir(tmp_path) == ["pipe"]
    saver = threading.Thread(target=layer.save, args=[path], daemon=True)
    saver.start()
    other = cbnorm.BatchNorm(4)
    other.load(path)
    saver.join(timeout=10)
    assert same_state(other, layer)


@linux
def test_standard_output_may_be_the_file():
    code = "import cbnorm; cbnorm.LayerNorm(3).save('/dev/stdout')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    with np.load(io.BytesIO(result.stdout)) as archive:
        np.testing.assert_array_equal(archive["gamma"], 1)


@linux
@as_root
@pytest.mark.parametrize(("name", "minor"), [("null", 3), ("full", 7)])
def test_a_device_is_written_to(layer, tmp_path, name, minor):
    path = tmp_path / name  # not the machine's own, which a fault would take away
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
    try:
        path.open("wb").close()
    except PermissionError:
        pytest.skip("no devices on this file system")
    if name == "full":
        with pytest.raises(OSError, match="No space left") as caught:
            layer.save(path)
        assert caught.value.filename == str(path)
    else:
        layer.save(path)
    assert stat.S_ISCHR(os.stat(path).st_mode)
    assert os.listdir(tmp_path) == [name]


def test_a_socket_and_a_pipe_without_a_reader_are_errors_that_name_the_path(layer, tmp_path):
    socket = pytest.importorskip("socket")
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        with pytest.raises(OSError) as caught:  # noqa: PT011, which error depends on the system
            layer.save(path)
    assert caught.value.filename == path
    assert os.listdir(tmp_path) == ["socket"]
