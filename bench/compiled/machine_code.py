"""Machine code and PTX as instructions, their control flow and loops, where the addresses of loads come from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """Of machine code or PTX."""

    opcode: str
    text: str  # operands included, predicate stripped
    predicated: bool
    address: int = 0  # of machine code
    labels: tuple[str, ...] = ()  # in front of it, in PTX


_SASS = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*/\* 0x[0-9a-f]+ \*/", re.M)


def parse_sass(listing: str) -> list[Instruction]:
    """The instructions of `cuobjdump -sass` of a cubin with one kernel."""
    code = []
    for address, text in _SASS.findall(listing):
        predicated = text.startswith("@")
        text = text.split(None, 1)[1] if predicated else text
        code.append(Instruction(text.split()[0], text, predicated, int(address, 16)))
    return code


_LABEL = re.compile(r"^([$\w%.]+):\s*")


def parse_ptx(ptx: str) -> list[Instruction]:
    """The statements of the one .entry of a PTX module; declarations are dropped, labels kept with what follows."""
    text = ptx[ptx.index(".entry") :]
    text = text[text.index("\n{") + 2 :]
    text = re.sub(r"//[^\n]*", "", text)
    text = "\n".join(line for line in text.split("\n") if not re.match(r"\s*\.(loc|file|section|pragma)\b", line))
    code, labels = [], []
    for statement in text.split(";"):
        statement = statement.strip()
        while True:  # scopes and labels stand in front of a statement without a semicolon of their own
            if statement[:1] in ("{", "}"):
                statement = statement[1:].strip()
            elif found := _LABEL.match(statement):
                labels.append(found.group(1))
                statement = statement[found.end() :]
            else:
                break
        predicated = statement.startswith("@")
        if predicated:
            statement = statement.split(None, 1)[1]
        if statement and not statement.startswith("."):
            code.append(Instruction(statement.split()[0], " ".join(statement.split()), predicated, labels=tuple(labels)))
            labels = []
    return code


def sass_flow(code: Sequence[Instruction]) -> list[list[int]]:
    """Successors of each instruction, as indices."""
    index = {instruction.address: i for i, instruction in enumerate(code)}
    resume: dict[str, int] = {}  # convergence barrier -> where its threads go on
    flow = []
    for i, instruction in enumerate(code):
        root = instruction.opcode.split(".")[0]
        targets = [index[int(a, 16)] for a in re.findall(r"\b0x([0-9a-f]+)\b", instruction.text) if int(a, 16) in index]
        following = [i + 1] if i + 1 < len(code) else []
        if root == "BRA":
            conditional = instruction.predicated or "," in instruction.text  # a uniform or divergence condition
            flow.append(targets[-1:] + (following if conditional else []))
        elif root in ("EXIT", "RET", "BRX", "JMX"):
            flow.append(following if instruction.predicated else [])
        elif root == "CALL":  # ptxas also leaves loops by a call that never returns
            flow.append(targets[-1:] + following)
        elif root == "BSSY":
            resume[instruction.text.split()[1].rstrip(",")] = targets[-1] if targets else i + 1
            flow.append(following)
        elif root == "BSYNC":
            target = resume.get(instruction.text.split()[1], i + 1)
            flow.append(sorted({target, *following}))
        else:
            flow.append(following)
    return flow


def ptx_flow(code: Sequence[Instruction]) -> list[list[int]]:
    index = {label: i for i, instruction in enumerate(code) for label in instruction.labels}
    flow = []
    for i, instruction in enumerate(code):
        following = [i + 1] if i + 1 < len(code) else []
        root = instruction.opcode.split(".")[0]
        if root == "bra":
            target = index.get(instruction.text.split()[-1])
            taken = [] if target is None else [target]
            flow.append(taken + (following if instruction.predicated else []))
        elif root in ("ret", "exit", "trap"):
            flow.append(following if instruction.predicated else [])
        else:
            flow.append(following)
    return flow


class Graph:
    """The instructions of one kernel, and the natural loops of their control flow as sets of indices."""

    def __init__(self, code: list[Instruction], flow: Callable[[Sequence[Instruction]], list[list[int]]]):
        import networkx  # torch depends on it

        self.code = code
        successors = flow(code)
        leaders = {0} | {s for i, out in enumerate(successors) for s in out if out != [i + 1]}
        leaders |= {i + 1 for i, out in enumerate(successors) if out != [i + 1] and i + 1 < len(code)}
        starts = sorted(leaders)
        blocks = {a: range(a, b) for a, b in zip(starts, [*starts[1:], len(code)])}  # by their first instruction
        edges = networkx.DiGraph([(a, following) for a, block in blocks.items() for following in successors[block[-1]]])
        edges.add_node(0)
        edges = edges.subgraph({0} | networkx.descendants(edges, 0)).copy()
        above = networkx.immediate_dominators(edges, 0)
        bodies: dict[int, set[int]] = {}
        for block in edges:
            header = block  # and then every other dominator of the block
            while header is not None:
                if edges.has_edge(block, header):  # backwards: all that reaches the block without passing the header is in its loop
                    body = bodies.setdefault(header, {header})
                    if block != header:
                        body |= {block} | networkx.ancestors(edges.subgraph(edges.nodes - {header}).copy(), block)
                header = above[header] if header else None
        self.loops = [{i for block in body for i in blocks[block]} for body in bodies.values()]


def time_loop(graph: Graph, stores: Callable[[Instruction], bool], where: str) -> tuple[list[Instruction], list[list[Instruction]]]:
    """The instructions of the time loop in address order, and those of each loop inside it."""
    outermost = [loop for loop in graph.loops if not any(loop < other for other in graph.loops)]

    def rank(loop: set[int]) -> tuple[bool, int, int]:
        stored = sum(stores(graph.code[i]) for i in loop)
        return stored > 0 and any("MMA" in graph.code[i].opcode.upper() for i in loop), stored, len(loop)

    ranked = sorted(outermost, key=rank, reverse=True)
    if not ranked or not any(stores(graph.code[i]) for i in ranked[0]):
        raise ValueError(f"{where} has no loop with a global store: no time loop")
    inner = [[graph.code[i] for i in sorted(loop)] for loop in graph.loops if loop < ranked[0]]
    return [graph.code[i] for i in sorted(ranked[0])], inner


def stores_globally(instruction: Instruction) -> bool:
    return instruction.opcode.startswith("st.") and ".global" in instruction.opcode


def polls(instruction: Instruction) -> bool:
    """Reads what another CTA of the launch may just be writing, again and again (ld.relaxed.gpu, ld.acquire.gpu)"""
    return instruction.opcode.startswith(("LDG", "LD.")) and "STRONG.GPU" in instruction.opcode


def load_arguments(code: Sequence[Instruction], loop: Iterable[Instruction], ptx: str, names: Sequence[str], steps: int) -> dict[str, float]:
    """Pointer argument -> number of global loads a step in `loop` whose address is computed from it (flow-insensitive)."""
    pointers = re.findall(r"\.param \.[ub]64 \.ptr\S* [^\n]*?(\w+_param_(\d+))", ptx)
    pointer_names = {p: names[int(i)] if int(i) < len(names) else f"param_{i}" for p, i in pointers}
    definitions: dict[str, list[str]] = {}
    for instruction in code:
        target, _, operands = _operands(instruction)
        for register in re.findall(r"%\w+", target):
            definitions.setdefault(register, []).append(f"{instruction.opcode} {operands}")
    found: Counter[str] = Counter()
    for instruction in loop:
        if not re.match(r"(ld\.(volatile\.|relaxed\.\w+\.|acquire\.\w+\.)?global|cp\.async\S*\.global)", instruction.opcode):
            continue
        address = re.findall(r"\[([^\]]*)\]", instruction.text)[-1]
        seen, work, reached = set(), re.findall(r"%\w+", address), set()
        while work:
            register = work.pop()
            if register in seen:
                continue
            seen.add(register)
            for operation in definitions.get(register, ()):
                reached |= {pointer_names[p] for p in re.findall(r"\[\s*(\w+)\s*\]", operation) if p in pointer_names}
                if not operation.startswith("ld."):  # a loaded value is data, not part of the address's origin
                    work.extend(re.findall(r"%\w+", operation))
        found.update(reached)
    return {name: ratio(count, steps) for name, count in sorted(found.items())}


def _operands(instruction: Instruction) -> tuple[str, str, str]:
    """(destination, separator, sources) of a PTX instruction; no destination for stores, barriers and branches."""
    text = instruction.text[len(instruction.opcode) :].strip()
    if text.startswith("["):
        return "", "", text
    if text.startswith("{"):
        end = text.index("}") + 1
        return text[:end], ",", text[end:]
    return text.partition(",")


def count_of(code: Iterable[Instruction], *prefixes: str) -> int:
    return sum(i.opcode.startswith(prefixes) for i in code)


def ratio(count: int, unroll: int) -> float:
    return count // unroll if count % unroll == 0 else count / unroll


def width_of(opcode: str) -> int:
    """Bytes per thread of a SASS memory instruction."""
    sizes = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
    return next((sizes[part] for part in opcode.split(".") if part in sizes), 4)
