"""`python -m cbnorm`: the same command line as `cbnorm`."""

import sys

from cbnorm._cli import main

if __name__ == "__main__":
    sys.exit(main())
