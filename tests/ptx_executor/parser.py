"""PTX text -> Program: parameters, registers, and a list of instructions with resolved operands and branch targets."""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass, field
from typing import Any

from .errors import PtxSyntaxError

WIDTHS = {"pred": 1, "b8": 8, "s8": 8, "u8": 8, "b16": 16, "s16": 16, "u16": 16, "f16": 16, "bf16": 16}
WIDTHS |= {"b32": 32, "s32": 32, "u32": 32, "f32": 32, "f16x2": 32, "bf16x2": 32, "b64": 64, "s64": 64, "u64": 64, "f64": 64}
WIDTHS |= {"b128": 128}


@dataclass(frozen=True)
class Register:
    """A register: its number, its width in bits (1: a predicate)"""

    index: int
    width: int
    name: str


@dataclass(frozen=True)
class Immediate:
    """An integer (value) or a float given by its bits"""

    value: int
    kind: str = "int"  # "int", "f32", "f64"


@dataclass(frozen=True)
class Special:
    name: str


@dataclass(frozen=True)
class Symbol:
    name: str


@dataclass(frozen=True)
class Address:
    base: Any  # Register, Symbol or Immediate
    offset: int


@dataclass(frozen=True)
class Vector:
    items: tuple[Any, ...]


@dataclass(frozen=True)
class Pair:
    """p|q"""

    first: Any
    second: Any


@dataclass(frozen=True)
class Negation:
    reg: Register


@dataclass
class Instruction:
    op: str
    parts: tuple[str, ...]
    operands: tuple[Any, ...]
    pred: Register | None
    negated: bool
    text: str
    loc: tuple[int, int]  # file number, line
    inline: bool = False
    target: int | None = None  # of a branch: number of an instruction


@dataclass
class Program:
    name: str
    params: list[tuple[str, str]]  # name, type
    widths: list[int]  # of registers
    names: list[str]
    code: list[Instruction]
    labels: dict[int, str]  # instruction number -> label
    files: dict[int, str]
    shared: dict[str, int]  # offsets of static shared arrays; extern ones at the end
    static_shared: int
    text: str
    blocks: list[Any] = field(default_factory=list)  # of translate.py

    def where(self, ins: Instruction) -> str:
        file = self.files.get(ins.loc[0], "?")
        return f"{file}:{ins.loc[1]}: {ins.text}"


_REG = re.compile(r"\.reg\s+\.(\w+)\s+([^;]+);")
_NUMBERED = re.compile(r"([\w$%]+)<(\d+)>")
_LABEL = re.compile(r"([\w$]+)\s*:")
_FLOAT = re.compile(r"0[fF]([0-9a-fA-F]{8})$|0[dD]([0-9a-fA-F]{16})$")
_INT = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|\d+)U?$")


class _Scope:
    def __init__(self, parent: _Scope | None) -> None:
        self.parent = parent
        self.regs: dict[str, Register] = {}
        self.labels: dict[str, int] = {}

    def find(self, name: str) -> Register | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.regs:
                return scope.regs[name]
            scope = scope.parent
        return None

    def label(self, name: str) -> int | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.labels:
                return scope.labels[name]
            scope = scope.parent
        return None


