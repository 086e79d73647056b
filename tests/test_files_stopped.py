"""Saves that fail, are interrupted, killed or run side by side: the file is whole, and nothing stays beside it."""

import errno
import os
import signal
import threading
import time

import numpy as np
import pytest
from layer_cases import numbers, randomize
from processes import linux, start_python
from saved import holds, posix

import cbnorm
from cbnorm import _files


@pytest.fixture
def layer():
    return randomize(cbnorm.BatchNorm(4), seed=1)


SAVE_WITH_LITTLE_ROOM = """
import resource, sys, cbnorm
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    cbnorm.LayerNorm(10_000).save(sys.argv[1])
except OSError as error:
    print(error)
"""


@posix
def test_a_disk_without_room_names_the_path_and_keeps_the_old_file(layer, tmp_path):
    path = tmp_path / "state.npz"
    layer.save(path)
    with start_python(SAVE_WITH_LITTLE_ROOM, path) as process:
        output, errors = process.communicate(timeout=60)
    assert output.strip() == f"[Errno {errno.EFBIG}] File too large: '{path}'", errors
    assert holds(path, layer)
    assert os.listdir(tmp_path) == ["state.npz"]


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(layer, tmp_path, way, monkeypatch):
    path = tmp_path / "state.npz"
    layer.save(path)
    old = path.read_bytes()
    layer(numbers(1))
    for name in ("fsync", "replace"):

        def failing(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing)
            with pytest.raises(OSError, match="No space left"):
                layer.save(path)
        assert path.read_bytes() == old
        assert os.listdir(tmp_path) == ["state.npz"]


@posix
@pytest.mark.parametrize("error", [OSError(errno.EAGAIN, "mine", "my file"), TimeoutError("mine"), KeyboardInterrupt()])
def test_a_signal_handlers_exception_passes_a_save_unchanged(layer, tmp_path, way, monkeypatch, error):
    def handler(*_):
        raise error

    def interrupted(descriptor):
        signal.raise_signal(signal.SIGALRM)

    before, text = signal.signal(signal.SIGALRM, handler), str(error)
    monkeypatch.setattr(os, "fsync", interrupted)
    try:
        with pytest.raises(type(error)) as caught:
            layer.save(tmp_path / "state.npz")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert caught.value is error
    assert str(error) == text
    assert os.listdir(tmp_path) == []


# What the interpreter says of files that it closes itself is not asked for.
STOPPED_BY_THE_CLOCK = """
import os, signal, sys, warnings
import cbnorm
warnings.simplefilter("ignore")
sys.unraisablehook = lambda _: None
operation, way, path = sys.argv[1:]
if way == "named":
    del os.O_TMPFILE
layer = cbnorm.BatchNorm(4)
layer.save(path)

class Clock(Exception):
    pass

def stop(*_):
    raise Clock

signal.signal(signal.SIGALRM, stop)
open_before = len(os.listdir("/proc/self/fd"))
stopped = 0
for number in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-6 + number % 150 * 4e-6)
        getattr(layer, operation)(path)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Clock:
        stopped += 1
layer.save(path)
layer.load(path)
print(stopped, len(os.listdir("/proc/self/fd")) - open_before, *os.listdir(os.path.dirname(path)))
"""


@linux
@pytest.mark.parametrize("operation", ["save", "load"])
def test_the_clocks_exception_passes_unchanged_whenever_it_comes(tmp_path, way, operation):
    with start_python(STOPPED_BY_THE_CLOCK, operation, way, tmp_path / "state.npz") as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    stopped, lost, *left = output.split()
    assert int(stopped) > 10
    assert left == ["state.npz"]
    if operation == "load":  # a save has moments in which a descriptor is not yet a file's
        assert lost == "0"


KILLED = """
import os, signal, sys
import cbnorm
way, moment, path = sys.argv[1:]
if way == "named":
    del os.O_TMPFILE
function = getattr(os, moment)

def killed(*args, **options):
    if moment == "link":
        function(*args, **options)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(os, moment, killed)
cbnorm.BatchNorm(4).save(path)
"""


