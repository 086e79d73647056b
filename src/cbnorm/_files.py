"""Files of a layer's state: written whole or not at all; what is no such file is refused before it is unpacked."""

import contextlib
import errno
import hashlib
import io
import math
import os
import re
import stat
import sys
import zipfile

import numpy as np

try:
    import fcntl
except ImportError:  # not on this system: nothing is swept there
    fcntl = None

PLACE = 65_536  # bytes that a file may have besides the numbers: a few hundred an array are headers
ACL = "system.posix_acl_access"

# The head of an npy file as NumPy writes it. Its own reader parses Python, for which text may be too long or too deep.
HEADER = re.compile(
    rb"\x93NUMPY(?:\x01\x00(?P<short>..)|\x02\x00(?P<long>....))"
    rb"(?P<text>\{'descr': '(?P<dtype>[<>|][biuf]\d\d?)', 'fortran_order': (?P<columns_first>True|False), "
    rb"'shape': \((?P<shape>[\d, ]*)\), \} *\n)",
    re.DOTALL,
)

# Modules in which a fault of a file, or of a path, shows.
READERS = {"cbnorm", "numpy", "zipfile", "posixpath", "ntpath"}


def save(path, state):
    """Write arrays by name to a file; see `Layer.save`."""
    is_open = callable(getattr(path, "write", None))
    path = path if is_open else as_path(path)
    content = io.BytesIO()  # so that nothing but this module's writes meets a full disk or a closed pipe
    with passing():
        np.savez(content, **state)
    if is_open:
        write_to(path, content.getbuffer())
        return
    with naming(path):
        old = status(path)
        if old is None or stat.S_ISREG(old.st_mode):
            replace(os.fsdecode(path), old, content.getbuffer())
        else:  # a pipe or a device takes what is written; a folder refuses by itself
            with open(path, "wb") as file:
                file.write(content.getbuffer())


def load(path, layer):
    """Give a layer the state in a file; see `Layer.load`."""
    own = layer.state_dict()
    most = sum(array.nbytes for array in own.values()) + PLACE
    if callable(getattr(path, "read", None)):
        content = read_from(path, most + 1)
    else:
        path = as_path(path)
        with naming(path), open(path, "rb") as file:
            content = file.read(most + 1)
    with passing():
        try:
            if len(content) > most:
                raise ValueError(f"it has more than {most:,} bytes, the most that this state may take")
            layer.load_state_dict(unpack(content, own, most))
        except Exception as error:  # whatever the readers of zip and npy files raise at foreign bytes
            raise ValueError(
                f"path: expected a file of this {type(layer).__name__}'s state, got {path!r} ({error})"
            ) from error


def write_to(file, content):
    """All of it, to an open binary file, which may take less at a time."""
    while content:
        try:
            written = file.write(content)
        except TypeError as error:
            raise TypeError(f"path: expected a path or a file opened in binary mode, got {file!r}") from error
        content = content[len(content) if written is None else written :]


def read_from(file, most):
    """At most so many bytes of an open binary file, which may give less at a time."""
    content = b""
    while len(content) < most:
        piece = file.read(most - len(content))
        if not isinstance(piece, bytes | bytearray | memoryview):
            raise TypeError(f"path: expected a path or a file opened in binary mode, got {file!r}")
        if not piece:
            break
        content += piece
    return content


def as_path(path):
    """Return the path as str or bytes, if the system can take it."""
    try:
        path = os.fspath(path)
    except Exception as error:
        if not of_readers(error) and raised_in(error).f_code.co_name != "__fspath__":
            raise
        raise TypeError(f"path: expected str, bytes or os.PathLike, got {type(path).__name__} ({error})") from error
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ValueError(f"path: expected a name in this system's encoding, got {path!r} ({error})") from error
    if b"\0" in encoded:
        raise ValueError(f"path: expected a name without null characters, got {path!r}")
    return path


def raised_in(error):
    """Return the frame in which an exception was raised."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame


def of_readers(error):
    """Whether an exception comes from the code of this module and below; a signal handler's own does not."""
    return raised_in(error).f_globals.get("__name__", "").partition(".")[0] in READERS


@contextlib.contextmanager
def passing():
    """What is no fault of a file passes as it was raised: zipfile and codecs make other errors out of any."""
    before = sys.exception()
    try:
        yield
    except BaseException as error:
        cause = error
        while cause is not None and cause is not before:
            no_fault = not isinstance(cause, Exception) or isinstance(cause, (MemoryError, RecursionError))
            if cause is not error and (no_fault or not of_readers(cause)):
                raise cause  # noqa: B904, it was first
            cause = cause.__cause__ or cause.__context__
        raise


