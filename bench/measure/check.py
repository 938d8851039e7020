"""The correctness gate: y, hn and every gradient of a provider against an fp64 reference, with a derived tolerance.

    ||out - ref|| / ||ref||    <=  tol:  u sqrt(L) / (1 - g) for y, hn and cn, twice that for gradients
    max|out - ref| / rms(ref)  <=  6 tol: errors are near normal, and 6 sigma covers 10^8 elements

u is the relative rounding of the case's dtype and precision, g the gain of a step, L the number of layers.  docs/benchmarks.md derives it.
The tolerance knows the case, never the provider.  Both bounds are taken for each model, and of states for each layer and direction.
Gradients of relu and the like jump: their bounds are sqrt(tol) and 6. """

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rnn_triton.cells import named
from rnn_triton.plan.cudnn import torch_module

from ..cases.case import Case
from ..cases.inputs import SMALL, packed, tensors
from ..providers.interface import Provider, Result, Session
from ..providers.loops import by_formula, of_formulas
from ..providers.sessions import ModuleSession, module_of
from ..records.schema import OURS

ROUNDOFF = {"bf16": 2.0**-8, "fp16": 2.0**-11, "tf32": 2.0**-10, "ieee": 2.0**-24}
GAIN = 1 / math.sqrt(3)
PEAK = 6.0  # largest error over the root mean square error
INACCURATE = 16.0  # tolerances that a gradient which is inaccurate, not wrong, may be off by: sums of 16 bits over 16,000 steps
OUTPUTS = ("y", "hn", "cn")
STATES = ("hn", "cn", "dh0", "dc0")  # with a dimension of layers and directions


@dataclass(frozen=True)
class Verdict:
    """`errors`: quantity -> {rel, rel_tol, max, max_tol}; `message` names what missed, empty where nothing did; `whole`: every
    quantity is there, in its shape."""

    errors: dict[str, dict[str, float]]
    message: str
    whole: bool = True

    @property
    def ok(self) -> bool:
        return not self.message

    def worst(self) -> float:
        """The largest error as a fraction of its tolerance."""
        return max(map(_share, self.errors.values()))

    def status(self, case: Case, pass_: str, provider: str) -> str:
        """"ok", "wrong", or "inaccurate": a peer in 16-bit training of which gradients alone miss the tolerance, by INACCURATE
        times at most.  That is how users of it train, so that its time is kept, and shown as inaccurate; ours has no such excuse."""
        if self.ok:
            return "ok"
        excused = self.whole and pass_ == "train" and case.dtype in ("bf16", "fp16") and not provider.startswith(OURS)
        near = all(_share(e) <= (1.0 if name in OUTPUTS else INACCURATE) for name, e in self.errors.items())
        return "inaccurate" if excused and near else "wrong"


def _share(error: dict[str, float]) -> float:
    return math.nan if math.isnan(error["rel"] + error["max"]) else max(error["rel"] / error["rel_tol"], error["max"] / error["max_tol"])


def roundoff(case: Case) -> float:
    """u; of the sums that "ieee" rounds, sqrt(K) for the longest"""
    if case.precision == "ieee":
        widest = max(case.I, case.directions * case.H if case.layers > 1 else 0)
        return ROUNDOFF["ieee"] * math.sqrt(max(case.H + widest, case.T * case.B))
    return ROUNDOFF[case.precision or case.dtype]


def tolerance(case: Case, quantity: str, rms: float = 1.0) -> tuple[float, float]:
    """(of the relative norm, of the largest error over the reference's rms)."""
    cell = named(case.cell)
    gain = (1 + GAIN) / 2 if cell.carried else GAIN  # what is carried fades by half, as by a gate of 0
    u = max(roundoff(case), 2.0**-25 / rms) if case.dtype == "fp16" else roundoff(case)  # half a step of subnormals
    relative = u * math.sqrt(case.layers) / (1 - gain)
    if quantity in OUTPUTS:
        return relative, PEAK * relative
    if not cell.special:  # made of pieces, where they meet gradients jump
        return math.sqrt(relative), PEAK
    return 2 * relative, PEAK * 2 * relative


def reference(case: Case, inputs: dict[str, Tensor]) -> Result:
    """What a session's train() gives, in fp64, from the same rounded inputs and weights.

    By torch.nn's own modules without cuDNN; several models or heads by the cells' steps, since torch's modules do not batch them and hundreds one
    after the other take seconds; and so cells that torch does not have. As large as the case's tensors in fp64, about eight times over."""
    wide = {name: value.detach().double() for name, value in inputs.items()}
    if case.models * case.heads > 1 or not torch_module(case.cell)[0]:
        if case.lengths != "full":
            raise NotImplementedError("sequences of different lengths of several models, or of a cell that torch lacks, have no reference")
        return of_formulas(case, wide, by_formula(case)).train()
    with _without_cudnn():
        return ModuleSession(module_of(torch.nn, case, wide["x"]), wide, case).train()


