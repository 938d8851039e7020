"""What a compiled kernel uses, read from its machine code and PTX: nothing is run, no GPU is needed.

The time loop is found in both views by control flow, not by text order: basic blocks, dominators, natural loops. It is the outermost loop
with the most global stores (the state is stored once a step, so every time loop has one), and where there are tensor core instructions, one
that has them too: loops before and after it copy.

Triton unrolls a loop where the kernel says so, which its IR shows, and ptxas unrolls short loops, often by four; both leave a remainder
loop behind. What ptxas did is the ratio of global stores in the machine-code loop to those in the PTX loop, for it neither merges nor
splits them. Counts of the machine-code loop are divided by both factors, and all `per step` numbers mean one step. An inner loop is counted
once, not once per trip, and one that polls for another CTA not at all: a step that finds everything there does not enter it. """

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import machine_code as code
from .machine_code import Graph, count_of, ratio, time_loop, width_of

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
    # per step, in the time loop
    instructions: float
    barriers: float  # CTA barriers (BAR.SYNC, BAR.ARV, BAR.RED)
    global_loads: dict[int, float]  # bytes per thread and load -> loads (LDG, LD, LDGSTS)
    global_load_arguments: dict[str, float]  # pointer argument -> loads whose address derives from it
    global_stores: dict[int, float]  # bytes per thread and store -> stores
    shared_loads: float  # LDS, LDSM
    shared_stores: float  # STS, STSM
    mma: float  # HMMA, HGMMA, IMMA, DMMA, UTCHMMA
    shuffles: float
    l2_prefetches: float  # CCTL.PF2

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form: the keys of the width tables become strings."""
        return asdict(self) | {name: {str(w): n for w, n in getattr(self, name).items()} for name in ("global_loads", "global_stores")}


class Loops(NamedTuple):
    """The time loop of a kernel, in machine code and in PTX."""

    machine: Graph
    virtual: Graph
    body: list[code.Instruction]
    inner: list[list[code.Instruction]]
    waiting: list[code.Instruction]  # of the body, in inner loops that poll
    trip: list[code.Instruction]
    steps: int  # a trip of the PTX's loop
    unroll: int  # steps a trip of the machine code's
    usage: tuple[int, int, int]  # registers, stack bytes, static shared bytes


@functools.lru_cache(maxsize=1)
def time_loops(kernel: Any) -> Loops:
    """ValueError where the time loop cannot be told apart."""
    name, steps = kernel.metadata.name, _steps_a_trip(kernel.asm["ttgir"])
    usage, listing = _cuobjdump(kernel.asm["cubin"])
    machine = Graph(code.parse_sass(listing), code.sass_flow)
    virtual = Graph(code.parse_ptx(kernel.asm["ptx"]), code.ptx_flow)
    body, inner = time_loop(machine, lambda i: i.opcode.startswith(("STG", "ST.")), f"the machine code of {name}")
    trip, _ = time_loop(virtual, code.stores_globally, f"the PTX of {name}")
    stores, stores_per_trip = count_of(body, "STG", "ST."), sum(map(code.stores_globally, trip))
    unroll, rest = divmod(stores, stores_per_trip)
    if rest or not unroll:
        raise ValueError(
            f"{name}: {stores} global stores in the machine code's time loop against {stores_per_trip} in the PTX's: "
            "the loop cannot be normalised to one step"
        )
    waiting = [i for loop in inner for i in loop if any(map(code.polls, loop))]
    return Loops(machine, virtual, body, inner, waiting, trip, steps, unroll * steps, usage)


def analyze(kernel: Any) -> Resources:
    """Resources of a triton CompiledKernel (NVIDIA). ValueError where the time loop cannot be told apart."""
    loops = time_loops(kernel)
    (registers, stack, static_shared), unroll = loops.usage, loops.unroll
    waiting = set(map(id, loops.waiting))
    body = [i for i in loops.body if id(i) not in waiting]
    names = _argument_names(kernel.src.signature)

    def per_step(*prefixes: str) -> float:
        return ratio(count_of(body, *prefixes), unroll)

    def widths(*prefixes: str) -> dict[int, float]:
        found = Counter(width_of(i.opcode) for i in body if i.opcode.startswith(prefixes))
        return {width: ratio(count, unroll) for width, count in sorted(found.items())}

    return Resources(
        name=kernel.metadata.name, arch=f"sm_{kernel.metadata.target.arch}", warps=kernel.metadata.num_warps,
        registers=registers, stack_bytes=stack, spill_stores=count_of(loops.machine.code, "STL"),
        spill_loads=count_of(loops.machine.code, "LDL"),
        shared_bytes=kernel.metadata.shared + max(0, static_shared - RESERVED_SHARED), unroll=unroll,
        instructions=ratio(len(body), unroll), barriers=per_step("BAR."), global_loads=widths("LDG.", "LD.", "LDGSTS"),
        global_load_arguments=code.load_arguments(loops.virtual.code, loops.trip, kernel.asm["ptx"], names, loops.steps),
        global_stores=widths("STG", "ST."), shared_loads=per_step("LDS"), shared_stores=per_step("STS"),
        mma=per_step("HMMA", "HGMMA", "IMMA", "IGMMA", "DMMA", "UTCHMMA", "UTCQMMA"), shuffles=per_step("SHFL"),
        l2_prefetches=per_step("CCTL.E.PF2", "CCTL.PF2"),
    )  # fmt: skip


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
