"""Fixtures that every test file may use."""

import pytest

from cbnorm import _kernels


@pytest.fixture(params=_kernels.BUILDS)
def kernels(request):
    """Run the test with each kernel build that this CPU runs."""
    before = _kernels.active_name
    _kernels.use(request.param)
    yield request.param
    _kernels.use(before)
