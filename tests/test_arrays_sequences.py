"""Lists and tuples of anything: masks in them are not dropped, and lists that hold themselves come to an end."""

import numpy as np
import pytest
from test_arrays_objects import CALLS

import cbnorm

MASKED = np.ma.array([1.0, 5.0, 1e6], mask=[0, 0, 1])
ARRAYS = ("x", "gamma", "beta", "moving_mean", "moving_var", "dout", "mean", "m2", "weight")


class Holder:
    """Gives a masked array when it is asked for an array."""

    def __array__(self, dtype=None, copy=None):
        return MASKED


SEQUENCES = {
    "list": [MASKED, MASKED],
    "tuple": (np.ones(3), MASKED),
    "nested": [[(MASKED, MASKED)], [(MASKED, MASKED)]],
    "one number": [[1.0, 2.0, np.ma.masked], [1.0, 2.0, 3.0]],
    "an array without a mask in it": [np.ones(3), np.ma.array([1.0, 2.0, 3.0])],
    "an object": Holder(),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", SEQUENCES.values(), ids=SEQUENCES)
@pytest.mark.parametrize(("name", "call"), [(name, call) for name in ARRAYS for call in CALLS[name]])
def test_masks_in_sequences_are_refused(name, call, value):
    with pytest.raises(TypeError, match=rf"^{name}: expected .* mask"):
        call(value)


def test_a_state_and_weights_are_searched_too():
    layer = cbnorm.BatchNorm(3)
    with pytest.raises(TypeError, match=r"^state_dict\['moving_mean'\]: expected .* mask"):
        layer.load_state_dict(layer.state_dict() | {"moving_mean": list(MASKED)})
    with pytest.raises(TypeError, match=r"^weights \(gamma\): expected .* mask"):
        cbnorm.BatchNorm.from_keras([[1.0, 2.0, np.ma.masked], *np.ones((3, 3))])


def test_lists_that_hold_themselves_are_refused():
    one, both = [], []
    one.append(one)
    both += [both, [both]]
    for value in (one, both, [1.0, both]):
        with pytest.raises(ValueError, match=r"^x: expected an array of numbers, got list"):
            cbnorm.moments(value)


def test_deep_lists_and_equal_parts_are_fine():
    deep, row = 1.0, [1.0, 3.0]
    for _ in range(60):
        deep = [deep]
    assert cbnorm.moments(deep, axis=None).count == 1
    assert cbnorm.moments([row, row], axis=None).mean == 2
