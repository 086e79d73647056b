"""Lives of `BatchNorm` layers, which can also be frozen, converted, folded, and measured anew."""

import exact
import hypothesis
import numpy as np
from guarded import attempt, call
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from layer_cases import same_state
from strategies import FLOATS, arrays
from test_hostile_layers import BATCH_OPTIONS, OPTIONS, LayerLife

import cbnorm


class BatchNormLife(LayerLife):
    @initialize(options=OPTIONS, of_batch=BATCH_OPTIONS)
    def is_made(self, options, of_batch):
        super().is_made("batch", options, of_batch)

    @rule(frozen=st.booleans())
    def is_frozen(self, frozen):
        self.layer.frozen = frozen

    @rule(library=st.sampled_from(["torch", "keras", "onnx"]))
    def is_converted_and_back(self, library):
        layer = self.layer
        outcome = attempt(getattr(layer, f"to_{library}"))
        if layer.momentum is None and library != "torch":
            assert outcome.names == "momentum"
            return
        attributes = outcome.result
        if library == "keras":
            attributes = dict(attributes)
        elif library == "onnx":
            attributes = {name: value for name, value in attributes.items() if value is not None}
        new = call(getattr(cbnorm.BatchNorm, f"from_{library}"), **attributes)
        for name in ("moving_mean", "moving_var"):
            assert np.array_equal(getattr(new, name), getattr(layer, name), equal_nan=True)
        if layer.gamma is not None:
            assert same_state(dict(new.parameters()), dict(layer.parameters()))
        assert (new.momentum, new.eps, new.axis) == (layer.momentum, layer.eps, layer.axis)

    @rule(data=st.data(), count=st.integers(0, 3))
    def gathers_its_statistics_anew(self, data, count):
        layer = self.layer
        batches = [
            data.draw(arrays(self.shape(data), recipes=["plain", "offset", "constant"]), "batch") for _ in range(count)
        ]
        outcome = attempt(cbnorm.recompute_stats, layer=layer, batches=[each.thing for each in batches])
        channels = [[] for _ in range(3)]
        for each in batches:
            for position, value in enumerate(np.moveaxis(each.means, layer.axis, 0).reshape(3, -1).tolist()):
                channels[position] += map(exact.Fraction, value)
        if len(channels[0]) <= layer.ddof:
            assert outcome.names == "batches"
            return
        for position, values in enumerate(channels):
            found = exact.statistics(values)
            var = exact.real(found.var * found.count / (found.count - layer.ddof))
            std = exact.mp.sqrt(var)
            mean = exact.real(found.mean)
            bound = 1e-12 * std * found.hardness + abs(mean) * 2.0**-52
            exact.assert_near("mean", layer.moving_mean[position], [mean], [bound], "float64")
            bound = 1e-12 * var * found.hardness
            exact.assert_near("var", layer.moving_var[position], [var], [bound], "float64")
        self.state = layer.state_dict()

    @rule(data=st.data())
    def is_folded(self, data):
        layer, weight = self.layer, data.draw(arrays((2, 3), FLOATS, ["plain", "small integers"]), "weight")
        folded, bias = call(cbnorm.fold_batchnorm, weight=weight.thing, bias=None, layer=layer, channel_axis=1)
        means, variances = exact.numbers(layer.moving_mean), exact.numbers(layer.moving_var)
        found = exact.given(means, variances, layer.eps)
        held = zip((1.0, 0.0), (layer.gamma, layer.beta), strict=True)
        gammas, betas = (exact.numbers(np.full(3, number) if a is None else a) for number, a in held)
        relative = {"float64": 1e-14, "float32": 1e-7, "float16": 1e-7}[folded.dtype.name]
        for channel in range(3):
            gamma, beta = gammas[channel], betas[channel]
            if found[(channel,)] is None or gamma is None or beta is None:
                continue
            scale = exact.real(gamma) * found[(channel,)].inv_std
            want = [exact.real(value) * scale for value in exact.numbers(weight.means[:, channel])]
            exact.assert_near("weight", folded[:, channel], want, [relative * abs(each) for each in want])
            terms = [-exact.real(means[channel]) * scale, exact.real(beta)]
            exact.assert_near("bias", bias[channel : channel + 1], [sum(terms)], [relative * sum(map(abs, terms))])


TestBatchNormLife = BatchNormLife.TestCase
TestBatchNormLife.settings = hypothesis.settings(max_examples=hypothesis.settings().max_examples // 4)
