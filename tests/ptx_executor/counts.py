"""Dynamic counts of launches: instructions, CTA barriers, bank conflicts, bytes and sectors by argument.

Sectors, wavefronts and bank conflicts are counted where a launch runs with counting=True.  `per_step` takes what is the same
in two runs of different length away, so that what comes before and after a loop drops out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from .launch import Launch
from .parser import Instruction, Program


@dataclass
class Counts:
    """Sums over warps and CTAs"""

    ctas: int = 0
    warps: int = 0  # of all CTAs together
    barriers: float = 0.0  # of CTAs
    instructions: float = 0.0  # of warps, without those of polls that were run again
    spins: float = 0.0  # those
    opcodes: Counter[str] = field(default_factory=Counter)  # of `instructions`; ld and st by their space: "ld.shared"
    wavefronts: Counter[str] = field(default_factory=Counter)  # of shared memory, by opcode
    conflicts: Counter[str] = field(default_factory=Counter)  # wavefronts beyond the fewest that the accesses need
    conflict_sites: Counter[str] = field(default_factory=Counter)  # the same by source line and instruction
    loaded: Counter[str] = field(default_factory=Counter)  # bytes of global memory, by argument
    stored: Counter[str] = field(default_factory=Counter)
    load_sectors: Counter[str] = field(default_factory=Counter)  # of 32 bytes
    store_sectors: Counter[str] = field(default_factory=Counter)


def count(launch: Launch) -> Counts:
    """Of a launch that has ended"""
    blocks = launch.program.blocks
    polls = _polls(launch.program)
    ctas = math.prod(launch.grid)
    counts = Counts(ctas=ctas, warps=ctas * launch.warps, barriers=launch.barriers)
    for block, runs in launch.runs.items():
        if block in polls:
            counts.spins += runs * blocks[block].size
            continue
        counts.instructions += runs * blocks[block].size
        for instruction in blocks[block].code:
            counts.opcodes[_opcode(instruction)] += runs
    for name in ("wavefronts", "conflicts", "conflict_sites"):
        getattr(counts, name).update(getattr(launch, name))
    for extent in launch.extents:
        for name in ("loaded", "stored", "load_sectors", "store_sectors"):
            getattr(counts, name)[extent.name] += getattr(extent, name)
    return counts


def total(launches: Iterable[Launch]) -> Counts:
    """Of the launches of a pass together; `ctas` and `warps` are those of the last one"""
    result = Counts()
    for launch in launches:
        counts = count(launch)
        result = Counts(*(
            getattr(counts, f.name) if f.name in ("ctas", "warps") else getattr(result, f.name) + getattr(counts, f.name)
            for f in fields(Counts)
        ))  # fmt: skip
    return result


def per_step(short: Counts, long: Counts, steps: int) -> Counts:
    """What each of the `steps` steps takes that `long` has more than `short`; `ctas` and `warps` are `long`'s"""

    def difference(name: str) -> object:
        few, many = getattr(short, name), getattr(long, name)
        if name in ("ctas", "warps"):
            return many
        if isinstance(many, Counter):
            return Counter({k: (many[k] - few[k]) / steps for k in many | few if many[k] != few[k]})
        return (many - few) / steps

    return Counts(*(difference(f.name) for f in fields(Counts)))


def _polls(program: Program) -> set[int]:
    """Blocks of inline assembly that are run again where a poll was in vain"""
    polls: set[int] = set()
    for block in program.blocks:
        if block.kind == "branch" and block.target <= block.number and block.code[-1].inline:
            polls.update(range(block.target, block.number + 1))
    return polls


def _opcode(instruction: Instruction) -> str:
    parts = instruction.parts
    if parts[0] not in ("ld", "st"):
        return parts[0]
    return f"{parts[0]}.{next((space for space in ('shared', 'param') if space in parts), 'global')}"
