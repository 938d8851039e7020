"""A character model: an LSTM learns the Zen of Python by heart, and recites it.

    python examples/character_model.py [PICTURE]

It reads the text in chunks and predicts each next character. The text is a circle, read from four places at once; the state goes on from
chunk to chunk, and gradients end at the border of a chunk (truncated back-propagation through time). Then the model gets the first
characters of the text and writes the rest, a character at a time, each the likeliest after those before it.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import rnn_triton

CHUNK, STREAMS, HIDDEN = 72, 4, 96


def zen() -> str:
    """Returns the Zen of Python, which every Python distribution carries."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    return codecs.decode(this.s, "rot13") + "\n\n"


class CharacterModel(nn.Module):
    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, 16)
        self.rnn = rnn_triton.LSTM(16, HIDDEN)
        self.readout = nn.Linear(HIDDEN, symbols)

    def forward(self, codes: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = self.rnn(self.embedding(codes), state)
        return self.readout(y), state


def run(rounds: int = 36, device: str = "cpu") -> dict[str, Any]:
    """Trains a model for so many rounds through the text.  Returns losses (one for each chunk, nats a character), text, and recited, which
    begins with the first 12 characters of the text and is as long."""
    torch.manual_seed(0)
    text = zen()
    symbols = sorted(set(text))
    codes = torch.tensor([symbols.index(character) for character in text], device=device)
    streams = torch.stack([codes.roll(-n * len(codes) // STREAMS) for n in range(STREAMS)], 1)  # [characters, streams]
    model = CharacterModel(len(symbols)).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=rounds * -(-len(codes) // CHUNK))
    losses, state = [], None
    for _ in range(rounds):
        for chunk, after in zip(streams.split(CHUNK), streams.roll(-1, 0).split(CHUNK)):
            logits, state = model(chunk, state)
            state = [t.detach() for t in state]
            loss = cross_entropy(logits.flatten(0, 1), after.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
    recited = codes[:12].tolist()
    with torch.no_grad():
        _, state = model(codes[-60:, None])  # the end of the circle comes before its beginning
        logits, state = model(codes[:12, None], state)
        while len(recited) < len(text):
            recited.append(int(logits[-1, 0].argmax()))
            logits, state = model(torch.tensor([recited[-1:]], device=device), state)
    return {"losses": torch.stack(losses).tolist(), "text": text, "recited": "".join(symbols[code] for code in recited)}


def draw(result: dict[str, Any], path: str) -> None:
    """Draws the losses, and the first lines that the model wrote; a character that is not that of the text is red."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    left.plot(result["losses"])
    left.set(xlabel="chunk", ylabel="loss, nats a character", title="learning the Zen of Python", ylim=(0, None))
    right.axis("off")
    right.set_title("what the model writes (red: not so in the text)")
    row = column = 0
    for character, expected in zip(result["recited"], result["text"]):
        if row < 13:
            color = "#333333" if character == expected else "#d62728"
            right.text(column / 66, 0.95 - row / 13.5, character, family="monospace", fontsize=7.5, color=color, transform=right.transAxes)
        row, column = (row + 1, 0) if character == "\n" else (row, column + 1)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    result = run()
    print(result["recited"])
    right = sum(a == b for a, b in zip(result["recited"], result["text"])) / len(result["text"])
    print(f"\nloss {result['losses'][0]:.2f} at first, {result['losses'][-1]:.3f} at last; {right:.0%} of the characters are those of the text")
    if len(sys.argv) > 1:
        draw(result, sys.argv[1])
