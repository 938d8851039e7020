"""Times that others published for cases of the suites, to stand beside ours: never measured by this project.

published.csv has them, each converted to microseconds per step (of all layers together), to four digits; a source says how.  Each says of
what it is: hardware, dtype and what is counted differ from ours and from each other, so that these are orientation, not comparisons. Only
numbers that stand in a table or a text are there, none read off a plot.  DeepBench's are of ReLU without W_ih (CUDNN_SKIP_INPUT and
CUDNN_RNN_RELU in code/nvidia/rnn_bench.cu); those of pull request 62143 are of tanh, of the commit that PyTorch's choice of cuDNN algorithm
dates from; FlashRNN's benchmark runs its kernels in bf16 (flashrnn/speed_experiments/kernel_speed_benchmark.py). """

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Published:
    case: str  # a name that cases.case.parse takes
    pass_: str  # one of cases.PASSES
    what: str  # implementation and dtype; what differs from the case
    us_per_step: float
    device: str
    source: str  # and the conversion


def _read() -> tuple[Published, ...]:
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        (_, *lines) = csv.reader(file)
    return tuple(Published(case, pass_, what, float(us), device, source) for case, pass_, what, us, device, source in lines)


PUBLISHED = _read()


def of(case_name: str, pass_: str) -> list[Published]:
    """What is published for a case and pass, the fastest first."""
    found = [p for p in PUBLISHED if (p.case, p.pass_) == (case_name, pass_)]
    return sorted(found, key=lambda p: p.us_per_step)
