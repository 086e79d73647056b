"""Every example in README.md and docs/ runs as it stands, and gives what stands there."""

import doctest
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.joinpath("docs").glob("*.md"))]


def blocks_of(page):
    """The Python code of a page, in its order; that with prompts as (code, expected output) is left to doctest.

    What takes ranks is not among it: test_mpi.py launches them.
    """
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in blocks if "mpi4py" not in block]


def run(page):
    """Run all blocks of a page, each after those before it; return their names."""
    names, failures = {}, []
    for number, block in enumerate(blocks_of(page)):
        if not block.startswith(">>>"):
            exec(compile(block, f"{page.name}, block {number}", "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(block, names, page.name, str(page), number)
        doctest.DocTestRunner(verbose=False).run(test, out=failures.append, clear_globs=False)
        names |= test.globs
    assert not failures, "".join(failures)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page)


def test_what_readme_computes_is_right():
    names = run(PAGES[0])
    train = names["train"].astype(np.float64)
    z = (train - train.mean(axis=0)) / train.std(axis=0)
    np.testing.assert_allclose(names["z"], z, atol=2e-6)
    np.testing.assert_allclose(names["back"], train, rtol=1e-7)
    np.testing.assert_allclose(names["prediction"], names["folded"], atol=1e-5)
