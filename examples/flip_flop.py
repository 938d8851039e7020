"""A task of neuroscience: a leaky network learns to hold two bits, and how it does so can be seen in its states.

    python examples/flip_flop.py [PICTURE]

Each input is silent but for rare pulses of +1 or -1; the output of the same number shall be the sign of its last pulse. Trained networks solve
this flip-flop task by a stable state for each combination of bits (D. Sussillo and O. Barak, Neural Computation 25, 626, 2013). Units are those of a
continuous-time network, tau dh/dt = -h + tanh(W x + W h + b), in steps of dt = tau / 4, which is rnn_triton.LeakyRNN with leak = 1/4.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import rnn_triton

BITS, STEPS, BATCH, HIDDEN = 2, 40, 32, 48


def trials(batch: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns inputs and targets, both [steps, batch, BITS].  Every bit begins with a pulse; later ones come in a tenth of the steps."""
    pulse = torch.rand(steps, batch, BITS, generator=generator) < 0.1
    pulse[0] = True
    sign = torch.where(torch.rand(steps, batch, BITS, generator=generator) < 0.5, -1.0, 1.0)
    last = torch.where(pulse, torch.arange(steps)[:, None, None], 0).cummax(0).values
    return sign * pulse, sign.gather(0, last)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = rnn_triton.LeakyRNN(BITS, HIDDEN, leak=0.25)
        self.readout = nn.Linear(HIDDEN, BITS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        states, _ = self.rnn(x)
        return self.readout(states), states


def run(updates: int = 250, device: str = "cpu") -> dict[str, Any]:
    """Trains for so many updates.  Returns losses, accuracy (the part of signs that are right two steps after a pulse or later, in new trials), and
    of these trials inputs, targets, outputs [STEPS, 64, BITS] and states [STEPS, 64, HIDDEN]."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    network = Network().to(device)
    with torch.no_grad():
        network.rnn.weight_ih_l0.mul_(5.0)  # a pulse lasts for one step, a quarter of tau
    optimizer = torch.optim.Adam(network.parameters(), 4e-3)
    losses = []
    for _ in range(updates):
        x, target = (t.to(device) for t in trials(BATCH, STEPS, generator))
        loss = mse_loss(network(x)[0], target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    x, target = trials(64, STEPS, generator)
    with torch.no_grad():
        output, states = (t.cpu() for t in network(x.to(device)))
    settled = (target[2:] == target[1:-1]) & (target[1:-1] == target[:-2])
    accuracy = (output[2:].sign() == target[2:])[settled].double().mean().item()
    return {"losses": torch.stack(losses).tolist(), "accuracy": accuracy, "x": x, "target": target, "output": output, "states": states}


def draw(result: dict[str, Any], path: str) -> None:
    """Draws a trial, and the states of all trials in their first two principal components, in a color for each combination of bits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[3, 2])
    for bit, axes in enumerate(left.subplots(BITS, 1, sharex=True)):
        axes.bar(range(STEPS), result["x"][:, 0, bit].tolist(), width=0.6, color="#bbbbbb", label="input")
        axes.step(range(STEPS), result["target"][:, 0, bit], where="mid", color="#333333", lw=1, ls="--", label="target")
        axes.plot(result["output"][:, 0, bit], color="#1f77b4", label="output")
        axes.set(ylabel=f"bit {bit + 1}", ylim=(-2, 2))
    axes.set_xlabel("step (a quarter of tau)")
    axes.legend(loc="upper right", fontsize=8)
    states, target = result["states"][5:].flatten(0, 1), result["target"][5:].flatten(0, 1)
    centered = states - states.mean(0)
    plane = centered @ torch.linalg.svd(centered, full_matrices=False).Vh[:2].T
    axes = right.subplots()
    for number, signs in enumerate([(-1, -1), (-1, 1), (1, -1), (1, 1)]):
        rows = (target == torch.tensor(signs)).all(1)
        name = ", ".join(f"{s:+d}" for s in signs)
        axes.scatter(plane[rows, 0], plane[rows, 1], s=3, color=f"C{number}", label=name)
    axes.set(xlabel="first principal component", ylabel="second", title="states, colored by the bits to hold")
    axes.legend(loc="upper right", markerscale=4, fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    result = run()
    print(f"loss {result['losses'][0]:.2f} at first, {result['losses'][-1]:.3f} at last; {result['accuracy']:.1%} of settled bits are right")
    if len(sys.argv) > 1:
        draw(result, sys.argv[1])
