"""Enough PTX to execute the inline assembly of waits and signals (pack == 1).

Straight-line text runs on all lanes at once (a lane is an element of the inline_asm_elementwise call), text with
branches lane by lane: a spin loop works, each of its loads is a switch point. %tid is 0.
"""

import functools
import re

import numpy as np

from .errors import ContractError, NotModelledError

_TYPES = {f"{kind}{bits}": np.dtype(f"u{bits // 8}") for kind in "ub" for bits in (8, 16, 32, 64)}
_TYPES |= {f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)}
_TYPES |= {"f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8"), "pred": np.dtype(bool)}
_COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "min": np.minimum,
    "max": np.maximum,
    "shl": np.left_shift,
    "shr": np.right_shift,
}
_ATOMIC = {
    "add": lambda old, a: old + a[0],
    "exch": lambda old, a: a[0],
    "min": lambda old, a: min(old, a[0]),
    "max": lambda old, a: max(old, a[0]),
    "and": lambda old, a: old & a[0],
    "or": lambda old, a: old | a[0],
    "xor": lambda old, a: old ^ a[0],
    "cas": lambda old, a: a[1] if old == a[0] else old,
}
_IDEMPOTENT = ("min", "max", "and", "or")  # it does not matter how many threads execute it
_NO_EFFECT = ("nanosleep", "prefetch")


@functools.cache
def _parse(text):
    """[(predicate or None, negated, instruction, operands)], {label: index}"""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
    text = re.sub(r"(^|[;:{}\n])\s*([A-Za-z_$][\w$]*)\s*:", r"\1 @@LABEL \2;", text)
    code, labels = [], {}
    for statement in text.split(";"):
        s = statement.strip()
        while s.startswith(("{", "}")):  # scopes; braces of vectors come behind an instruction
            s = s[1:].strip()
        while s.endswith("}") and s.count("{") < s.count("}"):
            s = s[:-1].strip()
        if s.startswith("@@LABEL"):
            labels[s.split()[1]] = len(code)
        elif s and not s.startswith(".reg"):
            match = re.match(r"(?:@(!?)([%$\w]+)\s+)?([\w.:]+)\s*(.*)$", s, re.S)
            if match is None:
                raise NotModelledError(f"inline assembly: {s}")
            negated, predicate, instruction, rest = match.groups()
            operands = [o.strip() for o in re.split(r",(?![^{\[]*[}\]])", rest) if o.strip()]
            code.append((predicate, bool(negated), instruction, operands))
    return code, labels


def _immediate(text):
    if text.startswith(("0f", "0F")):
        return np.array(int(text[2:], 16), np.uint32).view(np.float32)[()]
    try:
        return int(text.removesuffix("U"), 0)
    except ValueError:
        return None


def _as(values, dtype):
    return values.view(dtype) if values.dtype.itemsize == dtype.itemsize else values.astype(dtype)


