"""Lists every way to run a problem on a device: the plans of each regime whose resources fit, best or not.

The limits are those of the register allocator.  A limit for one CTA is the largest size that tests/test_compile.py finds free of
spills on every architecture and Triton version it compiles for.  A limit for a group of CTAs is a sum of what a thread holds, which
these tests check, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .. import cells
from ..cells.cell import Routes
from .hardware import Device
from .problem import ONE, SIZES, Bundle, CtaGroup, OneCta, PerStep, Plan, Problem, row_units


@dataclass(frozen=True)
class Form:
    """What one way of multiplying can hold in one CTA."""

    formulation: str
    precision: str
    h_max: int  # H_PAD
    chunk: int
    two_chains_from: int  # smallest H_PAD with two accumulators
    # Most chunks of W_ih in either home, for H_PAD <= 128 and for 256; beyond both, a GEMM projects x.
    registers: tuple[int, int]
    shared: tuple[int, int]
    twice: int  # most chunks of x of which a thread holds two steps
    gated: int  # gates times H_PAD of a cell that is not `simple`, at most
    gated_linked: int  # the same of linked recurrences
    # The largest H_PAD of linked recurrences, whose W_in is all in registers: with x two steps ahead, and with x one step ahead.
    linked: tuple[int, int]


# Two accumulators: from halves of K = 16 on, for latency; not in tf32x3, where each half would take barriers of its own; in the
# fma form at 128, where one chain spills (and the halves do take barriers of their own).
FORMS = {
    "16-bit": Form("mma16", "ieee", 256, 32, 32, (8, 2), (16, 12), 4, 512, 128, (128, 128)),
    "tf32": Form("mma32", "tf32", 128, 16, 32, (8, 0), (12, 0), 4, 256, 64, (64, 128)),
    "tf32x3": Form("mma32", "tf32x3", 128, 16, 256, (2, 0), (4, 0), 2, 128, 32, (0, 64)),
    "ieee": Form("fma", "ieee", 128, 64, 128, (0, 0), (2, 0), 0, 128, 0, (0, 0)),
    "fp64": Form("fma", "ieee", 64, 16, 128, (0, 0), (2, 0), 0, 64, 0, (0, 0)),
}


@dataclass(frozen=True)
class _Room:
    """What a thread of a group holds besides its part of the weights, the state and x, in registers."""

    base: int  # addresses, bias, loop state, at 8 batch rows
    rows: int  # in addition, for every further 8 rows
    weight: int  # 32-bit words that a weight takes on chip: tf32x3 keeps two halves
    staged: int  # K tiles of weights in flight from shared memory
    cell: int  # more for a cell that is not `simple`
    warps16: int = 14  # in addition, at 16 warps, whose reduction is a level deeper
    from_shared: int = 8  # in addition, if W_ih comes from shared memory
    linked: int = 32  # in addition, if x comes from another recurrence and is waited for
    dropout: int = 48  # in addition, if elements of it are dropped


# What ptxas has been seen to need beside weights and state.
_ROOM = {
    "16-bit": _Room(base=50, rows=16, weight=1, staged=0, cell=25),
    "tf32": _Room(base=58, rows=16, weight=1, staged=1, cell=24),
    "tf32x3": _Room(base=84, rows=16, weight=2, staged=4, cell=24),
}
_REGISTERS = {4: 255, 8: 255, 16: 127}  # of a thread, by warps: a CTA has 65,536
_UNITS = (16, 32, 64)
_BLOCK_B = (8, 16, 32)
_PROTOCOLS = ("sentinel", "counter")
_X_LOADS = ("behind", "before")
_LOOK_EVERY = (64, 32, 16, 8, 4, 2, 1)
_PROBE_DELAYS = range(1001)  # cycles
_PROBE_DELAY = 200  # unless overridden; an estimate of how long the store of a state takes to arrive in L2
_TWO_CHAINS_FROM = 4  # K tiles
_ONE_PASS = 256  # units times rows a warp: sums of more pass through shared memory twice, with a barrier each time
_SHARED_EXTRA = 1024  # bytes of shared memory beside the weights and the buffer of the reduction

# Tiles of the kernel that is launched for every step: block_k by element size, and the values that may be overridden.
_STEP_BLOCK_K = {2: 64, 4: 32, 8: 16}
_STEP_VALUES = {
    "block_b": (16, 32, 64),
    "block_h": (32, 64),
    "block_k": (16, 32, 64),
    "warps": (4, 8),
    "stages": (1, 2, 3, 4),
}


def kind(problem: Problem) -> str:
    """Returns the key of FORMS: "16-bit", "tf32", "tf32x3", "ieee", "fp64"."""
    if problem.dtype in ("bf16", "fp16"):
        return "16-bit"
    return "fp64" if problem.dtype == "fp64" else problem.precision or "ieee"


def candidates(problem: Problem, device: Device, choices: Mapping[str, Any] | None = None) -> Iterator[Plan]:
    """Yields the plans that fit.  `choices` sets fields that would be derived ("groups", "chains", "w_hh_shared", tiles of the step
    kernel).  With regime="cta_group" groups are planned even for a device that does not run all programs of a launch at once."""
    choices = choices or {}
    yield from one_cta(problem, device, choices)
    groups = list(cta_group(problem, device, choices))
    yield from groups
    yield from per_step(problem, device, bool(groups), choices)


def _beyond(problem: Problem, device: Device) -> str:
    """Says why weights do not stay on the chip."""
    if kind(problem) not in _ROOM:
        return "is beyond one CTA, and groups of CTAs run bf16, fp16, tf32 and tf32x3"
    if not device.cooperative:
        return "is beyond one CTA, and CTAs do not run at the same time here"
    return "does not fit on the chip beside h"


def routes(problem: Problem) -> Routes:
    """Returns which tiles the problem's cell has in its pass, and which products make which of them."""
    return cells.named(problem.cell).routes(problem.direction == "forward", problem.recompute)


