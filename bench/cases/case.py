"""What is measured, as data: a case is one problem with a name one can type; a suite is a list of cases."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace

DTYPES = ("bf16", "fp16", "fp32")
ALONE, ENERGY = 0.25, 4.0  # seconds that a provider runs by itself in a pass: for its clocks; for its energy, too
PASSES = ("fwd", "train")  # forward in eval under no_grad; forward and backward in training mode
# The cells that rnn_triton.cells registers, and how many gates each has: written down, so that records are read without torch.
CELLS = {"elman_tanh": 1, "elman_relu": 1, "leaky_tanh": 1, "leaky_relu": 1, "gru": 3, "lstm": 4}
USUAL = "elman_tanh"  # what names leave out
LENGTHS = ("full", "uniform", "heavy")


@dataclass(frozen=True)
class Case:
    """One network as torch.nn.RNN, GRU or LSTM has it: x[T,B,I], h0[L*D,B,H], parameters by torch's names."""

    T: int
    B: int
    I: int
    H: int
    dtype: str  # of every tensor
    precision: str | None = None  # "tf32" or "ieee" for fp32, on both sides; None for other dtypes
    cell: str = USUAL  # its name
    layers: int = 1
    bidirectional: bool = False
    models: int = 1  # independent networks of this shape, weights and inputs of their own, run together
    heads: int = 1  # blocks of W_hh, each of H/heads units that read themselves and all of x
    lengths: str = "full"  # of the sequences: T; uniform in [1, T]; heavy-tailed, most of them short (lengths_of)

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def name(self) -> str:
        """h128-b16-t256-bf16: what differs from the usual comes between, in the order of _NAME."""
        parts = [
            self.cell if self.cell != USUAL else "", f"h{self.H}", f"i{self.I}" if self.I != self.H else "", f"b{self.B}",
            f"t{self.T}", f"l{self.layers}" if self.layers != 1 else "", "bi" if self.bidirectional else "",
            f"m{self.models}" if self.models != 1 else "", f"n{self.heads}" if self.heads != 1 else "",
            self.lengths if self.lengths != "full" else "", self.dtype, "ieee" if self.precision == "ieee" else "",
        ]  # fmt: skip
        return "-".join(part for part in parts if part)

    def at(self, T: int) -> Case:
        """The same problem over another number of steps."""
        return replace(self, T=T)


@dataclass(frozen=True)
class Job:
    """What a worker is asked: one case, in these passes, with these providers."""

    case: Case
    passes: tuple[str, ...]
    providers: tuple[str, ...]
    alone: float = ALONE  # or ENERGY


def case(
    H: int, B: int, T: int, dtype: str, I: int | None = None, *, ieee: bool = False, cell: str = USUAL, layers: int = 1,
    bidirectional: bool = False, models: int = 1, heads: int = 1, lengths: str = "full",
) -> Case:  # fmt: skip
    """A case with I = H and TF32 unless told otherwise."""
    precision = None if dtype != "fp32" else "ieee" if ieee else "tf32"
    return Case(T, B, I or H, H, dtype, precision, cell, layers, bidirectional, models, heads, lengths)


def choose(text: str, allowed: tuple[str, ...], what: str) -> list[str]:
    """The members of a comma-separated list, each one of `allowed`; ValueError with the nearest names."""
    chosen = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for part in chosen:
        if part not in allowed:
            raise ValueError(f"unknown {what} {part!r}; {nearest(part, allowed)}")
    if not chosen:
        raise ValueError(f"no {what} given; choose from {', '.join(allowed)}")
    return chosen


def nearest(name: str, names: Iterable[str]) -> str:
    """Of `names`, those most like `name`, or the first few: the end of a message."""
    candidates = sorted(names)
    near = difflib.get_close_matches(name, candidates, n=3, cutoff=0.5)
    return f"nearest: {', '.join(near)}" if near else f"known: {', '.join(candidates[:8]) or 'none'}"
