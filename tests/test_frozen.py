"""What import says where something is missing, and an application that PyInstaller froze."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cbnorm

PACKAGE = Path(cbnorm.__file__).parent
APPLICATION = """
import cbnorm, numpy as np
x = np.float32([[1, 2], [3, 4]])
print(cbnorm._kernels.active_name, cbnorm.batchnorm_forward(x)[0].tolist(), cbnorm.show_config())
"""


def import_copy(folder, ignored):
    """What a process says that imports a copy of the package without some files."""
    shutil.copytree(PACKAGE, folder / "cbnorm", ignore=shutil.ignore_patterns(*ignored))
    if (libraries := PACKAGE.with_name("cbnorm.libs")).exists():  # those that a repaired wheel brings along
        shutil.copytree(libraries, folder / "cbnorm.libs")
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(folder)!r}); import cbnorm; print(cbnorm.__file__)",
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_a_whole_copy_works(tmp_path):
    assert str(tmp_path) in import_copy(tmp_path, ["__pycache__"]).stdout


def test_a_source_tree_that_is_not_built_says_how_to_build_it(tmp_path):
    done = import_copy(tmp_path, ["__pycache__", "*.so", "*.pyd"])
    assert "ImportError: cbnorm: the compiled modules are missing in" in done.stderr
    assert "pip install -e ." in done.stderr


def test_missing_kernels_are_told_from_an_old_cpu(tmp_path):
    done = import_copy(tmp_path, ["__pycache__", "baseline*", "avx2*", "avx512*"])
    assert "ImportError: cbnorm: no kernel file found for this Python, expected baseline" in done.stderr


@pytest.mark.frozen
def test_an_application_that_pyinstaller_froze(tmp_path):
    script = tmp_path / "application.py"
    script.write_text(APPLICATION)
    subprocess.run([sys.executable, "-m", "PyInstaller", "--log-level", "ERROR", script], check=True, cwd=tmp_path)
    done = subprocess.run(
        [tmp_path / "dist" / "application" / "application"], capture_output=True, text=True, cwd=tmp_path, env={}
    )
    assert f"{cbnorm._kernels.BUILDS[-1]} [[-0.99999" in done.stdout, done.stderr
