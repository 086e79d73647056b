"""Tag, version and CHANGELOG say the same. Usage: check_release.py [TAG]; without a tag, whether one could be set."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def problems(tag, version, changelog):
    """What does not agree, in words."""
    released = re.findall(r"^## (\d\S*) - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    found = []
    if tag and tag != f"v{version}":
        found.append(f"tag: expected v{version}, the version in pyproject.toml, got {tag}")
    if tag and (not released or released[0] != version):
        found.append(f"CHANGELOG.md: expected {version} as its newest release, got {released[:1] or 'none'}")
    if tag and re.search(r"^## Unreleased\s*\n(?!\s*## )", changelog, re.MULTILINE):
        found.append("CHANGELOG.md: expected nothing under Unreleased when a release is tagged")
    if not tag and not released:
        found.append("CHANGELOG.md: expected a release with its date")
    return found


def main(tag=""):
    """Exit with what does not agree."""
    version = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text())["project"]["version"]
    sys.exit("\n".join(problems(tag, version, ROOT.joinpath("CHANGELOG.md").read_text())) or None)


if __name__ == "__main__":
    main(*sys.argv[1:])
