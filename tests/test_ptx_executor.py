"""The executor (tests/ptx_executor) against definitions written from the PTX ISA's text, element by element, and against
planted errors."""

import itertools
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from ptx_executor import Launch, PtxError, UnknownOpcode, count, parse, per_step, total
from ptx_executor import tensorcore as tc
from ptx_executor.blocks import weak_order
from ptx_executor.translate import SHARED_BASE

RNG = np.random.default_rng(0)


def program(body, regs, params=2, threads=32):
    """A kernel of pointer parameters p0.. in %rd0.."""
    p = ",\n".join(f"\t.param .u64 .ptr .global .align 1 k_param_{i}" for i in range(params))
    loads = "\n".join(f"ld.param.b64 %rd{i}, [k_param_{i}];" for i in range(params))
    return parse(
        f".version 8.7\n.target sm_90a\n.address_size 64\n.extern .shared .align 16 .b8 global_smem[];\n"
        f".visible .entry k(\n{p}\n)\n.reqntid {threads}\n{{\n{regs}\n{loads}\n{body}\nret;\n}}\n"
    )


REGS = """.reg .pred %p<20>; .reg .b16 %rs<40>; .reg .b32 %r<200>; .reg .b64 %rd<100>;"""


def run(body, tensors, warps=1, shared=0, grid=(1, 1, 1), regs=REGS, **options):
    p = program(body, regs, len(tensors), 32 * warps)
    given = [(f"a{i}_ptr", "*i32", t) for i, t in enumerate(tensors)]
    launch = Launch(p, given, grid, warps, shared, **options)
    launch.run()
    return launch


def lanewise(n_in, n_out, instruction, wide=False):
    """Loads n_in registers of each lane from p0[lane][k], runs, stores n_out to p1[lane][k]; inputs %r10.. or %rd10.., results 60.."""
    t, size, r = ("b64", 8, "%rd") if wide else ("b32", 4, "%r")
    text = f"mov.u32 %r0, %tid.x;\nmad.wide.u32 %rd5, %r0, {size * n_in}, %rd0;\nmad.wide.u32 %rd6, %r0, {size * n_out}, %rd1;\n"
    text += "".join(f"ld.global.{t} {r}{10 + k}, [%rd5+{size * k}];\n" for k in range(n_in))
    text += instruction + "\n"
    text += "".join(f"st.global.{t} [%rd6+{size * k}], {r}{60 + k};\n" for k in range(n_out))
    return text


def names(first, n, r="%r"):
    return "{ " + ", ".join(f"{r}{first + k}" for k in range(n)) + " }"


# ---- fragments: the ISA's formulas, lane by lane ----------------------------------------------------------------------


def isa_a16(lane, i, K):
    g, t = lane >> 2, lane % 4
    if K == 16:
        row = g if (0 <= i < 2 or 4 <= i < 6) else g + 8
        col = t * 2 + (i & 1) if i < 4 else t * 2 + (i & 1) + 8
    else:
        row = g if i < 2 else g + 8
        col = t * 2 + (i & 1)
    return row, col


def isa_b16(lane, i):
    g, t = lane >> 2, lane % 4
    return (t * 2 + (i & 1) if i < 2 else t * 2 + (i & 1) + 8), g


def isa_c(lane, i):
    g, t = lane >> 2, lane % 4
    return (g if i < 2 else g + 8), t * 2 + (i & 1)


def isa_a_tf32(lane, i):
    g, t = lane >> 2, lane % 4
    return (g if i in (0, 2) else g + 8), (t if i in (0, 1) else t + 4)


def isa_a_f64(lane, i):
    g, t = lane >> 2, lane % 4
    return (g, i * 2 + t) if i % 2 == 0 else (g + 8, i * 2 - 2 + t)


