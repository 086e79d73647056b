"""The table of kernel builds and their flags; everything else is in pyproject.toml."""

import os
import platform
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "freethreading_compatible": True,  # one module without it turns the GIL back on for the process
}
FLAGS = [
    "-O3",
    # Whatever CFLAGS say: these would change results, turn NaN into 0, and set the whole process to flush to zero. The
    # linker gets them too: it would add the code for the latter.
    "-fno-fast-math",
    "-fno-unsafe-math-optimizations",
    "-fno-associative-math",
    "-fno-reciprocal-math",
    "-fno-finite-math-only",
    "-fsigned-zeros",
    "-ffp-contract=off",  # fused multiply-adds would give each build other bits
    "-fno-math-errno",  # lets sqrt vectorize; changes no value
    "-fno-trapping-math",  # lets comparisons vectorize; changes no value
]
# What GCC, some version of it, does to loops over a constant number of lanes, each for a factor of 1.5 to 3.
GCC_FLAGS = [
    "-fno-tree-loop-distribute-patterns",  # clears the few sums of a short run by `rep stos`
    "-fno-loop-unroll-and-jam",  # jams two turns of the outer loop, then has no registers left, or no vectors
    "-fno-split-loops",  # splits a loop at `k >= skip`, and waits for what the pieces store
]
# CBNORM_SANITIZE=address,undefined: for .ci/sanitize. A wrong address has no file and line without -g, no callers
# without frame pointers; what is undefined shall end the process, not pass by as one line among many.
SANITIZERS = os.environ.get("CBNORM_SANITIZE", "")
SANITIZE_FLAGS = ["-fsanitize=" + SANITIZERS, "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]
# Only GCC and Clang on x86-64 build more than the baseline.
IS_X86 = platform.machine().lower() in ("x86_64", "amd64") and sys.platform != "win32"
LEVELS = {"baseline": []}
if IS_X86:
    LEVELS = {
        "baseline": ["-march=x86-64-v2"],
        "avx2": ["-march=x86-64-v3"],
        "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],  # GCC's default; Clang's is 256
    }


# CBNORM_ABI3=1: one wheel for this Python and all to come. A small call takes 0.5 us more; pip takes the wheel of its
# own version where there is one.
ABI3 = os.environ.get("CBNORM_ABI3") == "1"
LEAST_PYTHON = "cp311"


class BuildKernels(build_ext):
    """Builds with OpenMP where the compiler has it, else warns and builds a serial library; so does CBNORM_OPENMP=0."""

    def build_extensions(self):
        self.parallel = self.parallel or os.cpu_count()
        if self.compiler.compiler_type == "msvc":
            warnings.warn("cbnorm is built without OpenMP and runs on one thread", stacklevel=1)
        else:
            wanted = os.environ.get("CBNORM_OPENMP") != "0"
            openmp = ["-fopenmp"] if wanted and self.has_openmp() else []
            if ABI3:  # what that ABI does not have would be called blindly
                self.compiler.compiler_so.append("-Werror=implicit-function-declaration")
            flags = FLAGS + (GCC_FLAGS if self.takes(["-Werror", *GCC_FLAGS]) else [])
            if SANITIZERS:
                checks = SANITIZE_FLAGS
            elif "-g" in os.environ.get("CFLAGS", ""):
                checks = []
            else:
                checks = ["-g0"]  # Python's own flags have -g, which makes files four times as large
            for extension in self.extensions:
                extension.extra_compile_args += flags + checks
                extension.extra_link_args += flags + checks
                if extension.name.startswith(("cbnorm._kernels.", "cbnorm._openmp")):  # no others load OpenMP
                    extension.extra_compile_args += openmp
                    extension.extra_link_args += openmp
        super().build_extensions()

    def has_openmp(self):
        found = self.takes(["-fopenmp"], "#include <omp.h>\nint threads(void) { return omp_get_max_threads(); }\n")
        if not found:
            warnings.warn("no OpenMP found: cbnorm is built without it and runs on one thread", stacklevel=1)
        return found

    def takes(self, flags, source="int number;\n"):
        """Whether the compiler builds this with these flags."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "file.c")
            file.write_text(source)
            command = [
                *self.compiler.linker_so,
                *flags,
                "-fPIC",
                str(file),
                "-o",
                str(file.with_suffix(".so")),
            ]
            return subprocess.run(command, capture_output=True).returncode == 0


def description():
    """README.md for PyPI, where there is no repository for its links to lead into (yet)."""
    text = Path("README.md").read_text(encoding="utf-8")
    text = re.sub(r"<img src=\"docs/[^>]*>\n|<br clear=[^>]*>\n", "", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


def extension(name, flags=(), depends=()):
    return Extension(
        f"cbnorm.{name}",
        [f"src/cbnorm/{name.replace('.', '/')}.pyx"],
        depends=list(depends),
        include_dirs=[numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")]
        + ([("Py_LIMITED_API", "0x030B0000")] if ABI3 else []),
        py_limited_api=ABI3,
        extra_compile_args=list(flags),
    )


kernel_sources = [str(path) for path in Path("src/cbnorm/_kernels").glob("*.[ph]*") if path.suffix in (".pxi", ".h")]
memory_sources = ["src/cbnorm/_memory.h", "src/cbnorm/_memory.pxd", "src/cbnorm/_memory_watch.pxi"]
setup(
    long_description=description(),
    long_description_content_type="text/markdown",
    ext_modules=cythonize(
        [
            extension("_cpu"),
            extension("_arrays"),
            extension("_plan"),
            extension("_results"),
            extension("_openmp"),
            extension("_memory", depends=memory_sources),
        ]
        + [extension(f"_kernels.{name}", flags, kernel_sources) for name, flags in LEVELS.items()],
        compiler_directives=DIRECTIVES,
    ),
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": LEAST_PYTHON}} if ABI3 else {},
)
