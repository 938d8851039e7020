"""Times that others published for cases of the suites, to stand beside ours: never measured by this project.

Each is converted to microseconds per step (of all layers together), to four digits, and says of what: hardware, dtype and what is counted
differ from ours and from each other, so that these are orientation, not comparisons. Only numbers that stand in a table or a
text are here, none read off a plot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import case as cases


@dataclass(frozen=True)
class Published:
    case: str  # a name that cases.case.parse takes
    pass_: str  # one of cases.PASSES
    what: str  # implementation and dtype; what differs from the case
    us_per_step: float
    device: str
    source: str  # and the conversion


def of(case_name: str, pass_: str) -> list[Published]:
    """What is published for a case and pass, the fastest first."""
    found = [p for p in PUBLISHED if (p.case, p.pass_) == (case_name, pass_)]
    return sorted(found, key=lambda p: p.us_per_step)


def _us(ms: float, steps: int) -> float:
    return float(f"{ms * 1e3 / steps:.4g}")


_DEEPBENCH_SHAPES = [(H, B) for H in (1760, 2048, 2560) for B in (16, 32, 64, 128)]
# Milliseconds of T = 50 steps at each of these shapes: (forward, backward to the inputs, backward to the weights).
_DEEPBENCH = (
    ("V100", "Results - FP16 ip, Mixed math", "fp16", "cuDNN 7.6.2, fp16", (
        (2.958, 2.181, 0.207), (2.974, 2.427, 0.309), (3.279, 2.76, 0.454), (4.125, 3.166, 0.693),
        (2.978, 2.6, 0.239), (3.243, 2.776, 0.342), (3.382, 2.873, 0.526), (4.181, 3.286, 0.817),
        (4.333, 2.87, 0.416), (4.614, 2.955, 0.48), (4.782, 3.26, 0.701), (4.922, 3.464, 1.111),
    )),
    ("V100", "Results FP32", "fp32", "cuDNN 7.6.2, fp32 without TF32", (
        (4.201, 2.881, 0.588), (4.357, 2.996, 0.939), (4.675, 3.803, 1.652), (6.113, 5.162, 3.131),
        (4.243, 3.015, 0.746), (4.582, 3.253, 1.281), (4.737, 4.171, 2.173), (7.513, 6.231, 3.959),
        (4.5, 3.678, 1.077), (4.697, 3.892, 1.722), (6.161, 4.845, 3.497), (7.773, 7.392, 5.756),
    )),
    ("P100", "Results FP32", "fp32", "cuDNN 6.0.21, fp32 without TF32", (
        (4.734, 4.093, 0.817), (14.019, 13.459, 1.466), (6.948, 6.39, 2.595), (8.775, 8.475, 4.986),
        (6.056, 5.331, 1.023), (15.961, 15.315, 1.82), (8.726, 8.138, 3.365), (11.472, 11.099, 6.455),
        (7.635, 6.592, 1.456), (19.049, 18.424, 2.685), (8.949, 8.508, 5.12), (14.415, 14.386, 10.041),
    )),
    ("TitanX", "Results - FP32", "fp32", "cuDNN 5, fp32 without TF32", (
        (7.769, 7.297, 1.544), (11.064, 10.861, 2.54), (13.151, 12.936, 4.713), (16.488, 16.031, 9.531),
        (8.625, 8.235, 1.923), (10.147, 9.781, 3.223), (12.55, 12.199, 6.016), (18.632, 18.009, 11.5),
        (12.589, 12.269, 2.62), (12.104, 11.624, 4.686), (15.75, 15.694, 8.773), (25.508, 25.194, 17.122),
    )),
)  # fmt: skip


def _deepbench() -> Iterator[Published]:
    for device, sheet, dtype, what, table in _DEEPBENCH:
        source = f"baidu-research/DeepBench, results/train/DeepBench_NV_{device}.xlsx, sheet {sheet!r}, ms / 50 steps"
        for (H, B), (forward, to_inputs, to_weights) in zip(_DEEPBENCH_SHAPES, table, strict=True):
            name = cases.case(H, B, 50, dtype).name
            # code/nvidia/rnn_bench.cu: CUDNN_SKIP_INPUT and CUDNN_RNN_RELU
            said = f"{what}; ReLU, x is not multiplied by W_ih"
            yield Published(name, "fwd", said, _us(forward, 50), device, source)
            total = forward + to_inputs + to_weights
            yield Published(name, "train", said, _us(total, 50), device, f"{source}, forward + both backward columns")


# (T, B, I, H, layers): milliseconds of forward in fp16 and fp32, of backward in fp16 and fp32; tanh.  The column of the
# commit that PyTorch's choice of cuDNN algorithm dates from (PERSIST_STATIC_SMALL_H).
_SMALL_H = (
    ((1125, 44, 40, 160, 1), (2.2731, 1.6, 3.7, 3.5)),
    ((4814, 6, 160, 360, 1), (49.0414, 49.7, 69.2, 52.0)),
    ((2058, 62, 16, 168, 1), (3.1913, 3.4, 5.3, 8.1)),
    ((4720, 4, 352, 288, 1), (27.5349, 27.9, 69.8, 46.5)),
    ((3047, 6, 104, 296, 1), (20.8311, 21.0, 45.1, 30.2)),
    ((1406, 34, 120, 120, 1), (0.8784, 1.1, 2.6, 2.6)),
    ((4600, 16, 24, 264, 1), (17.7486, 43.6, 69.8, 46.0)),
    ((5654, 5, 232, 320, 4), (155.6353, 157.9, 257.3, 250.9)),
    ((5895, 1, 288, 152, 4), (14.0477, 14.3, 21.7, 21.6)),
)


def _small_h() -> Iterator[Published]:
    source = "pytorch/pytorch pull request 62143, xwang233/code-snippet, cudnn-rnn-bench-62143/{}/readme.txt, ms / T"
    for (T, B, I, H, layers), (fp16, fp32, backward16, backward32) in _SMALL_H:
        for dtype, forward, backward in (("fp16", fp16, backward16), ("fp32", fp32, backward32)):
            name = cases.case(H, B, T, dtype, I, layers=layers).name
            said = f"torch.nn.RNN 1.11 on cuDNN, {dtype}"
            yield Published(name, "fwd", said, _us(forward, T), "unnamed", source.format("forward"))
            both = source.format("{forward,backward}") + ", both added: they were timed apart"
            yield Published(name, "train", said, _us(forward + backward, T), "unnamed", both)


_TORCHRL = "pytorch/rl pull requests 4160 and 4174, ms / 512"
_FLASHRNN = "arXiv 2412.07752; us per step at second hand"
_SINGLE = (
    Published("lstm-h768-b16-t1024-fp16", "fwd", "torch.nn.LSTM on cuDNN, fp16", 1.96, "H100", _FLASHRNN),
    Published("lstm-h768-b16-t1024-fp16", "train", "torch.nn.LSTM on cuDNN, fp16", 5.1, "H100", _FLASHRNN),
    # FlashRNN's own benchmark runs its kernels in bf16: flashrnn/speed_experiments/kernel_speed_benchmark.py
    Published("lstm-h768-b16-t1024-bf16", "fwd", "FlashRNN, CUDA fused, without W_ih", 4.76, "H100", _FLASHRNN),
    Published("lstm-h768-b16-t1024-bf16", "fwd", "FlashRNN, CUDA alternating, without W_ih", 10.5, "H100", _FLASHRNN),
    Published("lstm-h768-b16-t1024-bf16", "fwd", "haste, fp32", 18.0, "H100", _FLASHRNN),
    Published("lstm-h768-b16-t1024-bf16", "fwd", "eager loop", 144.0, "H100", _FLASHRNN),
    Published("gru-h64-b16-t512-m8-bf16", "fwd", "TorchRL's block-diagonal GRU: 8 blocks, together H = 512", 55.27, "GB200", _TORCHRL),
    Published("gru-h64-b16-t512-m8-bf16", "train", "TorchRL's block-diagonal GRU: 8 blocks, together H = 512", 122.3, "GB200", _TORCHRL),
    Published(
        "h1152-b4-t512-fp32", "fwd", "Persistent RNN, fp32 without TF32; T is not stated", 3.792, "TitanX",
        "Diamos et al., Persistent RNNs, ICML 2016: 2.8 TFLOP/s at a minibatch of 4, H = 1152; 2 B H^2 / rate",
    ),
)  # fmt: skip

PUBLISHED: tuple[Published, ...] = (*_deepbench(), *_small_h(), *_SINGLE)
