"""A forecast: a GRU learns the yearly sunspot numbers of 1700 to 1949 and predicts those of 1950 to 2008.

    python examples/forecast.py [PICTURE]

It is trained to predict each next year of windows of 60 years. Then it runs over all years at once, which gives the forecast for a year
from all years before it; and from 1979 on it gets its own forecasts in place of the numbers. Data: examples/data/README.md.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import rnn_triton

WINDOW, BATCH, HIDDEN = 60, 16, 32
FIRST_TESTED, FIRST_ALONE = 1950, 1979


def load() -> tuple[Tensor, Tensor]:
    """Returns years [309] and sunspot numbers [309], in hundreds."""
    with open(Path(__file__).parent / "data" / "sunspots.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return torch.tensor([int(row["YEAR"]) for row in rows]), torch.tensor([float(row["SUNACTIVITY"]) for row in rows]) / 100


class Forecaster(nn.Module):
    """Predicts how a series [T,B,1] goes on after each step: the last value and a change that the GRU computes."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = rnn_triton.GRU(1, HIDDEN)
        self.readout = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, state = self.rnn(x, state)
        return x + self.readout(y), state


def run(steps: int = 300, device: str = "cpu") -> dict[str, Any]:
    """Trains for so many steps.  Returns years, numbers, forecast (of each year from those before; the first year is not forecast), alone
    (from FIRST_ALONE on), and the root mean square errors since FIRST_TESTED of the model and of "as in the year before"."""
    torch.manual_seed(0)
    years, numbers = load()
    numbers = numbers.to(device)
    seen = int((years < FIRST_TESTED).sum())
    windows = numbers[:seen].unfold(0, WINDOW + 1, 1).t().unsqueeze(-1)  # [WINDOW + 1, windows, 1]
    model = Forecaster().to(device)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        batch = windows[:, torch.randint(windows.shape[1], (BATCH,))]
        loss = mse_loss(model(batch[:-1])[0], batch[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        forecast = model(numbers[:-1, None, None])[0].flatten()
        start = int((years < FIRST_ALONE).sum())
        following, state = model(numbers[:start, None, None])
        alone = [following[-1:]]
        while start + len(alone) < len(years):
            following, state = model(alone[-1], state)
            alone.append(following)
    tested = numbers[seen:]
    return {
        "years": years.tolist(), "numbers": numbers.tolist(), "forecast": forecast.tolist(), "alone": torch.cat(alone).flatten().tolist(),
        "error": mse_loss(forecast[seen - 1 :], tested).sqrt().item(), "as_before": mse_loss(numbers[seen - 1 : -1], tested).sqrt().item(),
    }  # fmt: skip


def draw(result: dict[str, Any], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots()
    years = result["years"]
    axes.plot(years, result["numbers"], color="#333333", lw=1, label="sunspot number / 100")
    axes.plot(years[1:], result["forecast"], color="#1f77b4", lw=1, label=f"forecast from the years before (rms error {result['error']:.2f})")
    axes.plot(years[-len(result["alone"]) :], result["alone"], color="#d62728", lw=1.4, ls="--", label=f"forecast from {FIRST_ALONE - 1} on")
    axes.axvspan(FIRST_TESTED, years[-1], color="#999999", alpha=0.15, label="not seen in training")
    axes.set(xlim=(1850, years[-1]), ylim=(-0.2, 2.9), xlabel="year", title="Sunspots, forecast by a GRU")
    axes.legend(loc="upper left", ncols=2, fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    result = run()
    print(f"rms error since {FIRST_TESTED}, in hundreds: {result['error']:.3f}; of 'as in the year before' {result['as_before']:.3f}")
    if len(sys.argv) > 1:
        draw(result, sys.argv[1])
