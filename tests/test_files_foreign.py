"""Loading: whatever a file holds, the state is taken whole or the error names the path; nothing large is unpacked."""

import io
import os
import pickle
import signal
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from layer_cases import randomize, same_state
from processes import linux

import cbnorm

REFUSED = "path: expected a file of this BatchNorm's state, got "
NAMES = ["gamma", "beta", "moving_mean", "moving_var", "num_batches"]


@pytest.fixture
def saved():
    return randomize(cbnorm.BatchNorm(4), seed=1)


@pytest.fixture
def layer():
    return randomize(cbnorm.BatchNorm(4), seed=2)


def npy(array, **header):
    """An npy file's bytes, with other things in its header."""
    array = np.asarray(array)
    told = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | header
    told = f"{{{''.join(f'{name!r}: {value!r}, ' for name, value in told.items())}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(told)) + told + array.tobytes()


def members(layer):
    return {f"{name}.npy": npy(array) for name, array in layer.state_dict().items()}


def packed(content, method=zipfile.ZIP_STORED):
    """The bytes of a zip file; content is of names and bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in content.items() if isinstance(content, dict) else content:
            archive.writestr(name, data)
    return file.getvalue()


def refused(layer, path, *words):
    """What load says of a file that it must refuse."""
    before = layer.state_dict()
    with pytest.raises(ValueError, match="path: expected a file of this ") as caught:
        layer.load(path)
    message = str(caught.value)
    assert message.startswith(f"{REFUSED}{str(path)!r} ("), message
    assert all(word in message for word in words), message
    assert same_state(layer, before)
    return message


def test_a_damaged_file_is_a_value_error_and_changes_nothing(saved, layer, tmp_path):
    path = tmp_path / "state.npz"
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        whole = packed(members(saved), method)
        before = layer.state_dict()
        rng = np.random.default_rng(0)
        damaged = [whole[:length] for length in range(0, len(whole), 17)]
        for position in rng.integers(len(whole), size=150):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << rng.integers(8)
            damaged.append(bytes(flipped))
        messages = []
        for content in damaged:
            path.write_bytes(content)
            try:
                layer.load(path)
            except ValueError as error:
                messages.append(str(error))
                changed = not same_state(layer, before)
            else:  # a bit that says nothing, such as a date
                changed = not same_state(layer, saved)
                layer.load_state_dict(before)
            assert not changed
        assert all(message.startswith(f"{REFUSED}{str(path)!r} (") for message in messages)
        assert len(messages) > 0.75 * len(damaged)


def test_a_file_put_together_from_parts_of_others_is_refused_or_right(saved, layer, tmp_path):
    path = tmp_path / "state.npz"
    before = layer.state_dict()
    sources = [packed(members(saved)), packed(members(layer), zipfile.ZIP_DEFLATED), bytes(100), b"\xff" * 100]
    rng = np.random.default_rng(1)
    for _ in range(200):
        content = b""
        for _ in range(rng.integers(1, 5)):
            source = sources[rng.integers(len(sources))]
            begin, end = sorted(rng.integers(len(source) + 1, size=2))
            content += source[begin:end]
        path.write_bytes(content + sources[rng.integers(2)][-rng.integers(22, 600) :])
        try:
            layer.load(path)
        except ValueError as error:
            right = str(error).startswith(REFUSED) and same_state(layer, before)
        else:
            right = same_state(layer, saved) or same_state(layer, before)
            layer.load_state_dict(before)
        assert right


def test_a_foreign_file_is_a_value_error(layer, tmp_path):
    before = layer.state_dict()
    foreign = {
        "empty": lambda path: path.touch(),
        "text": lambda path: path.write_text("gamma: 1, 1, 1, 1"),
        "array.npy": lambda path: np.save(path, np.ones(4)),
        "pickle": lambda path: path.write_bytes(pickle.dumps(before)),
        "pickle.npz": lambda path: np.savez(path, **before | {"gamma": np.array([{}] * 4)}),
        "another layer": lambda path: cbnorm.LayerNorm(4).save(path),
        "another size": lambda path: cbnorm.BatchNorm(5).save(path),
        "another dtype": lambda path: cbnorm.BatchNorm(4, dtype=np.float64).save(path),
        "negative.npz": lambda path: np.savez(path, **before | {"moving_var": -np.ones(4)}),
        "zeros": lambda path: path.write_bytes(bytes(10_000)),
        "nothing in it": lambda path: path.write_bytes(packed({})),
    }
    for name, write in foreign.items():
        write(tmp_path / name)
        refused(layer, tmp_path / name)
    refused(layer, tmp_path / "another layer", "got none for 'moving_mean'")
    refused(layer, tmp_path / "another size", "['gamma']: expected shape (4,), got")
    refused(layer, tmp_path / "another dtype", "['gamma']: expected dtype float32, got float64")


def test_what_cannot_be_opened_or_read_names_the_path(layer, tmp_path):
    for path, error in (
        (tmp_path / "nothing", FileNotFoundError),
        (tmp_path, IsADirectoryError),
        ("", FileNotFoundError),
    ):
        with pytest.raises(error) as caught:
            layer.load(path)
        assert caught.value.filename == os.fspath(path)


@linux
def test_a_file_that_the_system_cannot_read_names_the_path(layer):
    with pytest.raises(OSError, match="Input/output error") as caught:
        layer.load("/proc/self/mem")
    assert caught.value.filename == "/proc/self/mem"


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_a_file_is_unpickled(layer, tmp_path):
    trap = np.array([Trap(str(tmp_path / "sprung"))])
    np.savez(tmp_path / "trap.npz", **layer.state_dict() | {"gamma": trap})
    refused(layer, tmp_path / "trap.npz")
    assert os.listdir(tmp_path) == ["trap.npz"]


@pytest.mark.parametrize("descr", ["<f4", ">f4"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_files_of_the_same_state_from_other_hands_are_taken(saved, layer, tmp_path, descr, method):
    content = members(saved)
    content["gamma.npy"] = npy(saved.gamma.astype(descr))
    version_2 = io.BytesIO()
    np.lib.format.write_array(version_2, saved.beta, version=(2, 0))
    content["beta.npy"] = version_2.getvalue()
    (tmp_path / "state.npz").write_bytes(packed(content, method))
    layer.load(tmp_path / "state.npz")
    assert same_state(layer, saved)
    for array in layer.state_dict().values():
        array[...] = 0
    layer.moving_mean[...] = 0  # the layer's own, not the file's bytes


def test_arrays_in_the_order_of_columns_are_taken(tmp_path):
    layer, gamma = cbnorm.LayerNorm((2, 3)), np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "state.npz", gamma=np.asfortranarray(gamma), beta=gamma)
    layer.load(tmp_path / "state.npz")
    np.testing.assert_array_equal(layer.gamma, gamma)


GAMMA = np.ones(4, np.float32)
LONG_HEADER = b"\x93NUMPY\x02\x00\xff\xff\xff\xff"
HEADERS = {
    "shape of 10^18": npy(GAMMA, shape=(10**18,)),
    "shape of 10^30": npy(GAMMA, shape=(10**30,)),
    "shape of 10^900": npy(GAMMA, shape=(10**900,)),
    "many numbers": npy(GAMMA, shape=(10**9,)),
    "negative shape": npy(GAMMA, shape=(-1,)),
    "shape of two negatives": npy(GAMMA, shape=(-2, -2)),
    "negative and too large": npy(GAMMA, shape=(-(2**70), -(2**70))),
    "nothing": npy(GAMMA, shape=(0,)),
    "too few numbers": npy(GAMMA, shape=(3,)),
    "many axes": npy(GAMMA, shape=(1,) * 100 + (4,)),
    "no tuple": npy(GAMMA, shape=4),
    "no integers": npy(GAMMA, shape=(4.0,)),
    "columns first and wrong": npy(GAMMA, fortran_order=True, shape=(2, 2)),
    "no flag": npy(GAMMA, fortran_order=1),
    "object": npy(GAMMA, descr="|O"),
    "structured": npy(GAMMA, descr=[("a", "<f4")]),
    "structured with objects": npy(GAMMA, descr=[("a", "|O")]),
    "overlapping fields": npy(GAMMA, descr=[("a", "<f4", (2, 2))]),
    "subarray": npy(GAMMA, descr=("<f4", (4,))),
    "no size": npy(GAMMA, descr="|V0"),
    "no size, text": npy(GAMMA, descr="<U0", shape=(10**18,)),
    "text": npy(GAMMA, descr="<U1"),
    "dates": npy(GAMMA, descr="<M8[s]", shape=(2,)),
    "complex": npy(GAMMA, descr="<c8", shape=(2,)),
    "unknown": npy(GAMMA, descr="<q7"),
    "other keys": b"\x93NUMPY\x01\x00\x06\x00{'a':1" + bytes(16),
    "no dict": b"\x93NUMPY\x01\x00\x02\x0042" + bytes(16),
    "deep": b"\x93NUMPY\x01\x00\x84\x03" + b"-" * 899 + b"1" + bytes(16),
    "deep brackets": b"\x93NUMPY\x01\x00\x90\x01" + b"[" * 200 + b"]" * 200 + bytes(16),
    "long": b"\x93NUMPY\x01\x00\xff\xff" + b"-" * 65_535 + bytes(16),
    "longer than the file": LONG_HEADER + b"{" + bytes(16),
    "no unicode": b"\x93NUMPY\x01\x00\x04\x00\xff\xfe\x00\n" + bytes(16),
    "version 3": b"\x93NUMPY\x03\x00" + npy(GAMMA)[8:10] + b"\0\0" + npy(GAMMA)[10:],
    "version 255": b"\x93NUMPY\xff\xff" + npy(GAMMA)[8:],
    "length too small": npy(GAMMA).replace(b"\x01\x00:", b"\x01\x009"),
    "no magic": npy(GAMMA)[1:],
    "only magic": b"\x93NUMPY",
    "empty": b"",
    "more than it says": npy(GAMMA) + b"\0",
    "less than it says": npy(GAMMA)[:-1],
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_do_not_fit_are_refused_and_allocate_nothing(saved, layer, tmp_path, case):
    path = tmp_path / "state.npz"
    path.write_bytes(packed(members(saved) | {"gamma.npy": HEADERS[case]}))
    tracemalloc.start()
    try:
        refused(layer, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


ZEROS = bytes(20_000_000)


def lying(content, name, size):
    """A zip file which says that a member unpacks to so many bytes."""
    central = content.rindex(b"PK\1\2", 0, content.rindex(name))
    for begin, sizes in ((content.rindex(b"PK\3\4", 0, central), 22), (central, 24)):
        content = content[: begin + sizes] + struct.pack("<I", size) + content[begin + sizes + 4 :]
    return content


BOMBS = {
    "in a state's array": lambda names: packed(names | {"gamma.npy": ZEROS}, zipfile.ZIP_DEFLATED),
    "in an array of the right kind": lambda names: packed(
        names | {"gamma.npy": npy(np.zeros(5_000_000, np.float32))}, zipfile.ZIP_DEFLATED
    ),
    "beside the state": lambda names: packed(names | {"more.npy": ZEROS}, zipfile.ZIP_DEFLATED),
    "bzip2": lambda names: packed(names | {"gamma.npy": ZEROS}, zipfile.ZIP_BZIP2),
    "lzma": lambda names: packed(names | {"gamma.npy": ZEROS}, zipfile.ZIP_LZMA),
    "that lies, deflated": lambda names: lying(
        packed([*names.items(), ("beta.npy", ZEROS)], zipfile.ZIP_DEFLATED), b"beta.npy", 136
    ),
    "that lies, bzip2": lambda names: lying(
        packed([*names.items(), ("beta.npy", ZEROS)], zipfile.ZIP_BZIP2), b"beta.npy", 136
    ),
    "that lies, with a header of 4 GiB": lambda names: lying(
        packed([*names.items(), ("beta.npy", LONG_HEADER + ZEROS)], zipfile.ZIP_DEFLATED), b"beta.npy", 136
    ),
    "of many members": lambda names: packed([(str(number), b"") for number in range(30_000)]),
    "before the archive": lambda names: ZEROS + packed(names),
    "behind the archive": lambda names: packed(names) + ZEROS,
    "of no kind": lambda names: ZEROS,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_unpacks_to_more_than_the_layer_holds_is_refused_before_it_is_unpacked(saved, layer, tmp_path, bomb):
    path = tmp_path / "bomb.npz"
    names = members(saved)
    if "lies" in bomb:
        names.pop("beta.npy")
    path.write_bytes(BOMBS[bomb](names))
    tracemalloc.start()
    try:
        refused(layer, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


@linux
def test_a_device_without_end_is_refused(layer):
    assert "it has more than" in refused(layer, "/dev/zero")


MEMBERS = {
    "twice": (lambda names: [*names.items(), ("gamma.npy", names["gamma.npy"])], "it holds 'gamma' twice"),
    "in a folder": (lambda names: {f"a/{name}": data for name, data in names.items()}, "it also holds 'a/gamma.npy'"),
    "upwards": (lambda names: {**names, "../gamma.npy": b""}, "it also holds '../gamma.npy'"),
    "from the root": (lambda names: {**names, "/gamma.npy": b""}, "it also holds '/gamma.npy'"),
    "without suffix": (lambda names: {name[:-4]: data for name, data in names.items()}, "it also holds 'gamma'"),
    "both suffixes": (lambda names: {**names, "gamma": b""}, "it also holds 'gamma'"),
    "one more": (lambda names: {**names, "delta.npy": npy(1)}, "it also holds 'delta.npy'"),
    "one less": (lambda names: {name: names[name] for name in [*names][:-1]}, "got none for 'num_batches'"),
    "a folder": (lambda names: {**names, "gamma.npy/": b""}, "it also holds 'gamma.npy/'"),
    "line break": (lambda names: {**names, "a\nb": b""}, r"it also holds 'a\nb'"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", MEMBERS)
def test_members_that_do_not_belong_there_are_named(saved, layer, tmp_path, case):
    change, words = MEMBERS[case]
    path = tmp_path / "state.npz"
    path.write_bytes(packed(change(members(saved))))
    refused(layer, path, words)


def test_an_encrypted_file_is_refused(saved, layer, tmp_path):
    content = bytearray(packed(members(saved)))
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + flags] |= 1
    path = tmp_path / "state.npz"
    path.write_bytes(content)
    refused(layer, path, "encrypted")


@pytest.mark.parametrize("error", [MemoryError("mine"), RecursionError("mine")])
def test_the_want_of_memory_is_no_fault_of_the_file(saved, layer, tmp_path, monkeypatch, error):
    saved.save(tmp_path / "state.npz")
    numpy = {"__name__": "numpy", "error": error}  # raised by a function of NumPy
    exec("def frombuffer(*_): raise error", numpy)
    monkeypatch.setattr(np, "frombuffer", numpy["frombuffer"])
    with pytest.raises(type(error)) as caught:
        layer.load(tmp_path / "state.npz")
    assert caught.value is error


class Mine(Exception):  # noqa: N818
    pass


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="signals of POSIX")
@pytest.mark.parametrize("error", [Mine(), ValueError("mine"), TimeoutError("mine"), zipfile.BadZipFile("mine")])
@pytest.mark.parametrize("where", ["np.frombuffer", "zipfile.ZipExtFile.read", "cbnorm.BatchNorm._fitting"])
def test_a_signal_handlers_exception_passes_a_load_unchanged(saved, layer, tmp_path, monkeypatch, error, where):
    saved.save(tmp_path / "state.npz")
    before = layer.state_dict()

    def handler(*_):
        raise error

    def interrupted(*_, **__):
        signal.raise_signal(signal.SIGALRM)

    holder, name = where.rsplit(".", 1)
    for part in holder.split("."):
        holder = {"np": np, "zipfile": zipfile, "cbnorm": cbnorm}.get(part) or getattr(holder, part)
    monkeypatch.setattr(holder, name, interrupted)
    handler_before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(type(error)) as caught:
            layer.load(tmp_path / "state.npz")
    finally:
        signal.signal(signal.SIGALRM, handler_before)
    assert caught.value is error
    assert same_state(layer, before)
