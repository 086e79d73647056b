"""What `cbnorm bench` measures: the operations, the shapes they are timed on, and the arrays of one line."""

import re
from dataclasses import dataclass, replace

import numpy as np

EPS = 1e-5
MOMENTUM = 0.9
MOST_AXES = 64  # NumPy's limit


@dataclass(frozen=True)
class Shape:
    """A shape as the command line spells it: `64x224x224x3@-1`, `16x256x28x28/32`."""

    sizes: tuple
    axis: int | None = None  # of the function; its own default where None
    num_groups: int = 32

    @classmethod
    def parse(cls, text):
        """Read SIZExSIZE...[@AXIS][/GROUPS]; a ValueError says what is wrong."""
        found = re.fullmatch(r"(\d+(?:x\d+)+)(?:@(-?\d+))?(?:/(\d+))?", text)
        if not found:
            raise ValueError(f"expected sizes such as 4096x1024, 64x224x224x3@-1 or 16x256x28x28/32, got {text!r}")
        sizes, axis, num_groups = found.groups()
        sizes = tuple(map(int, sizes.split("x")))
        axis, num_groups = None if axis is None else int(axis), 32 if num_groups is None else int(num_groups)
        if 0 in sizes or num_groups == 0:
            raise ValueError(f"expected sizes of 1 or more, got {text!r}")
        if len(sizes) > MOST_AXES:
            raise ValueError(f"expected at most {MOST_AXES} axes, got {len(sizes)}")
        if axis is not None and not -len(sizes) <= axis < len(sizes):
            raise ValueError(f"expected an axis from {-len(sizes)} to {len(sizes) - 1}, got {text!r}")
        return cls(sizes, axis, num_groups)

    def __str__(self):
        axis = "" if self.axis is None else f"@{self.axis}"
        groups = "" if self.num_groups == 32 else f"/{self.num_groups}"
        return "x".join(map(str, self.sizes)) + axis + groups


def _shapes(text):
    return tuple(map(Shape.parse, text.split()))


ROWS = _shapes("64x3 64x128 128x256 256x1024 1024x17 4096x1024 100000x64 65536x256 1000000x16")
PLANES = _shapes("8x512x7x7 32x256x14x14 32x64x56x56 64x3x224x224")
CHANNELS_LAST = _shapes("8x7x7x512@-1 32x14x14x256@-1 32x56x56x64@-1 64x224x224x3@-1")
TOKENS = _shapes("25216x768 4096x768 32768x64")
COMPANY = _shapes("128x256 256x1024 4096x512 32x64x28x28")  # of --company


@dataclass(frozen=True)
class Operation:
    """What is timed: everyone who can do it has a method of that name."""

    name: str
    shapes: tuple  # unless others are asked for
    trailing: bool = False  # whether gamma and beta have the shape of the trailing axes, not that of the channels

    @property
    def family(self):
        """Its name, or for gradients that of the forward pass; batch normalization's three have none in common."""
        return self.name.removesuffix("-backward")

    @property
    def is_backward(self):
        """Whether it gives dx, dgamma and dbeta; else y."""
        return self.name.endswith("backward")

    @property
    def method(self):
        """Its name in Python."""
        return self.name.replace("-", "_")

    @property
    def axis(self):
        """The default of cbnorm's function."""
        return -1 if self.trailing else 1

    @property
    def arrays_moved(self):
        """How many arrays of the size of x are read or written at least: x and y; x, dout and dx."""
        return 3 if self.is_backward else 2

    def unsuitable(self, shape):
        """Say why the operation cannot be timed on a shape, or None."""
        samples_apart = self.family in ("groupnorm", "instancenorm")
        if samples_apart and len(shape.sizes) < 3:
            return f"expected three axes or more, (N, C, ...), got {shape}"
        if samples_apart and shape.axis is not None:
            return f"expected no axis: channels are axis 1, got {shape}"
        num_channels = shape.sizes[1]
        if self.family == "groupnorm" and num_channels % shape.num_groups:
            return f"expected /GROUPS that divide {num_channels} channels, got {shape} ({shape.num_groups} groups)"
        return None


_BATCH = ROWS + PLANES + CHANNELS_LAST
_GROUP, _INSTANCE = _shapes("16x256x28x28"), _shapes("8x64x128x128")

_EVERY = (
    Operation("train", _BATCH),
    Operation("test", _BATCH),
    Operation("backward", _BATCH),
    Operation("layernorm", TOKENS, trailing=True),
    Operation("layernorm-backward", TOKENS, trailing=True),
    Operation("groupnorm", _GROUP),
    Operation("groupnorm-backward", _GROUP),
    Operation("instancenorm", _INSTANCE),
    Operation("instancenorm-backward", _INSTANCE),
    Operation("rmsnorm", TOKENS, trailing=True),
    Operation("rmsnorm-backward", TOKENS, trailing=True),
)
OPERATIONS = {operation.name: operation for operation in _EVERY}


@dataclass(frozen=True)
class Case:
    """The arrays of one line of the table, the same for everyone who is timed on it."""

    operation: Operation
    axis: int  # of the channels, or where the normalized axes begin; counted from 0
    num_groups: int
    x: np.ndarray
    dout: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    moving_mean: np.ndarray  # (channels,), float64
    moving_var: np.ndarray  # (channels,), float64
    out: np.ndarray  # where those write that take out=

    @classmethod
    def make(cls, name, shape, dtype):
        """Draw arrays with a mean that is not 0 and a variance that is not 1, the same at every run."""
        operation, rng = OPERATIONS[name], np.random.default_rng(0)
        axis = (operation.axis if shape.axis is None else shape.axis) % len(shape.sizes)
        channels = shape.sizes[axis:] if operation.trailing else shape.sizes[axis : axis + 1]
        x, dout = (rng.standard_normal(shape.sizes, dtype) for _ in range(2))
        x *= 2
        x += 1
        gamma, beta = (rng.uniform(0.5, 1.5, channels).astype(dtype) for _ in range(2))
        moving_mean, moving_var = rng.uniform(0.5, 1.5, channels), rng.uniform(3, 5, channels)
        out = np.full_like(x, 0)  # touched, so that nobody pays for its page faults; np.zeros takes no huge pages
        return cls(operation, axis, shape.num_groups, x, dout, gamma, beta, moving_mean, moving_var, out)

    def in_float64(self):
        """The same numbers in float64."""
        names = ("x", "dout", "gamma", "beta")
        return replace(self, out=None, **{name: getattr(self, name).astype(np.float64) for name in names})

    @property
    def num_channels(self):
        """Channels of batch, group and instance normalization."""
        return self.x.shape[self.axis]

    @property
    def groups(self):
        """Groups of group normalization; instance normalization has one for each channel."""
        return self.num_channels if self.operation.family == "instancenorm" else self.num_groups

    @property
    def bytes_moved(self):
        """Read and written at least: each large array once."""
        return self.operation.arrays_moved * self.x.nbytes
