"""What a compiled kernel uses, read from its machine code and PTX: nothing is run, no GPU is needed.

The time loop is found in both views by control flow, not by text order: basic blocks, dominators, natural loops. It
is the outermost loop with the most global stores (the state is stored once a step, so every time loop has one), and
where there are tensor core instructions, one that has them too: loops before and after it copy.

Triton unrolls a loop where the kernel says so, which its IR shows, and ptxas unrolls short loops, often by four; both
leave a remainder loop behind. What ptxas did is the ratio of global stores in the machine-code loop to those in the PTX
loop, for it neither merges nor splits them. Counts of the machine-code loop are divided by both factors, and all `per
step` numbers mean one step.
An inner loop (a wait, say) is counted once, not once per trip: `inner_loops` says how many there are. A loop
that polls for another CTA is not counted: a step that finds everything there does not enter it.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .machine_code import (
    Graph,
    SassInstruction,
    count_of,
    first_reads,
    load_arguments,
    parse_ptx,
    parse_sass,
    polls,
    ptx_flow,
    ratio,
    sass_flow,
    stores_globally,
    time_loop,
    width_of,
)

RESERVED_SHARED = 1024  # bytes of static shared memory the driver keeps per CTA and cuobjdump counts in (sm_90 on)


@dataclass(frozen=True)
class Resources:
    """One kernel. Counts are instructions of one warp; bytes are per CTA."""

    name: str
    arch: str  # "sm_90"
    warps: int
    registers: int  # 32-bit, per thread
    stack_bytes: int  # per thread
    spill_stores: int  # STL in the whole kernel
    spill_loads: int  # LDL in the whole kernel
    shared_bytes: int  # static and dynamic, per CTA
    unroll: int  # steps per trip of the machine-code loop
    inner_loops: int  # loops inside the time loop
    # per step, in the time loop
    instructions: float
    barriers: float  # CTA barriers (BAR.SYNC, BAR.ARV, BAR.RED)
    global_loads: dict[int, float]  # bytes per thread and load -> loads (LDG, LD, LDGSTS)
    global_load_arguments: dict[str, float]  # pointer argument -> loads whose address derives from it
    global_stores: dict[int, float]  # bytes per thread and store -> stores
    shared_loads: float  # LDS, LDSM
    shared_stores: float  # STS, STSM
    mma: float  # HMMA, HGMMA, IMMA, DMMA, UTCHMMA
    fma: float  # FFMA, DFMA, HFMA2
    mufu: float
    shuffles: float
    l2_prefetches: float  # CCTL.PF2
    # of the global loads that the time loop does itself, outside of its inner loops
    read_behind: float | None  # fewest instructions from a load to the first that reads its registers, in steps
    moved: int  # loads that are first read by a move in the same trip, which waits for them and does nothing else
    estimated_cycles: float  # an estimate: see estimate_cycles()

    @property
    def global_load_bytes(self) -> float:
        """Upper bound on bytes a CTA loads from global memory per step: every lane of every warp active."""
        return 32 * self.warps * sum(width * count for width, count in self.global_loads.items())

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form: the keys of the width tables become strings."""
        out = asdict(self)
        for field in ("global_loads", "global_stores"):
            out[field] = {str(width): count for width, count in out[field].items()}
        return out


def analyze(kernel: Any) -> Resources:
    """Resources of a triton CompiledKernel (NVIDIA). ValueError where the time loop cannot be told apart."""
    return from_code(
        kernel.asm["cubin"],
        kernel.asm["ptx"],
        name=kernel.metadata.name,
        warps=kernel.metadata.num_warps,
        dynamic_shared=kernel.metadata.shared,
        capability=kernel.metadata.target.arch,
        arguments=_argument_names(kernel.src.signature),
        steps=_steps_a_trip(kernel.asm["ttgir"]),
    )


def from_code(
    cubin: bytes, ptx: str, *, name: str, warps: int, dynamic_shared: int, capability: int, arguments: Sequence[str],
    steps: int = 1,
) -> Resources:  # fmt: skip
    """As analyze(), from the pieces. `arguments` names the PTX parameters in order; missing ones stay param_<i>.
    `steps`: of a trip of the PTX's time loop."""
    usage, listing = _cuobjdump(cubin)
    registers, stack, static_shared = usage
    machine = Graph(parse_sass(listing), sass_flow)
    virtual = Graph(parse_ptx(ptx), ptx_flow)
    body, inner = time_loop(machine, lambda i: i.opcode.startswith(("STG", "ST.")), f"the machine code of {name}")
    trip, _ = time_loop(virtual, stores_globally, f"the PTX of {name}")

    stores = count_of(body, "STG", "ST.")
    stores_per_trip = sum(map(stores_globally, trip))
    unroll, rest = divmod(stores, stores_per_trip)
    if rest or not unroll:
        raise ValueError(
            f"{name}: {stores} global stores in the machine code's time loop against {stores_per_trip} in the PTX's: "
            "the loop cannot be normalised to one step"
        )
    unroll *= steps
    reads = first_reads(body, inner)
    waiting = {id(i) for loop in inner for i in loop if any(map(polls, loop))}
    body = [i for i in body if id(i) not in waiting]

    def per_step(*prefixes: str) -> float:
        return ratio(count_of(body, *prefixes), unroll)

    def widths(*prefixes: str) -> dict[int, float]:
        found = Counter(width_of(i.opcode) for i in body if i.opcode.startswith(prefixes))
        return {width: ratio(count, unroll) for width, count in sorted(found.items())}

    return Resources(
        name=name,
        arch=f"sm_{capability}",
        warps=warps,
        registers=registers,
        stack_bytes=stack,
        spill_stores=count_of(machine.code, "STL"),
        spill_loads=count_of(machine.code, "LDL"),
        shared_bytes=dynamic_shared + max(0, static_shared - RESERVED_SHARED),
        unroll=unroll,
        inner_loops=sum(not any(map(polls, loop)) for loop in inner),
        instructions=ratio(len(body), unroll),
        barriers=per_step("BAR."),
        global_loads=widths("LDG.", "LD.", "LDGSTS"),
        global_load_arguments=load_arguments(virtual.code, trip, ptx, arguments, steps),
        global_stores=widths("STG", "ST."),
        shared_loads=per_step("LDS"),
        shared_stores=per_step("STS"),
        mma=per_step("HMMA", "HGMMA", "IMMA", "IGMMA", "DMMA", "UTCHMMA", "UTCQMMA"),
        fma=per_step("FFMA", "DFMA", "HFMA2"),
        mufu=per_step("MUFU"),
        shuffles=per_step("SHFL"),
        l2_prefetches=per_step("CCTL.E.PF2", "CCTL.PF2"),
        read_behind=min((round(read.behind * unroll / len(body), 2) for read in reads), default=None),
        moved=sum(read.moves and read.same_trip for read in reads),
        estimated_cycles=round(estimate_cycles(body) / unroll, 1),
    )