@contextlib.contextmanager
def _without_cudnn() -> Iterator[None]:
    # torch.backends.cudnn.flags() would also set, and so mix, the older and the newer switch of TF32
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def compare(case: Case, result: Result, truth: Result) -> Verdict:
    """The errors of `result` and what of it misses the tolerance; NaN, a wrong shape or nothing at all misses it too.

    An error is that of the worst model, and for states of the worst layer and direction."""
    errors, missed, whole = {}, [], True
    for quantity, expected in truth.items():
        got = result.get(quantity)
        if got is None:
            missed.append(f"{quantity} is missing")
            whole = False
            continue
        if not isinstance(got, Tensor):
            got = torch.stack(list(got))  # of several models or heads
            got = got.flatten(0, 1) if case.heads > 1 and got.dim() > expected.dim() else got
        if (quantity, got.dim(), expected.dim()) in (("y", 3, 2), ("dx", 3, 2)):  # padded
            padded, got = got, packed(case, got).data
            if padded.count_nonzero() != got.count_nonzero():
                missed.append(f"{quantity} is not zero beyond the ends of the sequences")
        if got.shape != expected.shape:
            missed.append(f"{quantity} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
            whole = False
            continue
        apart = (case.models if case.models > 1 else 1) * (expected.shape[-3] if quantity in STATES else 1)
        difference = (got.double() - expected).reshape(apart, -1)
        scale = expected.reshape(apart, -1).norm(dim=1).clamp_min(1e-30)
        rms = scale / math.sqrt(difference.shape[1])
        limits = rms.new_tensor([tolerance(case, quantity, size) for size in rms.tolist()])
        relative, relative_tolerance = _worst(difference.norm(dim=1) / scale, limits[:, 0])
        largest, largest_tolerance = _worst(difference.abs().amax(dim=1) / rms, limits[:, 1])
        errors[quantity] = {"rel": relative, "rel_tol": relative_tolerance, "max": largest, "max_tol": largest_tolerance}
        if not relative <= relative_tolerance:
            missed.append(f"{quantity}: relative error {relative:.2e}, tolerance {relative_tolerance:.2e}")
        elif not largest <= largest_tolerance:
            missed.append(f"{quantity}: largest error {largest:.2e} rms, tolerance {largest_tolerance:.2e}")
    return Verdict(errors, "; ".join(missed), whole)


def _worst(errors: Tensor, limits: Tensor) -> tuple[float, float]:
    """An error and its limit, where it comes closest to it or is NaN"""
    at = int((errors / limits).argmax())  # of NaN, if there is one
    return float(errors[at]), float(limits[at])


def judge(case: Case, session: Session, pass_: str, truth: Result) -> Verdict:
    """One pass of a session ("fwd" or "train") against reference(): a wrong gradient does not make y wrong."""
    return judged(case, session.train() if pass_ == "train" else session.forward(), pass_, truth)


def judged(case: Case, result: Any, pass_: str, truth: Result) -> Verdict:
    """The same of what Session.train() or forward() has returned"""
    if pass_ == "train":
        return compare(case, result, truth)
    y, hn = result
    verdict = compare(case, {"y": y, "hn": hn}, {name: truth[name] for name in ("y", "hn")})
    return verdict if verdict.ok else Verdict(verdict.errors, f"without gradients: {verdict.message}")


def gate(case: Case, provider: Provider, device: torch.device, seed: int = 0, signal: float = 1.0) -> Verdict:
    """Run a provider once, forward and forward+backward, on inputs of this size, and judge both."""
    inputs = tensors(case, device, seed, signal)
    session = provider.session(case, inputs)
    truth = reference(case, inputs)
    verdict = judge(case, session, "train", truth)
    forward = judge(case, session, "fwd", truth)
    return verdict if forward.ok else Verdict(verdict.errors, forward.message)


def gate_of_sizes(case: Case, provider: Provider, device: torch.device) -> Verdict:
    """`gate` of the usual signals, and of small ones, whose relative errors have the same bounds."""
    usual, small = gate(case, provider, device), gate(case, provider, device, signal=SMALL[case.dtype])
    messages = [usual.message, f"of small signals: {small.message}" if small.message else ""]
    errors = {f"{quantity} of small signals": error for quantity, error in small.errors.items()}
    return Verdict(usual.errors | errors, "; ".join(filter(None, messages)))


def summary(verdicts: Iterable[tuple[str, Verdict]]) -> list[tuple[str, ...]]:
    """Table rows: case, worst quantity, its error, its tolerance, verdict."""
    out: list[tuple[str, ...]] = []
    for name, verdict in verdicts:
        ranked = sorted(verdict.errors.items(), key=lambda item: item[1]["rel"] / item[1]["rel_tol"], reverse=True)
        quantity, error = ranked[0] if ranked else ("-", {"rel": math.nan, "rel_tol": math.nan})
        result: Any = "ok" if verdict.ok else f"WRONG: {verdict.message}"
        out.append((name, quantity, f"{error['rel']:.1e}", f"{error['rel_tol']:.1e}", result))
    return out
