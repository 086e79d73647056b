"""Time of the statistics alone, and of the same in plain NumPy."""

import cbnorm

from . import twin
from .common import Arrays, NumPyArrays


class Moments(Arrays):
    needs = ("moments",)

    def prepare(self):
        cbnorm.moments(self.x, self.reduced)

    def time_moments(self, dtype, layout, threads):
        cbnorm.moments(self.x, self.reduced)


class NumPyMoments(NumPyArrays):
    def time_numpy_moments(self, dtype, layout):
        twin.moments(self.x, self.reduced)
