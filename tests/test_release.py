"""The check that tag, version and CHANGELOG agree."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "check_release.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="not in the source distribution")
LOG = "# Changelog\n\n## Unreleased\n{}\n## 1.2.0 - 2026-01-02\n\n- all\n\n## 1.1.0 - 2025-01-02\n"


@pytest.mark.parametrize(
    ("tag", "version", "unreleased", "words"),
    [
        ("v1.2.0", "1.2.0", "", []),
        ("", "1.3.0", "\n- more\n", []),
        ("v1.2.1", "1.2.0", "", ["tag: expected v1.2.0"]),
        ("v1.3.0", "1.3.0", "", ["newest release"]),
        ("v1.2.0", "1.2.0", "\n- more\n", ["nothing under Unreleased"]),
    ],
)
def test_disagreements_are_told(tag, version, unreleased, words):
    spec = importlib.util.spec_from_file_location("check_release", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.problems(tag, version, LOG.format(unreleased))
    assert len(found) == len(words)
    assert all(word in problem for word, problem in zip(words, found, strict=True))
