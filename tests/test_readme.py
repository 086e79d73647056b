"""The example in README.md runs as it stands and trains."""

import re
from pathlib import Path

import numpy as np


def test_the_example_trains():
    readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names = {}
    exec(code, names)
    error = np.mean((names["prediction"] - names["target"]) ** 2)
    # With one gamma and beta a channel no more can be had than the variance that x does not explain.
    assert error < np.mean((names["y"] * 0 + names["target"]) ** 2)
    np.testing.assert_allclose(names["prediction"], names["y"], atol=1e-3)
