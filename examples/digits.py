"""Handwritten digits read row by row: 8 steps of 8 pixels, the last output says which of ten digits it was.

    python examples/digits.py [--device cuda] [--epochs 30]

trains rnn_triton.SimpleRNN and the same net with torch.nn.RNN in place of the recurrence: same initial weights, same
batches, same recipe, three seeds. It prints both accuracies, and how far three optimiser steps through the Triton
kernels lie from torch.nn.RNN in fp64. Exit status 1 where a check of `main` fails. Data: examples/data/README.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

try:
    import rnn_triton
except ModuleNotFoundError:  # a bare checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import rnn_triton

SEEDS = (0, 1, 2)
EPOCHS = 30
BATCH, HIDDEN = 64, 128
# The one-cycle schedule ends at a learning rate near zero and label smoothing keeps the loss well conditioned: runs
# that round differently end in (nearly) the same predictions, so that accuracies of two implementations compare.
PEAK_RATE, SMOOTHING, CLIP = 6e-3, 0.1, 1.0


class TorchRNN(nn.Module):
    """Does with torch.nn.RNN what rnn_triton.SimpleRNN does; the keys of their state_dicts are equal."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.rnn = nn.RNN(input_size, hidden_size)
        self.readout = nn.Linear(hidden_size, output_size)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        hidden, h_n = self.rnn(input)
        return self.readout(hidden), h_n


def load() -> tuple[Tensor, Tensor]:
    """Returns (x, digit): x[8, 1797, 8] fp32 in [0, 1], the rows of the images, time-major; digit[1797] int64 in 0..9."""
    with gzip.open(Path(__file__).parent / "data" / "digits.csv.gz", "rt") as file:
        table = torch.tensor([[int(v) for v in line.split(",")] for line in file])
    x = table[:, :64].view(-1, 8, 8).transpose(0, 1).contiguous()
    return x.float() / 16, table[:, 64].contiguous()