def gates(problem: Problem) -> int:
    """Returns the number of blocks of H rows that W_hh and W_ih have."""
    return len(cells.named(problem.cell).gates)


def simple(problem: Problem) -> bool:
    """True for a cell of one pre-activation that carries, keeps and owns nothing."""
    cell = cells.named(problem.cell)
    return len(cell.gates) == 1 and not (cell.split or cell.carried or cell.kept or cell.vectors)


def accuracy(problem: Problem) -> str:
    """Returns the accuracy of the activation function (kernels/activations.py) that the dtype and the precision need."""
    if problem.dtype == "bf16":
        return "approx"
    if problem.dtype == "fp64":
        return "double"
    return "fast" if problem.dtype == "fp16" or problem.precision == "tf32" else "full"


_HOMES = {  # of W_ih, in the words of a plan's reason
    "none": "",
    "registers": ", W_ih in registers",
    "shared": ", W_ih in shared memory",
    "gemm": ", x projected by a GEMM before the launch",
}


# ---- one CTA --------------------------------------------------------------------------------------------------------


def one_cta(
    problem: Problem, device: Device, choices: Mapping[str, Any] | None = None, bundle: Bundle = ONE
) -> Iterator[OneCta]:
    """Yields the plan for one CTA, if W_hh fits on it.  For linked recurrences, W_in of as many columns must fit beside it, and the
    CTAs of all recurrences must fit on the device at once."""
    form = FORMS[kind(problem)]
    h_pad = max(16, 1 << (problem.H - 1).bit_length())
    programs = bundle.count * problem.models * math.ceil(problem.B / 8)
    if bundle.linked and (programs > device.coresident or not (device.cooperative or (choices or {}).get("regime") == "one_cta")):
        return
    if bundle.count > 1:  # the launch pads rows to whole vectors
        problem = replace(problem, I=row_units(problem.I, problem.dtype), H=row_units(problem.H, problem.dtype))
    if not simple(problem):
        words = gates(problem) * h_pad
        if h_pad <= 128 and (words <= form.gated_linked if bundle.linked else words <= form.gated):
            yield _gated(problem, form, h_pad, choices or {}, bundle)
        return
    if h_pad > (form.linked[1] if bundle.linked else form.h_max):
        return
    warps = min(8, h_pad // 16)  # 16 warps would leave 128 registers a thread, too few at H_PAD = 256
    block_b = 8
    crowded = programs > device.sms
    if form.formulation == "mma16" and crowded and problem.B > 8 and h_pad <= 128 and device.capability < 100:
        # Tiles of 8 no longer fit on the chip at once.  On sm_100 a tile of 16 would go to tcgen05, with 4 to 11 barriers.
        block_b = 16
    chunk = form.chunk
    if form.formulation == "fma":
        chunk = max(16, min(chunk, 1 << (problem.I - 1).bit_length()))
    # Ragged rows of 16-bit values take a register an element until they are packed: too many at H_PAD = 256, so W_hh is
    # padded in global memory first, and W_ih gives up its registers.
    ragged_h = h_pad == 256 and problem.H % (h_pad // (8 * warps)) != 0
    home, x_depth = "none", 1
    if bundle.linked:
        home, x_depth = "registers", 2 if h_pad <= form.linked[0] else 1
    elif problem.direction == "forward":
        home = "gemm"
        if not ragged_h and (choices or {}).get("w_ih_home") != "gemm":
            home, x_depth = _w_ih_home(problem, form, h_pad, block_b, chunk, device)
        if home == "gemm" and form.formulation != "fma" and h_pad <= 128:
            x_depth = 2
    # In batch tiles above 8, other products fill the gaps of one chain.
    two_chains = h_pad >= form.two_chains_from and block_b == 8
    if problem.precision == "ieee" and problem.direction == "backward" and 32 <= problem.H != h_pad:
        two_chains = True  # one spills where H is padded (relu, Triton 3.6)
    if problem.dtype == "fp64" and h_pad == form.h_max and device.capability not in (80, 90):
        two_chains = True  # one spills where Triton does not use DMMA
    if bundle.linked and problem.direction == "forward" and problem.precision == "tf32" and h_pad == 128 and device.capability >= 100:
        two_chains = False  # two spill a register
    weights = f"{h_pad * h_pad * SIZES[problem.dtype] / 1024:.3g} KB as padded to {h_pad} units"
    held = "registers and shared memory" if form.formulation == "fma" else "registers"
    where = _HOMES[home] + f" (no room for I={problem.I} beside W_hh)" * (home == "gemm")
    yield OneCta(
        block_b=block_b, warps=warps, formulation=form.formulation, precision=form.precision, accuracy=accuracy(problem),
        h_pad=h_pad, w_ih_home=home, chunk=chunk, chains=2 if two_chains else 1, x_depth=x_depth, pad_w_hh=ragged_h,
        reason=f"W_hh ({weights}) fits in the {held} of one CTA{where}",
    )  # fmt: skip


def _gated(problem: Problem, form: Form, h_pad: int, choices: Mapping[str, Any], bundle: Bundle) -> OneCta:
    """Returns the plan for one CTA of a cell that is not `simple`, of whose gates each has its own products.  W_ih shares registers
    with W_hh, or x is projected by a GEMM: in shared memory W_ih would be read again in every step."""
    number, size, forward = gates(problem), SIZES[problem.dtype], problem.direction == "forward"
    home = "gemm" if forward else "none"
    columns = math.ceil(problem.I / form.chunk) * form.chunk * (2 if _ragged(problem, form) else 1)
    words = number * (h_pad + columns)
    room = form.gated if problem.precision == "tf32x3" else form.gated * 9 // 8  # tf32x3 keeps x in two parts
    if forward and form.formulation != "fma" and words <= room and choices.get("w_ih_home") != "gemm":
        home = "registers"
    if bundle.linked:  # W_in has the size of W_rec in either pass
        home = "registers"
    # Forward the products of the gates fill each other's gaps.  Backward two chains share the barriers of all exchanged tiles.  In the
    # fma form one chain spills.
    two_chains = h_pad >= form.two_chains_from and (not forward or form.formulation == "fma")
    warps = min(8, h_pad // 16)
    # Ragged rows take a register an element until they are packed, so W_hh is padded in global memory first.
    ragged_h = form.formulation != "fma" and problem.H % (h_pad // (8 * warps)) != 0
    weights = f"{number * h_pad * h_pad * size / 1024:.3g} KB as padded to {h_pad} units of {count(number, 'gate')}"
    held = "registers and shared memory" if form.formulation == "fma" else "registers"
    where = _HOMES[home] + f" (no room for I={problem.I} beside W_hh)" * (home == "gemm")
    return OneCta(
        block_b=8, warps=warps, formulation=form.formulation, precision=form.precision, accuracy=accuracy(problem),
        h_pad=h_pad, w_ih_home=home, chunk=form.chunk, chains=2 if two_chains else 1, x_depth=1, pad_w_hh=ragged_h,
        reason=f"W_hh ({weights}) fits in the {held} of one CTA{where}",
    )  # fmt: skip


def count(n: int, one: str, many: str | None = None) -> str:
    """Returns the number n of things with their noun, in the singular or the plural."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def _ragged(problem: Problem, form: Form) -> bool:
    """True if rows of x and W_ih are no whole 16-byte vectors, so that fragments are loaded element by element."""
    return form.formulation != "fma" and problem.I * SIZES[problem.dtype] % 16 != 0


def _w_ih_home(problem: Problem, form: Form, h_pad: int, block_b: int, chunk: int, device: Device) -> tuple[str, int]:
    """Returns (home of W_ih, number of steps of which a thread holds x)."""
    wide, size = int(h_pad == 256), SIZES[problem.dtype]
    # x takes registers in proportion to the batch tile, and twice as many where its rows are no 16-byte vectors.
    chunks = math.ceil(problem.I / chunk) * (block_b // 8) * (2 if _ragged(problem, form) else 1)
    if chunks <= form.registers[wide] - (wide and device.capability >= 100):  # two chunks of bf16 spill a word on sm_100
        # ptxas aims at 128 registers, for two CTAs on an SM, and would spill for that.  So ragged fp32 holds x of one step only, and
        # so does a kernel whose W_hh leaves too few registers for two steps.
        once = wide or chunks > form.twice or _ragged(problem, form)
        return "registers", 1 if once else 2
    shared = h_pad * math.ceil(problem.I / chunk) * chunk * size + 4 * h_pad * block_b * size + 4096
    if form.formulation == "fma":
        shared += h_pad * h_pad * size
    if chunks <= form.shared[wide] and shared <= device.shared_bytes:
        return "shared", 0 if wide else 1
    return "gemm", 1


# ---- a group of CTAs ------------------------------------------------------------------------------------------------


def k_tiles(columns: int, warps: int, dtype: str) -> int:
    """Returns the number of K tiles of a group (16 32-bit words a warp) that `columns` columns take."""
    words = row_units(columns, dtype) * SIZES[dtype] // 4
    return math.ceil(words / (16 * warps))


def state_tiles(problem: Problem, warps: int) -> int:
    """Returns the number of K tiles of what is exchanged: h forward, the gradients of all gates' pre-activations backward."""
    return k_tiles(routes(problem).exchanged * row_units(problem.H, problem.dtype), warps, problem.dtype)


def linked_columns(problem: Problem) -> int:
    """Returns the columns of W_in of linked recurrences: forward the H of the layer below, backward those of the gates above."""
    return problem.H if problem.direction == "forward" else gates(problem) * problem.H


def blocks(problem: Problem) -> int:
    """Returns the number of blocks of weights that multiply a K tile: forward that of a hidden unit's gates, backward 1."""
    return gates(problem) if problem.direction == "forward" else 1


def tile_bytes(problem: Problem, units: int, warps: int) -> int:
    """Returns the bytes of one K tile of a CTA's weights."""
    return blocks(problem) * units * 16 * warps * 4


def group_registers(problem: Problem, plan: CtaGroup, bundle: Bundle = ONE) -> int:
    """Estimates the registers of a thread: for its parts of the weights, of the state and of x, and for the rest."""
    room, tiles = _ROOM[kind(problem)], routes(problem)
    state, rows = state_tiles(problem, plan.warps), blocks(problem) * plan.units
    held, x = state - plan.w_hh_shared, 0
    if plan.w_ih_home in ("registers", "shared"):
        x = k_tiles(problem.I, plan.warps, problem.dtype)
        held += x * (plan.w_ih_home == "registers")
    rest = room.base + room.rows * (plan.block_b // 8 - 1)
    rest += room.staged * rows // 2 * (plan.w_hh_shared > 0 or plan.w_ih_home == "shared")
    rest += room.warps16 * (plan.warps == 16) + room.from_shared * (plan.w_ih_home == "shared")
    rest += room.linked * bundle.linked + room.dropout * bundle.dropout
    own = plan.units * plan.block_b // (32 * plan.warps)  # units and rows
    if not simple(problem):
        rest += room.cell + own * (tiles.parts + tiles.published + tiles.carried + tiles.kept)
    elif problem.direction == "backward":  # dy and y
        rest += own
    accumulators = tiles.parts * plan.chains * plan.units * plan.block_b // 32
    return held * rows // 2 * room.weight + (state + x) * plan.block_b // 2 + accumulators + rest


def group_shared_bytes(problem: Problem, plan: CtaGroup) -> int:
    """Estimates the shared memory of a CTA in bytes: for weights and for the buffer of the reduction over warps."""
    tiles = plan.w_hh_shared
    if plan.w_ih_home == "shared":
        tiles += k_tiles(problem.I, plan.warps, problem.dtype)
    reduction = 4 * routes(problem).parts * plan.warps * plan.units * plan.block_b
    weight = _ROOM[kind(problem)].weight
    return (tiles * tile_bytes(problem, plan.units, plan.warps) + reduction) * weight + _SHARED_EXTRA


def fits(problem: Problem, plan: CtaGroup, device: Device, bundle: Bundle = ONE) -> bool:
    """True if all CTAs of a launch fit on the device at once, and each has enough registers and shared memory."""
    return (
        bundle.count * plan.groups * plan.ctas <= device.coresident
        and group_registers(problem, plan, bundle) <= _REGISTERS[plan.warps]
        and group_shared_bytes(problem, plan) <= device.shared_bytes
    )


def cta_group(problem: Problem, device: Device, choices: Mapping[str, Any], bundle: Bundle = ONE) -> Iterator[CtaGroup]:
    """Yields plans that spread the rows of W_hh over the CTAs of a group and the batch over groups, in each recurrence.  Linked
    recurrences have a W_in of H columns on chip, in either pass."""
    if kind(problem) not in _ROOM or not (device.cooperative or choices.get("regime") == "cta_group"):
        return
    x_loads, look_every = choices.get("x_loads", _X_LOADS[0]), choices.get("look_every", _LOOK_EVERY[0])
    if x_loads not in _X_LOADS or look_every not in _LOOK_EVERY:
        return
    # a CTA that polls a counter loads no state in vain
    delays = {"sentinel": choices.get("probe_delay", _PROBE_DELAY), "counter": 0}
    if delays["sentinel"] not in _PROBE_DELAYS:
        return
    form = FORMS[kind(problem)]
    homes: tuple[str, ...] = ("none",)
    if bundle.linked:
        homes, problem = ("registers", "shared"), replace(problem, I=linked_columns(problem))
    elif problem.direction == "forward":
        homes = ("registers", "shared", "gemm")
    parts = routes(problem).parts
    for units in _UNITS:
        ctas = math.ceil(row_units(problem.H, problem.dtype) / units)
        most = device.coresident // (bundle.count * ctas)
        if not most:
            continue
        for block_b in _BLOCK_B:
            tiles = math.ceil(problem.B / block_b)
            groups = math.ceil(tiles / math.ceil(tiles / min(tiles, most)))  # as even as the fewest rounds allow
            groups = choices.get("groups", groups)
            if not 1 <= groups <= min(tiles, most):
                continue
            for warps in _REGISTERS:
                state = state_tiles(problem, warps)
                # products of four batch tiles, or of several gates, fill the gaps of one chain
                two = state >= _TWO_CHAINS_FROM and block_b < 32 and parts == 1
                chains = choices.get("chains", 2 if two else 1)
                if chains not in (1, 2):
                    return
                if units * block_b > _ONE_PASS * warps:
                    continue
                for home in homes:
                    plan = CtaGroup(
                        block_b=block_b, warps=warps, formulation=form.formulation, precision=form.precision,
                        accuracy=accuracy(problem), units=units, ctas=ctas, groups=groups, w_hh_shared=0,
                        w_ih_home=home, protocol="", x_loads=x_loads, look_every=look_every, probe_delay=0, chains=chains,
                        reason="",
                    )  # fmt: skip
                    plan_on_chip = _on_chip(problem, plan, device, state, choices.get("w_hh_shared"), bundle)
                    if plan_on_chip is not None:
                        for protocol in _PROTOCOLS[: 1 if bundle.linked else 2]:
                            yield _replaced(plan_on_chip, protocol=protocol, probe_delay=delays[protocol])


def _on_chip(
    problem: Problem, plan: CtaGroup, device: Device, state: int, tiles: int | None, bundle: Bundle
) -> CtaGroup | None:
    """Returns the plan with `tiles` of the `state` K tiles of W_hh in shared memory, by default as few as it takes; None if the
    plan does not fit."""
    room = _REGISTERS[plan.warps]
    if tiles is None:
        enough = (n for n in range(state + 1) if group_registers(problem, _replaced(plan, w_hh_shared=n), bundle) <= room)
        tiles = next(enough, None)
        if tiles is None or (tiles and plan.w_ih_home == "registers"):
            return None  # W_ih has to leave the registers first: reading it hides behind the exchange, reading W_hh does not
    if not 0 <= tiles <= state:
        return None
    tile = tile_bytes(problem, plan.units, plan.warps) / 1024
    size, shared = state * tile, tiles * tile
    held = "registers" if not tiles else "shared memory" if tiles == state else f"registers, {shared:.3g} KB shared"
    reason = f"{size:.3g} KB of W_hh a CTA stay on chip ({held}){_HOMES[plan.w_ih_home]}"
    plan = _replaced(plan, w_hh_shared=tiles, reason=reason)
    return plan if fits(problem, plan, device, bundle) else None


def _replaced(plan: CtaGroup, **changes: Any) -> CtaGroup:
    # dataclasses.replace takes several times as long, and there are hundreds of candidates
    return CtaGroup(**{**plan.__dict__, **changes})


# ---- a launch a step ------------------------------------------------------------------------------------------------


def per_step(problem: Problem, device: Device, on_chip: bool, choices: Mapping[str, Any]) -> Iterator[PerStep]:
    """Yields the plan that always exists.  `on_chip` says that a group of CTAs could hold W_hh."""
    form = FORMS[kind(problem)]
    size = SIZES[problem.dtype]
    weights = f"W_hh ({math.ceil(gates(problem) * problem.H**2 * size / 1024)} KB)"
    rows = _STEP_VALUES["block_b"]
    if not simple(problem):  # several accumulators, or saved tiles, take the registers of further rows
        rows = rows[: 1 if size == 8 else 2]
    block_b = min(b for b in rows if b >= min(problem.B, rows[-1]))
    fills = math.ceil(problem.B / block_b) * math.ceil(problem.H / 64) >= device.sms
    # Tiles that compile without spills everywhere (tests/test_per_step.py).  In fp32 only narrow ones do: wide ones become wgmma and
    # tcgen05 in tf32, with dozens of barriers, and spill in tf32x3 and ieee.  In fp64 narrow ones spill, and wide ones with gates.
    wide = simple(problem) and (problem.dtype == "fp64" or (fills and problem.dtype != "fp32"))
    warps = 8 if problem.dtype == "fp64" and block_b == 64 else 4
    tiles = dict(block_b=block_b, block_h=64 if wide else 32, block_k=_STEP_BLOCK_K[size], warps=warps, stages=3)
    if problem.precision in ("tf32x3", "ieee") and not simple(problem):
        tiles["block_k"] = 16  # wider ones spill
    tiles |= {name: choices[name] for name, values in _STEP_VALUES.items() if choices.get(name) in values}
    if on_chip:
        reason = f"reading {weights} again every step is estimated to cost less than exchanging h between CTAs"
    else:
        reason = f"{weights} {_beyond(problem, device)}"
    home = "gemm" if problem.direction == "forward" else "none"
    yield PerStep(
        **tiles, formulation="tiles", precision=form.precision, accuracy=accuracy(problem), w_ih_home=home, reason=reason
    )
