"""Streaming: a GRU watches a signal sample by sample, and raises an alarm where the signal is not what it expected.

    python examples/streaming.py [PICTURE]

The signal is generated: two sine waves and noise, into which three faults are put. The model learns to predict the next sample on whole
stretches of signal without faults. Then samples come one at a time, T = 1, and the state is handed on from call to call; the predictions are those
of one call on the whole signal. An alarm is an error of prediction above five times what it is on average without faults.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import rnn_triton

LENGTH, BATCH, HIDDEN = 64, 16, 24
FAULTS = {"spike": (120, 122), "flat": (220, 240), "faster": (330, 360)}  # samples, from and to


def signal(phase: Tensor, samples: int, generator: torch.Generator, faulty: bool = False) -> Tensor:
    """Returns [samples, B, 1], which begins at phase[B] (in samples)."""
    t = torch.arange(samples)[:, None] + phase
    if faulty:
        first, last = FAULTS["faster"]
        t[first:last] += 0.7 * torch.arange(last - first)[:, None]
    wave = torch.sin(2 * math.pi * t / 25) + 0.5 * torch.sin(2 * math.pi * t / 11)
    if faulty:
        wave[slice(*FAULTS["spike"])] += 1.5
        wave[slice(*FAULTS["flat"])] = 0.3
    return (wave + 0.05 * torch.randn(wave.shape, generator=generator)).unsqueeze(-1)


class Watcher(nn.Module):
    """Predicts the next sample, from samples [T,B,1] and the state that the call before returned."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = rnn_triton.GRU(1, HIDDEN)
        self.readout = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, state = self.rnn(x, state)
        return self.readout(y), state


def run(steps: int = 250, device: str = "cpu") -> dict[str, Any]:
    """Trains for so many steps, then streams 420 samples.  Returns signal, predictions (of the sample that follows), limit, alarms (samples), and
    difference: how far the predictions lie from those of one call at most."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = Watcher().to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        x = signal(1000 * torch.rand(BATCH, generator=generator), LENGTH + 1, generator).to(device)
        loss = mse_loss(model(x[:-1])[0][8:], x[9:])  # the first samples are there to find the phase
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = signal(torch.zeros(1), 420, generator, faulty=True).to(device)
    with torch.no_grad():
        whole, _ = model(x)
        state, predictions, errors, alarms = None, [], [], []
        for n, sample in enumerate(x):
            if n > 20:
                errors.append((sample - predictions[-1]).abs().item())
                usual = torch.tensor(errors[:80]).mean().item()  # before the first fault
                if n > 100 and errors[-1] > 5 * usual:
                    alarms.append(n)
            prediction, state = model(sample.view(1, 1, 1), state)
            predictions.append(prediction.view(1, 1))
    difference = (torch.stack(predictions) - whole).abs().max().item()
    return {
        "signal": x.flatten().tolist(), "predictions": torch.stack(predictions).flatten().tolist(), "limit": 5 * usual, "alarms": alarms,
        "difference": difference,
    }  # fmt: skip


def draw(result: dict[str, Any], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    x, expected = result["signal"], result["predictions"]
    upper.plot(x, color="#333333", lw=1, label="signal")
    upper.plot(range(1, len(x)), expected[:-1], color="#1f77b4", lw=1, label="expected")
    upper.plot(result["alarms"], [x[n] for n in result["alarms"]], "o", color="#d62728", ms=4, label="alarm")
    for name, (first, last) in FAULTS.items():
        for axes in (upper, lower):
            axes.axvspan(first, last, color="#d62728", alpha=0.12)
        upper.text(first, 2.6, f"fault: {name}", fontsize=8, color="#d62728")
    upper.set(ylim=(-2.2, 3.1), title="A signal watched sample by sample")
    upper.legend(loc="lower left", ncols=3, fontsize=8)
    lower.semilogy(range(21, len(x)), [abs(x[n] - expected[n - 1]) for n in range(21, len(x))], color="#333333", lw=1)
    lower.axhline(result["limit"], color="#d62728", lw=1, ls="--")
    lower.set(xlabel="sample", ylabel="error", ylim=(1e-3, 5))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    result = run()
    print(f"alarms at samples {result['alarms']}; faults: {FAULTS}")
    print(f"sample by sample and in one call, predictions differ by {result['difference']:.1e} at most")
    if len(sys.argv) > 1:
        draw(result, sys.argv[1])
