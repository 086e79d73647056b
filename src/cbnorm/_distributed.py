"""Batch normalization of a batch whose parts lie on several ranks: one message each, merged in rank order.

Every rank gathers the messages of all and merges them in the same order, so that all hold the same bits. A rank whose
arguments are wrong sends that instead, and all ranks raise. How messages travel is the caller's: ``gather(message)``
takes this rank's, float64, and returns those of all ranks in their order, as the rows of an array or one by one.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cbnorm import parts
from cbnorm._arrays import as_array, check_axis, check_need, check_out, copy_numbers
from cbnorm._calls import Cache
from cbnorm._merge import QUIET
from cbnorm._results import float_dtypes
from cbnorm.batchnorm import batchnorm_backward, batchnorm_forward
from cbnorm.moments import Moments
from cbnorm.parts import GradientSums

Message = NDArray[np.float64]
Gather = Callable[[Message], Sequence[Message]]
Part = TypeVar("Part", Moments, GradientSums)

# A message is its status, a count, and the arrays of a record one after the other. The status is the checksum of the
# call, from 0 up, or one of these, and then the rest is the error's text.
ERRORS: dict[int, type[Exception]] = {-1: ValueError, -2: TypeError, -3: RuntimeError}
ARRAYS: dict[type, tuple[str, ...]] = {Moments: ("mean", "mean_lo", "m2"), GradientSums: ("dout", "dout_xhat")}


def merge_ranks(gather: Gather, find: Callable[[], tuple[Part, str]], length: int | None = None) -> Part:
    """Moments, or sums, of all ranks together: each calls this with those of its own part.

    Parameters
    ----------
    gather : callable
        Brings each rank's message to all.
    find : callable
        Checks this rank's arguments, all of them, and returns the record of its part and what the call is: a text that
        must be the same on all ranks.
    length : int, optional
        Of every message, where `gather` takes one length alone, from `message_length`. Otherwise a message of another
        length, from a rank that has other channels or failed, must reach all ranks as it is.

    Returns
    -------
    Moments or GradientSums
        The same bits on every rank.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        On every rank, if `find` raises on any, or the calls differ. Where `find` raised it is that error, elsewhere one
        of its kind with its text and rank.

    Examples
    --------
    >>> import cbnorm
    >>> part = cbnorm.Moments(2, [1.0], [0.5])
    >>> merge_ranks(lambda message: [message, message], lambda: (part, "two ranks that hold the same"))
    Moments(count=4, mean=[1.], m2=[1.], mean_lo=[0.])
    """
    try:
        part, call = find()
    except Exception as error:
        gather(refusal(error, length))
        raise
    rows = gather(message_of(part, call))
    check_ranks(rows, call)
    return sum_in_order(rows, part)


def message_length(kind: type, channels: int) -> int:
    """Numbers of a message, for so many channels: 3C + 2 for moments, 2C + 2 for sums."""
    return 2 + len(ARRAYS[kind]) * channels


def message_of(part: Moments | GradientSums, call: str) -> Message:
    """What a rank sends of its part."""
    arrays = [getattr(part, name).ravel() for name in ARRAYS[type(part)]]
    return np.concatenate([[zlib.crc32(call.encode()), part.count], *arrays], dtype=np.float64)


def refusal(error: Exception, length: int | None) -> Message:
    """What a rank sends whose arguments were refused: what kind of error it is, and its text, as far as it fits."""
    status = -1 if isinstance(error, ValueError) else -2 if isinstance(error, TypeError) else -3
    text = (str(error) if status > -3 else f"{type(error).__name__}: {error}").encode()
    size = 8 * (math.ceil(len(text) / 8) if length is None else length - 1)
    return np.concatenate([[status], np.frombuffer(text[:size].ljust(size, b"\0"), np.float64)])


def check_ranks(rows: Sequence[Message], call: str) -> None:
    """Raise what a rank sent instead of numbers, or an error where ranks do different things."""
    for rank, row in enumerate(rows):
        kind = ERRORS.get(int(row[0]))
        if kind is not None:
            text = row[1:].tobytes().rstrip(b"\0").decode(errors="ignore")
            raise kind(f"{text} (on rank {rank})")
    status = zlib.crc32(call.encode())
    others = [rank for rank, row in enumerate(rows) if row[0] != status]
    if others:
        named = ", ".join(map(str, others))
        raise ValueError(f"comm: expected the same call on every rank, here {call}, got others on: {named}")


def sum_in_order(rows: Sequence[Message], like: Part) -> Part:
    """The records that messages hold, merged in the order of ranks; `like` is one of them."""
    if len(rows) == 1:
        return like
    kind, names = type(like), ARRAYS[type(like)]
    table = np.stack(rows)
    counts = [int(count) if count.is_integer() else count for count in table[:, 1].tolist()]
    arrays = table[:, 2:].reshape(len(rows), len(names), *getattr(like, names[0]).shape)
    # Many ranks of equal counts: all pairs of neighbours at once, since 32 pairs of short messages take as long as two.
    while len(counts) >= 8 and len(counts) % 2 == 0 and len(set(counts)) == 1:
        first, second = (record(kind, counts[0], arrays[start::2].swapaxes(0, 1)) for start in (0, 1))
        both = first + second
        counts = [both.count] * (len(counts) // 2)
        arrays = np.stack([getattr(both, name) for name in names], axis=1)
    records = [record(kind, count, each) for count, each in zip(counts, arrays, strict=True)]
    return sum(records[1:], records[0])


def record(kind: type[Part], count: float, arrays: NDArray[np.float64]) -> Part:
    """Moments or sums, whose arrays come in the order of `ARRAYS`."""
    return kind(count, **dict(zip(ARRAYS[kind], arrays, strict=True)))


class SyncCache:
    """What a backward call needs of a forward call: references and statistics, no large copy.

    Attributes
    ----------
    x : ndarray
        This rank's part itself, not to be changed before backward.
    gamma : ndarray or None
        A copy of the parameter.
    axis : int
        The channel axis, counted from 0.
    eps : float
        As given.
    moments : Moments or None
        (channels,), of all ranks; None in test mode.
    weights : array_like or None
        What each place of this part counts.
    """

    x: NDArray[Any]
    axis: int
    eps: float
    moments: Moments | None
    weights: NDArray[np.float64] | None
    __slots__ = ("_local", "_owner", "axis", "eps", "moments", "weights", "x")

    def __init__(
        self,
        x: NDArray[Any],
        axis: int,
        eps: float,
        moments: Moments | None,
        local: Cache,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self.x, self.axis, self.eps, self.moments, self.weights = x, axis, eps, moments, weights
        self._local = local  # of the same call on this part, or in training on nothing of it
        self._owner: object = None

    @property
    def gamma(self) -> NDArray[Any] | None:
        """A copy of gamma."""
        return self._local.gamma

    @property
    def mode(self) -> str:
        """Whether the statistics are those of the batch, "train", or were given, "test"."""
        return self._local.mode

    @property
    def counts(self) -> bool:
        """Whether the gradient depends on statistics of the batch: not in test mode, nor where nothing counts."""
        return self.moments is not None and self.moments.count > 0

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.x.shape[self.axis]

    def __repr__(self) -> str:
        """What it is of, and how large."""
        return f"<SyncCache of batchnorm_forward: {self.x.dtype} x of shape {self.x.shape}, mode {self.mode!r}>"


def forward(gather: Gather, arguments: Callable[[], tuple], length: int | None = None) -> tuple:
    """`batchnorm_forward` of a part, in training: y, the cache, and the new moving mean and variance.

    ``arguments()`` returns those of `batchnorm_forward` up to `mode`, then axis, ddof, out and weights; it may raise.
    """

    def find():
        nonlocal x, gamma, beta, eps, momentum, axis, ddof, out, weights, local, moving
        x, gamma, beta, eps, momentum, mean, var, mode, axis, ddof, out, weights = arguments()
        x = as_array(x, 2)
        axis = check_axis(axis, x.ndim)
        if out is not None:
            names, inputs = ("x", "gamma", "beta", "moving_mean", "moving_var"), (x, gamma, beta, mean, var)
            check_out(out, x.shape, float_dtypes(x)[1], None, names, inputs)
        # Nothing may be refused after the message: all else is checked by a call on nothing of x.
        options = (gamma, beta, eps, momentum, mean, var, mode)
        _, local, *moving = batchnorm_forward(nothing_of(x, axis), *options, axis=axis, ddof=ddof)
        numbers = f"eps={float(eps)!r}, momentum={float(momentum)!r}, ddof={ddof}"
        if weights is not None:
            weights = copy_numbers("weights", weights)  # the gradient takes them again
        return parts.moments(x, axis, weights=weights), f"batchnorm_forward of {x.shape[axis]} channels, {numbers}"

    x = gamma = beta = eps = momentum = axis = ddof = out = weights = local = moving = None
    whole = merge_ranks(gather, find, length)
    if ddof == 1 and 0 < whole.count <= 1 and whole.mean.size:
        raise ValueError("ddof: expected 0 for one value a channel on all ranks together, got 1")
    mean, var = moving
    if whole.count == 0:  # nothing, or nothing that counts
        y, local, *_ = batchnorm_forward(x, gamma, beta, eps, axis=axis, weights=weights, out=out)
        return y, SyncCache(x, axis, float(eps), whole, local), mean, var
    y = parts.normalize(x, whole, gamma, beta, eps, axis=axis, out=out)
    mean, var = moved(mean, whole.mean, 1, momentum), moved(var, whole.m2, whole.count - ddof, momentum)
    return y, SyncCache(x, axis, float(eps), whole, local, weights), mean, var


def forward_given(arguments: Callable[[], tuple]) -> tuple:
    """The same with the moving statistics, for which no message is sent."""
    x, *options, axis, ddof, out, weights = arguments()
    x = as_array(x, 2)
    y, local, mean, var = batchnorm_forward(x, *options, axis=axis, ddof=ddof, weights=weights, out=out)
    return y, SyncCache(x, local.axis, float(options[2]), None, local), mean, var


def backward(gather: Gather, arguments: Callable[[], tuple], length: int | None = None) -> list[NDArray[Any] | None]:
    """`batchnorm_backward`: dx of a part, dgamma and dbeta of all; ``arguments()`` gives dout, cache, need and out."""

    def find():
        nonlocal dout, cache, need, out
        dout, cache, need, out = arguments()
        if not isinstance(cache, SyncCache):
            raise TypeError(f"cache: expected that of batchnorm_forward over ranks, got {type(cache).__name__}")
        need = check_need(need, ("dx", "dgamma", "dbeta"))
        if out is not None:
            if not need[0]:
                raise ValueError("out: expected None where need says that dx is not wanted, got an array")
            names = ("dout", "x", "cache")
            check_out(out, cache.x.shape, float_dtypes(cache.x)[1], "dout", names, (dout, cache.x, cache.gamma))
        call = f"batchnorm_backward of {cache.channels} channels in mode {cache.mode!r}, need={need}"
        if cache.counts:
            options = {"axis": cache.axis, "weights": cache.weights}
            sums = parts.gradient_sums(dout, cache.x, cache.moments, cache.eps, **options)
            return sums, f"{call}, {cache.moments.count} values each"
        _, *sums = batchnorm_backward(dout, cache._local, need=(False, *need[1:]))
        arrays = (np.zeros(cache.channels) if each is None else each for each in reversed(sums))
        return GradientSums(cache.x.size // max(cache.channels, 1), *arrays), call

    dout = cache = need = out = None
    sums = merge_ranks(gather, find, length)
    dx = None
    if need[0] and cache.counts:
        options = {"axis": cache.axis, "weights": cache.weights, "out": out}
        dx = parts.input_gradient(dout, cache.x, cache.moments, sums, cache.gamma, cache.eps, **options)
    elif need[0]:
        dx, *_ = batchnorm_backward(dout, cache._local, need=(True, False, False), out=out)
    computed = float_dtypes(cache.x)[0]
    with QUIET():
        totals = [each.astype(computed) for each in (sums.dout_xhat, sums.dout)]
    return [dx, *(total if wanted else None for total, wanted in zip(totals, need[1:], strict=True))]


def nothing_of(x: NDArray[Any], axis: int) -> NDArray[Any]:
    """None of its values, with the same channels."""
    return x[:0] if axis else x[:, :0]


def moved(old: NDArray[Any] | None, batch: NDArray[Any], divisor: float, momentum: float) -> NDArray[Any] | None:
    """momentum·old + (1 - momentum)·batch / divisor; what has a weight of 0 is not read: it may be NaN."""
    if old is None or momentum == 1:
        return old
    with QUIET():
        new = (1 - momentum) / divisor * batch
        return new if momentum == 0 else momentum * old + new
