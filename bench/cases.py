"""What is measured, as data: a case is one problem with a name one can type; a suite is a list of cases."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace

DTYPES = ("bf16", "fp16", "fp32")
PASSES = ("fwd", "train")  # forward in eval under no_grad; forward and backward in training mode


@dataclass(frozen=True)
class Case:
    """One layer, one direction: x[T,B,I], h0[B,H], w_ih[H,I], w_hh[H,H], b_ih[H], b_hh[H]."""

    T: int
    B: int
    I: int
    H: int
    dtype: str  # of every tensor
    precision: str | None = None  # "tf32" or "ieee" for fp32, on both sides; None for other dtypes
    nonlinearity: str = "tanh"

    @property
    def name(self) -> str:
        """h128-b16-t256-bf16; -i<I> where I differs from H, -ieee and -relu where they apply."""
        inputs = f"-i{self.I}" if self.I != self.H else ""
        precision = "-ieee" if self.precision == "ieee" else ""
        nonlinearity = "-relu" if self.nonlinearity == "relu" else ""
        return f"h{self.H}{inputs}-b{self.B}-t{self.T}-{self.dtype}{precision}{nonlinearity}"

    def at(self, T: int) -> Case:
        """The same problem over another number of steps."""
        return replace(self, T=T)


@dataclass(frozen=True)
class Job:
    """What a worker is asked: one case, in these passes, with these providers."""

    case: Case
    passes: tuple[str, ...]
    providers: tuple[str, ...]


def case(H: int, B: int, T: int, dtype: str, I: int | None = None, *, ieee: bool = False, relu: bool = False) -> Case:
    """A case with I = H and TF32 unless told otherwise."""
    precision = None if dtype != "fp32" else "ieee" if ieee else "tf32"
    return Case(T, B, I or H, H, dtype, precision, "relu" if relu else "tanh")


# Lines over H (B=16, T=1024), over B (H=128, T=1024) and over T (H=128, B=16), and the corners.
QUICK_SHAPES = (
    (128, 16, 1024), (256, 16, 1024), (64, 16, 1024), (32, 16, 1024),
    (128, 1, 1024), (128, 64, 1024), (128, 256, 1024),
    (128, 16, 256), (128, 16, 64),
    (256, 1, 1024), (256, 64, 256), (256, 256, 64),
)  # fmt: skip

# Small enough for the interpreter (about 2 ms per program and step), odd enough to touch every mask.
CHECK_SHAPES = (
    (16, 3, 5, 16), (32, 2, 4, 20), (13, 5, 4, 7), (64, 1, 3, 64),
)  # fmt: skip

# Beyond one CTA: what the first run times besides, by (H, B, T, dtype), and the model's table, by shape.
LARGE_SHAPES = (
    (384, 16, 512), (512, 16, 512), (1024, 16, 512), (1024, 64, 512), (1536, 32, 256), (2048, 16, 256), (4096, 16, 256),
)  # fmt: skip
FIRST_SHAPES = (
    (1024, 16, 512, "bf16"), (1024, 16, 512, "fp32"), (1024, 16, 512, "fp16"), (384, 16, 512, "bf16"),
    (2048, 16, 256, "bf16"), (512, 16, 512, "bf16"), (128, 16, 1024, "bf16"), (4096, 16, 256, "bf16"),
    (1024, 64, 512, "bf16"), (512, 16, 512, "fp32"), (512, 8, 512, "fp16"), (256, 16, 1024, "bf16"),
    (1536, 32, 256, "bf16"), (64, 16, 1024, "fp32"), (1760, 16, 50, "fp16"), (1024, 1, 512, "bf16"),
    (2048, 16, 256, "fp32"), (3072, 32, 128, "bf16"),
)  # fmt: skip

SUITES: dict[str, tuple[Case, ...]] = {
    # shapes outermost: when the time runs out, the shapes that came first are complete for every dtype
    "quick": tuple(case(*shape, dtype) for shape in QUICK_SHAPES for dtype in DTYPES),
    "check": tuple(
        [case(H, B, T, dtype, I) for H, B, T, I in CHECK_SHAPES for dtype in DTYPES]
        + [case(16, 3, 5, "fp32", ieee=True), case(16, 3, 5, "bf16", relu=True)]
    ),
}

_NAME = re.compile(r"h(\d+)(?:-i(\d+))?-b(\d+)-t(\d+)-(bf16|fp16|fp32)(-ieee)?(-relu)?")


def suite(name: str) -> tuple[Case, ...]:
    """The cases of a suite; ValueError with the nearest names."""
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}; {_nearest(name, SUITES)}")
    return SUITES[name]


def parse(name: str) -> Case:
    """The case of a name, listed in a suite or not; ValueError with the nearest names."""
    found = _NAME.fullmatch(name)
    listed = {c.name for cases in SUITES.values() for c in cases}
    if not found or (found.group(6) and found.group(5) != "fp32"):
        raise ValueError(f"unknown case {name!r}; {_nearest(name, listed)} (form: h128-b16-t256-bf16)")
    H, I, B, T = (int(v) if v else None for v in found.group(1, 2, 3, 4))
    if not (H and B and T and I != 0):
        raise ValueError(f"case {name!r}: sizes must be at least 1")
    return case(H, B, T, found.group(5), I, ieee=bool(found.group(6)), relu=bool(found.group(7)))


def choose(text: str, allowed: tuple[str, ...], what: str) -> list[str]:
    """The members of a comma-separated list, each one of `allowed`; ValueError with the nearest names."""
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    for part in chosen:
        if part not in allowed:
            raise ValueError(f"unknown {what} {part!r}; {_nearest(part, allowed)}")
    if not chosen:
        raise ValueError(f"no {what} given; choose from {', '.join(allowed)}")
    return chosen


def _nearest(name: str, names: object) -> str:
    candidates = sorted(names)  # type: ignore[call-overload]
    near = difflib.get_close_matches(name, candidates, n=3, cutoff=0.5)
    return f"nearest: {', '.join(near)}" if near else f"known: {', '.join(candidates[:8])}"
