"""Normalization layers for NumPy arrays on the CPU.

    y, cache, *_ = cbnorm.batchnorm_forward(x, gamma, beta)     # layernorm_, groupnorm_, instancenorm_, rmsnorm_
    dx, dgamma, dbeta = cbnorm.batchnorm_backward(dout, cache)
    layer = cbnorm.BatchNorm(64); y = layer(x); dx = layer.backward(dout)       # keeps parameters and statistics
    z, m = cbnorm.standardize(data); z_new = m.standardize(new_data)            # (x - mean) / std, any axes
    m = cbnorm.moments(x, axis=0); m.mean, m.var(); a + b                       # one pass; parts merge

x is float32 or float64, of any shape; (N, D) and (N, C, H, W) have their channels on axis 1, ``axis=-1`` says
otherwise. Results are right at any offset and have the same bits for any number of threads. The functions' own help
tells the rest, ``cbnorm.parts`` has the steps of batch normalization, ``cbnorm.show_config()`` says what is in use.
"""

try:
    import cbnorm._cpu  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        f"cbnorm: the compiled modules are missing in {__path__[0]}; a source tree is built by `pip install -e .` in "
        "its root, and an installed cbnorm is found from another folder than that"
    ) from error

from cbnorm import parts
from cbnorm._calls import Cache
from cbnorm._config import show_config
from cbnorm._pool import empty_pool, get_pool_limit, set_pool_limit
from cbnorm._threads import get_num_threads, set_num_threads, threads
from cbnorm.batchnorm import BatchNormCache, batchnorm_backward, batchnorm_forward
from cbnorm.fold import fold_batchnorm
from cbnorm.groupnorm import (
    groupnorm_backward,
    groupnorm_forward,
    instancenorm_backward,
    instancenorm_forward,
)
from cbnorm.layernorm import layernorm_backward, layernorm_forward
from cbnorm.layers import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from cbnorm.moments import Moments, moments, standardize
from cbnorm.population import PopulationStats
from cbnorm.recompute import recompute_stats
from cbnorm.rmsnorm import rmsnorm_backward, rmsnorm_forward

__all__ = [
    "BatchNorm",
    "BatchNormCache",
    "Cache",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "Moments",
    "PopulationStats",
    "RMSNorm",
    "__version__",
    "batchnorm_backward",
    "batchnorm_forward",
    "empty_pool",
    "fold_batchnorm",
    "get_num_threads",
    "get_pool_limit",
    "groupnorm_backward",
    "groupnorm_forward",
    "instancenorm_backward",
    "instancenorm_forward",
    "layernorm_backward",
    "layernorm_forward",
    "moments",
    "parts",
    "recompute_stats",
    "rmsnorm_backward",
    "rmsnorm_forward",
    "set_num_threads",
    "set_pool_limit",
    "show_config",
    "standardize",
    "threads",
]

__version__: str  # by __getattr__


def __getattr__(name: str) -> str:
    """`__version__`, from the package's metadata: to read these would be a third of the time that import takes."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("cbnorm")
    except PackageNotFoundError:  # a frozen application may leave them out
        return "unknown"
