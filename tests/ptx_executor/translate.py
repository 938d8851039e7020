"""Basic blocks -> Python functions over registers as numpy arrays, a lane an element.

A block is translated twice: for all lanes of a gang of warps, and under a mask.  A register is an array of unsigned integers of its
width (a predicate: of bool), replaced and never changed in place; None: not written yet."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import numerics as nu
from . import tensorcore as tc
from .blocks import Block
from .errors import UnknownOpcode
from .numerics import F4, F8, I1, I2, I4, I8, U1, U2, U4, U8
from .parser import (
    Address,
    Immediate,
    Instruction,
    Negation,
    Pair,
    Program,
    Register,
    Special,
    Symbol,
    Vector,
)

SHARED_BASE = 1024  # of dynamic shared memory, as on sm_90

UNSIGNED = {1: "np.bool_", 8: "U1", 16: "U2", 32: "U4", 64: "U8"}
_NUMPY = {"U1": U1, "U2": U2, "U4": U4, "U8": U8, "I1": I1, "I2": I2, "I4": I4, "I8": I8, "F4": F4, "F8": F8}
KIND = {  # PTX type -> (numpy name, width)
    "b8": ("U1", 8), "u8": ("U1", 8), "s8": ("I1", 8), "b16": ("U2", 16), "u16": ("U2", 16), "s16": ("I2", 16),
    "f16": ("U2", 16), "bf16": ("U2", 16), "b32": ("U4", 32), "u32": ("U4", 32), "s32": ("I4", 32), "f32": ("F4", 32),
    "f16x2": ("U4", 32), "bf16x2": ("U4", 32), "tf32": ("U4", 32), "b64": ("U8", 64), "u64": ("U8", 64),
    "s64": ("I8", 64), "f64": ("F8", 64),
}  # fmt: skip

def function(p: Program, b: Block, masked: bool) -> Any:
    writer = _Writer(p, masked)
    for ins in b.code:
        writer.instruction(ins)
    text = f"def block(G, R{', m' if masked else ''}):\n" + "".join(f"    {line}\n" for line in writer.lines)
    text += "    return None\n"
    space = dict(_GLOBALS)
    space.update(writer.pool)
    exec(compile(text, f"<block {b.number}{' masked' if masked else ''} of {p.name}>", "exec"), space)
    made = space["block"]
    made.text = text
    return made


# In lanes that have not written a register: a NaN in every format, and not the word that the exchange waits with
_UNWRITTEN = {np.dtype(bool): True, np.dtype(U1): 0x7F, np.dtype(U2): 0x7FFF, np.dtype(U4): 0x7FFF7FFF, np.dtype(U8): 0x7FFF7FFF7FFF7FFF}


def W(m, new, old):
    """new where m, else old"""
    if old is None:
        old = new.dtype.type(_UNWRITTEN[new.dtype])
    return np.where(m, new, old)


_GLOBALS = {"np": np, "nu": nu, "tc": tc, "W": W, **_NUMPY}


class _Writer:
    def __init__(self, p: Program, masked: bool) -> None:
        self.p, self.masked = p, masked
        self.lines: list[str] = []
        self.pool: dict[str, Any] = {}
        self._constants: dict[tuple[Any, str], str] = {}

    # -- operands

    def constant(self, value: Any, dtype: str) -> str:
        key = (value, dtype)
        if key not in self._constants:
            name = f"k{len(self._constants)}"
            kind = _NUMPY[dtype]
            if dtype[0] in "UI":
                bits = 8 * np.dtype(kind).itemsize
                v = int(value) & ((1 << bits) - 1)
                if dtype[0] == "I" and v >> (bits - 1):
                    v -= 1 << bits
                self.pool[name] = kind(v)
            else:
                self.pool[name] = kind(value)
            self._constants[key] = name
        return self._constants[key]

    def keep(self, value: Any) -> str:
        name = f"o{len(self.pool)}"
        self.pool[name] = value
        return name

    def v(self, o: Any, ty: str) -> str:
        """The operand as an array, or a scalar, of the numpy type of PTX type `ty`"""
        dtype, width = KIND[ty]
        if isinstance(o, Register):
            if o.width == width:
                return f"R[{o.index}]" if dtype == UNSIGNED[width] else f"R[{o.index}].view({dtype})"
            if o.width > width:
                narrow = f"R[{o.index}].astype({UNSIGNED[width]})"
                return narrow if dtype == UNSIGNED[width] else f"{narrow}.view({dtype})"
            raise UnknownOpcode(f"register {o.name} of {o.width} bits read as {ty}")
        if isinstance(o, Immediate):
            if o.kind == "int":
                if dtype[0] == "F":
                    return self.constant(float(o.value), dtype)
                return self.constant(o.value, dtype)
            size = 4 if o.kind == "f32" else 8
            value = np.frombuffer(o.value.to_bytes(size, "little"), F4 if size == 4 else F8)[0]
            if dtype[0] == "F":
                name = f"f{len(self.pool)}"
                self.pool[name] = _NUMPY[dtype](value)
                return name
            return self.constant(o.value, dtype)
        if isinstance(o, Special):
            if o.name == "%clock":
                return "G.clock()"
            return f"G.special[{o.name!r}]" if width == 32 else f"G.special[{o.name!r}].astype({dtype})"
        if isinstance(o, Symbol):
            if o.name in self.p.shared:
                return self.constant(SHARED_BASE + self.p.shared[o.name], dtype)
            raise UnknownOpcode(f"symbol {o.name}")
        raise UnknownOpcode(f"operand {o!r}")

    def predicate(self, o: Any) -> str:
        if isinstance(o, Register):
            if o.width != 1:
                raise UnknownOpcode(f"{o.name} is no predicate")
            return f"R[{o.index}]"
        if isinstance(o, Negation):
            return f"(~R[{o.reg.index}])"
        if isinstance(o, Immediate):
            return f"np.bool_({bool(o.value)})"
        raise UnknownOpcode(f"predicate {o!r}")

    def guard(self, ins: Instruction) -> str | None:
        """The lanes that execute it: an expression, or None for all"""
        parts = []
        if ins.pred is not None:
            parts.append(f"~R[{ins.pred.index}]" if ins.negated else f"R[{ins.pred.index}]")
        if self.masked:
            parts.append("m")
        return " & ".join(f"({x})" if len(parts) > 1 else x for x in parts) if parts else None

    def write(self, ins: Instruction, d: Any, expr: str, ty: str, scalar: bool = False) -> None:
        """d = expr, an array of the numpy type of `ty`"""
        if d is None:
            return
        if not isinstance(d, Register):
            raise UnknownOpcode(f"destination {d!r}")
        if ty != "pred":
            dtype, width = KIND[ty]
            if width == d.width:
                if dtype != UNSIGNED[width]:
                    expr = f"({expr}).view({UNSIGNED[width]})"
            elif width < d.width:
                wide = f"I{d.width // 8}" if dtype[0] == "I" else UNSIGNED[d.width]
                expr = f"({expr}).astype({wide}).view({UNSIGNED[d.width]})"
            else:
                raise UnknownOpcode(f"register {d.name} of {d.width} bits written as {ty}")
        if scalar:
            expr = f"G.full({expr})"
        g = self.guard(ins)
        self.lines.append(f"R[{d.index}] = {expr}" if g is None else f"R[{d.index}] = W({g}, {expr}, R[{d.index}])")

    def emit(self, line: str) -> None:
        self.lines.append(line)

    # -- instructions

    def instruction(self, ins: Instruction) -> None:
        name = "i_" + ins.parts[0]
        handler = getattr(self, name, None)
        if handler is None:
            raise UnknownOpcode(f"{ins.op}: {self.p.where(ins)}")
        try:
            handler(ins, ins.operands)
        except UnknownOpcode as error:
            raise UnknownOpcode(f"{ins.op}: {error}: {self.p.where(ins)}") from None

    @staticmethod
    def registers(*operands: Any) -> bool:
        return any(isinstance(o, Register | Special) for o in operands)

    def plain(self, ins: Instruction, expr: str, ty: str, *sources: Any) -> None:
        self.write(ins, ins.operands[0], expr, ty, scalar=not self.registers(*sources))

    def no_modifiers(self, ins: Instruction, allowed: tuple[str, ...]) -> None:
        for m in ins.parts[1:]:
            if m not in allowed and m not in KIND and m != "pred":
                raise UnknownOpcode(f"modifier .{m}")

    # moves

    def i_mov(self, ins: Instruction, o: Any) -> None:
        ty = ins.parts[1]
        d, s = o
        if ty == "pred":
            if isinstance(s, Immediate):
                self.write(ins, d, f"np.bool_({bool(s.value)})", "pred", scalar=True)
            else:
                self.write(ins, d, self.predicate(s), "pred")
            return
        width = KIND[ty][1]
        bits = f"b{width}"
        if isinstance(s, Vector):
            part = width // len(s.items)
            wide = UNSIGNED[width]
            terms = []
            for k, item in enumerate(s.items):
                term = f"{self.v(item, f'b{part}')}.astype({wide})"
                terms.append(term if k == 0 else f"({term} << {self.constant(k * part, wide)})")
            self.write(ins, d, " | ".join(terms), bits, scalar=not self.registers(*s.items))
            return
        if isinstance(d, Vector):
            part = width // len(d.items)
            self.emit(f"t = {self.v(s, bits)}")
            for k, item in enumerate(d.items):
                shifted = "t" if k == 0 else f"(t >> {self.constant(k * part, UNSIGNED[width])})"
                self.write(ins, item, f"{shifted}.astype({UNSIGNED[part]})", f"b{part}")
            return
        self.write(ins, d, self.v(s, bits), bits, scalar=not self.registers(s))

    def i_selp(self, ins: Instruction, o: Any) -> None:
        ty = ins.parts[1]
        bits = f"b{KIND[ty][1]}"
        self.write(ins, o[0], f"np.where({self.predicate(o[3])}, {self.v(o[1], bits)}, {self.v(o[2], bits)})", bits)

    # arithmetic

    def _type(self, ins: Instruction) -> str:
        return ins.parts[-1]

    def _half(self, ins: Instruction, ty: str, form: str, sources: tuple[Any, ...]) -> None:
        """Arithmetic of 16-bit floats, one or two a register, through fp32; form: an expression of a, b, c"""
        base = ty.removesuffix("x2")
        up, down = ("nu.bf16_to_f32", "nu.f32_to_bf16") if base == "bf16" else ("nu.f16_to_f32", "nu.f32_to_f16")
        results = []
        for half in range(2 if ty.endswith("x2") else 1):
            names = []
            for k, s in enumerate(sources):
                x = self.v(s, ty)
                if ty.endswith("x2"):
                    x = f"({x} >> {self.constant(16 * half, 'U4')}).astype(U2)"
                self.emit(f"h{k} = {up}(np.atleast_1d({x})).astype(F8)")
                names.append(f"h{k}")
            self.emit(f"r{half} = {down}(({form.format(*names)}).astype(F4))")
            results.append(f"r{half}")
        expr = results[0] if len(results) == 1 else "(r0.astype(U4) | (r1.astype(U4) << U4(16)))"
        self.write(ins, ins.operands[0], expr, ty)

    def _binary(self, ins: Instruction, symbol: str, floats: bool = True) -> None:
        ty = self._type(ins)
        self.no_modifiers(ins, ("rn", "ftz", "lo"))
        d, a, b = ins.operands
        if ty in ("f16", "bf16", "f16x2", "bf16x2"):
            return self._half(ins, ty, f"{{0}} {symbol} {{1}}", (a, b))
        if ty[0] == "s":  # two's complement: the same bits
            ty = "u" + ty[1:]
        x, y = self.v(a, ty), self.v(b, ty)
        expr = f"{x} {symbol} {y}"
        if "ftz" in ins.parts:
            expr = f"nu.ftz(nu.ftz({x}) {symbol} nu.ftz({y}))"
        self.plain(ins, expr, ty, a, b)

    def i_add(self, ins: Instruction, o: Any) -> None:
        self._binary(ins, "+")

    def i_sub(self, ins: Instruction, o: Any) -> None:
        self._binary(ins, "-")

    def i_mul(self, ins: Instruction, o: Any) -> None:
        ty = self._type(ins)
        if "wide" in ins.parts:
            return self.plain(ins, self._wide(o[1], o[2], ty), _double(ty), o[1], o[2])
        if "hi" in ins.parts:
            return self.plain(ins, self._high(o[1], o[2], ty), ty, o[1], o[2])
        self._binary(ins, "*")

    def _wide(self, a: Any, b: Any, ty: str) -> str:
        wide = KIND[_double(ty)][0]
        return f"{self.v(a, ty)}.astype({wide}) * {self.v(b, ty)}.astype({wide})"

    def _high(self, a: Any, b: Any, ty: str) -> str:
        width = KIND[ty][1]
        if width == 64:
            return f"nu.mul_hi_{ty[0]}64({self.v(a, ty)}, {self.v(b, ty)})"
        return f"(({self._wide(a, b, ty)}) >> {self.constant(width, KIND[_double(ty)][0])}).astype({KIND[ty][0]})"

    def i_mad(self, ins: Instruction, o: Any) -> None:
        ty = self._type(ins)
        if "wide" in ins.parts:
            wide = _double(ty)
            return self.plain(ins, f"{self._wide(o[1], o[2], ty)} + {self.v(o[3], wide)}", wide, *o[1:])
        if "hi" in ins.parts:
            return self.plain(ins, f"{self._high(o[1], o[2], ty)} + {self.v(o[3], ty)}", ty, *o[1:])
        if "lo" not in ins.parts:
            raise UnknownOpcode("mad without .lo, .hi or .wide")
        u = "u" + ty[1:]
        self.plain(ins, f"{self.v(o[1], u)} * {self.v(o[2], u)} + {self.v(o[3], u)}", u, *o[1:])

    def i_fma(self, ins: Instruction, o: Any) -> None:
        ty = self._type(ins)
        self.no_modifiers(ins, ("rn", "ftz"))
        if ty in ("f16", "bf16", "f16x2", "bf16x2"):
            return self._half(ins, ty, "{0} * {1} + {2}", o[1:])
        a, b, c = (self.v(x, ty) for x in o[1:])
        if "ftz" in ins.parts:
            a, b, c = (f"nu.ftz({x})" for x in (a, b, c))
        expr = f"nu.fma{ty[1:]}({a}, {b}, {c})"
        self.plain(ins, f"nu.ftz({expr})" if "ftz" in ins.parts else expr, ty, *o[1:])

    def i_div(self, ins: Instruction, o: Any) -> None:
        ty = self._type(ins)
        a, b = self.v(o[1], ty), self.v(o[2], ty)
        if ty[0] in "su":
            return self.plain(ins, f"nu.div_{ty[0]}({a}, {b})", ty, *o[1:])
        self.no_modifiers(ins, ("rn", "full", "approx"))
        self.plain(ins, f"{a} / {b}", ty, *o[1:])

    def i_rem(self, ins: Instruction, o: Any) -> None:
        ty = self._type(ins)
        self.plain(ins, f"nu.rem_{ty[0]}({self.v(o[1], ty)}, {self.v(o[2], ty)})", ty, *o[1:])

    def _minmax(self, ins: Instruction, o: Any, which: str) -> None:
        ty = self._type(ins)
        self.no_modifiers(ins, ("NaN", "ftz", "relu") if ty == "s32" else ("NaN", "ftz"))
        if ty in ("f16", "bf16", "f16x2", "bf16x2"):
            name = f"np.{which}imum" if "NaN" in ins.parts else f"np.f{which}"
            return self._half(ins, ty, f"{name}({{0}}, {{1}})", o[1:3])
        name = f"np.{which}imum" if ty[0] != "f" or "NaN" in ins.parts else f"np.f{which}"
        value = f"{name}({self.v(o[1], ty)}, {self.v(o[2], ty)})"
        self.plain(ins, f"np.maximum({value}, 0)" if "relu" in ins.parts else value, ty, *o[1:])

    def i_min(self, ins: Instruction, o: Any) -> None:
        self._minmax(ins, o, "min")

    def i_max(self, ins: Instruction, o: Any) -> None:
        self._minmax(ins, o, "max")

    def i_neg(self, ins: Instruction, o: Any) -> None:
        ty = self._type(ins)
        self.no_modifiers(ins, ("ftz",))
        if ty in ("f16", "bf16"):
            return self.plain(ins, f"{self.v(o[1], ty)} ^ U2(0x8000)", ty, o[1])
        if ty in ("f16x2", "bf16x2"):
            return self.plain(ins, f"{self.v(o[1], ty)} ^ U4(0x80008000)", ty, o[1])
        self.plain(ins, f"-{self.v(o[1], ty)}", ty, o[1])

    def i_abs(self, ins: Instruction, o: Any) -> None:
        ty = self._type(ins)
        self.no_modifiers(ins, ("ftz",))
        if ty in ("f16", "bf16"):
            return self.plain(ins, f"{self.v(o[1], ty)} & U2(0x7FFF)", ty, o[1])
        if ty in ("f16x2", "bf16x2"):
            return self.plain(ins, f"{self.v(o[1], ty)} & U4(0x7FFF7FFF)", ty, o[1])
        expr = f"np.abs({self.v(o[1], ty)})"
        self.plain(ins, f"nu.ftz({expr})" if "ftz" in ins.parts else expr, ty, o[1])

    def _logic(self, ins: Instruction, o: Any, symbol: str) -> None:
        ty = self._type(ins)
        if ty == "pred":
            return self.write(ins, o[0], f"{self.predicate(o[1])} {symbol} {self.predicate(o[2])}", "pred")
        self.plain(ins, f"{self.v(o[1], ty)} {symbol} {self.v(o[2], ty)}", ty, *o[1:])

    def i_and(self, ins: Instruction, o: Any) -> None:
        self._logic(ins, o, "&")

    def i_or(self, ins: Instruction, o: Any) -> None:
        self._logic(ins, o, "|")

    def i_xor(self, ins: Instruction, o: Any) -> None:
        self._logic(ins, o, "^")

    def i_not(self, ins: Instruction, o: Any) -> None:
        ty = self._type(ins)
        if ty == "pred":
            return self.write(ins, o[0], f"~{self.predicate(o[1])}", "pred")
        self.plain(ins, f"~{self.v(o[1], ty)}", ty, o[1])

    def i_shl(self, ins: Instruction, o: Any) -> None:
        self._shift(ins, o, "<<")

    def i_shr(self, ins: Instruction, o: Any) -> None:
        self._shift(ins, o, ">>")

    def _shift(self, ins: Instruction, o: Any, symbol: str) -> None:
        ty = self._type(ins)
        dtype, width = KIND[ty]
        a = self.v(o[1], ty)
        if isinstance(o[2], Immediate) and 0 <= o[2].value < width:
            expr = f"{a} {symbol} {self.constant(o[2].value, dtype)}"
        elif symbol == "<<":
            expr = f"nu.shl({a}, {self.v(o[2], 'u32')}, {width})"
        else:
            expr = f"nu.shr_{'s' if dtype[0] == 'I' else 'u'}({a}, {self.v(o[2], 'u32')}, {width})"
        self.plain(ins, expr, ty, *o[1:])

    def i_bfe(self, ins: Instruction, o: Any) -> None:
        ty = self._type(ins)
        args = f"{self.v(o[1], ty)}, {self.v(o[2], 'u32')}, {self.v(o[3], 'u32')}, {KIND[ty][1]}"
        self.plain(ins, f"nu.bfe_{'s' if ty[0] == 's' else 'u'}({args})", ty, *o[1:])

    def i_bfi(self, ins: Instruction, o: Any) -> None:
        ty = self._type(ins)
        args = f"{self.v(o[1], ty)}, {self.v(o[2], ty)}, {self.v(o[3], 'u32')}, {self.v(o[4], 'u32')}, {KIND[ty][1]}"
        self.plain(ins, f"nu.bfi({args})", ty, *o[1:])

    def i_prmt(self, ins: Instruction, o: Any) -> None:
        if ins.op != "prmt.b32":
            raise UnknownOpcode("mode of prmt")
        a, b, c = (self.v(x, "b32") for x in o[1:])
        self.plain(ins, f"nu.prmt({self._array(a, o[1])}, {self._array(b, o[2])}, {c})", "b32", *o[1:])

    def _array(self, expr: str, o: Any) -> str:
        return expr if self.registers(o) else f"G.full({expr})"

    def i_lop3(self, ins: Instruction, o: Any) -> None:
        a, b, c = (self._array(self.v(x, "b32"), x) for x in o[1:4])
        self.plain(ins, f"nu.lop3({a}, {b}, {c}, {o[4].value})", "b32", *o[1:4])

    def i_shf(self, ins: Instruction, o: Any) -> None:
        a, b, c = (self.v(x, "u32") for x in o[1:])
        n = f"({c} & U4(31))" if "wrap" in ins.parts else f"np.minimum({c}, U4(32))"
        both = f"(({b}.astype(U8) << U8(32)) | {a}.astype(U8))"
        if "l" in ins.parts:
            expr = f"(({both} << {n}.astype(U8)) >> U8(32)).astype(U4)"
        else:
            expr = f"({both} >> {n}.astype(U8)).astype(U4)"
        self.plain(ins, expr, "b32", *o[1:])

    def i_popc(self, ins: Instruction, o: Any) -> None:
        self.plain(ins, f"nu.popc({self.v(o[1], self._type(ins))})", "u32", o[1])

    def i_clz(self, ins: Instruction, o: Any) -> None:
        ty = self._type(ins)
        self.plain(ins, f"nu.clz({self.v(o[1], ty)}, {KIND[ty][1]})", "u32", o[1])

    # special functions

    def _function(self, ins: Instruction, o: Any, f32: str, f64: str | None = None) -> None:
        ty = self._type(ins)
        self.no_modifiers(ins, ("approx", "ftz", "rn"))
        name = f32 if ty == "f32" else f64 if ty == "f64" else None
        if name is None:
            raise UnknownOpcode(f"type {ty}")
        x = self.v(o[1], ty)
        expr = f"nu.ftz({name.format(f'nu.ftz({x})')})" if "ftz" in ins.parts else name.format(x)
        self.plain(ins, expr, ty, o[1])

    def i_tanh(self, ins: Instruction, o: Any) -> None:
        self._function(ins, o, "nu.tanh_approx({})")

    def i_ex2(self, ins: Instruction, o: Any) -> None:
        self._function(ins, o, "nu.ex2({})")

    def i_lg2(self, ins: Instruction, o: Any) -> None:
        self._function(ins, o, "np.log2({})")

    def i_rcp(self, ins: Instruction, o: Any) -> None:
        self._function(ins, o, "(F4(1) / {})", "(F8(1) / {})")

    def i_sqrt(self, ins: Instruction, o: Any) -> None:
        self._function(ins, o, "np.sqrt({})", "np.sqrt({})")

    def i_rsqrt(self, ins: Instruction, o: Any) -> None:
        self._function(ins, o, "(F4(1) / np.sqrt({}))")

    # comparison

    _ORDERED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
    _UNORDERED = {"equ": "==", "neu": "!=", "ltu": "<", "leu": "<=", "gtu": ">", "geu": ">="}

    def i_setp(self, ins: Instruction, o: Any) -> None:
        ty = self._type(ins)
        compare = ins.parts[1]
        combine = next((p for p in ins.parts[2:] if p in ("and", "or", "xor")), None)
        self.no_modifiers(ins, (compare, "and", "or", "xor", "ftz"))
        d, a, b = o[:3]
        halves = [None]
        if ty in ("f16x2", "bf16x2"):
            halves = [0, 16]
        results = []
        for half in halves:
            x, y = self.v(a, ty), self.v(b, ty)
            if ty in ("f16", "bf16", "f16x2", "bf16x2"):
                up = "nu.bf16_to_f32" if ty.startswith("b") else "nu.f16_to_f32"
                if half is not None:
                    x, y = (f"({z} >> U4({half})).astype(U2)" for z in (x, y))
                x, y = (f"{up}(np.atleast_1d({z}))" for z in (x, y))
            if ty[0] in "f" or ty.startswith("bf"):
                if compare in ("num", "nan"):
                    r = f"(np.isnan({x}) | np.isnan({y}))"
                    r = f"~{r}" if compare == "num" else r
                elif compare in self._UNORDERED:
                    r = f"(({x} {self._UNORDERED[compare]} {y}) | np.isnan({x}) | np.isnan({y}))"
                elif compare == "ne":
                    r = f"(({x} != {y}) & ~np.isnan({x}) & ~np.isnan({y}))"
                else:
                    r = f"({x} {self._ORDERED[compare]} {y})"
            else:
                r = f"({x} {self._ORDERED[compare]} {y})"
            results.append(r)
        scalar = not self.registers(a, b)
        if combine:
            symbol = {"and": "&", "or": "|", "xor": "^"}[combine]
        if len(results) == 2:
            if not isinstance(d, Pair) or combine:
                raise UnknownOpcode("form of setp.f16x2")
            self.emit(f"t0, t1 = {results[0]}, {results[1]}")
            self.write(ins, d.first, "t0", "pred", scalar)
            self.write(ins, d.second, "t1", "pred", scalar)
            return
        if isinstance(d, Pair):
            self.emit(f"t0 = {results[0]}")
            first, second = "t0", "~t0"
            if combine:
                c = self.predicate(o[3])
                first, second = f"t0 {symbol} {c}", f"~t0 {symbol} {c}"
                self.emit(f"t1, t2 = {first}, {second}")
                first, second = "t1", "t2"
            self.write(ins, d.first, first, "pred", scalar)
            self.write(ins, d.second, second, "pred", scalar)
            return
        r = results[0]
        if combine:
            r = f"{r} {symbol} {self.predicate(o[3])}"
        self.write(ins, d, r, "pred", scalar and not combine)

    # conversions

    def i_cvt(self, ins: Instruction, o: Any) -> None:
        mods = ins.parts[1:]
        if mods[-1] in ("f32",) and mods[-2] in ("bf16x2", "f16x2"):
            self.no_modifiers(ins, ("rn", "bf16x2", "f16x2"))
            down = "nu.f32_to_bf16" if mods[-2] == "bf16x2" else "nu.f32_to_f16"
            a, b = (f"{down}(np.atleast_1d({self.v(x, 'f32')}))" for x in o[1:3])
            return self.write(ins, o[0], f"({a}.astype(U4) << U4(16)) | {b}.astype(U4)", "b32", False)
        to, source = mods[-2], mods[-1]
        rounding = [m for m in mods[:-2]]
        x = self.v(o[1], source)
        scalar = not self.registers(o[1])
        if scalar:
            x = f"G.full({x})"
        if source in ("bf16", "f16"):
            up = "nu.bf16_to_f32" if source == "bf16" else "nu.f16_to_f32"
            x, source = f"{up}({x})", "f32"
            if to == "f32":
                if rounding:
                    raise UnknownOpcode(f"rounding {rounding}")
                return self.write(ins, o[0], x, "f32")
        if to in ("bf16", "f16"):
            if rounding != ["rn"] or source not in ("f32", "f64"):
                raise UnknownOpcode(f"conversion {ins.op}")
            down = "nu.f32_to_bf16" if to == "bf16" else "nu.f32_to_f16"
            return self.write(ins, o[0], f"{down}(({x}).astype(F4))", to)
        if to == "tf32":
            if len(rounding) != 1 or rounding[0] not in ("rna", "rn") or source != "f32":
                raise UnknownOpcode(f"conversion {ins.op}")
            return self.write(ins, o[0], f"nu.f32_to_tf32({x}, {rounding[0]!r})", "b32")
        dtype = KIND[to][0]
        if source[0] == "f" and to[0] == "f":
            if rounding and rounding[0] in ("rni", "rzi", "rmi", "rpi"):
                f = {"rni": "np.rint", "rzi": "np.trunc", "rmi": "np.floor", "rpi": "np.ceil"}[rounding[0]]
                return self.write(ins, o[0], f"{f}({x}).astype({dtype})", to)
            if rounding not in ([], ["rn"]):
                raise UnknownOpcode(f"rounding {rounding}")
            return self.write(ins, o[0], f"({x}).astype({dtype})", to)
        if source[0] == "f":
            if len(rounding) != 1 or rounding[0] not in ("rni", "rzi", "rmi", "rpi"):
                raise UnknownOpcode(f"rounding {rounding}")
            info = np.iinfo(_NUMPY[dtype])
            return self.write(ins, o[0], f"nu.to_int({x}, {info.min}, {info.max}, {dtype}, {rounding[0]!r})", to)
        if to[0] == "f":
            if rounding != ["rn"]:
                raise UnknownOpcode(f"rounding {rounding}")
            return self.write(ins, o[0], f"({x}).astype({dtype})", to)
        if rounding:
            raise UnknownOpcode(f"rounding {rounding}")
        self.write(ins, o[0], f"({x}).astype({dtype})", to)

    def i_cvta(self, ins: Instruction, o: Any) -> None:
        if "global" not in ins.parts:
            raise UnknownOpcode("address space")
        self.i_mov(Instruction("mov.b64", ("mov", "b64"), o, ins.pred, ins.negated, ins.text, ins.loc), o)

    # memory

    def address(self, o: Address, width: int) -> str:
        ty = f"u{width}"
        if isinstance(o.base, Immediate):
            return self.constant(o.base.value + o.offset, UNSIGNED[width])
        base = self.v(o.base, ty)
        if isinstance(o.base, Symbol):
            return f"G.full({self.constant(SHARED_BASE + self.p.shared[o.base.name] + o.offset, UNSIGNED[width])})"
        return base if o.offset == 0 else f"{base} + {self.constant(o.offset, UNSIGNED[width])}"

    _ACCESS = {
        "volatile", "relaxed", "acquire", "release", "weak", "gpu", "sys", "cta", "ca", "cg", "cs", "lu", "cv", "wb",
        "wt", "nc", "v2", "v4", "v8",
    }  # fmt: skip

    def _access(self, ins: Instruction) -> tuple[str, int, str]:
        """(space, vector length, type)"""
        space, n, ty = "generic", 1, ins.parts[-1]
        for part in ins.parts[1:-1]:
            if part in ("global", "shared", "param", "shared::cta"):
                space = part.split("::")[0]
            elif part.startswith(("L1::", "L2::")):
                pass
            elif part in self._ACCESS:
                if part[0] == "v" and part[1:].isdigit():
                    n = int(part[1:])
            else:
                raise UnknownOpcode(f"modifier .{part}")
        return space, n, ty

    def i_ld(self, ins: Instruction, o: Any) -> None:
        space, n, ty = self._access(ins)
        dest = o[0].items if isinstance(o[0], Vector) else (o[0],)
        if space == "param":
            if not isinstance(o[1].base, Symbol):
                raise UnknownOpcode("parameter address")
            return self.write(ins, dest[0], f"G.param({o[1].base.name!r}, {KIND[ty][0]})", ty)
        if len(dest) != n or space == "generic":
            raise UnknownOpcode("form of ld")
        if ty == "b128":
            raise UnknownOpcode("ld.b128")
        g = self.guard(ins)
        size = KIND[ty][1] // 8
        name = "gld" if space == "global" else "sld"
        width = 64 if space == "global" else 32
        self.emit(f"q = {g}")
        target = f"G.{name}({self.address(o[1], width)}, {size}, {n}, q, {self.keep(ins)})"
        if ins.pred is not None:
            self.emit("if q.any():")
            indent = "    "
        else:
            indent = ""
        self.emit(f"{indent}t = {target}")
        start = len(self.lines)
        dtype, bits = KIND[ty]
        for k, d in enumerate(dest):
            if d is None:
                continue
            x = f"t[{k}]"
            if d.width > bits:
                wide = UNSIGNED[d.width]
                x = f"{x}.view({dtype}).astype(I{d.width // 8}).view({wide})" if dtype[0] == "I" else f"{x}.astype({wide})"
            elif d.width < bits:
                raise UnknownOpcode("ld into a narrower register")
            self.emit(f"R[{d.index}] = {x}" if g is None else f"R[{d.index}] = W(q, {x}, R[{d.index}])")
        self.lines[start:] = [indent + line for line in self.lines[start:]]

    def i_st(self, ins: Instruction, o: Any) -> None:
        space, n, ty = self._access(ins)
        sources = o[1].items if isinstance(o[1], Vector) else (o[1],)
        if len(sources) != n or space not in ("global", "shared"):
            raise UnknownOpcode("form of st")
        if "release" in ins.parts or "volatile" in ins.parts:
            pass  # every access takes effect at once, in program order
        size = KIND[ty][1] // 8
        bits = f"b{8 * size}"
        values = ", ".join(self._array(self.v(s, bits), s) for s in sources)
        name, width = ("gst", 64) if space == "global" else ("sst", 32)
        g = self.guard(ins)
        self.emit(f"q = {g}")
        call = f"G.{name}({self.address(o[0], width)}, ({values},), {size}, q, {self.keep(ins)})"
        self.emit(f"if q.any(): {call}" if ins.pred is not None else call)

    def _atomic(self, ins: Instruction, d: Any, address: Any, operands: tuple[Any, ...]) -> None:
        ty = self._type(ins)
        operation = next((p for p in ins.parts if p in ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc")), None)
        if operation is None or "global" not in ins.parts or ty not in ("u32", "s32", "b32", "u64", "s64", "b64"):
            raise UnknownOpcode("form of atomic")
        values = ", ".join(self._array(self.v(s, ty), s) for s in operands)
        g = self.guard(ins)
        self.emit(f"q = {g}")
        self.emit(
            f"t = G.atomic({self.address(address, 64)}, {operation!r}, ({values},), {KIND[ty][0]}, q, {self.keep(ins)})"
        )
        if d is not None:
            self.write(ins, d, "t", ty)

    def i_atom(self, ins: Instruction, o: Any) -> None:
        self._atomic(ins, o[0], o[1], o[2:])

    def i_red(self, ins: Instruction, o: Any) -> None:
        self._atomic(ins, None, o[0], o[1:])

    def i_cp(self, ins: Instruction, o: Any) -> None:
        if ins.parts[1] != "async":
            raise UnknownOpcode("form of cp")
        if "commit_group" in ins.parts:
            return self.emit(f"G.cp_commit({self.guard(ins)})")
        if "wait_group" in ins.parts or "wait_all" in ins.parts:
            n = o[0].value if o else 0
            return self.emit(f"G.cp_wait({n}, {self.guard(ins)})")
        if "shared" not in ins.parts and "shared::cta" not in ins.parts:
            raise UnknownOpcode("form of cp.async")
        g = self.guard(ins)
        size = o[2].value
        copied = self._array(self.v(o[3], "u32"), o[3]) if len(o) > 3 else "None"
        self.emit(f"q = {g}")
        call = f"G.cp_async({self.address(o[0], 32)}, {self.address(o[1], 64)}, {size}, {copied}, q, {self.keep(ins)})"
        self.emit(f"if q.any(): {call}" if ins.pred is not None else call)

    def i_fence(self, ins: Instruction, o: Any) -> None:
        pass

    i_membar = i_fence

    def i_prefetch(self, ins: Instruction, o: Any) -> None:
        if ins.parts[1:] != ("global", "L2"):
            raise UnknownOpcode("form of prefetch")
        g = self.guard(ins)
        self.emit(f"q = {g}")
        call = f"G.prefetch({self.address(o[0], 64)}, q, {self.keep(ins)})"
        self.emit(f"if q.any(): {call}" if ins.pred is not None else call)

    # warps and CTAs

    def i_bar(self, ins: Instruction, o: Any) -> None:
        if ins.parts[1] == "warp":
            return self.emit(f"G.warp_sync({self.guard(ins)}, {self.v(o[0], 'u32')}, {self.keep(ins)})")
        if ins.parts[1] != "sync" or not (len(o) == 1 and isinstance(o[0], Immediate) and o[0].value == 0) or ins.pred is not None:
            raise UnknownOpcode("form of bar")

    def i_barrier(self, ins: Instruction, o: Any) -> None:
        if "sync" not in ins.parts or not (len(o) == 1 and isinstance(o[0], Immediate) and o[0].value == 0) or ins.pred is not None:
            raise UnknownOpcode("form of barrier")

    def i_shfl(self, ins: Instruction, o: Any) -> None:
        mode = ins.parts[2]
        d, a, b, c, _members = o
        first = d.first if isinstance(d, Pair) else d
        a = self._array(self.v(a, "b32"), a)
        b, c = (self._array(self.v(x, "u32"), x) for x in (b, c))
        self.emit(f"t, t1 = G.shfl({mode!r}, {a}, {b}, {c}, {self.guard(ins)}, {self.keep(ins)})")
        self.write(ins, first, "t", "b32")
        if isinstance(d, Pair):
            self.write(ins, d.second, "t1", "pred")

    def i_redux(self, ins: Instruction, o: Any) -> None:
        _, _, operation, ty = ins.parts
        if operation not in ("add", "min", "max") or ty not in ("s32", "u32"):  # of all threads, as shfl
            raise UnknownOpcode("form of redux")
        a = self._array(self.v(o[1], ty), o[1])
        self.write(ins, o[0], f"G.redux({operation!r}, {a}, {self.guard(ins)}, {self.keep(ins)})", ty)

    def i_vote(self, ins: Instruction, o: Any) -> None:
        if ins.parts[1:3] != ("sync", "ballot"):
            raise UnknownOpcode("form of vote")
        self.write(ins, o[0], f"G.ballot({self.predicate(o[1])}, {self.guard(ins)})", "b32")

    def i_elect(self, ins: Instruction, o: Any) -> None:
        d = o[0]
        self.emit(f"t, t1 = G.elect({self.guard(ins)})")
        self.write(ins, d.first, "t", "b32")
        self.write(ins, d.second, "t1", "pred")

    def i_bra(self, ins: Instruction, o: Any) -> None:
        if ins.pred is not None:
            self.emit(f"return {'~' if ins.negated else ''}R[{ins.pred.index}]")

    def i_ret(self, ins: Instruction, o: Any) -> None:
        if ins.pred is not None:
            self.emit(f"return {'~' if ins.negated else ''}R[{ins.pred.index}]")

    i_exit = i_ret

    def i_trap(self, ins: Instruction, o: Any) -> None:
        self.emit(f"G.trap({self.guard(ins)}, {self.keep(ins)})")

    def i_nanosleep(self, ins: Instruction, o: Any) -> None:
        pass

    # tensor cores

    def _list(self, o: Any, bits: str) -> str:
        items = o.items if isinstance(o, Vector) else (o,)
        return "(" + ", ".join(self._array(self.v(x, bits), x) for x in items) + ",)"

    def i_mma(self, ins: Instruction, o: Any) -> None:
        p = ins.parts
        if p[1:3] != ("sync", "aligned") or p[4:6] != ("row", "col") or len(p) != 10 or p[7] != p[8] or p[6] != p[9]:
            raise UnknownOpcode("form of mma")
        M, N, K = (int(x) for x in p[3][1:].replace("n", " ").replace("k", " ").split())
        if (M, N, K, p[7]) not in (
            (16, 8, 16, "bf16"), (16, 8, 16, "f16"), (16, 8, 8, "bf16"), (16, 8, 8, "f16"), (16, 8, 8, "tf32"),
            (16, 8, 4, "tf32"), (8, 8, 4, "f64"), (16, 8, 4, "f64"), (16, 8, 8, "f64"), (16, 8, 16, "f64"),
        ):  # fmt: skip
            raise UnknownOpcode("shape of mma")
        if p[6] not in ("f32", "f64", "f16"):
            raise UnknownOpcode("type of mma")
        bits = "b64" if p[7] == "f64" else "b32"
        a, b, c = (self._list(x, bits) for x in o[1:])
        self.emit(f"G.converged({self.guard(ins)}, {self.keep(ins)})")
        self.emit(f"t = tc.mma({M}, {N}, {K}, {p[7]!r}, {p[6]!r}, {a}, {b}, {c})")
        for k, d in enumerate(o[0].items):
            self.write(ins, d, f"t[{k}]", bits)

    def i_ldmatrix(self, ins: Instruction, o: Any) -> None:
        n, trans = self._matrix_form(ins)
        items = o[0].items if isinstance(o[0], Vector) else (o[0],)
        self.emit(f"t = G.ldmatrix({self.address(o[1], 32)}, {n}, {trans}, {self.guard(ins)}, {self.keep(ins)})")
        for k, d in enumerate(items):
            self.write(ins, d, f"t[{k}]", "b32")

    def i_stmatrix(self, ins: Instruction, o: Any) -> None:
        n, trans = self._matrix_form(ins)
        values = self._list(o[1], "b32")
        self.emit(f"G.stmatrix({self.address(o[0], 32)}, {values}, {n}, {trans}, {self.guard(ins)}, {self.keep(ins)})")

    def _matrix_form(self, ins: Instruction) -> tuple[int, bool]:
        p = ins.parts
        if p[1:4] != ("sync", "aligned", "m8n8") or p[-1] != "b16" or ins.pred is not None:
            raise UnknownOpcode("form of ldmatrix or stmatrix")
        rest = [x for x in p[4:-1] if x not in ("shared", "shared::cta", "trans")]
        if len(rest) != 1 or rest[0] not in ("x1", "x2", "x4"):
            raise UnknownOpcode("form of ldmatrix or stmatrix")
        return int(rest[0][1:]), "trans" in p

    def i_wgmma(self, ins: Instruction, o: Any) -> None:
        what = ins.parts[1]
        g = self.guard(ins)
        if what == "fence":
            return
        if what == "commit_group":
            return self.emit(f"G.wgmma_commit({g})")
        if what == "wait_group":
            return self.emit(f"G.wgmma_wait(R, {o[0].value}, {g})")
        if what != "mma_async" or g is not None and ins.pred is not None:
            raise UnknownOpcode("form of wgmma")
        shape, out, kind, kind_b = ins.parts[4:8]
        M, N, K = (int(x) for x in shape[1:].replace("n", " ").replace("k", " ").split())
        if out != "f32" or kind != kind_b or M != 64 or kind not in ("tf32", "bf16", "f16"):
            raise UnknownOpcode("type of wgmma")
        d = [x.index for x in o[0].items]
        if isinstance(o[1], Vector):
            a = self._list(o[1], "b32")
        else:
            a = self._array(self.v(o[1], "u64"), o[1])
        b = self._array(self.v(o[2], "u64"), o[2])
        rest = [x.value for x in o[4:]]
        scale = self.predicate(o[3])
        self.emit(
            f"G.wgmma(R, {d!r}, {a}, {b}, {scale}, {rest!r}, ({M}, {N}, {K}), {kind!r}, {g}, {self.keep(ins)})"
        )


def _double(ty: str) -> str:
    return f"{ty[0]}{2 * int(ty[1:])}"
