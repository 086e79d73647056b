"""Time of `import cbnorm` in a new process, and of the NumPy import within it."""


def timeraw_import_cbnorm():
    return "import cbnorm"


def timeraw_import_numpy():
    return "import numpy"
