"""Whole training steps of four small models, ours against torch.nn: forward, backward and the optimizer, in bf16 on a GPU.

    python examples/models.py [--device cuda] [--small]

Both sides begin with the same weights and see the same batch.  What their recurrent layers give, block of units by block, and each gradient
of their weights is compared with the tolerance of the benchmark's gate (bench/measure/check.py), and the losses of three steps.  On a GPU medians
follow, taken in turn as the benchmark takes them (bench/instruments/timing.py), with an interval of their ratio.  On a CPU nothing is timed.

words    an LSTM language model: 2 layers of 200, 20 sequences of 35 words out of 33,278, as pytorch/examples has it, without dropout
speaker  an encoder like TorchBench's tts_angular: 3 LSTM layers of 768, projected to 256, 64 sequences of 50 frames
digits   the net of digits.py: rows of 8 pixels, a tanh RNN of 128, 64 images
blocks   a recurrent model like Dreamer's: a GRU of 512 in 8 blocks, 16 sequences of 64 steps
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare checkout
import rnn_triton  # noqa: E402
from bench.cases.case import Case  # noqa: E402
from bench.instruments import timing  # noqa: E402
from bench.measure import check  # noqa: E402

NAMES = ("words", "speaker", "digits", "blocks")
STEPS, HEADS = 3, 8
LIMITS = {torch.float32: 2.0**-17, torch.bfloat16: 2.0**-4}  # of a loss: sqrt(800) roundings, and in bf16 those of the logits, three times over


class Blocks(nn.Module):
    """A GRU whose W_hh is block-diagonal, as torch.nn has to run it: a GRU for each block, which reads all of x"""

    def __init__(self, size: int, heads: int):
        super().__init__()
        self.grus = nn.ModuleList(nn.GRU(size, size // heads) for _ in range(heads))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return torch.cat([gru(x)[0] for gru in self.grus], -1), None

    def take(self, ours: nn.Module) -> None:
        """Weights of rnn_triton.GRU(heads=N), which lie block by block"""
        heads, values = len(self.grus), dict(ours.named_parameters())
        with torch.no_grad():
            for n, gru in enumerate(self.grus):
                for name, parameter in gru.named_parameters():
                    parameter.copy_(values[name][n] if "weight_hh" in name else values[name].chunk(heads)[n])

    def gradients(self) -> dict[str, Tensor]:
        """By the names and in the shapes of rnn_triton.GRU(heads=N)"""
        every = {name: [gru.get_parameter(name).grad for gru in self.grus] for name, _ in self.grus[0].named_parameters()}
        return {name: torch.stack(each) if "weight_hh" in name else torch.cat(each) for name, each in every.items()}


class Model(nn.Module):
    """`rnn` between what makes its input and what reads its output; the loss of a batch (input, target)"""

    def __init__(self, before: nn.Module, rnn: nn.Module, after: nn.Module, last: bool):
        super().__init__()
        self.before, self.rnn, self.after, self.last = before, rnn, after, last

    def recurrent(self, input: Tensor) -> Tensor:
        """What the recurrent layers give, [T,B,..]"""
        return self.rnn(self.before(input))[0]

    def loss(self, input: Tensor, target: Tensor) -> Tensor:
        y = self.recurrent(input)
        out = self.after(y[-1] if self.last else y)
        return cross_entropy(out.flatten(0, -2).float(), target.flatten())


def models(name: str, small: bool = False) -> tuple[Model, Model, tuple[Tensor, Tensor]]:
    """(ours, torch's, a batch) on the CPU in fp32, with equal weights; `small`: of few words, units and sequences"""
    torch.manual_seed(0)
    words, width, hidden, B = (100, 16, 24, 3) if small else (33278, 200, 768, 64)
    pairs: dict[str, Callable[[Any], Model]] = {
        "words": lambda nn_: Model(nn.Embedding(words, width), nn_.LSTM(width, width, 2), nn.Linear(width, words), False),
        "speaker": lambda nn_: Model(nn.Identity(), nn_.LSTM(40, hidden, 3, proj_size=hidden // 3), nn.Linear(hidden // 3, B), True),
        "digits": lambda nn_: Model(nn.Identity(), nn_.RNN(8, 128), nn.Linear(128, 10), True),
        "blocks": lambda nn_: Model(nn.Linear(32, 8 * B), _blocks(nn_, 8 * B), nn.Linear(8 * B, 10), False),
    }
    ours, theirs = (pairs[name](library) for library in (rnn_triton, nn))
    if name == "blocks":
        theirs.rnn.take(ours.rnn)  # type: ignore[operator]
        theirs.before.load_state_dict(ours.before.state_dict())
        theirs.after.load_state_dict(ours.after.state_dict())
    else:
        theirs.load_state_dict(ours.state_dict())
    T, rows, classes = {"words": (35, 20, words), "speaker": (50, B, B), "digits": (8, 64, 10), "blocks": (64, 16, 10)}[name]
    steps = 1 if ours.last else T
    inputs = torch.randint(words, (T, rows)) if name == "words" else torch.randn(T, rows, {"speaker": 40, "digits": 8, "blocks": 32}[name])
    return ours, theirs, (inputs, torch.randint(classes, (steps, rows)))


def _blocks(library: Any, size: int) -> nn.Module:
    return Blocks(size, HEADS) if library is nn else library.GRU(size, size, heads=HEADS)


def differences(ours: Model, theirs: Model, batch: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """(the worst of the recurrent layers' outputs, of HEADS blocks of units each by itself; the worst of the gradients of their weights):
    norms of the difference, relative to torch's"""
    with torch.no_grad():
        outputs = [model.recurrent(batch[0]).double().chunk(HEADS, -1) for model in (ours, theirs)]
    for model in (ours, theirs):
        model.zero_grad()
        model.loss(*batch).backward()
    found = {name: p.grad for name, p in ours.rnn.named_parameters()}
    expected = theirs.rnn.gradients() if isinstance(theirs.rnn, Blocks) else {name: p.grad for name, p in theirs.rnn.named_parameters()}
    assert found.keys() == expected.keys()
    gradients = [[g for name in found for g in of[name].double().chunk(HEADS)] for of in (found, expected)]
    return _apart(*outputs), _apart(*gradients)


def _apart(ours: Any, theirs: Any) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def allowed(ours: Model, batch: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Of `differences`: the gate's tolerance, of both sides; a gradient has as much again, since what comes from the loss differs as y does"""
    rnn, (T, B), parameter = ours.rnn, batch[0].shape[:2], next(ours.parameters())
    cell = {"LSTM": "lstm", "GRU": "gru", "RNN": "elman_tanh"}[type(rnn).__name__]
    dtype, precision = ("fp32", "ieee") if parameter.dtype == torch.float32 else ("bf16", None)
    case = Case(T, B, rnn.input_size, rnn.hidden_size, dtype, precision, cell, rnn.num_layers)
    return 2 * check.tolerance(case, "y")[0], 4 * check.tolerance(case, "dx")[0]


def step_of(model: Model, batch: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    """A call that trains on the batch once, and returns the loss before"""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = model.loss(*batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def timed(steps: dict[str, Callable[[], Tensor]], flush: Callable[[float], None], clock: Any = timing) -> str:
    """Medians of both sides, in words.  `clock`: timing.py, or what has its functions"""
    from bench.records.statistics import drawn_ratios, ends, np

    found = clock.device_us(steps, flush, 2.0)
    ours, theirs = (np.asarray(found[of].us) for of in steps)
    low, high = ends(drawn_ratios([ours], [theirs])[0])
    return f"a step {np.median(ours):.0f} us, torch's {np.median(theirs):.0f} us, {low:.2f} to {high:.2f} times ours"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="of few words, units and sequences")
    given = parser.parse_args(arguments)
    device, failed = torch.device(given.device), False
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for name in NAMES:
        *both, (inputs, target) = models(name, given.small)
        batch = inputs.to(device, dtype if inputs.is_floating_point() else None), target.to(device)
        both = [model.to(device, dtype) for model in both]
        found, limits = differences(*both, batch), allowed(both[0], batch)
        steps = {of: step_of(model, batch) for of, model in zip(("rnn_triton", "torch"), both)}
        losses = [[float(step()) for _ in range(STEPS)] for step in steps.values()]
        apart = max(abs(a / b - 1) for a, b in zip(*losses))
        right = apart <= LIMITS[dtype] and all(error <= limit for error, limit in zip(found, limits))
        failed |= not right
        said = f"losses {losses[0][0]:.4f} to {losses[0][-1]:.4f}, within {apart:.1e} of torch's, outputs {found[0]:.1e}, gradients {found[1]:.1e}"
        said += "" if right else f": WRONG, at most {LIMITS[dtype]:.1e}, {limits[0]:.1e} and {limits[1]:.1e} are right"
        if device.type == "cuda":
            said += f"; {timed(steps, timing.Flush(device))}"
        print(f"{name:8} {said}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