def parse(text: str) -> Program:
    entry = re.search(r"\.visible\s+\.entry\s+(\w+)\s*\(([^)]*)\)", text)
    if not entry:
        raise PtxSyntaxError("no .entry")
    head = text[: entry.start()]
    shared: dict[str, int] = {}
    static = 0
    extern = []
    for ext, align, kind, name, size in re.findall(
        r"(\.extern\s+)?\.shared\s+\.align\s+(\d+)\s+\.(\w+)\s+([\w$]+)\[(\d*)\];", head
    ):
        if ext or not size:
            extern.append(name)
        else:
            static = -(-static // int(align)) * int(align)
            shared[name] = static
            static += int(size) * WIDTHS[kind] // 8
    static = -(-static // 16) * 16
    for name in extern:
        shared[name] = static
    params = []
    for p in filter(None, (p.strip() for p in entry.group(2).split(","))):
        kind = re.match(r"\.param\s+\.(\w+)", p).group(1)
        params.append((p.split()[-1], kind))
    files = {int(n): f.rsplit("/", 1)[-1] for n, f in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', text, re.M)}
    program = Program(entry.group(1), params, [], [], [], {}, files, shared, static, text)
    start = text.index("{", entry.end())
    _Body(program, text, start).run()
    return program


class _Body:
    def __init__(self, program: Program, text: str, start: int) -> None:
        self.p, self.t, self.i = program, text, start
        self.loc = (0, 0)
        self.pending: list[tuple[Instruction, str, _Scope]] = []
        self.inline = False

    def run(self) -> None:
        t, n = self.t, len(self.t)
        scope: _Scope | None = None
        depth = 0
        code = self.p.code
        space = re.compile(r"\s*")
        while True:
            self.i = space.match(t, self.i).end()
            if self.i >= n:
                raise PtxSyntaxError("unterminated body")
            c = t[self.i]
            if c == "/":
                end = t.find("\n", self.i) if t[self.i + 1] == "/" else t.find("*/", self.i) + 2
                comment = t[self.i : end]
                if "begin inline asm" in comment:
                    self.inline = True
                elif "end inline asm" in comment:
                    self.inline = False
                self.i = end
            elif c == "{":
                scope = _Scope(scope)
                depth += 1
                self.i += 1
            elif c == "}":
                depth -= 1
                scope = scope.parent
                self.i += 1
                if depth == 0:
                    break
            elif c == ";":
                self.i += 1
            elif c == ".":
                if t.startswith(".loc", self.i):
                    end = t.find("\n", self.i)
                    parts = t[self.i : end].split()
                    self.loc = (int(parts[1]), int(parts[2]))
                    self.i = end
                elif t.startswith(".reg", self.i):
                    m = _REG.match(t, self.i)
                    self._registers(m.group(1), m.group(2), scope)
                    self.i = m.end()
                elif t.startswith(".pragma", self.i):
                    self.i = t.find(";", self.i) + 1
                elif t.startswith(".file", self.i) or t.startswith(".branchtargets", self.i):
                    self.i = t.find("\n", self.i)
                else:
                    raise PtxSyntaxError(f"directive {t[self.i : self.i + 60]!r}")
            else:
                m = _LABEL.match(t, self.i)
                if m:
                    scope.labels[m.group(1)] = len(code)
                    if not m.group(1).startswith(("$L__tmp", "$L__func")):
                        self.p.labels[len(code)] = m.group(1)
                    self.i = m.end()
                    continue
                end = t.find(";", self.i)
                self._instruction(t[self.i : end], scope)
                self.i = end + 1
        for ins, name, scope in self.pending:
            ins.target = scope.label(name)
            if ins.target is None:
                raise PtxSyntaxError(f"no label {name}: {ins.text}")

    def _registers(self, kind: str, names: str, scope: _Scope) -> None:
        width = WIDTHS[kind]
        for item in (s.strip() for s in names.split(",")):
            m = _NUMBERED.fullmatch(item)
            for name in [f"{m.group(1)}{k}" for k in range(int(m.group(2)))] if m else [item]:
                scope.regs[name] = Register(len(self.p.widths), width, name)
                self.p.widths.append(width)
                self.p.names.append(name)

    def _instruction(self, text: str, scope: _Scope) -> None:
        text = re.sub(r"//[^\n]*", "", text)
        text = " ".join(text.split())
        rest, pred, negated = text, None, False
        if rest.startswith("@"):
            guard, rest = rest[1:].split(None, 1)
            negated = guard.startswith("!")
            pred = scope.find(guard.lstrip("!"))
            if pred is None:
                raise PtxSyntaxError(f"no register {guard}: {text}")
        op, _, rest = rest.partition(" ")
        ins = Instruction(op, tuple(op.split(".")), (), pred, negated, text, self.loc, self.inline)
        if ins.parts[0] == "bra":
            self.pending.append((ins, rest.strip(), scope))
        else:
            ins.operands = tuple(self._operand(o, scope, text) for o in _split(rest))
        self.p.code.append(ins)

    def _operand(self, o: str, scope: _Scope, text: str) -> Any:
        o = o.strip()
        if o.startswith("{"):
            return Vector(tuple(self._operand(x, scope, text) for x in _split(o[1:-1])))
        if o.startswith("["):
            m = re.fullmatch(r"\[\s*([^\s+\]-]+)\s*(?:([+-])\s*([+-]?\w+))?\s*\]", o)
            if not m:
                raise PtxSyntaxError(f"address {o!r}: {text}")
            offset = int(m.group(3), 0) * (-1 if m.group(2) == "-" else 1) if m.group(3) else 0
            return Address(self._operand(m.group(1), scope, text), offset)
        if "|" in o:
            first, second = o.split("|")
            return Pair(self._operand(first, scope, text), self._operand(second, scope, text))
        if o.startswith("!"):
            return Negation(self._operand(o[1:], scope, text))
        register = scope.find(o)
        if register is not None:
            return register
        if o == "_":
            return None
        m = _FLOAT.match(o)
        if m:
            return Immediate(int(m.group(1) or m.group(2), 16), "f32" if m.group(1) else "f64")
        if _INT.match(o):
            return Immediate(int(o.rstrip("U"), 0) if not re.fullmatch(r"[-+]?0\d+", o) else int(o, 8))
        if re.fullmatch(r"-?\d+\.\d*(e[-+]?\d+)?", o):
            return Immediate(struct.unpack("<I", struct.pack("<f", float(o)))[0], "f32")
        if o.startswith("%"):
            return Special(o)
        if re.fullmatch(r"[\w$]+", o):
            return Symbol(o)
        raise PtxSyntaxError(f"operand {o!r}: {text}")


@functools.lru_cache(maxsize=100_000)
def _split(text: str) -> tuple[str, ...]:
    """at commas outside of brackets"""
    out, depth, start = [], 0, 0
    for k, c in enumerate(text):
        if c in "{[":
            depth += 1
        elif c in "}]":
            depth -= 1
        elif c == "," and depth == 0:
            out.append(text[start:k])
            start = k + 1
    last = text[start:].strip()
    if last:
        out.append(last)
    return tuple(o.strip() for o in out)
