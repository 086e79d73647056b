"""Every public function on small arrays of every walk, of odd sizes too: what .ci/sanitize runs under other tools."""

import os

import numpy as np
from public_calls import bits_of, make_input, public_calls

import cbnorm
from cbnorm import _kernels

SHAPES = [(3, 34), (70, 6), (2, 2, 2), (33, 2, 66), (70, 6, 40), (5, 16, 1030)]


def main():
    _kernels.active.set_judging(False)
    _kernels.active.set_grain(1024)  # so that small arrays have two threads
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for cache_bytes in (1 << 25, 1 << 10):  # all arrays fit; none does
        _kernels.active.set_cache_bytes(cache_bytes)
        for shape in SHAPES:
            for dtype in (np.float16, np.float32, np.float64):
                x, dout = (make_input(shape, dtype, seed) for seed in (0, 1))
                calls = public_calls(x, dout)
                for name, call in calls.items():
                    try:
                        os.write(nowhere, bits_of(call()))  # valgrind looks at each byte that leaves the process
                    except Exception as error:
                        raise AssertionError(f"{name} of {shape}, {np.dtype(dtype)}") from error
        print(f"{len(SHAPES)} shapes, {len(calls)} calls each, caches of {cache_bytes} bytes")
    print(f"{cbnorm.show_config('dicts')['kernels']} kernels")


if __name__ == "__main__":
    main()
