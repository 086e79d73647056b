"""Normalization layers for NumPy arrays on the CPU."""

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
from cbnorm.layers import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm, recompute_stats
from cbnorm.moments import Moments, moments, standardize
from cbnorm.population import PopulationStats
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
