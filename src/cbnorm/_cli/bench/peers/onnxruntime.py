"""The peer `onnxruntime` of `cbnorm bench`: models of one node, made with the package `onnx`."""

from functools import partial

from cbnorm._cli.bench.cases import EPS, MOMENTUM
from cbnorm._cli.bench.peers.peer import Calls, Peer

OPSET = 23


class OnnxRuntime(Peer):
    """ONNX Runtime on the CPU; it knows no gradients."""

    name = pool = "onnxruntime"
    needs = ("onnxruntime", "onnx")

    def __init__(self, num_threads):
        import onnx
        import onnxruntime

        self.onnx, self.onnxruntime = onnx, onnxruntime
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = num_threads
        self.options.log_severity_level = 3

    def _calls(self, case, x, node, parameters, num_outputs=1, **attributes):
        """Calls of a model of one node on x, the parameters its constants."""
        helper, numpy_helper = self.onnx.helper, self.onnx.numpy_helper
        names = [f"parameter{i}" for i in range(len(parameters))]
        outputs = [f"output{i}" for i in range(num_outputs)]
        kind = helper.np_dtype_to_tensor_dtype(x.dtype)
        graph = helper.make_graph(
            [helper.make_node(node, ["x", *names], outputs, **attributes)],
            node,
            [helper.make_tensor_value_info("x", kind, x.shape)],
            [helper.make_tensor_value_info(name, kind, None) for name in outputs],
            [numpy_helper.from_array(each, name) for name, each in zip(names, parameters, strict=True)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        session = self.onnxruntime.InferenceSession(model.SerializeToString(), self.options, ["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        out = case.out
        binding.bind_output(outputs[0], "cpu", 0, out.dtype, x.shape, out.ctypes.data)
        for name in outputs[1:]:
            binding.bind_output(name)

        def into_out():
            session.run_with_iobinding(binding)
            return (out,)

        return Calls(partial(session.run, outputs, {"x": x}), into_out, lambda result: result[:1])

    def _batchnorm(self, case, num_outputs, **attributes):
        x = case.x
        if case.axis == x.ndim - 1:
            x = x.reshape(-1, case.num_channels)
        elif case.axis != 1:
            return None
        moving = (each.astype(x.dtype) for each in (case.moving_mean, case.moving_var))
        parameters = (case.gamma, case.beta, *moving)
        return self._calls(
            case, x, "BatchNormalization", parameters, num_outputs, epsilon=EPS, momentum=MOMENTUM, **attributes
        )

    def train(self, case):
        return self._batchnorm(case, 3, training_mode=1)

    def test(self, case):
        return self._batchnorm(case, 1)

    def layernorm(self, case):
        parameters = (case.gamma, case.beta)
        return self._calls(case, case.x, "LayerNormalization", parameters, axis=case.axis, epsilon=EPS)

    def rmsnorm(self, case):
        return self._calls(case, case.x, "RMSNormalization", (case.gamma,), axis=case.axis, epsilon=EPS)

    def groupnorm(self, case):
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(case.x.dtype)
        settings = {"num_groups": case.num_groups, "epsilon": EPS, "stash_type": kind}
        return self._calls(case, case.x, "GroupNormalization", (case.gamma, case.beta), **settings)

    def instancenorm(self, case):
        return self._calls(case, case.x, "InstanceNormalization", (case.gamma, case.beta), epsilon=EPS)
