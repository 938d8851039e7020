"""An ensemble: six networks are trained at once by torch.vmap, and the further they look ahead, the less they agree.

    python examples/ensemble.py [PICTURE]

The six differ in their initial weights and in the noise of what they see: sine waves with periods of 16 to 24 steps. They learn to predict the
next step, and then continue a wave on their own. On a GPU the recurrences of the ensemble are one launch each way, where one CTA holds the weights.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.functional import mse_loss

import rnn_triton

MODELS, STEPS, BATCH, HIDDEN = 6, 30, 8, 16
KNOWN, ALONE = 60, 60  # steps that are given, and then forecast
PERIOD = 18.0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = rnn_triton.GRU(1, HIDDEN)
        self.readout = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, state = self.rnn(x, state)
        return self.readout(y), state


def waves(period: Tensor, phase: Tensor, steps: int) -> Tensor:
    """Returns [steps, B, 1] of periods and phases [B]."""
    return torch.sin(2 * math.pi * (torch.arange(steps)[:, None] / period + phase)).unsqueeze(-1)


def run(updates: int = 160, device: str = "cpu") -> dict[str, Tensor]:
    """Trains all models for so many updates.  Returns losses [updates, MODELS], truth [KNOWN + ALONE] and forecasts [MODELS, ALONE]."""
    torch.manual_seed(0)
    nets = [Net().to(device) for _ in range(MODELS)]
    weights, buffers = stack_module_state(nets)  # each tensor has MODELS in front
    optimizer = torch.optim.Adam(weights.values(), 1e-2)

    def call(weights: Any, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return functional_call(nets[0], (weights, buffers), (x, state))

    def loss_of(weights: Any, x: Tensor, target: Tensor) -> Tensor:
        return mse_loss(call(weights, x)[0][5:], target[5:])

    losses = []
    for _ in range(updates):
        wave = waves(16 + 8 * torch.rand(BATCH), torch.rand(BATCH), STEPS + 1).to(device)
        seen = wave[:-1] + 0.1 * torch.randn(MODELS, STEPS, BATCH, 1).to(device)
        each = torch.vmap(loss_of, in_dims=(0, 0, None))(weights, seen, wave[1:])
        optimizer.zero_grad()
        each.sum().backward()  # the gradient of a model's weights comes from its own loss alone
        optimizer.step()
        losses.append(each.detach())

    truth = waves(torch.tensor([PERIOD]), torch.zeros(1), KNOWN + ALONE).to(device)
    with torch.no_grad():
        y, state = torch.vmap(call, in_dims=(0, None))(weights, truth[:KNOWN])
        forecasts = [y[:, -1:]]  # [MODELS, 1, 1, 1]
        while len(forecasts) < ALONE:
            y, state = torch.vmap(call)(weights, forecasts[-1], state)
            forecasts.append(y)
    return {"losses": torch.stack(losses).cpu(), "truth": truth.flatten().cpu(), "forecasts": torch.cat(forecasts, 1).flatten(1).cpu()}


def draw(result: dict[str, Tensor], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots()
    mean, std = result["forecasts"].mean(0), result["forecasts"].std(0)
    ahead = range(KNOWN, KNOWN + ALONE)
    axes.plot(result["truth"], color="#333333", lw=1, label="wave")
    axes.plot(ahead, mean, color="#1f77b4", label=f"mean of {MODELS} models")
    axes.fill_between(ahead, mean - 2 * std, mean + 2 * std, color="#1f77b4", alpha=0.25, lw=0, label="two standard deviations")
    axes.axvline(KNOWN, color="#999999", lw=1, ls="--")
    axes.set(ylim=(-2, 2), xlabel="step; the forecast begins at the dashed line", title="A wave, continued by an ensemble")
    axes.legend(loc="lower left", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    result = run()
    spread = result["forecasts"].std(0)
    print(f"losses of the models at last: {', '.join(f'{loss:.4f}' for loss in result['losses'][-1])}")
    print(f"the models differ by {spread[:10].mean():.3f} in the first ten steps ahead, by {spread[-10:].mean():.3f} in the last ten")
    if len(sys.argv) > 1:
        draw(result, sys.argv[1])
