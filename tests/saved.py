"""What tests of saved layers share."""

import os

import pytest
from layer_cases import same_state

import cbnorm

posix = pytest.mark.skipif(os.name != "posix", reason="files of POSIX")


def holds(path, layer):
    """Whether a file holds the state of a BatchNorm."""
    other = cbnorm.BatchNorm(4)
    other.load(path)
    return same_state(other, layer)