@contextlib.contextmanager
def naming(path):
    """Errors of the system name the path that the caller knows."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and of_readers(error):
            error.filename = path
            del error.filename2  # None would be printed
        raise


def status(path):
    """What the system says of a file, the target if it is a link; None if there is none."""
    if not path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def replace(path, old, content):
    """Put a file in the place of an old one, or of none, in one step.

    Where the system can do that, the new file has no name until it is whole: it goes with its process. Elsewhere, and
    for the moment between its name and its place, the name begins with a stem that belongs to the target, and a lock
    says that its writer lives: the next save to that target removes those that nobody holds.
    """
    target = path
    while os.path.islink(target):  # a loop of links was an error of `status`
        target = os.path.join(os.path.dirname(target), os.readlink(target))
    folder, name = os.path.split(target)
    if name in ("", ".", ".."):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    folder = os.path.realpath(folder, strict=True)  # from here on the working folder may change
    target = os.path.join(folder, name)
    stem = f".cbnorm-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}-"  # as short for the longest name
    sweep(folder, stem)
    if not hasattr(os, "fchown"):  # files have no such rights
        old = None
    mode = 0o666 if old is None else 0o200  # nobody may read it before it has the old one's rights
    unfinished, file = open_nameless(folder, stem, mode) or open_named(folder, stem, mode)
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if not os.fstat(file.fileno()).st_nlink:
                # Python has the link followed only if there is a folder's descriptor; a whole path makes no use of it.
                os.link(f"/proc/self/fd/{file.fileno()}", unfinished, src_dir_fd=file.fileno())
            if old is not None:
                keep_rights(file.fileno(), target, old)
            if fcntl is None:  # where there are no such locks, open files cannot be renamed either
                file.close()
            os.replace(unfinished, target)
    finally:
        with contextlib.suppress(OSError):  # it has no such name any more, as after `os.replace`
            os.remove(unfinished)


def new_name(folder, stem):
    """Return the path of a file that does not exist yet."""
    return os.path.join(folder, f"{stem}{os.urandom(8).hex()}.tmp")


def open_nameless(folder, stem, mode):
    """Open a new file without a name, and lock it; returns a path to give it, and the file. None if there is no way."""
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        file = open(folder, "wb", opener=lambda path, _: os.open(path, os.O_TMPFILE | os.O_WRONLY, mode))  # noqa: SIM115
    except OSError:  # not on this file system, or an error that a file with a name meets too
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return new_name(folder, stem), file


def open_named(folder, stem, mode):
    """Open a new file, and lock it; returns its path, and the file."""
    while True:
        path = new_name(folder, stem)
        file = open(path, "xb", opener=lambda path, flags: os.open(path, flags, mode))  # noqa: SIM115
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another save is removing it, as it was not locked yet
            file.close()
            continue
        except OSError:  # no locks here, and nobody removes what he cannot lock
            pass
        if os.fstat(file.fileno()).st_nlink:
            return path, file
        file.close()


def sweep(folder, stem):
    """Remove files whose writers are gone."""
    if fcntl is None:
        return
    try:
        names = [name for name in os.listdir(folder) if name.startswith(stem) and name.endswith(".tmp")]
    except OSError:  # a folder that may be written, not read
        return
    for name in names:
        path = os.path.join(folder, name)
        with (
            contextlib.suppress(OSError),  # held by its writer, or gone, or not ours
            open(path, "wb", opener=lambda path, _: os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as file,
        ):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.remove(path)


def keep_rights(descriptor, target, old):
    """Give a new file the rights of an old one, and to nobody more than those."""
    mode = old.st_mode & 0o777
    with contextlib.suppress(OSError):  # a group that the caller belongs to
        os.fchown(descriptor, -1, old.st_gid)
    with contextlib.suppress(OSError):  # only root gives files away
        os.fchown(descriptor, old.st_uid, -1)
    if not keep_acl(descriptor, target) or os.fstat(descriptor).st_gid != old.st_gid:
        mode = mode & 0o707 | (mode & 0o007) << 3  # the group's rights were another group's: it has those of all others
    os.fchmod(descriptor, mode)


def keep_acl(descriptor, target):
    """Copy the list of users and groups with rights of their own (Linux); whether they are as they were."""
    if not hasattr(os, "getxattr"):
        return True
    try:
        acl = os.getxattr(target, ACL)
    except OSError:  # it has none; the new file may have the folder's
        with contextlib.suppress(OSError):
            os.removexattr(descriptor, ACL)
        return True
    try:
        os.setxattr(descriptor, ACL, acl)
    except OSError:
        return False
    return True


def unpack(content, own, most):
    """Return the arrays in a file of `save`, each read-only; unpacks at most so many bytes of each."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name not in own or name == member.filename:
                raise ValueError(f"it also holds {member.filename!r}")
            if name in arrays:
                raise ValueError(f"it holds {name!r} twice")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
                raise ValueError(f"{name!r} is compressed in a way that NumPy does not use")
            if member.file_size > most:
                raise ValueError(f"{name!r} would be {member.file_size:,} bytes, where at most {most:,} may be")
            with archive.open(member) as packed:  # it may hold more than it says
                arrays[name] = parse(name, packed.read(most + 1))
    return arrays


def parse(name, data):
    """Return the array in the bytes of an npy file, as a view; nothing is allocated on its header's word."""
    header = HEADER.match(data)
    if not header or int.from_bytes(header["short"] or header["long"], "little") != header.end() - header.start("text"):
        raise ValueError(f"{name!r} does not begin as NumPy's arrays of numbers do")
    shape = tuple(int(length) for length in header["shape"].replace(b",", b" ").split())
    dtype = np.dtype(header["dtype"].decode())
    count = math.prod(shape)
    if count * dtype.itemsize != len(data) - header.end():
        raise ValueError(f"{name!r} has {len(data) - header.end():,} bytes for shape {shape} and dtype {dtype}")
    order = "F" if header["columns_first"] == b"True" else "C"
    return np.frombuffer(data, dtype, count, header.end()).reshape(shape, order=order)
