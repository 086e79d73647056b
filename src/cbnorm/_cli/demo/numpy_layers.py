"""cbnorm's layers for (N, C) arrays, float32, by the NumPy formulas: cbnorm's rival in the demo.

Their names, arguments and methods are those of cbnorm's, as far as a network calls them.
"""

import numpy as np

from cbnorm._cli import formulas

EPS, MOMENTUM = 1e-5, 0.9  # what cbnorm's layers have where nothing is said


class NumPyLayer:
    """Parameters, their gradients, and a mode."""

    def __init__(self, num_channels, names=("gamma", "beta")):
        starts = zip(names, (np.ones, np.zeros), strict=False)
        self._parameters = {name: start(num_channels, np.float32) for name, start in starts}
        self.grads = {}
        self.training = True

    def parameters(self):
        """The parameters by name, to be updated in place."""
        return self._parameters

    def train(self):
        """Normalize by the batch."""
        self.training = True

    def eval(self):
        """Normalize by the moving averages, in a layer that has them."""
        self.training = False

    def _keep(self, *gradients):
        self.grads = {name: each.reshape(-1) for name, each in zip(self._parameters, gradients, strict=True)}


class BatchNorm(NumPyLayer):
    """Batch normalization."""

    def __init__(self, num_channels):
        super().__init__(num_channels)
        self.moving_mean, self.moving_var = np.zeros(num_channels), np.ones(num_channels)

    def forward(self, x):
        """Normalize each column of x."""
        parameters, moving = self._parameters.values(), (self.moving_mean, self.moving_var)
        if not self.training:
            return formulas.normalize(x, *(each.astype(x.dtype) for each in moving), *parameters, eps=EPS)[0]
        y, self.cache, self.moving_mean, self.moving_var = formulas.train(
            x, *parameters, *moving, axes=0, eps=EPS, momentum=MOMENTUM
        )
        return y

    def backward(self, dout):
        """Gradient with respect to the x of the last training batch; the others go to `grads`."""
        dx, *gradients = formulas.batch_backward(dout, self.cache, self._parameters["gamma"], axes=0)
        self._keep(*gradients)
        return dx


class GroupNorm(NumPyLayer):
    """Group normalization."""

    def __init__(self, num_groups, num_channels):
        super().__init__(num_channels)
        self.group_shape = (num_groups, num_channels // num_groups)

    def forward(self, x):
        """Normalize each group of columns of each row: the rows of (N, groups, C / groups)."""
        grouped = x.reshape(len(x), *self.group_shape)
        parameters = (each.reshape(self.group_shape) for each in self._parameters.values())
        y, self.cache = formulas.forward(grouped, *parameters, axes=-1, eps=EPS)
        return y.reshape(x.shape)

    def backward(self, dout):
        """Gradient with respect to the last x; the others go to `grads`."""
        grouped = dout.reshape(len(dout), *self.group_shape)
        gamma = self._parameters["gamma"].reshape(self.group_shape)
        dx, *gradients = formulas.rows_backward(grouped, self.cache, gamma, axes=-1, parameter_axes=0)
        self._keep(*gradients)
        return dx.reshape(dout.shape)


class LayerNorm(GroupNorm):
    """Layer normalization: a row is one group."""

    def __init__(self, num_channels):
        super().__init__(1, num_channels)


class RMSNorm(NumPyLayer):
    """RMS normalization, which has no beta."""

    def __init__(self, num_channels):
        super().__init__(num_channels, ("gamma",))

    def forward(self, x):
        """Divide each row of x by its root mean square."""
        y, self.cache = formulas.rms_forward(x, *self._parameters.values(), axes=-1, eps=EPS)
        return y

    def backward(self, dout):
        """Gradient with respect to the last x; the other goes to `grads`."""
        dx, dgamma = formulas.rms_backward(dout, self.cache, *self._parameters.values(), axes=-1, parameter_axes=0)
        self._keep(dgamma)
        return dx
