"""Where machine code reads a loaded value first: how far ahead the loads of a time loop run."""

import re
from dataclasses import dataclass

from bench.compiled import machine_code, resources


def of(kernel):
    """(fewest instructions from a load of the time loop itself to the first that reads its registers, in steps; how many loads are
    first read by a move in the same trip, which waits for them and does nothing else)"""
    loop = resources.time_loops(kernel)
    reads = first_reads(loop.body, loop.inner)
    own = len(loop.body) - len({id(i) for i in loop.waiting})
    behind = min((round(read.behind * loop.unroll / own, 2) for read in reads), default=None)
    return behind, sum(read.moves and read.same_trip for read in reads)


@dataclass(frozen=True)
class FirstRead:
    """The first instruction behind a global load that reads one of its registers."""

    opcode: str
    behind: int  # instructions from the load to it
    same_trip: bool

    @property
    def moves(self):
        return self.opcode.startswith(("MOV", "IMAD.MOV"))


_REGISTER = re.compile(r"\bR(\d+)(\.64)?")
_NO_RESULT = ("ST", "BAR", "BRA", "CCTL", "RED", "R2UR")
_MMA_REGISTERS = {"16816": (4, 2, 4), "1688.F32.TF32": (4, 2, 4), "1684": (2, 1, 4), "DMMA": (2, 2, 4)}


def first_reads(body, inner=()):
    """Of each global load of a loop that is in none of the inner loops, in address order."""
    nested = {id(i) for loop in inner for i in loop}
    found = []
    for at, load in enumerate(body):
        if not load.opcode.startswith(("LDG.", "LD.")) or id(load) in nested:
            continue
        first = _REGISTER.search(load.text)
        if first is None:
            continue
        registers = range(int(first[1]), int(first[1]) + max(1, machine_code.width_of(load.opcode) // 4))
        for behind in range(1, len(body)):
            reader = body[(at + behind) % len(body)]
            if any(start < registers.stop and registers.start < stop for start, stop in _reads(reader)):
                found.append(FirstRead(reader.opcode, behind, at + behind < len(body)))
                break
    return found


def _reads(instruction):
    """The ranges of registers that an instruction reads."""
    opcode, operands = instruction.opcode, instruction.text[len(instruction.opcode) :].split(",")
    root = opcode.split(".")[0]
    sources = operands if root.startswith(_NO_RESULT) or root.endswith("SETP") else operands[1:]
    widths = next((w for shape, w in _MMA_REGISTERS.items() if shape in opcode), None) if "MMA" in root else None
    found = []
    for position, operand in enumerate(sources):
        for number, pair in _REGISTER.findall(operand):
            width = 2 if pair or root.startswith("D") else 1
            if "[" not in operand:
                if root.startswith("ST"):
                    width = _matrices(opcode) if root == "STSM" else max(1, machine_code.width_of(opcode) // 4)
                elif widths:
                    width = widths[position]
            found.append((int(number), int(number) + width))
    return found


def _matrices(opcode):
    count = opcode.rpartition(".")[2]
    return int(count) if count.isdigit() else 1
