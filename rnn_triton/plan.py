"""From a problem and a device to the kernel configuration that runs it: pure, total, no silent fallback.

A plan, or an UnsupportedError that says what was needed and what there was.  The limits below are those of the register
allocator: each is the largest size that tests/test_compile.py finds free of spills on every architecture and Triton
version it compiles for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from . import hardware
from .errors import UnsupportedError
from .hardware import Device

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
SIZES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}


@dataclass(frozen=True)
class Problem:
    """One pass of one layer in one direction; T does not matter to a plan."""

    direction: str  # "forward", "backward"
    B: int
    I: int
    H: int
    dtype: str  # "bf16", "fp16", "fp32", "fp64"
    precision: str | None  # "tf32", "tf32x3", "ieee" for fp32, else None
    nonlinearity: str  # "tanh", "relu"


@dataclass(frozen=True)
class Plan:
    """A launch of kernels/recurrence.py; the fields are its constexpr parameters."""

    regime: str
    block_b: int  # batch rows of a CTA
    warps: int
    formulation: str  # kernels/fragments.py: "mma16", "mma32", "fma"
    precision: str  # of tl.dot
    accuracy: str  # kernels/activations.py
    h_pad: int
    w_ih_home: str  # "registers", "shared", "stream"; "none" in the backward pass, which has no projection
    chunk: int  # inputs a tile of the projection
    chains: int  # independent accumulators of the recurrent product
    x_depth: int  # 2: x is loaded two steps ahead, 1: one
    stream_unroll: int  # chunks in flight where W_ih streams
    pad_w_hh: bool  # the launch pads W_hh to h_pad x h_pad in global memory first
    reason: str


@dataclass(frozen=True)
class _Form:
    """What one way of multiplying can hold in one CTA."""

    formulation: str
    precision: str
    h_max: int  # H_PAD
    chunk: int
    two_chains_from: int  # smallest H_PAD with two accumulators
    # Chunks of W_ih by home, for H_PAD <= 128 and for 256; beyond both, W_ih streams.
    registers: tuple[int, int]
    shared: tuple[int, int]
    stream_unroll: int


# Two accumulators: mma16 from halves of K = 16 on, for latency; mma32 none, each half would take barriers of its own; fma
# at 128, where one chain spills (and the halves do take barriers of their own).
_FORMS = {
    "16-bit": _Form("mma16", "ieee", 256, 32, 32, (8, 2), (16, 12), 2),
    "tf32": _Form("mma32", "tf32", 128, 16, 256, (8, 0), (12, 0), 2),
    "tf32x3": _Form("mma32", "tf32x3", 128, 16, 256, (2, 0), (4, 0), 2),
    "ieee": _Form("fma", "ieee", 128, 64, 128, (0, 0), (2, 0), 1),
    "fp64": _Form("fma", "ieee", 64, 16, 128, (0, 0), (2, 0), 1),
}


def _form(problem: Problem) -> _Form:
    if problem.dtype in ("bf16", "fp16"):
        return _FORMS["16-bit"]
    return _FORMS["fp64" if problem.dtype == "fp64" else problem.precision or "ieee"]


def _accuracy(problem: Problem) -> str:
    if problem.dtype == "bf16":
        return "approx"
    if problem.dtype == "fp64":
        return "double"
    return "fast" if problem.dtype == "fp16" or problem.precision == "tf32" else "full"


@functools.lru_cache(maxsize=4096)
def plan(problem: Problem, device: Device) -> Plan:
    """The configuration for this problem on this device.  UnsupportedError where W_hh does not fit on one CTA."""
    form = _form(problem)
    size = SIZES[problem.dtype]
    what = problem.dtype if problem.precision is None else f"{problem.dtype} ({problem.precision})"
    if device.capability < 80:
        raise UnsupportedError(
            f"{device.name} has compute capability {device.capability / 10:.1f}; the kernels need 8.0 (Ampere) or newer"
        )
    h_pad = max(16, 1 << (problem.H - 1).bit_length())
    weights = h_pad * h_pad * size
    if h_pad > form.h_max:
        raise UnsupportedError(
            f"H={problem.H} in {what} needs {weights // 1024} KB of W_hh (padded to {h_pad} units) on one CTA; "
            f"one CTA holds up to H={form.h_max} in {what}, and groups of CTAs are not available yet"
        )
    warps = min(8, h_pad // 16)  # 16 warps would leave 128 registers a thread, too few at H_PAD = 256
    block_b = 8
    if form.formulation == "mma16" and problem.B > 8 * device.sms and h_pad <= 128 and device.capability < 100:
        block_b = 16  # tiles of 8 no longer fit on the chip at once (sm_100: a tile of 16 goes to tcgen05, 4 to 11 barriers)
    chunk = form.chunk
    if form.formulation == "fma":
        chunk = max(16, min(chunk, 1 << (problem.I - 1).bit_length()))
    # Ragged rows of 16-bit values take a register an element until they are packed: too many at H_PAD = 256, so W_hh is
    # padded in global memory first, and W_ih and a second accumulator give up their registers.
    ragged_h = h_pad == 256 and problem.H % (h_pad // (8 * warps)) != 0
    home, x_depth = "none", 1
    if problem.direction == "forward":
        home, x_depth = "stream", 1
        if not ragged_h:
            home, x_depth = _w_ih_home(problem, form, h_pad, block_b, chunk, size, device)
    # At batch tiles above 8 other products fill the gaps of one chain.
    two_chains = h_pad >= form.two_chains_from and block_b == 8 and not (ragged_h and home == "stream")
    if problem.precision == "ieee" and problem.direction == "backward" and 32 <= problem.H != h_pad:
        two_chains = True  # one spills where H is padded (relu, Triton 3.6)
    held = "registers and shared memory" if form.formulation == "fma" else "registers"
    where = {
        "none": "",
        "registers": ", W_ih in registers",
        "shared": ", W_ih in shared memory",
        "stream": f", W_ih streamed from L2 every step (no room for I={problem.I} beside W_hh)",
    }[home]
    return Plan(
        regime="single_cta",
        block_b=block_b,
        warps=warps,
        formulation=form.formulation,
        precision=form.precision,
        accuracy=_accuracy(problem),
        h_pad=h_pad,
        w_ih_home=home,
        chunk=chunk,
        chains=2 if two_chains else 1,
        x_depth=x_depth,
        stream_unroll=1 if h_pad == 256 and _ragged(problem, form) else form.stream_unroll,
        pad_w_hh=ragged_h,
        reason=f"W_hh ({weights / 1024:.3g} KB as padded to {h_pad} units) fits in the {held} of one CTA{where}",
    )


def _ragged(problem: Problem, form: _Form) -> bool:
    """Are rows of x and W_ih other than whole 16-byte vectors, so that fragments are loaded element by element?"""
    return form.formulation != "fma" and problem.I * SIZES[problem.dtype] % 16 != 0


def _w_ih_home(
    problem: Problem, form: _Form, h_pad: int, block_b: int, chunk: int, size: int, device: Device
) -> tuple[str, int]:
    """(home of W_ih, how many steps ahead x is loaded)"""
    wide = int(h_pad == 256)
    # x takes registers in proportion to the batch tile, and twice as many where its rows are no 16-byte vectors.
    chunks = math.ceil(problem.I / chunk) * (block_b // 8) * (2 if _ragged(problem, form) else 1)
    if chunks <= form.registers[wide]:
        # ptxas aims at 128 registers for two CTAs on an SM and would spill for them: ragged fp32 looks one step ahead only
        return "registers", 1 if form.formulation == "mma32" and _ragged(problem, form) else 2
    shared = h_pad * math.ceil(problem.I / chunk) * chunk * size + 4 * h_pad * block_b * size + 4096
    if form.formulation == "fma":
        shared += h_pad * h_pad * size
    if chunks <= form.shared[wide] and shared <= device.shared_bytes:
        return "shared", 1
    return "stream", 1


def explain(
    T: int,
    B: int,
    I: int,
    H: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | Device | None = None,
    nonlinearity: str = "tanh",
    precision: str | None = None,
    direction: str = "forward",
) -> str:
    """One sentence: which plan runs rnn(x[T,B,I], ...) of hidden size H, and why.

    `device`: a torch device, a hardware.Device record, or None for the current GPU (an H200 where there is none).
    `precision` None means torch.backends.cudnn.rnn.fp32_precision, as in rnn_triton.rnn.
    """
    from . import interpreter
    from .functional import _default_precision as default_precision

    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
    for name, size, least in (("T", T, 1), ("B", B, 0), ("I", I, 1), ("H", H, 1)):
        if size < least:
            raise ValueError(f"{name} must be at least {least}, got {size}")
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    if precision not in (None, "tf32", "tf32x3", "ieee"):
        raise ValueError(f"precision must be None, 'tf32', 'tf32x3' or 'ieee', got {precision!r}")
    if precision is not None and dtype is not torch.float32:
        raise ValueError(f"precision must be None unless the dtype is torch.float32, got {precision!r} and {dtype}")
    if direction not in ("forward", "backward"):
        raise ValueError(f"direction must be 'forward' or 'backward', got {direction!r}")
    if dtype is torch.float32 and precision is None:
        precision = default_precision()
    if not isinstance(device, Device):
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "meta"
        device = torch.device(device)
        if device.type == "cpu" and not interpreter.active():
            return (
                f"{direction} of {dtype} T={T} B={B} I={I} H={H} on CPU tensors: torch's own operators, step by step "
                "(set TRITON_INTERPRET=1 before importing rnn_triton to run the kernels by interpreter)."
            )
        device = hardware.of(device)
    problem = Problem(direction, B, I, H, DTYPES[dtype], precision, nonlinearity)
    if B == 0:
        return f"{direction} of {problem.dtype} T={T} B=0 I={I} H={H}: empty results, nothing is launched."
    name = f"{direction} of {problem.dtype}{f' ({precision})' if precision else ''} T={T} B={B} I={I} H={H}"
    try:
        p = plan(problem, device)
    except UnsupportedError as e:
        return f"{name} on {device.name}: no plan, {e}."
    ctas = math.ceil(B / p.block_b)
    return (
        f"{name} on {device.name}: one launch of {_count(ctas, 'CTA')} of {_count(p.warps, 'warp')} for all {T} steps"
        f"{' after a copy that pads W_hh' if p.pad_w_hh else ''}, each CTA {p.block_b} batch rows and all of W_hh "
        f"({p.formulation} products), because {p.reason}."
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _planned() -> Iterator[tuple[Problem, Device]]:
    """Problems that reach every kind of plan: the largest I of each home of W_ih, the smallest, and ragged shapes."""
    small = hardware.RECORDS["sm_86"]  # 99 KB of shared memory, the least of all
    for problem in (
        Problem("forward", 8, 128, 128, "fp32", "ieee", "tanh"),
        Problem("backward", 8, 128, 128, "fp32", "ieee", "tanh"),
        Problem("forward", 8, 512, 128, "bf16", None, "tanh"),
        Problem("forward", 8, 256, 256, "bf16", None, "tanh"),
        Problem("forward", 8, 64, 128, "fp32", "tf32x3", "tanh"),
        Problem("forward", 8, 1000, 64, "fp64", None, "tanh"),
    ):
        yield problem, small
    for capability in (90, 80, 100):
        device = hardware.RECORDS[f"sm_{capability}"]
        kinds = [("bf16", None), ("fp32", "tf32"), ("fp32", "tf32x3"), ("fp32", "ieee"), ("fp64", None)]
        if capability == 90:
            kinds.append(("fp16", None))  # bf16's plans with another tanh
        for dtype, precision in kinds:
            form = _form(Problem("forward", 8, 1, 16, dtype, precision, "tanh"))
            for h_pad in (16, 64, 128, 256):
                if h_pad > form.h_max:
                    continue
                wide = int(h_pad == 256)
                for B in (8, 4096) if dtype == "bf16" and not wide else (8,):
                    homes = set()
                    for I in (form.registers[wide] * form.chunk, form.shared[wide] * form.chunk, 1000, 8):
                        problem = Problem("forward", B, I, h_pad, dtype, precision, "tanh")
                        if I and (I == 8 or plan(problem, device).w_ih_home not in homes):
                            homes.add(plan(problem, device).w_ih_home)
                            yield problem, device
                    yield Problem("backward", B, h_pad, h_pad, dtype, precision, "tanh"), device
                    if wide:  # padded, but in whole vectors
                        yield Problem("forward", B, 64, h_pad - 4, dtype, precision, "tanh"), device
                        yield Problem("backward", B, 64, h_pad - 4, dtype, precision, "tanh"), device
                    if h_pad >= 64:
                        yield Problem("forward", B, h_pad - 1, h_pad - 3, dtype, precision, "relu"), device
                        yield Problem("backward", B, h_pad - 1, h_pad - 3, dtype, precision, "relu"), device


PLANNED: list[tuple[Problem, Device]] = list(_planned())