@linux
@pytest.mark.parametrize("moment", ["fsync", "link", "replace"])
def test_a_save_that_is_killed_leaves_the_old_file_and_nothing_that_the_next_does_not_remove(
    layer, tmp_path, way, moment
):
    if way == "named" and moment == "link":
        pytest.skip("needs no link")
    path, other = tmp_path / "state.npz", tmp_path / "other.npz"
    layer.save(path)
    for _ in range(2):
        with start_python(KILLED, way, moment, path) as process:
            _, errors = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, errors
    assert holds(path, layer)
    left = sorted(set(os.listdir(tmp_path)) - {"state.npz"})
    if way == "nameless" and moment == "fsync":
        assert left == []
    else:
        assert len(left) == 1  # the second save removed that of the first
        assert left[0].startswith(".cbnorm-")
    layer.save(other)
    assert sorted(os.listdir(tmp_path)) == sorted([*left, "other.npz", "state.npz"])
    layer.save(path)
    assert sorted(os.listdir(tmp_path)) == ["other.npz", "state.npz"]


SAVE_FOR_EVER = """
import sys
import numpy as np, cbnorm
layer = cbnorm.LayerNorm(1_000_000)
number = 0
while True:
    layer.gamma[:] = layer.beta[:] = number
    layer.save(sys.argv[1])
    print(number, flush=True)
    number += 1
"""


@linux
def test_a_save_that_is_killed_at_any_time_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "state.npz"
    layer = cbnorm.LayerNorm(1_000_000)
    for delay in (0.0, 0.002, 0.01):
        with start_python(SAVE_FOR_EVER, path) as process:
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            reported = len(process.stdout.read().splitlines())
        assert process.returncode == -signal.SIGKILL
        layer.load(path)
        numbers_found = np.unique([layer.gamma, layer.beta])
        assert numbers_found.size == 1
        assert reported <= numbers_found[0] <= reported + 1
    layer.save(path)
    assert os.listdir(tmp_path) == ["state.npz"]


SAVE_OFTEN = """
import os, sys
import cbnorm
way, path = sys.argv[1:]
if way == "named":
    del os.O_TMPFILE
for _ in range(150):
    cbnorm.BatchNorm(4).save(path)
"""


@linux
def test_savers_side_by_side_remove_nothing_of_each_other(tmp_path, way):
    path = tmp_path / "state.npz"
    failed = []

    def save():
        try:
            for _ in range(100):
                cbnorm.BatchNorm(4).save(path)
        except BaseException as error:
            failed.append(error)

    processes = [start_python(SAVE_OFTEN, way, path) for _ in range(2)]
    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        with process:
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert not failed
    assert holds(path, cbnorm.BatchNorm(4))
    assert os.listdir(tmp_path) == ["state.npz"]


@linux
def test_a_new_file_that_another_save_removes_before_it_is_locked_is_made_again(layer, tmp_path, way, monkeypatch):
    flock = _files.fcntl.flock
    path = tmp_path / "state.npz"
    layer.save(path)
    removed = []

    def slow(file, operation):
        if not removed:  # what a sweep of the same target does in this very moment
            removed.extend(tmp_path.glob(".cbnorm-*"))
            for each in removed:
                each.unlink()
        flock(file, operation)

    monkeypatch.setattr(_files.fcntl, "flock", slow)
    layer.save(path)
    assert len(removed) == (way == "named")
    assert holds(path, layer)
    assert os.listdir(tmp_path) == ["state.npz"]


@linux
def test_file_systems_without_locks_work_and_nothing_is_removed_there(layer, tmp_path, way, monkeypatch):
    path = tmp_path / "state.npz"
    layer.save(path)
    with start_python(KILLED, "named", "fsync", path) as process:
        process.communicate(timeout=60)
    left = sorted(os.listdir(tmp_path))
    assert len(left) == 2

    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_files.fcntl, "flock", no_locks)
    layer.save(path)
    assert holds(path, layer)
    assert sorted(os.listdir(tmp_path)) == left


def test_without_locks_and_rights_of_posix_a_save_still_replaces_the_file(layer, tmp_path, monkeypatch):
    for name in ("O_TMPFILE", "fchown", "fchmod"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(_files, "fcntl", None)
    for _ in range(2):
        layer.save(tmp_path / "state.npz")
        assert holds(tmp_path / "state.npz", layer)
    assert os.listdir(tmp_path) == ["state.npz"]
