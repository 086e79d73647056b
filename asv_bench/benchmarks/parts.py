"""Time of the steps of batch normalization, each alone."""

import cbnorm

from .common import Arrays


class Parts(Arrays):
    needs = ("parts",)

    def prepare(self):
        self.moments = cbnorm.parts.moments(self.x, self.axis)
        self.sums = cbnorm.parts.gradient_sums(self.dout, self.x, self.moments, axis=self.axis)


class PartMoments(Parts):
    def time_moments(self, dtype, layout, threads):
        cbnorm.parts.moments(self.x, self.axis)


class PartNormalize(Parts):
    def time_normalize(self, dtype, layout, threads):
        cbnorm.parts.normalize(self.x, self.moments, self.gamma, self.beta, axis=self.axis)


class PartGradientSums(Parts):
    def time_gradient_sums(self, dtype, layout, threads):
        cbnorm.parts.gradient_sums(self.dout, self.x, self.moments, axis=self.axis)


class PartInputGradient(Parts):
    def time_input_gradient(self, dtype, layout, threads):
        cbnorm.parts.input_gradient(self.dout, self.x, self.moments, self.sums, self.gamma, axis=self.axis)