@pytest.mark.parametrize("kind, K", [("bf16", 16), ("f16", 16), ("bf16", 8), ("f16", 8)])
def test_mma_of_16_bits(kind, K):
    dtype = torch.bfloat16 if kind == "bf16" else torch.float16
    A = torch.randn(16, K, dtype=torch.float64).to(dtype)
    B = torch.randn(K, 8, dtype=torch.float64).to(dtype)
    C = torch.randn(16, 8)
    na, nb = K // 4, K // 8
    given = torch.zeros(32, na + nb + 4, dtype=torch.int32)
    halves = given.numpy().view(np.uint16).reshape(32, -1)
    for lane in range(32):
        for i in range(2 * na):
            halves[lane, i] = A[isa_a16(lane, i, K)].view(torch.int16).item() & 0xFFFF
        for i in range(2 * nb):
            halves[lane, 2 * na + i] = B[isa_b16(lane, i)].view(torch.int16).item() & 0xFFFF
        for i in range(4):
            given[lane, na + nb + i] = C[isa_c(lane, i)].view(torch.int32)
    out = torch.zeros(32, 4, dtype=torch.int32)
    a, b, c = names(10, na), names(10 + na, nb), names(10 + na + nb, 4)
    run(lanewise(na + nb + 4, 4, f"mma.sync.aligned.m16n8k{K}.row.col.f32.{kind}.{kind}.f32 {names(60, 4)}, {a}, {b}, {c};"), [given, out])
    want = A.double() @ B.double() + C.double()
    for lane, i in itertools.product(range(32), range(4)):
        assert out[lane, i].view(torch.float32).item() == pytest.approx(want[isa_c(lane, i)].item(), rel=1e-6, abs=1e-6)


