"""Normalization layers for NumPy arrays on the CPU."""

from cbnorm._config import show_config
from cbnorm._threads import get_num_threads, set_num_threads, threads
from cbnorm.batchnorm import BatchNormCache, batchnorm_backward, batchnorm_forward
from cbnorm.moments import Moments, PopulationStats, moments

__all__ = [
    "BatchNormCache",
    "Moments",
    "PopulationStats",
    "batchnorm_backward",
    "batchnorm_forward",
    "get_num_threads",
    "moments",
    "set_num_threads",
    "show_config",
    "threads",
]
