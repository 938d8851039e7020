"""Trains examples/digits.py with both implementations and judges it: the benchmark's real task."""

from __future__ import annotations

import runpy
import statistics
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ..cases.suites import LEAST_ACCURACY
from ..instruments.progress import Progress
from ..records.environment import root
from ..records.store import Writer

MOST_DIFFERENCE = 0.005  # between the two implementations' means


@dataclass(frozen=True)
class Outcome:
    """Mean test accuracy of each implementation over seeds, three steps through the kernels, and what failed."""

    seeds: int
    accuracy: dict[str, float]
    ran: dict[str, str]
    seconds: dict[str, float]
    steps: dict[str, Any]
    failures: list[str]

    @property
    def difference(self) -> float:
        return self.accuracy["rnn_triton"] - self.accuracy["torch"]


def example() -> Path | None:
    """examples/digits.py of this checkout; None in an installed wheel, which carries no examples."""
    path = root() / "examples" / "digits.py"
    return path if path.exists() else None


def load(path: Path) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(path)))


def train(module: Any, device: torch.device, writer: Writer) -> Outcome:
    """Train every (implementation, seed) of the example, check three kernel steps, record all of it."""
    seconds, ran, failures = dict[str, float](), dict[str, str](), []
    # without a GPU both run torch's operators, and a second seed would say nothing more
    seeds = module.SEEDS if device.type == "cuda" else module.SEEDS[:1]
    jobs = [(name, seed) for name in ("rnn_triton", "torch") for seed in seeds]
    found: dict[str, list[float]] = {}
    with Progress("training digits", len(jobs)) as progress:
        for name, seed in jobs:

            def show(epoch: int, epochs: int, loss: float, name: str = name, seed: int = seed) -> None:
                progress.now(f"{name}, seed {seed}: epoch {epoch}/{epochs}, loss {loss:.3f}")

            result = module.run(name, seed, device=device, progress=show)
            try:
                fields = {"accuracy": result["accuracy"], "loss": result["losses"], "seconds": result["seconds"]}
                writer.write("training", example="digits", implementation=name, seed=seed, **fields)
            except ValueError as refused:
                failures.append(f"digits: {name}, seed {seed} cannot be recorded: {refused}")
            found.setdefault(name, []).append(result["accuracy"])
            seconds[name] = seconds.get(name, 0.0) + result["seconds"]
            ran[name] = result["ran"]
            progress.step()
    accuracy = {name: statistics.mean(values) for name, values in found.items()}
    steps = module.kernel_steps(device)
    if accuracy["rnn_triton"] < LEAST_ACCURACY:
        failures.append(f"digits: mean accuracy {accuracy['rnn_triton']:.2%} is below {LEAST_ACCURACY:.0%}")
    if abs(accuracy["rnn_triton"] - accuracy["torch"]) > MOST_DIFFERENCE:
        failures.append(f"digits: accuracies differ by more than {100 * MOST_DIFFERENCE} points: {accuracy}")
    for what in ("loss_difference", "weight_difference"):
        if not steps[what] <= steps["tolerance"]:
            failures.append(f"digits: three kernel steps: {what} {steps[what]:.1e}, tolerance {steps['tolerance']:.1e}")
    return Outcome(len(seeds), accuracy, ran, seconds, steps, failures)
