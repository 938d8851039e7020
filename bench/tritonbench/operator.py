"""Layers of torch.nn and ours with equal weights: run.py --op rnn --cell GRU --mode fwd_no_grad --precision bf16"""

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from tritonbench.utils import triton_op

import rnn_triton

Inputs = tuple[Tensor, nn.RNNBase]
SHAPES = ((1024, 8, 128), (512, 8, 512), (512, 16, 1024), (256, 8, 2048))  # T, B, H = I
PASSES = {triton_op.Mode.BWD: 2, triton_op.Mode.FWD_BWD: 3}  # the products of a pass, in those of a forward pass


class Operator(triton_op.BenchmarkOperator):
    DEFAULT_METRICS = ["latency", "speedup", "accuracy", "us_per_step", "tflops"]

    def __init__(self, tb_args: argparse.Namespace, extra_args: list[str] | None = None) -> None:
        super().__init__(tb_args, extra_args)
        parser = argparse.ArgumentParser()
        parser.add_argument("--cell", choices=("RNN", "GRU", "LSTM"), default="LSTM")
        parser.add_argument("--layers", type=int, default=1)
        self.chosen = parser.parse_args(self.extra_args)

    def layer(self, package, H: int):
        return getattr(package, self.chosen.cell)(H, H, self.chosen.layers, device=self.device, dtype=self.dtype)

    def get_input_iter(self) -> Iterator[Inputs]:
        for T, B, H in SHAPES:
            yield torch.randn(T, B, H, device=self.device, dtype=self.dtype, requires_grad=True), self.layer(nn, H)

    @triton_op.register_x_val(label="(T, B, H)")
    def get_x_val(self, inputs: Inputs) -> tuple[int, ...]:
        return tuple(inputs[0].shape)

    @triton_op.register_benchmark(baseline=True)
    def torch_nn(self, x: Tensor, layer: nn.RNNBase) -> Callable[[], Tensor]:
        return lambda: layer(x)[0]

    @triton_op.register_benchmark()
    def triton_persistent(self, x: Tensor, layer: nn.RNNBase) -> Callable[[], Tensor]:
        ours = self.layer(rnn_triton, layer.hidden_size)
        ours.load_state_dict(layer.state_dict())
        return lambda: ours(x)[0]

    def get_bwd_fn(self, fwd_fn: Callable[[], Tensor]) -> Callable[[], None]:
        y = fwd_fn()
        return lambda: y.backward(torch.ones_like(y), retain_graph=True)

    @triton_op.register_metric()
    def us_per_step(self, name: str, inputs: Inputs, metrics) -> float:
        return 1e3 / (len(inputs[0]) / metrics.latency)  # a latency is in ms, and knows how to divide a number

    @triton_op.register_metric(x_only=True)
    def flops(self, name: str, inputs: Inputs, metrics) -> float:
        (T, B, _), weights = inputs[0].shape, [w for w in inputs[1].parameters() if w.dim() == 2]
        return 2.0 * T * B * sum(w.numel() for w in weights) * PASSES.get(self.mode, 1)
