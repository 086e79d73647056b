"""What a source distribution and a wheel hold. Usage: check_distributions.py SDIST WHEEL."""

import sys
import tarfile
import zipfile
from pathlib import Path

NEEDED = {
    "LICENSE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "tests/reference.py",
    "tests/bits.json",
    "asv_bench/asv.conf.json",
    "src/cbnorm/py.typed",
}


def main(sdist, wheel):
    """Exit with what is too much, or is missing."""
    root = Path(__file__).parents[1]
    with tarfile.open(sdist) as file:
        sizes = {member.name.partition("/")[2]: member.size for member in file.getmembers() if member.isfile()}
    found = [path for pattern in ("*.p[yx]*", "*.h") for path in root.joinpath("src").rglob(pattern)]
    sources = {str(path.relative_to(root)) for path in found if path.suffix != ".pyc"}
    missing = (NEEDED | sources) - set(sizes)
    generated = [
        name
        for name in sizes
        if name.endswith((".so", ".pyc")) or "asv_bench/results/" in name or (name[:4] == "src/" and name[-2:] == ".c")
    ]
    pictures = sum(size for name, size in sizes.items() if name.endswith(".png"))
    with zipfile.ZipFile(wheel) as file:
        compiled_from = [name for name in file.namelist() if name.endswith((".c", ".h", ".pyx", ".pxd", ".pxi"))]
        largest = max(file.infolist(), key=lambda each: each.file_size)
    problems = {
        "the source distribution lacks": missing,
        "it holds what is generated": generated,
        "pictures are more than a fifth of it": [pictures] if pictures > sum(sizes.values()) / 5 else [],
        "the wheel holds sources": compiled_from,
        "it has a file above 1 MB, with debug information?": [largest.filename] if largest.file_size > 1e6 else [],
    }
    bad = [f"{what}: {sorted(map(str, names))}" for what, names in problems.items() if names]
    for path in map(Path, (sdist, wheel)):
        print(f"{path.name} {path.stat().st_size:,} bytes")
    sys.exit("\n".join(bad) or None)


if __name__ == "__main__":
    main(*sys.argv[1:])