# ---- an estimate of the time ----------------------------------------------------------------------------------------

# Cycles until a variable-latency instruction's result can be used, Hopper; others 20. Global loads: an L2 hit.
LATENCY = {
    "LDG": 260, "LD": 260, "LDGSTS": 260, "LDS": 29, "LDSM": 33, "SHFL": 23, "MUFU": 22, "LDL": 35, "LDC": 30,
    "HMMA": 24, "MOVM": 30,
}  # fmt: skip
BARRIER = 22  # an uncontended BAR.SYNC
GMMA_INTERVAL, GMMA_DRAIN = 16, 20


def estimate_cycles(body: Sequence[SassInstruction], trips: int = 8) -> float:
    """Cycles per trip of a loop for ONE warp issuing in order: an estimate, nothing was timed.

    Follows the stall counts and scoreboards the assembler wrote into the control bits, over several trips so that
    loads carried across the back edge overlap; returns the mean of the later half. Other warps, bank conflicts and
    cache misses are not in it.
    """
    clock, tensor, scoreboard = 0, 0, [0] * 6
    marks = []
    for _ in range(trips):
        for instruction in body:
            control = instruction.control
            stall = control >> 41 & 0xF
            sets, reads, waits = control >> 46 & 7, control >> 49 & 7, control >> 52 & 0x3F
            clock = max([clock, *(scoreboard[i] for i in range(6) if waits >> i & 1)])
            root = instruction.opcode.split(".")[0]
            if root == "BAR":
                clock += BARRIER
            elif "GMMA" in root:
                tensor = max(tensor, clock) + GMMA_INTERVAL
            elif instruction.opcode.startswith("WARPGROUP.DEPBAR"):
                clock = max(clock, tensor + GMMA_DRAIN)
            if sets < 6:
                scoreboard[sets] = max(scoreboard[sets], clock + LATENCY.get(root, 20))
            if reads < 6:
                scoreboard[reads] = max(scoreboard[reads], clock + 12)
            clock += max(1, stall)
        marks.append(clock)
    half = trips // 2
    return (marks[-1] - marks[half - 1]) / (trips - half)


# ---- Triton's own unrolling -----------------------------------------------------------------------------------------


def _steps_a_trip(ttgir: str) -> int:
    """Of the time loop, the first with a store in it; a time loop counts steps one by one."""
    lines = ttgir.splitlines()
    for at, line in enumerate(lines):
        if found := re.match(r"(\s*).*\bscf\.for\b.*? step %c(\d+)_", line):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].startswith(found[1] + "}"))
            if any(re.search(r"\btt\.store\b", inside) for inside in lines[at:end]):
                return int(found[2])
    return 1


def _argument_names(signature: dict[str, Any]) -> list[str]:
    """Names of the arguments that reach PTX, in order; the members of a tuple argument as name.0, name.1."""

    def flatten(name: str, kind: Any) -> list[str]:
        if isinstance(kind, (tuple, list)):
            return [leaf for i, part in enumerate(kind) for leaf in flatten(f"{name}.{i}", part)]
        return [] if kind == "constexpr" else [name]

    return [leaf for name, kind in signature.items() for leaf in flatten(name, kind)]


def _cuobjdump(cubin: bytes) -> tuple[tuple[int, int, int], str]:
    """((registers, stack bytes, static shared bytes), SASS listing) by the cuobjdump that triton ships."""
    from triton import knobs

    tool = knobs.nvidia.cuobjdump.path
    # nvdisasm, which cuobjdump calls, lies beside it and need not be on the PATH
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(tool).parent), os.environ.get("PATH", "")])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [tool, "-res-usage", "-sass", str(path)]
        output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", output)
    if not found:
        raise ValueError(f"cuobjdump -res-usage printed no usage: {output[:200]!r}")
    registers, stack, shared = map(int, found.groups())
    return (registers, stack, shared), output
