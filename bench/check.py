"""The correctness gate: y, hn and every gradient of a provider against an fp64 reference, with a derived tolerance.

The tolerance knows the case, never the provider. Let u bound the relative rounding of the case's dtype and precision:
2^-8 bf16, 2^-11 fp16 (storage); 2^-10 tf32 (operands cut to 10 bits); 2^-24 sqrt(K) ieee fp32, K the longest sum.

    A step adds at most u of relative error to h and hands on what it got with gain g = ||W_hh||_F / sqrt(H) <=
    1/sqrt(3), weights being U(-1/sqrt(H), 1/sqrt(H)): the error of y settles at u / (1 - g) = 2.4 u however long the
    sequence. A gradient takes that twice: through y in act', and through its own recursion. Rounding errors average
    about 0.4 u, so an implementation that rounds once a step lands at 0.15 to 0.25 of this (seen on emulated
    roundings); one that also sums weight gradients in bf16 step by step reaches it.

    ||out - ref|| / ||ref||    <=  tol:  2.4 u for y and hn, 4.7 u for gradients
    max|out - ref| / rms(ref)  <=  6 tol: errors are near normal, and 6 sigma covers 10^8 elements

The first bound sees a bias of the whole, the second a single wrong element, row or step. relu's gradients jump: a
unit whose pre-activation is within the error of zero may switch, a share of about tol of them does, so their norm
moves by sqrt(tol) and single elements by their own size: the bounds are sqrt(tol) and 6.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from .cases import Case
from .providers import GRADIENTS, Provider, Result, tensors

ROUNDOFF = {"bf16": 2.0**-8, "fp16": 2.0**-11, "tf32": 2.0**-10, "ieee": 2.0**-24}
GAIN = 1 / math.sqrt(3)
PEAK = 6.0  # largest error over the root mean square error


@dataclass(frozen=True)
class Verdict:
    """`errors`: quantity -> {rel, rel_tol, max, max_tol}; `message` names what missed, empty where nothing did."""

    errors: dict[str, dict[str, float]]
    message: str

    @property
    def ok(self) -> bool:
        return not self.message

    def worst(self) -> float:
        """The largest error as a fraction of its tolerance."""
        return max(max(e["rel"] / e["rel_tol"], e["max"] / e["max_tol"]) for e in self.errors.values())


def roundoff(case: Case) -> float:
    """u of the module docstring."""
    if case.precision == "ieee":
        return ROUNDOFF["ieee"] * math.sqrt(max(case.H + case.I, case.T * case.B))
    return ROUNDOFF[case.precision or case.dtype]


def tolerance(case: Case, quantity: str) -> tuple[float, float]:
    """(of the relative norm, of the largest error over the reference's rms)."""
    relative = roundoff(case) / (1 - GAIN)
    if quantity in ("y", "hn"):
        return relative, PEAK * relative
    if case.nonlinearity == "relu":
        return math.sqrt(relative), PEAK
    return 2 * relative, PEAK * 2 * relative


def reference(case: Case, inputs: dict[str, torch.Tensor]) -> Result:
    """y, hn and the gradients of <dy, y> + <dhn, hn> in fp64, from the same rounded inputs."""
    import rnn_triton.reference

    wide = {name: value.detach().double() for name, value in inputs.items()}
    leaves = {name: wide[name].requires_grad_() for name in GRADIENTS.values()}
    y, hn = rnn_triton.reference.rnn(
        wide["x"], wide["w_ih"], wide["w_hh"], wide["b_ih"], wide["b_hh"], wide["h0"], case.nonlinearity
    )
    gradients = torch.autograd.grad((y, hn), list(leaves.values()), (wide["dy"], wide["dhn"]))
    return {"y": y.detach(), "hn": hn.detach(), **dict(zip(GRADIENTS, gradients))}


def compare(case: Case, result: Result, truth: Result) -> Verdict:
    """The errors of `result` and what of it misses the tolerance; NaN, a wrong shape or dtype miss it too."""
    errors, missed = {}, []
    for quantity, expected in truth.items():
        got = result[quantity]
        if got.shape != expected.shape:
            missed.append(f"{quantity} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
            continue
        difference = got.double() - expected
        scale = max(float(expected.norm()), 1e-30)
        rms = scale / math.sqrt(expected.numel())
        relative, largest = float(difference.norm()) / scale, float(difference.abs().max()) / rms
        relative_tolerance, largest_tolerance = tolerance(case, quantity)
        errors[quantity] = {
            "rel": relative, "rel_tol": relative_tolerance, "max": largest, "max_tol": largest_tolerance,
        }  # fmt: skip
        if not relative <= relative_tolerance:
            missed.append(f"{quantity}: relative error {relative:.2e}, tolerance {relative_tolerance:.2e}")
        elif not largest <= largest_tolerance:
            missed.append(f"{quantity}: largest error {largest:.2e} rms, tolerance {largest_tolerance:.2e}")
    return Verdict(errors, "; ".join(missed))


def gate(case: Case, provider: Provider, device: torch.device, seed: int = 0) -> Verdict:
    """Run a provider once, forward and forward+backward, and judge both."""
    inputs = tensors(case, device, seed)
    session = provider.session(case, inputs)
    truth = reference(case, inputs)
    verdict = compare(case, session.train(), truth)
    y, hn = session.forward()
    forward = compare(case, {"y": y, "hn": hn}, {name: truth[name] for name in ("y", "hn")})
    return verdict if forward.ok else Verdict(verdict.errors, f"without gradients: {forward.message}")


def summary(verdicts: Iterable[tuple[str, Verdict]]) -> list[tuple[str, ...]]:
    """Table rows: case, worst quantity, its error, its tolerance, verdict."""
    out: list[tuple[str, ...]] = []
    for name, verdict in verdicts:
        ranked = sorted(verdict.errors.items(), key=lambda item: item[1]["rel"] / item[1]["rel_tol"], reverse=True)
        quantity, error = ranked[0] if ranked else ("-", {"rel": math.nan, "rel_tol": math.nan})
        result: Any = "ok" if verdict.ok else f"WRONG: {verdict.message}"
        out.append((name, quantity, f"{error['rel']:.1e}", f"{error['rel_tol']:.1e}", result))
    return out
