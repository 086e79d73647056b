"""The peer `sklearn` of `cbnorm bench`: StandardScaler, which standardizes the columns of a table."""

from functools import partial
from importlib.metadata import version

import numpy as np

from cbnorm._cli.bench.cases import EPS
from cbnorm._cli.bench.peers.peer import Calls, Peer


class Sklearn(Peer):
    """scikit-learn. Its only in-place form overwrites x, so that it has no out= to time."""

    name = "sklearn"
    note = "one thread; without gamma, beta and, in training, eps"

    def __init__(self, num_threads):
        import sklearn
        from sklearn.preprocessing import StandardScaler

        self.scaler = StandardScaler
        self._config = sklearn.config_context(assume_finite=True, skip_parameter_validation=True)
        self._config.__enter__()

    def close(self):
        """Give back its configuration."""
        self._config.__exit__(None, None, None)

    def version(self):
        """The version of the package that brings it."""
        return version("scikit-learn")

    def train(self, case):
        scaler = self.scaler()
        return _calls(case, scaler, scaler.fit_transform)

    def test(self, case):
        scaler = self.scaler()
        scaler.n_features_in_ = case.num_channels
        scaler.mean_, scaler.var_ = case.moving_mean, case.moving_var
        scaler.scale_ = np.sqrt(case.moving_var + EPS)
        return _calls(case, scaler, scaler.transform)


def _calls(case, scaler, function):
    """Calls for a table of rows; gamma, beta and, in training, eps join the result for the check alone."""
    if case.x.ndim != 2 or case.axis != 1:
        return None

    def normalized(result):
        return (case.gamma * (result * (scaler.scale_ / np.sqrt(scaler.var_ + EPS))) + case.beta,)

    return Calls(partial(function, case.x), None, normalized)
