"""A program's basic blocks, and the order in which lanes that have parted run them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

from .parser import Instruction, Program

WAITING_LOADS = ("volatile", "relaxed", "acquire", "mmio")


def is_visible(ins: Instruction) -> str:
    """What other CTAs can notice: "load" that may wait, "store", or nothing"""
    p = ins.parts
    if "shared" in p or "shared::cta" in p:
        return ""
    if p[0] == "ld" and any(w in p for w in WAITING_LOADS):
        return "load"
    if p[0] in ("st", "red", "atom") and ("global" in p or p[1] != "param"):
        return "store"
    return ""


class Block:
    def __init__(self, number: int, code: list[Instruction]) -> None:
        self.number, self.code = number, code
        self.kind = "fall"  # "bra", "branch" (conditional), "ret", "bar"
        self.target = self.next = -1
        self.polls = any(is_visible(i) == "load" for i in code)
        self.waits = False  # is it the end of a loop in which something polls?
        self.full: Any = None  # translate.py's functions, made when first needed
        self.masked: Any = None
        self.size = len(code)

    @property
    def successors(self) -> list[int]:
        ends = {"fall": [self.next], "bar": [self.next], "bra": [self.target], "branch": [self.next, self.target]}
        return ends.get(self.kind, [self.next] if self.kind == "condret" else [])


def blocks(p: Program) -> list[Block]:
    """Numbered so that where lanes have parted those with the smallest number go first, until all are together again: every
    block comes after those that lead to it, and what follows a loop after all of the loop."""
    text = cut(p)
    order = weak_order([[s for s in b.successors if s < len(text)] for b in text])
    number = {old: new for new, old in enumerate(order)} | {-1: -1, len(text): len(text)}
    result = [text[old] for old in order]
    for b in result:
        b.number, b.next, b.target = number[b.number], number[b.next], number[b.target]
    for b in result:
        if b.kind == "branch" and b.target <= b.number:
            b.waits = any(other.polls for other in result[b.target : b.number + 1])
    return result


def weak_order(successors: list[list[int]]) -> list[int]:
    """A weak topological order (Bourdoncle 1993) of a graph that is entered at node 0: the nodes of a loop are together, its
    entry first, and but for the ends of loops every node comes after those that lead to it.  Among several such orders the
    one nearest to the numbers'."""
    order: list[int] = []

    def visit(nodes: set[int], entry: int | None) -> None:
        entered = {s for n, targets in enumerate(successors) if n not in nodes for s in targets} | {entry}
        for component in _components(successors, nodes):
            if len(component) == 1:
                order.extend(component)
                continue
            inside = {s for n in nodes - component for s in successors[n]} | entered
            head = min(component & inside or component)
            order.append(head)
            visit(component - {head}, None)

    visit(set(range(len(successors))), 0)
    return order


def _components(successors: list[list[int]], nodes: set[int]) -> Iterator[set[int]]:
    """The strongly connected components of these nodes, each after those that lead to it (Tarjan's algorithm, and Kahn's)"""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    component: dict[int, int] = {}  # of a node, by its smallest number
    members: dict[int, set[int]] = {}
    for root in sorted(nodes):
        if root in index:
            continue
        index[root] = low[root] = len(index)
        stack.append(root)
        path = [(root, iter(successors[root]))]
        while path:
            node, targets = path[-1]
            for target in targets:
                if target not in nodes:
                    continue
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    path.append((target, iter(successors[target])))
                    break
                if target not in component:
                    low[node] = min(low[node], index[target])
            else:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[node])
                if low[node] == index[node]:
                    at = stack.index(node)
                    whole = set(stack[at:])
                    del stack[at:]
                    members[min(whole)] = whole
                    component.update(dict.fromkeys(whole, min(whole)))
    after = {c: {component[s] for n in whole for s in successors[n] if s in nodes} - {c} for c, whole in members.items()}
    waits = dict.fromkeys(members, 0)
    for targets in after.values():
        for c in targets:
            waits[c] += 1
    ready = [c for c, n in waits.items() if n == 0]
    heapq.heapify(ready)
    while ready:
        c = heapq.heappop(ready)
        yield members[c]
        for target in after[c]:
            waits[target] -= 1
            if waits[target] == 0:
                heapq.heappush(ready, target)


def cut(p: Program) -> list[Block]:
    """The program in the order of its text, cut at labels, branches and barriers, and, where CTAs talk to each other, around what others can notice"""
    talk = any(is_visible(i) == "load" or i.parts[0] in ("red", "atom") for i in p.code)
    starts = {0} | {i.target for i in p.code if i.target is not None}
    for n, ins in enumerate(p.code):
        if ins.parts[0] in ("bra", "ret", "exit", "trap") or is_barrier(ins):
            starts.add(n + 1)
        if talk and is_visible(ins):
            starts.update((n, n + 1))
    order = sorted(s for s in starts if s < len(p.code))
    number = {s: k for k, s in enumerate(order)}
    number[len(p.code)] = len(order)
    out = []
    for k, s in enumerate(order):
        end = order[k + 1] if k + 1 < len(order) else len(p.code)
        b = Block(k, p.code[s:end])
        b.next = k + 1
        last = b.code[-1] if b.code else None
        if last is not None:
            if last.parts[0] == "bra":
                b.kind = "branch" if last.pred is not None else "bra"
                b.target = number[last.target]
            elif last.parts[0] in ("ret", "exit"):
                b.kind = "ret" if last.pred is None else "condret"
            elif is_barrier(last):
                b.kind = "bar"
        out.append(b)
    return out


def is_barrier(ins: Instruction) -> bool:
    return (ins.parts[0] == "bar" and ins.parts[1] == "sync") or (ins.parts[0] == "barrier" and "sync" in ins.parts)