def split(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns random indices of the training images (80 %) and of the test images."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    return order[: images * 8 // 10], order[images * 8 // 10 :]


def build(implementation: str, seed: int, **options: Any) -> nn.Module:
    """Returns the net on the CPU. The seed decides the initial weights, whichever implementation; `options` are those of SimpleRNN."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reference = TorchRNN(8, HIDDEN, 10)
        if implementation == "torch":
            return reference
        if implementation == "rnn_triton":
            net = rnn_triton.SimpleRNN(8, HIDDEN, 10, **options)
            net.load_state_dict(reference.state_dict())
            return net
    raise ValueError(f"implementation must be 'rnn_triton' or 'torch', got {implementation!r}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch use one thread: for a net this small on busy cores, two threads that wait for each other take far longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run(
    implementation: str,
    seed: int,
    epochs: int = EPOCHS,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """Trains one net and tests it.

    `implementation` is "rnn_triton" or "torch". `progress(epoch, epochs, loss)` is called after each epoch. Returns
    accuracy (of the test images, 0 to 1), losses (training loss, mean of each epoch), seconds (of training, wall time),
    implementation, and ran: what computed the recurrence, in words.
    """
    net = build(implementation, seed).to(device)
    if implementation == "rnn_triton":
        ran = rnn_triton.explain(8, BATCH, 8, HIDDEN, device=device).splitlines()[0]
    else:
        ran = f"torch.nn.RNN of torch {torch.__version__} on {device}"
    x, digit = (t.to(device) for t in load())
    train, test = split(len(digit), seed)
    shuffle = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), PEAK_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_RATE, epochs=epochs, steps_per_epoch=-(-len(train) // BATCH), pct_start=0.15
    )
    losses = []
    began = time.perf_counter()
    with one_thread():
        for epoch in range(1, epochs + 1):
            total = torch.zeros((), device=device)
            for rows in train[torch.randperm(len(train), generator=shuffle)].to(device).split(BATCH):
                outputs, _ = net(x[:, rows])
                loss = cross_entropy(outputs[-1], digit[rows], label_smoothing=SMOOTHING)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), CLIP)
                optimiser.step()
                schedule.step()
                total += loss.detach() * len(rows)
            losses.append(total.item() / len(train))  # the one synchronisation of an epoch
            if progress is not None:
                progress(epoch, epochs, losses[-1])
    seconds = time.perf_counter() - began

    with torch.no_grad():
        right = net(x[:, test.to(device)])[0][-1].argmax(1) == digit[test.to(device)]
    return {
        "implementation": implementation,
        "ran": ran,
        "seed": seed,
        "accuracy": right.double().mean().item(),
        "losses": losses,
        "seconds": seconds,
    }


def kernel_steps(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Three steps of SGD through the Triton kernels (fp32, "ieee") against torch.nn.RNN in fp64 on the CPU.

    On the CPU Triton's interpreter runs the kernels, in a process of its own. Returns the largest differences of the
    losses and of the weights, the tolerance for both, the largest distance a weight moved, and what ran.
    """
    if torch.device(device).type == "cpu" and not rnn_triton.interpret.interpreter.active():
        command = [sys.executable, str(Path(__file__).resolve()), "--device", "cpu", "--kernel-steps"]
        search = os.pathsep.join(p for p in sys.path if p)  # the rnn_triton and triton of this process
        environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": search}
        answer = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if answer.returncode:
            raise RuntimeError(f"the kernels failed under Triton's interpreter:\n{answer.stderr}")
        return json.loads(answer.stdout)

    steps, batch, rate = 3, 4, 0.5
    x, digit = load()
    x, digit = x[:, : steps * batch], digit[: steps * batch]
    start, exact = build("torch", seed=0), build("torch", seed=0).double()
    ours = build("rnn_triton", seed=0, precision="ieee").to(device)

    def train(net: nn.Module, x: Tensor, digit: Tensor) -> list[float]:
        optimiser = torch.optim.SGD(net.parameters(), rate)
        losses = []
        for part_x, part_digit in zip(x.split(batch, 1), digit.split(batch)):
            loss = cross_entropy(net(part_x)[0][-1], part_digit)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return losses

    loss_pairs = zip(train(ours, x.to(device), digit.to(device)), train(exact, x.double(), digit))
    weights = list(zip(ours.parameters(), exact.parameters(), start.parameters()))
    # A sum of I + H products of fp32 rounds by about 2^-24 sqrt(I + H); 8 time steps and `steps` updates add theirs
    # up. Losses and weights are of order one.
    tolerance = 2**-24 * (8 + HIDDEN) ** 0.5 * 8 * steps
    where = "Triton's interpreter" if torch.device(device).type == "cpu" else torch.cuda.get_device_name(device)
    return {
        "ran": f"Triton kernels on {where}",
        "loss_difference": max(abs(a - b) for a, b in loss_pairs),
        "weight_difference": max((a.detach().cpu() - b.detach()).abs().max().item() for a, b, _ in weights),
        "tolerance": tolerance,
        "moved": max((b - c).abs().max().item() for _, b, c in weights),
    }


def show_bar(label: str) -> Callable[[int, int, float], None]:
    """Returns a function that draws a progress bar on stderr, if that is a terminal."""

    def show(epoch: int, epochs: int, loss: float) -> None:
        if sys.stderr.isatty():
            done = 30 * epoch // epochs
            end = "\n" if epoch == epochs else ""
            print(f"\r{label:24} [{'#' * done}{'.' * (30 - done)}] loss {loss:.3f}", end=end, file=sys.stderr, flush=True)

    return show


def main() -> int:
    parser = argparse.ArgumentParser(description="Handwritten digits, rnn_triton.SimpleRNN against torch.nn.RNN.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--kernel-steps", action="store_true", help="only three steps through the kernels, as JSON")
    arguments = parser.parse_args()
    if arguments.kernel_steps:
        print(json.dumps(kernel_steps(arguments.device)))
        return 0

    mean = {}
    for implementation in ("rnn_triton", "torch"):
        results = [
            run(implementation, seed, arguments.epochs, arguments.device, show_bar(f"{implementation}, seed {seed}"))
            for seed in SEEDS
        ]
        mean[implementation] = sum(r["accuracy"] for r in results) / len(results)
        accuracies = "  ".join(f"{r['accuracy']:.2%}" for r in results)
        seconds = sum(r["seconds"] for r in results)
        print(f"{implementation:10}  test accuracy {mean[implementation]:.2%}  ({accuracies})  {seconds:.1f} s")
        print(f"{'':10}  {results[0]['ran']}")
    steps = kernel_steps(arguments.device)
    print(
        f"three steps, {steps['ran']}: losses differ by {steps['loss_difference']:.1e}, weights by "
        f"{steps['weight_difference']:.1e} (tolerance {steps['tolerance']:.1e}, weights moved by {steps['moved']:.1e})"
    )
    passed = {
        "mean test accuracy of rnn_triton >= 96 %": mean["rnn_triton"] >= 0.96,
        "within 0.5 point of torch.nn.RNN": abs(mean["rnn_triton"] - mean["torch"]) <= 0.005,
        "three steps within tolerance": max(steps["loss_difference"], steps["weight_difference"]) <= steps["tolerance"],
    }
    for check, good in passed.items():
        print(f"{'pass' if good else 'FAIL'}  {check}")
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
