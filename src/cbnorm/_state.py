"""What every layer is made of: parameters, modes, state and its files, and the memory of each thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, Self
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from cbnorm import _files
from cbnorm._arrays import as_numbers, check_affine, check_dtype, check_eps, check_flag, check_nonnegative, check_shape
from cbnorm._calls import Cache
from cbnorm._results import float_dtypes

_layers: WeakValueDictionary[int, Layer] = WeakValueDictionary()  # every layer there is, by its id


def _after_fork():
    # A lock that another thread held is held for ever in the child, where that thread does not exist.
    for layer in list(_layers.values()):
        layer._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# Which calls of a thread stand before its next backward, to know whether the last is certainly the one meant.
ANSWERED = 0  # none, or one that had its backward and may have another
TEST = 1  # one, in test mode
TESTS = 2  # several, all in test mode: the last is meant, once
TRAINING = 3  # the last, in training mode; any before it, all in test mode, were a validation pass
SEVERAL = 4  # one in training mode and others after it
SEVERAL_ANSWERED = 5  # several, one of which had its backward: the next backward may mean another

# What the next call makes of each of these.
AFTER_TEST = (TEST, TESTS, TESTS, SEVERAL, SEVERAL, TEST)
AFTER_TRAINING = (TRAINING, TRAINING, TRAINING, SEVERAL, SEVERAL, TRAINING)
AFTER_BACKWARD = (ANSWERED, ANSWERED, SEVERAL_ANSWERED, ANSWERED, SEVERAL_ANSWERED, SEVERAL_ANSWERED)


class ThreadMemory(threading.local):
    """What belongs to the calling thread alone."""

    cache = None  # of its last forward call
    calls = ANSWERED
    y = dx = None  # results that the next call may overwrite

    def __init__(self):
        self.grads: dict[str, NDArray[Any]] = {}


class Flag(property):
    """What type checkers are told of it: True or False."""

    if TYPE_CHECKING:

        def __get__(self, layer: Any, owner: type | None = None) -> bool: ...
        def __set__(self, layer: Any, value: bool) -> None: ...


def flag(name: str, doc: str) -> Flag:
    """An attribute that is True or False: any other object would count as True unseen, "no" too."""
    own = f"_{name}"  # read by the calls themselves

    def get(layer):
        return getattr(layer, own)

    def put(layer, value):
        setattr(layer, own, check_flag(name, value))

    return Flag(get, put, doc=doc)


class Layer:
    """Parameters, training or test mode, and state. `BatchNorm`, `LayerNorm` and the others add the equations.

    Attributes
    ----------
    gamma, beta : ndarray or None
        The parameters; None where the layer lacks them (`affine`). `RMSNorm` has no beta.
    training : bool
        Whether `train` or `eval` was called last; new layers train.
    reuse_output : bool
        Whether results may lie in memory that the layer keeps and uses again: the next `forward` of the same
        thread then overwrites the y of this one, the next `backward` its dx. Saves allocating large arrays
        in a loop that is done with each result before the next; anything kept longer must be copied, also the x that
        another layer's record refers to.

    Notes
    -----
    A layer may be called several times before `backward`: weights shared within a network, a validation pass inside
    a step. The record of each call is `cache`, read right after it, and ``backward(dout, cache)`` takes any of them,
    in any order and as often as wanted; `grads` are those of the last backward alone, for the caller to add up.
    Without a record, `backward` belongs to the last call. It is a ValueError where another may be meant: where since
    the last backward a call in training mode was followed by others, or where several calls came before
    the last backward and none after it. So calls in test mode may come before a step; to go on after calls
    in training mode whose gradients nobody wants, pass ``layer.cache`` itself.
    A record refers to x, which must not change, and to nothing else of the caller: the y of an earlier
    call may be overwritten, as by `reuse_output`.

    Threads may share a layer. Each has its own cache, `grads` and reused results, so that `backward` without a record
    belongs to the last `forward` of the same thread; a record may go to another thread. Parameters, moving
    statistics and modes are shared.
    Training calls of one `BatchNorm` take turns, and each batch enters the moving statistics exactly once, in
    an order that is not fixed; test-time calls run side by side, each with one mean and the variance that
    belongs to it. `state_dict`, `save`, copies and pickles hold moving statistics of one moment. Not guarded are the
    numbers of gamma and beta: while an optimizer or `load_state_dict` writes them, another thread may read some
    old and some new. Copies and pickles leave cache, `grads` and reused results behind. A forked child may go on
    with a layer that another thread was using at that moment.
    """

    gamma: NDArray[Any] | None
    beta: NDArray[Any] | None
    eps: float
    dtype: np.dtype[Any]

    _parameters: tuple[str, ...] = ("gamma", "beta")
    _nonnegative: tuple[str, ...] = ()  # names of such state
    _backward: Any = None  # that of the functional API

    training: Flag = flag("training", "Whether `train` or `eval` was called last.")
    reuse_output: Flag = flag("reuse_output", "Whether the next call may overwrite results.")

    def __init__(
        self, shape: tuple[int, ...], eps: float, affine: bool | str, dtype: DTypeLike, reuse_output: bool
    ) -> None:
        self.eps = check_eps(eps)
        self.dtype = check_dtype(dtype)
        present = check_affine(affine, self._parameters)
        for name, start in zip(self._parameters, (np.ones, np.zeros), strict=False):
            setattr(self, name, start(shape, self.dtype) if name in present else None)
        self.training = True
        self.reuse_output = reuse_output
        self._prepare_threads()

    def _prepare_threads(self) -> None:
        self._lock = threading.Lock()  # held wherever moving statistics are replaced, or several read
        self._thread = ThreadMemory()
        self._owner = object()
        _layers[id(self)] = self

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {name: value for name, value in vars(self).items() if name not in ("_lock", "_thread", "_owner")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():  # version 0.1 has flags under their public names
            setattr(self, name, value)
        self._prepare_threads()

    def __call__(self, x: ArrayLike) -> NDArray[Any]:
        """Return ``forward(x)``."""
        return self.forward(x)

    def forward(self, x: ArrayLike) -> NDArray[Any]:
        """Return y, the normalized x, and remember what `backward` needs; each layer has its own."""
        raise NotImplementedError

    def backward(self, dout: ArrayLike, cache: Cache | None = None) -> NDArray[Any]:
        """Gradient of a loss with respect to the x of a call.

        The gradients with respect to the parameters go to `grads`.

        Parameters
        ----------
        dout : array_like
            The shape of y: the gradient with respect to y.
        cache : Cache, optional
            The record of the call: what the attribute `cache` was after it. By default that of this thread's last call.

        Returns
        -------
        ndarray
            dx, the shape and dtype of y.

        Raises
        ------
        ValueError, TypeError
            If this thread has not called `forward` yet, if there is no `cache` and several calls may be meant (see
            `Layer`), or if an argument does not fit; `grads` stay as they were then.

        Examples
        --------
        >>> import numpy as np, cbnorm
        >>> layer = cbnorm.LayerNorm(2)
        >>> a, b = layer(np.array([[1.0, 3.0]])), layer.cache
        >>> layer(np.array([[10.0, 90.0]])).round(3), layer.cache.mean
        (array([[-1.,  1.]]), array([50.]))
        >>> dx = layer.backward([[0.0, 1.0]], b)  # of the first call
        """
        cache = self._record_meant(cache)
        dout = as_numbers("dout", dout)
        out = self._room_for_dx(cache._plan.shape, cache._dtypes[1], dout, cache.x)
        dx, *gradients = self._backward(dout, cache, need=self._need(), out=out)
        self._keep(gradients)
        return dx

    def __repr__(self) -> str:
        """Its class, and what it was made with where that is not the default."""
        return f"{type(self).__name__}({', '.join(self._described())})"

    def _described(self) -> list[str]:
        present = [name for name in self._parameters if getattr(self, name) is not None]
        texts = [f"eps={self.eps:g}"]
        if len(present) < len(self._parameters):
            texts.append(f"affine={present[0]!r}" if present else "affine=False")
        if self.dtype != np.float32:
            texts.append(f"dtype={self.dtype}")
        if not self._training:
            texts.append("in test mode")
        return texts

    def _record_meant(self, cache):
        """The record that backward is of: the one given, or that of the last call where no other may be meant."""
        if cache is not None:
            self._check_record(cache)
            return cache
        thread = self._thread
        if thread.cache is None:
            raise ValueError("backward: expected a forward call of this thread before it, got none")
        if thread.calls >= SEVERAL:
            raise ValueError(
                "cache: expected the record of the call that dout belongs to, as there were several, got None; "
                "keep `layer.cache` after each call, or for the last call layer.backward(dout, layer.cache)"
            )
        return thread.cache

    def _need(self):
        """Which gradients backward computes: dx, and those of the parameters that there are."""
        return (True, *(getattr(self, name) is not None for name in self._parameters))

    def _keep(self, gradients):
        """Keep the parameters' gradients as those of the last backward."""
        thread = self._thread
        thread.calls = AFTER_BACKWARD[thread.calls]
        thread.grads = {
            name: gradient for name, gradient in zip(self._parameters, gradients, strict=True) if gradient is not None
        }

    def _check_record(self, cache):
        kind = self._backward.__name__.removesuffix("_backward")
        shape = self.shape if hasattr(self, "shape") else (self.num_channels,)
        if not isinstance(cache, Cache) or cache.kind != kind:
            got = cache.kind if isinstance(cache, Cache) else type(cache).__name__
            raise TypeError(f"cache: expected the record of a call of this layer ({kind}), got {got}")
        if cache._plan.parameter_shape != shape:
            raise ValueError(
                f"cache: expected the record of a call of this layer, of parameters of shape {shape}, "
                f"got {cache._plan.parameter_shape}"
            )
        if cache._owner not in (None, self._owner):  # a copy or a pickle has none
            raise ValueError("cache: expected the record of a call of this layer, got that of another one of its kind")

    @property
    def cache(self) -> Cache | None:
        """The record of this thread's last `forward`, for `backward`; None before it."""
        return self._thread.cache

    @property
    def grads(self) -> dict[str, NDArray[Any]]:
        """Gradients by parameter name, from the last `backward` of this thread; empty before it."""
        return self._thread.grads

    def parameters(self) -> dict[str, NDArray[Any]]:
        """Return the parameters by name: the arrays themselves, for an optimizer to update in place."""
        named = {name: getattr(self, name) for name in self._parameters}
        return {name: array for name, array in named.items() if array is not None}

    def train(self, mode: bool = True) -> Self:
        """Use the statistics of each batch from now on, or with ``mode=False`` do as `eval` does; return the layer."""
        self.training = mode
        return self

    def eval(self) -> Self:
        """Use the moving statistics from now on, in a layer that has them; return the layer."""
        self.training = False
        return self

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of the parameters and moving statistics, by name."""
        with self._lock:
            return {name: np.array(value) for name, value in self._state().items()}

    def _state(self) -> dict[str, Any]:
        return self.parameters()

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike], *, strict: bool = True) -> None:
        """Take over parameters and moving statistics. Parameters are written in place, where an optimizer holds them.

        Parameters
        ----------
        state_dict : mapping
            Arrays as `state_dict` gives them, by name.
        strict : bool
            False leaves missing names as they are and unknown ones aside. Shapes and dtypes must fit in any case.

        Raises
        ------
        ValueError
            If a name is missing or unknown, a shape does not fit, a variance or count is negative, or a
            parameter of the layer is read-only.
        TypeError
            If a dtype does not fit. The error names the key, and nothing has changed.
        """
        own = self.state_dict()
        strict = check_flag("strict", strict)
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict: expected arrays by name, got {type(state_dict).__name__}")
        missing = [name for name in own if name not in state_dict]
        unknown = [name for name in state_dict if name not in own]
        if strict and (missing or unknown):
            problem = f"none for {missing[0]!r}" if missing else f"also {unknown[0]!r}"
            raise ValueError(f"state_dict: expected the keys {', '.join(map(repr, own))}, got {problem}")
        new = {name: self._fitting(name, state_dict[name], array) for name, array in own.items() if name not in missing}
        written = [name for name in self._parameters if name in new]
        for name in written:
            parameter = getattr(self, name)
            if not isinstance(parameter, np.ndarray) or not parameter.flags.writeable:
                got = "a read-only array" if isinstance(parameter, np.ndarray) else type(parameter).__name__
                raise ValueError(f"state_dict[{name!r}]: expected a layer whose {name} can be written, got {got}")
        with self._lock:
            for name in written:
                getattr(self, name)[...] = new[name]
            rest = {name: new.get(name, array) for name, array in self._state().items() if name not in self._parameters}
            if rest:  # replaced, as other threads may be reading the old ones
                self._replace(**{name: array if array.ndim else array.item() for name, array in rest.items()})

    def _fitting(self, key, value, own):
        """Return a copy of a value for load_state_dict, if it is like the layer's own array."""
        name = f"state_dict[{key!r}]"
        array = check_shape(name, value, own.shape)
        if array.dtype.newbyteorder("=") != own.dtype:
            raise TypeError(f"{name}: expected dtype {own.dtype}, got {array.dtype}")
        if key in self._nonnegative:
            check_nonnegative(name, array)
        return np.array(array, own.dtype)

    def save(self, path: str | bytes | os.PathLike[Any] | IO[bytes]) -> None:
        """Write `state_dict` to a file of NumPy's .npz format, without pickle.

        The path is taken as it is, without a suffix added. An existing file is replaced in one step at the end and its
        rights are kept; a save that is killed or fails leaves it whole. A link stays: what it points to is replaced.
        Pipes and devices are written to. Saves may run side by side: the last one stays. Of a save that is killed
        nothing is left on Linux; where a file system has no files without a name (NFS, other systems), a file
        ``.cbnorm-<hex digits>.tmp`` may stay in the folder until the next save to the same path.

        Parameters
        ----------
        path : path-like or file
            Where to, str or bytes; the folder must exist. A file that is open for writing in binary mode is written to
            where it stands, and stays open.

        Raises
        ------
        OSError
            If it cannot be written; the error's `filename` is the path.
        ValueError, TypeError
            If it is no path.
        """
        _files.save(path, self.state_dict())

    def load(self, path: str | bytes | os.PathLike[Any] | IO[bytes]) -> None:
        """Take over the state in a file that `save` wrote, of a layer with the same names, shapes and dtypes.

        Parameters
        ----------
        path : path-like or file
            The file, or one that is open in binary mode, read from where it stands and no further than needed to know
            that it holds this state alone. Nothing in it is ever executed: it is read without pickle, and no more of it
            is unpacked than this layer's state may take.

        Raises
        ------
        ValueError
            If the file is damaged, of another kind, or of another layer; nothing has changed then.
        OSError
            If it cannot be opened or read; the error's `filename` is the path.
        TypeError
            If the path is none.
        """
        _files.load(path, self)

    def _room_for_y(self, x):
        """Return this thread's memory for y where it may be reused, else None."""
        return self._room("y", x.shape, float_dtypes(x)[1], x) if self._reuse_output else None

    def _room_for_dx(self, shape, dtype, dout, x):
        """The same for dx."""
        return self._room("dx", shape, dtype, dout, x) if self._reuse_output else None

    def _room(self, name, shape, dtype, *inputs):
        room = getattr(self._thread, name)
        if (
            room is None
            or room.shape != shape
            or room.dtype != dtype
            or any(np.may_share_memory(room, each) for each in inputs if each is not None)  # y = layer(layer(x))
        ):
            room = np.empty(shape, dtype)
            setattr(self._thread, name, room)
        return room

    def _remember(self, y, cache):
        """Keep what backward needs; return y."""
        thread = self._thread
        thread.calls = (AFTER_TRAINING if self._training else AFTER_TEST)[thread.calls]
        cache._owner = self._owner
        thread.cache = cache
        return y