def test_mma_of_tf32_ignores_the_low_bits():
    A, B, C = torch.randn(16, 8), torch.randn(8, 8), torch.randn(16, 8)
    given = torch.zeros(32, 10, dtype=torch.int32)
    for lane in range(32):
        for i in range(4):
            given[lane, i] = A[isa_a_tf32(lane, i)].view(torch.int32)
        for i in range(2):
            given[lane, 4 + i] = B[lane % 4 + 4 * i, lane >> 2].view(torch.int32)
        for i in range(4):
            given[lane, 6 + i] = C[isa_c(lane, i)].view(torch.int32)
    out = torch.zeros(32, 4, dtype=torch.int32)
    run(lanewise(10, 4, f"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {names(60, 4)}, {names(10, 4)}, {names(14, 2)}, {names(16, 4)};"), [given, out])
    cut = lambda t: (t.view(torch.int32) & ~0x1FFF).view(torch.float32).double()  # noqa: E731
    want = cut(A) @ cut(B) + C.double()
    for lane, i in itertools.product(range(32), range(4)):
        assert out[lane, i].view(torch.float32).item() == pytest.approx(want[isa_c(lane, i)].item(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("M, K", [(8, 4), (16, 4), (16, 8), (16, 16)])
def test_mma_of_fp64(M, K):
    A, B, C = (torch.randn(s, dtype=torch.float64) for s in ((M, K), (K, 8), (M, 8)))
    na, nb, nc = M * K // 32, K // 4, M // 4
    given = torch.zeros(32, na + nb + nc, dtype=torch.float64)
    for lane in range(32):
        g, t = lane >> 2, lane % 4
        for i in range(na):
            given[lane, i] = A[isa_a_f64(lane, i)]
        for i in range(nb):
            given[lane, na + i] = B[t + 4 * i, g]
        for i in range(nc):
            given[lane, na + nb + i] = C[isa_c(lane, i)]
    out = torch.zeros(32, nc, dtype=torch.float64)
    body = f"mma.sync.aligned.m{M}n8k{K}.row.col.f64.f64.f64.f64 {names(60, nc, '%rd')}, {names(10, na, '%rd')}, {names(10 + na, nb, '%rd')}, {names(10 + na + nb, nc, '%rd')};"
    run(lanewise(na + nb + nc, nc, body, wide=True), [given, out])
    want = A @ B + C
    for lane, i in itertools.product(range(32), range(nc)):
        assert out[lane, i].item() == pytest.approx(want[isa_c(lane, i)].item(), rel=1e-13, abs=1e-13)


# ---- ldmatrix, stmatrix -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("trans", [False, True])
def test_ldmatrix(n, trans):
    data = torch.arange(32 * 8, dtype=torch.int32).to(torch.int16).view(32, 8)  # row l is stored by lane l at 16 * perm[l]
    perm = RNG.permutation(32)
    where = torch.tensor(perm * 16 + SHARED_BASE, dtype=torch.int32)
    given = torch.cat([where[:, None], data.view(torch.int32)], 1).contiguous()
    body = "st.shared.v4.b32 [%r10], {%r11, %r12, %r13, %r14};\nbar.sync 0;\n"
    body += f"ldmatrix.sync.aligned.m8n8.x{n}{'.trans' if trans else ''}.shared.b16 {names(60, n)}, [%r10];"
    out = torch.zeros(32, n, dtype=torch.int32)
    run(lanewise(5, n, body), [given, out], shared=512)
    got = out.view(torch.int16).view(32, n, 2)
    for lane, k, e in itertools.product(range(32), range(n), range(2)):
        row, col = lane // 4, 2 * (lane % 4) + e
        want = data[8 * k + col, row] if trans else data[8 * k + row, col]
        assert got[lane, k, e] == want


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("trans", [False, True])
def test_stmatrix(n, trans):
    regs = torch.tensor(RNG.integers(0, 2**16, (32, n, 2)).astype(np.int32)).to(torch.int16)
    where = torch.arange(32, dtype=torch.int32) * 16 + SHARED_BASE
    given = torch.cat([where[:, None], regs.view(torch.int32).view(32, n)], 1).contiguous()
    body = "st.shared.v4.b32 [%r10], {%r10, %r10, %r10, %r10};\nbar.sync 0;\n"
    body += f"stmatrix.sync.aligned.m8n8.x{n}{'.trans' if trans else ''}.shared.b16 [%r10], {names(11, n)};\nbar.sync 0;\n"
    body += "ld.shared.v4.b32 {%r60, %r61, %r62, %r63}, [%r10];"
    out = torch.zeros(32, 4, dtype=torch.int32)
    run(lanewise(1 + n, 4, body), [given, out], shared=512)
    rows = out.view(torch.int16).view(32, 8)
    for lane, k, e in itertools.product(range(32), range(n), range(2)):
        row, col = lane // 4, 2 * (lane % 4) + e
        got = rows[8 * k + col, row] if trans else rows[8 * k + row, col]
        assert got == regs[lane, k, e]


# ---- conversions and bits ---------------------------------------------------------------------------------------------

BITS = np.concatenate([
    RNG.integers(0, 2**32, 400, dtype=np.uint64).astype(np.uint32),
    np.array([0, 0x80000000, 1, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFFFFFFF, 0x7F7FFFFF, 0x3F808000, 0x3F818000, 0x3F801000, 0x3F800FFF,
              0x3F803000, 0x477FF000, 0x477FEFFF, 0x33000000, 0x33000001, 0x387FE000, 0x00800000, 0x7F7F8000, 0x7F7F7FFF], np.uint32),
])  # fmt: skip
BITS = np.concatenate([BITS, np.zeros(-len(BITS) % 32, np.uint32)])


def nearest(x: Fraction, fraction_bits: int, low_exponent: int, ties: str) -> Fraction:
    """x rounded to a float format, with no upper bound"""
    if x == 0:
        return x
    e = max((abs(x).numerator.bit_length() - abs(x).denominator.bit_length()), low_exponent)
    while abs(x) < Fraction(2) ** e and e > low_exponent:
        e -= 1
    while abs(x) >= Fraction(2) ** (e + 1):
        e += 1
    ulp = Fraction(2) ** (e - fraction_bits)
    n, rest = divmod(abs(x) / ulp, 1)
    up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and (ties == "away" or n % 2 == 1))
    return (n + up) * ulp * (1 if x > 0 else -1)


def elementwise(instruction, values, n_in=1):
    given = torch.tensor(np.stack(values, -1).view(np.int32).copy()).view(-1, n_in)
    out = torch.zeros(len(given), 1, dtype=torch.int32)
    run(lanewise(n_in, 1, instruction), [given, out], warps=len(given) // 32)
    return out.view(-1).numpy().view(np.uint32)


@pytest.mark.parametrize("kind, fraction, low, largest", [("bf16", 7, -126, None), ("f16", 10, -14, Fraction(65504))])
@pytest.mark.parametrize("packed", [False, True])
def test_conversion_to_16_bits(kind, fraction, low, largest, packed):
    if packed:  # the first source is the upper half
        r = elementwise(f"cvt.rn.{kind}x2.f32 %r60, %r10, %r11;", [BITS, BITS[::-1].copy()], 2)
        upper, lower = r >> 16, r & 0xFFFF
        pairs = list(zip(BITS, upper)) + list(zip(BITS[::-1], lower))
    else:
        r = elementwise(f"cvt.rn.{kind}.f32 %rs0, %r10;\ncvt.u32.u16 %r60, %rs0;", [BITS])
        pairs = list(zip(BITS, r))
    for bits, got in pairs:
        x = struct.unpack("<f", struct.pack("<I", int(bits)))[0]
        if x != x:
            assert got == 0x7FFF
            continue
        value = torch.tensor([int(got)], dtype=torch.int32).to(torch.int16).view(torch.bfloat16 if kind == "bf16" else torch.float16).double().item()
        if x in (float("inf"), float("-inf")):
            assert value == x
            continue
        want = nearest(Fraction(x), fraction, low, "even")
        top = largest if largest is not None else (2 - Fraction(1, 128)) * Fraction(2) ** 127
        if abs(want) > top:
            assert value == float("inf") * (1 if x > 0 else -1)
        else:
            assert Fraction(value) == want


def test_conversion_to_tf32():
    r = elementwise("cvt.rna.tf32.f32 %r60, %r10;", [BITS])
    for bits, got in zip(BITS, r):
        x = struct.unpack("<f", struct.pack("<I", int(bits)))[0]
        value = struct.unpack("<f", struct.pack("<I", int(got)))[0]
        if x != x:
            assert value != value
        elif abs(x) in (float("inf"),):
            assert value == x
        else:
            want = nearest(Fraction(x), 10, -126, "away")
            assert (abs(value) == float("inf") and abs(want) >= Fraction(2) ** 128) or Fraction(value) == want


def test_prmt():
    a, b, c = (RNG.integers(0, 2**32, 64, dtype=np.uint64).astype(np.uint32) for _ in range(3))
    r = elementwise("prmt.b32 %r60, %r10, %r11, %r12;", [a, b, c], 3)
    for x, y, s, got in zip(a, b, c, r):
        source = int(x).to_bytes(4, "little") + int(y).to_bytes(4, "little")
        out = []
        for k in range(4):
            sel = int(s) >> (4 * k) & 0xF
            byte = source[sel & 7]
            out.append((0xFF if byte & 0x80 else 0) if sel & 8 else byte)
        assert got == int.from_bytes(bytes(out), "little")


@pytest.mark.parametrize("signed", [False, True])
def test_bfe(signed):
    a = RNG.integers(0, 2**32, 1024, dtype=np.uint64).astype(np.uint32)
    pos, length = (RNG.integers(0, 40, 1024).astype(np.uint32) for _ in range(2))
    r = elementwise(f"bfe.{'s' if signed else 'u'}32 %r60, %r10, %r11, %r12;", [a, pos, length], 3)
    for x, p, n, got in zip(*(map(int, v) for v in (a, pos, length, r))):
        msb = 31
        sbit = 0 if not signed or n == 0 else x >> min(p + n - 1, msb) & 1
        want = sum(((x >> (p + i) & 1) if i < n and p + i <= msb else sbit) << i for i in range(32))
        assert got == want


def test_bfi_shf_lop3():
    a, b = (RNG.integers(0, 2**32, 256, dtype=np.uint64).astype(np.uint32) for _ in range(2))
    pos, length = (RNG.integers(0, 34, 256).astype(np.uint32) for _ in range(2))
    r = elementwise("bfi.b32 %r60, %r10, %r11, %r12, %r13;", [a, b, pos, length], 4)
    for x, y, p, n, got in zip(*(map(int, v) for v in (a, b, pos, length, r))):
        f = y
        for i in range(n):
            if p + i <= 31:
                f = f & ~(1 << (p + i)) | (((x >> i & 1) if i < 32 else 0) << (p + i))
        assert got == f
    r = elementwise("shf.l.wrap.b32 %r60, %r10, %r11, %r12;", [a, b, pos], 3)
    assert [int(v) for v in r] == [(((int(y) << 32 | int(x)) << (int(p) & 31)) >> 32) & 0xFFFFFFFF for x, y, p in zip(a, b, pos)]
    c = RNG.integers(0, 2**32, 256, dtype=np.uint64).astype(np.uint32)
    r = elementwise("lop3.b32 %r60, %r10, %r11, %r12, 0x6A;", [a, b, c], 3)
    assert (r == ((a & b) ^ c)).all()  # 0xF0 & 0xCC ^ 0xAA


@pytest.mark.parametrize("operation", ["add", "min", "max"])
@pytest.mark.parametrize("kind", [np.int32, np.uint32])
def test_redux_and_relu(operation, kind):
    a = RNG.integers(0, 2**32, 64, dtype=np.uint64).astype(np.uint32).view(kind)
    letter = "s" if kind is np.int32 else "u"
    r = elementwise(f"redux.sync.{operation}.{letter}32 %r60, %r10, -1;", [a.view(np.uint32)])
    combine = {"add": lambda v: sum(v) % 2**32, "min": min, "max": max}[operation]
    assert [int(v) for v in r] == [combine(map(int, warp)) % 2**32 for warp in a.reshape(2, 32) for _ in range(32)]
    if kind is np.int32 and operation != "add":
        r = elementwise(f"{operation}.relu.s32 %r60, %r10, 7;", [a.view(np.uint32)])
        assert [int(v) for v in r] == [max(0, combine((int(v), 7))) for v in a]


@pytest.mark.parametrize("mode, b", [("idx", 5), ("up", 3), ("down", 7), ("bfly", 16), ("bfly", 9)])
@pytest.mark.parametrize("width", [32, 8])
def test_shfl(mode, b, width):
    a = np.arange(32, dtype=np.uint32) + 100
    clamp = 0 if mode == "up" else 31
    c = ((32 - width) << 8) | clamp
    r = elementwise(f"shfl.sync.{mode}.b32 %r60, %r10, {b}, {c}, -1;", [a])
    for lane in range(32):
        base = lane // width * width
        j = {"idx": base + b % width, "up": lane - b, "down": lane + b, "bfly": lane ^ b}[mode]
        inside = j < base + width and (j >= base or mode == "bfly")  # the ISA bounds bfly from above alone
        assert r[lane] == 100 + (j if inside else lane)


def test_integer_arithmetic():
    a, b = (RNG.integers(0, 2**32, 256, dtype=np.uint64).astype(np.uint32) for _ in range(2))
    b = np.maximum(b >> 20, 1)
    s = lambda v: v.view(np.int32).astype(object)  # noqa: E731
    u = lambda v: v.astype(object)  # noqa: E731
    for text, want in (
        ("mul.hi.u32 %r60, %r10, %r11;", [(x * y) >> 32 for x, y in zip(u(a), u(b))]),
        ("mul.hi.s32 %r60, %r10, %r11;", [((x * y) >> 32) & 0xFFFFFFFF for x, y in zip(s(a), s(b))]),
        ("div.s32 %r60, %r10, %r11;", [int(Fraction(x, y)) & 0xFFFFFFFF for x, y in zip(s(a), s(b))]),
        ("rem.s32 %r60, %r10, %r11;", [(x - y * int(Fraction(x, y))) & 0xFFFFFFFF for x, y in zip(s(a), s(b))]),
        ("min.s32 %r60, %r10, %r11;", [min(x, y) & 0xFFFFFFFF for x, y in zip(s(a), s(b))]),
        ("max.u32 %r60, %r10, %r11;", [max(x, y) for x, y in zip(u(a), u(b))]),
        ("mad.lo.s32 %r60, %r10, %r11, 7;", [(x * y + 7) & 0xFFFFFFFF for x, y in zip(s(a), s(b))]),
        ("shr.s32 %r60, %r10, %r11;", [(x >> min(y, 31)) & 0xFFFFFFFF for x, y in zip(s(a), u(b))]),
        ("shl.b32 %r60, %r10, %r11;", [(x << y) & 0xFFFFFFFF if y < 32 else 0 for x, y in zip(u(a), u(b))]),
        ("mul.wide.s32 %rd60, %r10, %r11;\nshr.u64 %rd61, %rd60, 32;\ncvt.u32.u64 %r60, %rd61;", [((x * y) >> 32) & 0xFFFFFFFF for x, y in zip(s(a), s(b))]),
        ("cvt.s64.s32 %rd60, %r10;\nmul.hi.u64 %rd61, %rd60, %rd60;\ncvt.u32.u64 %r60, %rd61;", [(((x & (2**64 - 1)) ** 2) >> 64) & 0xFFFFFFFF for x in s(a)]),
    ):  # fmt: skip
        assert [int(v) for v in elementwise(text, [a, b], 2)] == [int(w) for w in want], text


def test_comparisons_with_nan():
    a = np.array([1.0, float("nan"), 2.0, -0.0] * 8, np.float32).view(np.uint32)
    b = np.array([1.0, 1.0, float("nan"), 0.0] * 8, np.float32).view(np.uint32)
    for op, want in (("eq", [1, 0, 0, 1]), ("ne", [0, 0, 0, 0]), ("neu", [0, 1, 1, 0]), ("ltu", [0, 1, 1, 0]), ("geu", [1, 1, 1, 1]), ("num", [1, 0, 0, 1]), ("nan", [0, 1, 1, 0]), ("le", [1, 0, 0, 1])):
        r = elementwise(f"setp.{op}.f32 %p0, %r10, %r11;\nselp.b32 %r60, 1, 0, %p0;", [a, b], 2)
        assert list(r[:4]) == want, op


# ---- control flow -----------------------------------------------------------------------------------------------------


def test_divergent_loops_meet_again_and_inline_assembly_has_its_own_names():
    block = """{
.reg .pred q;
.reg .b32 n;
mov.u32 n, 0;
SPIN:
setp.ge.u32 q, n, %r10;
@q bra DONE;
add.u32 n, n, 1;
add.u32 %r60, %r60, 3;
bra SPIN;
DONE:
}
"""
    a = (np.arange(32) % 7).astype(np.uint32)
    r = elementwise("mov.u32 %r60, 0;\n" + block + block + "shfl.sync.idx.b32 %r61, %r60, 6, 31, -1;\nadd.u32 %r60, %r60, %r61;", [a])
    assert list(r) == [6 * int(x) + 36 for x in a]


def test_lanes_meet_again_behind_a_path_at_the_end_of_the_text():
    """A path that few lanes take, which the compiler has put behind all others, leads to an exchange of the whole warp."""
    a = np.arange(32, dtype=np.uint32)
    body = """setp.lt.u32 %p0, %r10, 5;
@%p0 bra $L__RARE;
mov.u32 %r61, 1;
$L__BACK:
shfl.sync.bfly.b32 %r60, %r61, 31, 31, -1;
bra $L__END;
$L__RARE:
mov.u32 %r61, 2;
bra $L__BACK;
$L__END:"""
    assert list(elementwise(body, [a])) == [2 if lane ^ 31 < 5 else 1 for lane in range(32)]


@pytest.mark.parametrize("successors, order", [
    ([[1, 2], [3], [3], []], [0, 1, 2, 3]),
    ([[1, 3], [2], [], [1]], [0, 3, 1, 2]),  # 3 is a rare path to 1
    ([[1, 3], [2], [0], []], [0, 1, 2, 3]),
    ([[2], [], [1, 3], [2]], [0, 2, 3, 1]),  # what follows the loop lies before it in the text
    ([[1, 5], [2, 4], [1, 3], [0], [3], []], [0, 1, 2, 4, 3, 5]),  # a loop in a loop
    ([[1], [1, 2], []], [0, 1, 2]),
    ([[1, 2], [2, 3], [1], []], [0, 1, 2, 3]),  # a loop with two entries
])  # fmt: skip
def test_weak_order(successors, order):
    assert weak_order(successors) == order


def test_gangs_and_schedules_do_not_matter():
    """A reduction through shared memory, and a counter across CTAs"""
    body = f"""mov.u32 %r0, %tid.x;
mov.u32 %r1, %ctaid.x;
shl.b32 %r2, %r0, 2;
add.s32 %r2, %r2, {SHARED_BASE};
st.shared.b32 [%r2], %r0;
bar.sync 0;
xor.b32 %r3, %r2, 508;
ld.shared.b32 %r4, [%r3];
mul.wide.u32 %rd10, %r0, 4;
mad.wide.u32 %rd11, %r1, 512, %rd0;
add.s64 %rd12, %rd11, %rd10;
st.global.b32 [%rd12], %r4;
bar.sync 0;
setp.eq.u32 %p0, %r0, 0;
@%p0 atom.global.gpu.release.add.u32 %r9, [%rd1], 1;
@!%p0 bra $L__END;
$L__SPIN:
ld.acquire.gpu.global.u32 %r8, [%rd1];
setp.lt.u32 %p1, %r8, 3;
@%p1 bra $L__SPIN;
$L__END:
"""
    for seed, gang in itertools.product(range(4), (0, 1, 2)):
        out, counter = torch.zeros(3, 128, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        run(body, [out, counter], warps=4, shared=512, grid=(3, 1, 1), cooperative=True, seed=seed, gang=gang)
        assert counter.item() == 3
        assert (out == torch.arange(128, dtype=torch.int32).flip(0)).all() or (out == (torch.arange(128) ^ 127).int()).all()


# ---- what must be noticed -----------------------------------------------------------------------------------------------

BASE = SHARED_BASE
STORE = f"mov.u32 %r0, %tid.x;\nshl.b32 %r1, %r0, 2;\nadd.s32 %r1, %r1, {BASE};\nst.shared.b32 [%r1], %r0;\n"


@pytest.mark.parametrize("body, shared, message", [
    ("mov.u32 %r0, %tid.x;\nmad.wide.u32 %rd5, %r0, 4, %rd0;\nld.global.b32 %r1, [%rd5+4];", 0, "out of bounds"),
    ("mov.u32 %r0, %tid.x;\nmad.wide.u32 %rd5, %r0, 4, %rd0;\nst.global.b32 [%rd5+-4], %r0;", 0, "out of bounds"),
    ("ld.global.v2.b32 {%r1, %r2}, [%rd0+4];", 0, "misaligned"),
    ("ld.global.b32 %r1, [%rd0+2];", 0, "misaligned"),
    (STORE + "ld.shared.b32 %r2, [%r1+256];", 1024, "never written"),
    (STORE, 128, "out of bounds"),
    (STORE + "xor.b32 %r3, %r1, 128;\nld.shared.b32 %r2, [%r3];", 1024, "race|never written"),
    (STORE + "bar.sync 0;\nxor.b32 %r3, %r1, 128;\nld.shared.b32 %r2, [%r3];\nst.shared.b32 [%r1], %r2;", 1024, "race"),
    (f"mov.u32 %r0, %tid.x;\nmov.u32 %r1, {BASE};\nst.shared.b32 [%r1], %r0;", 1024, "race"),
    ("mov.u32 %r0, %tid.x;\nsetp.lt.u32 %p0, %r0, 5;\n@%p0 bra $L__A;\nbar.sync 0;\n$L__A:", 0, "part of a warp at a CTA barrier"),
    ("mov.u32 %r0, %tid.x;\nsetp.lt.u32 %p0, %r0, 5;\n@%p0 bra $L__A;\nshfl.sync.idx.b32 %r2, %r0, 0, 31, -1;\n$L__A:", 0, "part of a warp"),
    ("add.u32 %r1, %r2, 1;", 0, "never written"),
    (f"mov.u32 %r0, %tid.x;\nshl.b32 %r1, %r0, 2;\nadd.s32 %r1, %r1, {BASE};\nmad.wide.u32 %rd5, %r0, 4, %rd0;\n"
     "cp.async.ca.shared.global [%r1], [%rd5], 0x4;\ncp.async.commit_group;\nld.shared.b32 %r2, [%r1];", 1024, "cp.async"),
    ("$L__S:\nld.volatile.global.b32 %r1, [%rd0];\nsetp.eq.u32 %p0, %r1, 0;\n@%p0 bra $L__S;", 0, "no progress"),
    ("trap;", 0, "trap"),
])  # fmt: skip
@pytest.mark.parametrize("gang", [0, 1])
def test_errors_are_found(body, shared, message, gang):
    with pytest.raises(PtxError, match=message):
        run(body, [torch.zeros(64, dtype=torch.int32)], warps=2, shared=shared, gang=gang, idle=1000)


def test_warps_of_one_cta_that_wait_at_a_barrier_for_one_that_has_left_are_let_through():
    run("mov.u32 %r0, %tid.x;\nsetp.lt.u32 %p0, %r0, 32;\n@%p0 bra $L__A;\nbar.sync 0;\n$L__A:", [torch.zeros(4)], warps=3, gang=1)


def test_lanes_of_a_warp_that_exchange_without_a_warp_barrier_are_noted():
    body = STORE + "xor.b32 %r3, %r1, 4;\nld.shared.b32 %r2, [%r3];"
    assert run(body, [torch.zeros(4)], shared=1024).lane_hazards
    assert not run(body.replace("xor", "bar.warp.sync -1;\nxor"), [torch.zeros(4)], shared=1024).lane_hazards


@pytest.mark.parametrize("text", ["frob.b32 %r1, %r2;", "ld.global.nonsense.b32 %r1, [%rd0];", "cvt.rz.bf16.f32 %rs0, %r1;", "bar.sync 1, 64;"])
def test_unknown_opcodes_raise_and_are_named(text):
    with pytest.raises(UnknownOpcode, match=text.split()[0].replace(".", r"\.")):
        run("mov.u32 %r1, 0;\n" + text, [torch.zeros(4)])


def test_bank_conflicts_are_counted():
    def conflicts(stride):
        body = f"mov.u32 %r0, %tid.x;\nmul.lo.s32 %r1, %r0, {stride};\nadd.s32 %r1, %r1, {BASE};\nst.shared.b32 [%r1], %r0;"
        return run(body, [torch.zeros(4)], shared=8192, counting=True).conflicts["st"]

    assert [conflicts(s) for s in (4, 8, 128, 132)] == [0, 1, 31, 0]


def test_swizzled_tiles_are_permutations():
    for swizzle, size in itertools.product((1, 2, 3), (2, 4)):
        width = {1: 128, 2: 64, 3: 32}[swizzle]
        d = (1024 >> 4) | (64 << 16) | ((8 * width >> 4) << 32) | (swizzle << 62)
        at = tc.tile_addresses(d, 64, width // size, size, "k")
        assert sorted(at.reshape(-1)) == list(range(1024, 1024 + 64 * width, size))
    # none, M or N contiguous: core matrices of 8 K by 16 bytes, 128 bytes apart along M, 1024 along K
    at = tc.tile_addresses((1024 >> 4) | (1024 >> 4 << 16) | (128 >> 4 << 32), 64, 16, 2, "mn")
    assert sorted(at.reshape(-1)) == list(range(1024, 1024 + 64 * 16 * 2, 2))
    assert at[1, 0] == 1026 and at[0, 1] == 1040 and at[8, 0] == 1152 and at[0, 8] == 2048


@pytest.mark.parametrize("barrier", [False, True])
@pytest.mark.parametrize("gang", [0, 1])
def test_warps_that_exchange_through_global_memory_need_a_barrier(barrier, gang):
    body = "mov.u32 %r0, %tid.x;\nmad.wide.u32 %rd5, %r0, 4, %rd0;\nst.global.b32 [%rd5], %r0;\n" + "bar.sync 0;\n" * barrier
    body += "xor.b32 %r1, %r0, 32;\nmad.wide.u32 %rd6, %r1, 4, %rd0;\nld.global.b32 %r2, [%rd6];"
    if barrier:
        run(body, [torch.zeros(64, dtype=torch.int32)], warps=2, gang=gang)
    else:
        with pytest.raises(PtxError, match="race: a plain load"):
            run(body, [torch.zeros(64, dtype=torch.int32)], warps=2, gang=gang)


@pytest.mark.parametrize("gang", [0, 1])
def test_warps_may_write_the_same_values(gang):
    body = f"mov.u32 %r0, %tid.x;\nand.b32 %r0, %r0, 31;\nshl.b32 %r1, %r0, 2;\nadd.s32 %r1, %r1, {BASE};\nst.shared.b32 [%r1], %r0;\nbar.sync 0;\nld.shared.b32 %r2, [%r1];"
    assert run(body, [torch.zeros(4)], warps=2, shared=1024, gang=gang).same_values


# ---- counts -------------------------------------------------------------------------------------------------------------


def test_counts_of_a_step():
    """A loop whose every step has a barrier, loads 4 bytes a lane, stores to shared memory in the banks of 4 lanes each and
    polls a flag that is set: what is before the loop drops out."""
    body = f"""mov.u32 %r0, %tid.x;
mad.wide.u32 %rd5, %r0, 4, %rd0;
shl.b32 %r1, %r0, 4;
add.s32 %r1, %r1, {SHARED_BASE};
ld.global.b32 %r3, [%rd1];
ld.global.b32 %r4, [%rd1+4];
$L__LOOP:
ld.global.b32 %r5, [%rd5];
st.shared.b32 [%r1], %r5;
bar.sync 0;
sub.u32 %r3, %r3, 1;
setp.ne.u32 %p0, %r3, 0;
@%p0 bra $L__LOOP;"""

    def launch(steps):
        x, scalars = torch.zeros(64, dtype=torch.int32), torch.tensor([steps, 1], dtype=torch.int32)
        return run(body, [x, scalars], warps=2, shared=1024, grid=(3, 1, 1), counting=True, gang=0)

    short, long = count(launch(2)), count(launch(5))
    assert (short.ctas, short.warps, short.barriers) == (3, 6, 6)
    step = per_step(short, long, 3)
    assert (step.ctas, step.warps, step.barriers, step.instructions, step.spins) == (3, 6, 3, 36, 0)
    assert step.opcodes == {"ld.global": 6, "st.shared": 6, "bar": 6, "sub": 6, "setp": 6, "bra": 6}
    assert step.wavefronts == {"st": 24} and step.conflicts == {"st": 18}
    assert len(step.conflict_sites) == 1 and step.loaded == {"a0_ptr": 3 * 256} and not step.stored
    assert step.load_sectors == {"a0_ptr": 3 * 8}
    both = total([launch(2), launch(2)])
    assert both.barriers == 12 and both.ctas == 3 and both.loaded["a0_ptr"] == 2 * short.loaded["a0_ptr"]