class Machine:
    """memory: load, store, atomic, fence, cta_barrier as `session` gives them."""

    def __init__(self, memory, text, registers, lanes):
        self.memory, self.registers, self.lanes = memory, registers, lanes
        self.code, self.labels = _parse(text)
        self.guarded = "%tid" in text or "%laneid" in text
        self.branched = False

    def value(self, name, dtype):
        number = _immediate(name)
        if number is not None:
            wide = np.int64 if isinstance(number, int) and number < 0 else None
            return np.full(self.lanes, number, wide).astype(dtype)
        if name.startswith(("%tid", "%laneid", "%warpid", "%clock", "%globaltimer")):
            return np.zeros(self.lanes, dtype)
        if name not in self.registers:
            raise NotModelledError(f"inline assembly: unknown register {name}")
        return _as(self.registers[name], dtype)

    def set(self, name, values, mask):
        if mask is not None and name in self.registers:
            values = np.where(mask, values, _as(self.registers[name], values.dtype))
        self.registers[name] = np.ascontiguousarray(values)

    def address(self, text):
        match = re.match(r"\[\s*([%$\w]+)\s*(?:\+\s*(\w+))?\s*\]$", text)
        if match is None:
            raise NotModelledError(f"inline assembly: address {text}")
        return self.value(match[1], np.dtype(np.uint64)) + np.uint64(int(match[2] or "0", 0))

    def run(self):
        at = 0
        while at < len(self.code):
            predicate, negated, instruction, operands = self.code[at]
            at += 1
            mask = None
            if predicate is not None:
                mask = self.registers[predicate].astype(bool) ^ negated
            if instruction.startswith("bra"):
                self.branched = True
                if mask is None or mask.all():
                    at = self.labels[operands[0]]
            elif mask is None or mask.any():
                self.execute(instruction, operands, mask)

    def execute(self, instruction, operands, mask):
        name, *fields = instruction.split(".")
        dtype = _TYPES.get(fields[-1]) if fields else None
        # behind a test of %tid one thread acts for the CTA
        alone = self.guarded and (self.branched or mask is not None)
        if name in _NO_EFFECT:
            return
        if name in ("fence", "membar"):
            if not {"cta", "proxy"} & set(fields):
                self.memory.fence("release" not in fields, "acquire" not in fields, alone)
        elif name in ("bar", "barrier"):
            self.memory.cta_barrier()
        elif name in ("ld", "st", "red", "atom") and "shared" not in fields and dtype is not None:
            self.access(name, fields, operands, dtype, mask, alone)
        elif name == "mov" and dtype is not None and not operands[0].startswith("{"):
            self.set(operands[0], self.value(operands[1], dtype), mask)
        elif name == "setp" and len(fields) == 2 and fields[0] in _COMPARE:
            a, b = (self.value(o, dtype) for o in operands[1:])
            self.set(operands[0], _COMPARE[fields[0]](a, b), mask)
        elif name == "selp":
            a, b = (self.value(o, dtype) for o in operands[1:3])
            self.set(operands[0], np.where(self.registers[operands[3]].astype(bool), a, b), mask)
        elif name == "not" and dtype is not None:
            self.set(operands[0], ~self.value(operands[1], dtype), mask)
        elif name in _BINARY and len(fields) == 1 and dtype is not None:
            a, b = (self.value(o, dtype) for o in operands[1:])
            self.set(operands[0], _BINARY[name](a, b).astype(dtype), mask)
        else:
            raise NotModelledError(
                f"inline assembly: '{instruction}' is not modelled; register an implementation of the text "
                "(rnn_triton.interpreter.register_asm) or of its helper (interpreter_impl)"
            )

    def access(self, name, fields, operands, dtype, mask, alone):
        sem = next((f for f in fields if f in ("relaxed", "acquire", "release", "acq_rel")), None)
        scope = next((f for f in fields if f in ("cta", "cluster", "gpu", "sys")), "gpu")
        lanes = np.ones(self.lanes, bool) if mask is None else mask
        if name in ("red", "atom"):
            kind = next(f for f in fields if f in _ATOMIC)
            if not self.guarded and kind not in _IDEMPOTENT:
                raise ContractError(
                    f"inline assembly '{name}.{'.'.join(fields)}' without a test of %tid: every thread that holds a "
                    "copy of the element executes it (of a scalar: all of the CTA)"
                )
            where, *arguments = operands[name == "atom" :]
            values = [self.value(o, dtype) for o in arguments]
            how = (_ATOMIC[kind], sem or "relaxed", scope, alone)
            old = self.memory.atomic(f"{name}.{kind}", self.address(where), values, lanes, *how)
            if name == "atom":
                self.set(operands[0], old, mask)
            return
        volatile = "volatile" in fields
        cache = next((f for f in fields if f in ("cg", "cv", "ca", "cs")), "")
        registers, where = operands if name == "ld" else operands[::-1]
        base = self.address(where)
        for i, register in enumerate(registers.strip("{} ").split(",")):
            addresses, register = base + np.uint64(i * dtype.itemsize), register.strip()
            how = (sem or ("relaxed" if volatile else None), scope, cache, alone)
            if name == "ld":
                self.set(register, self.memory.load(addresses, lanes, dtype, *how), mask)
            else:
                self.memory.store(addresses, self.value(register, dtype), lanes, *how)


def run(memory, text, operands, results, watch):
    """operands: flat arrays of equal length, pointers as uint64; results: their number.

    watch(registers) is told the registers before each run. Returns flat arrays.
    """
    lanes = operands[0].size if operands else 1
    branches = any(instruction.startswith("bra") for _, _, instruction, _ in _parse(text)[0])
    parts = [slice(i, i + 1) for i in range(lanes)] if branches else [slice(0, lanes)]
    collected = []
    for part in parts:
        registers = {f"${results + i}": np.ascontiguousarray(o[part]) for i, o in enumerate(operands)}
        watch(registers)
        size = part.stop - part.start
        Machine(memory, text, registers, size).run()
        collected.append([registers.get(f"${i}", np.zeros(size, np.uint32)) for i in range(results)])
    watch(None)
    return [np.concatenate(column) for column in zip(*collected, strict=True)]
