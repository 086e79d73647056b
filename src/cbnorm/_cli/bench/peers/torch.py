"""The peer `torch` of `cbnorm bench`: the native operators under PyTorch's layers, without autograd."""

from functools import partial

from cbnorm._cli.bench.cases import EPS, MOMENTUM
from cbnorm._cli.bench.peers.peer import Calls, Peer, factors
from cbnorm._cli.page import plural

EVERY_GRADIENT = [True, True, True]


class Torch(Peer):
    """PyTorch on the CPU. Only the out= of batch normalization forward is timed: the others copy a fresh result."""

    name = "torch"

    def __init__(self, num_threads):
        import torch

        self.torch = torch
        self._before = torch.get_num_threads()
        torch.set_num_threads(num_threads)
        self._inference = torch.inference_mode()  # about a microsecond less a call
        self._inference.__enter__()

    def matmul(self, case):
        """PyTorch's own."""
        return partial(self.torch.matmul, *map(self._tensor, factors(case)))

    def close(self):
        """Leave inference mode and give back the number of threads."""
        self._inference.__exit__(None, None, None)
        self.torch.set_num_threads(self._before)

    def _tensors(self, case):
        """x, dout and out seen with their channels at axis 1, gamma and beta: nothing is copied."""
        moved = [self._tensor(each).movedim(case.axis, 1) for each in (case.x, case.dout, case.out)]
        return *moved, self._tensor(case.gamma), self._tensor(case.beta)

    def _tensor(self, array):
        return self.torch.from_numpy(array)

    def _batchnorm_arguments(self, case):
        x, _, _, gamma, beta = self._tensors(case)
        # Copies, as training changes them in place.
        moving = (self._tensor(each).to(x.dtype, copy=True) for each in (case.moving_mean, case.moving_var))
        return x, gamma, beta, *moving, case.operation.name != "test", 1 - MOMENTUM, EPS

    def train(self, case):
        call = partial(self.torch.native_batch_norm, *self._batchnorm_arguments(case))
        out, into_out = self._tensors(case)[2], None
        if self._knows_layout(out):
            statistics = 0 if case.operation.name == "test" else case.num_channels
            saved = (out.new_empty(statistics) for _ in range(2))
            into_out = partial(call, out=(out, *saved))
        return Calls(call, into_out, partial(_channels_back, case.axis))

    test = train

    def _knows_layout(self, tensor):
        """Whether native_batch_norm writes an out= of these strides right: to others it does not (2.13)."""
        formats = {4: self.torch.channels_last, 5: self.torch.channels_last_3d}
        own = {"memory_format": formats[tensor.ndim]} if tensor.ndim in formats else {}
        return tensor.is_contiguous() or tensor.is_contiguous(**own)

    def backward(self, case):
        arguments = self._batchnorm_arguments(case)
        x, gamma, _, mean, var, *_ = arguments
        _, *saved = self.torch.native_batch_norm(*arguments)
        call = partial(
            self.torch.ops.aten.native_batch_norm_backward.default,
            *(self._tensors(case)[1], x, gamma, mean, var, *saved, True, EPS, EVERY_GRADIENT),
        )
        return Calls(call, None, partial(_gradients, case.axis))

    def _layernorm_arguments(self, case):
        x, gamma, beta = map(self._tensor, (case.x, case.gamma, case.beta))
        return x, case.gamma.shape, gamma, beta, EPS

    def layernorm(self, case):
        return Calls(partial(self.torch.native_layer_norm, *self._layernorm_arguments(case)), None, _y)

    def layernorm_backward(self, case):
        arguments = self._layernorm_arguments(case)
        x, normalized, gamma, beta, _ = arguments
        _, *saved = self.torch.native_layer_norm(*arguments)
        call = partial(
            self.torch.ops.aten.native_layer_norm_backward.default,
            *(self._tensor(case.dout), x, normalized, *saved, gamma, beta, EVERY_GRADIENT),
        )
        return Calls(call, None, _arrays)

    def _groupnorm_arguments(self, case):
        x, _, _, gamma, beta = self._tensors(case)
        samples, channels = x.shape[:2]
        # torch.instance_norm goes through batch normalization and takes longer than groups of one channel.
        return x, gamma, beta, samples, channels, x[0, 0].numel(), case.groups, EPS

    def groupnorm(self, case):
        return Calls(partial(self.torch.native_group_norm, *self._groupnorm_arguments(case)), None, _y)

    def groupnorm_backward(self, case):
        arguments = self._groupnorm_arguments(case)
        x, gamma, _, *sizes, _ = arguments
        _, *saved = self.torch.native_group_norm(*arguments)
        call = partial(
            self.torch.ops.aten.native_group_norm_backward.default,
            *(self._tensors(case)[1], x, *saved, gamma, *sizes, EVERY_GRADIENT),
        )
        return Calls(call, None, _arrays)

    instancenorm, instancenorm_backward = groupnorm, groupnorm_backward

    def rmsnorm(self, case):
        x, normalized, gamma, _, eps = self._layernorm_arguments(case)
        call = partial(self.torch._fused_rms_norm, x, normalized, gamma, eps)
        return Calls(call, None, _y)


class TorchCopy:
    """PyTorch's copy of one array into another, on the same threads: the limit."""

    def __init__(self, num_threads):
        import torch

        self.torch = torch
        self._before = torch.get_num_threads()
        torch.set_num_threads(num_threads)
        self.words = f"PyTorch's copy_, {plural(num_threads, 'thread')}"

    def call(self, source, target):
        """The call to time."""
        return partial(self.torch.from_numpy(target).copy_, self.torch.from_numpy(source))

    def close(self):
        """Give back the number of threads."""
        self.torch.set_num_threads(self._before)


def _y(result):
    return (result[0].numpy(),)


def _arrays(result):
    return [each.numpy() for each in result]


def _channels_back(axis, result):
    return (result[0].movedim(1, axis).numpy(),)


def _gradients(axis, result):
    return [*_channels_back(axis, result), *_arrays(result[1:])]
