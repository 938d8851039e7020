"""A cell of one's own: an LSTM of which only the forget gate is left, made in 30 lines, against torch's Elman cell.

    python examples/forget_gate.py [PICTURE]

    f = sigmoid(a_f),  h_t = f h_{t-1} + (1 - f) tanh(a_g)

(J. van der Westhuizen and J. Lasenby, arXiv:1804.04849). The task is to remember: the first input is +1 or -1, all others are noise, and the
sign is asked for after 40 steps. docs/own_cell.md explains what a cell consists of. On CPU tensors `step` runs; `forward` and `backward` are what the
kernels run, and rnn_triton.check_cell(FORGET_GATE) compares them with `step`, on a GPU or with TRITON_INTERPRET=1 in the environment.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import rnn_triton
from rnn_triton import cells
from rnn_triton.kernels.activations import sigmoid, tanh

STEPS, BATCH, HIDDEN = 40, 32, 24


def step(a: Any, states: Any, vectors: Any) -> tuple[Tensor]:
    f = torch.sigmoid(a[0])
    return (f * states[0] + (1 - f) * torch.tanh(a[1]),)


@triton.jit
def forward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    f = sigmoid(a[0], ACCURACY)
    g = tanh(a[1], ACCURACY)
    change = carried[0] - g
    h = g + f * change
    return (h,), (h,), (change * f * (1.0 - f), (1.0 - f) * (1.0 - g * g), f)


@triton.jit
def backward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    dh = a[0] + carried[0]
    return (dh * saved[0], dh * saved[1]), (dh * saved[2],), ()


FORGET_GATE = cells.register(
    cells.Cell(
        name="forget_gate", gates=("f", "g"), states=("h",), carried=("h",), kept=3, step=step, forward=forward, backward=backward, special=3
    )
)


class Model(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn, self.readout = rnn, nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, h = self.rnn(x)
        return self.readout(h[0]).squeeze(-1)


def train(rnn: nn.Module, updates: int, device: str) -> list[float]:
    """Returns the losses of so many updates; ln 2 = 0.69 is that of a guess."""
    generator = torch.Generator().manual_seed(1)
    model = Model(rnn).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(updates):
        x = 0.3 * torch.randn(STEPS, BATCH, 1, generator=generator)
        bit = torch.randint(2, (BATCH,), generator=generator).float()
        x[0, :, 0] = 2 * bit - 1
        loss = binary_cross_entropy_with_logits(model(x.to(device)), bit.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def run(updates: int = 200, device: str = "cpu") -> dict[str, list[float]]:
    """Trains both networks for so many updates.  Returns the losses of each, by its name."""
    torch.manual_seed(0)
    own, elman = rnn_triton.Recurrent(FORGET_GATE, 1, HIDDEN), rnn_triton.RNN(1, HIDDEN)
    with torch.no_grad():
        own.bias_ih_l0[:HIDDEN] = torch.linspace(0.0, 4.0, HIDDEN)  # units forget after 2 to 50 steps, at first
    return {"forget gate": train(own, updates, device), "Elman (tanh)": train(elman, updates, device)}


def draw(result: dict[str, list[float]], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, losses in result.items():
        axes.plot(losses, lw=1.2, label=name)
    axes.axhline(0.693, color="#999999", lw=1, ls="--", label="a guess")
    axes.set(xlabel="update", ylabel="loss, nats", ylim=(0, None), title=f"remembering a bit for {STEPS} steps")
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    result = run()
    for name, losses in result.items():
        print(f"{name}: mean loss of the last ten updates {sum(losses[-10:]) / 10:.3f}")
    if len(sys.argv) > 1:
        draw(result, sys.argv[1])
