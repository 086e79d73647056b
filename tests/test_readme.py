"""The example in README.md runs as it stands and trains."""

import re
from pathlib import Path

import numpy as np


def test_the_example_trains():
    readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names = {}
    exec(code, names)
    target, before = names["target"], (names["x"] - names["x"].mean(axis=0)) / names["x"].std(axis=0)
    assert np.mean((names["prediction"] - target) ** 2) < 0.7 * np.mean((before - target) ** 2)
    np.testing.assert_allclose(names["prediction"], names["y"], atol=1e-3)
