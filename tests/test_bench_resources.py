"""Resources of compiled kernels, on kernels small enough to know the answer; compiled ahead of time, no GPU."""

import pytest
import triton
import triton.language as tl
from support import first_reads
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.compiled import machine_code, resources

B, H, WARPS = 16, 64, 4


@triton.jit
def recurrence(x_ptr, w_ptr, y_ptr, T, B: tl.constexpr, H: tl.constexpr, RELOAD: tl.constexpr):
    """h_t = relu(x_t + h_{t-1} W), bf16, contiguous; RELOAD reads W again every step."""
    offs_b = tl.arange(0, B)[:, None]
    offs_h = tl.arange(0, H)
    offs_w = offs_h[:, None] * H + offs_h[None, :]
    w = tl.load(w_ptr + offs_w)
    h = tl.zeros((B, H), tl.bfloat16)
    for t in range(T):
        if RELOAD:
            w = tl.load(w_ptr + offs_w, volatile=True)
        offs = (t * B + offs_b) * H + offs_h[None, :]
        x = tl.load(x_ptr + offs).to(tl.float32)
        h = tl.maximum(tl.dot(h, w, x), 0.0).to(tl.bfloat16)
        tl.store(y_ptr + offs, h)


@triton.jit
def copy(x_ptr, y_ptr):
    offs = tl.arange(0, 128)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs))


def compiled(function, signature, constants, capability=90):
    pointers = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(
        fn=function,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs={(function.arg_names.index(name),): value for name, value in constants.items()},
        attrs=pointers,
    )
    options = {"num_warps": WARPS, "num_stages": 1}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def analyzed(reload, capability=90):
    signature = {"x_ptr": "*bf16", "w_ptr": "*bf16", "y_ptr": "*bf16", "T": "i32"}
    return resources.analyze(compiled(recurrence, signature, {"B": B, "H": H, "RELOAD": reload}, capability))


def global_load_bytes(found):
    """What a CTA loads in a step, every lane of every warp active"""
    return 32 * found.warps * sum(width * count for width, count in found.global_loads.items())


@pytest.fixture(scope="module")
def keeps():
    return analyzed(False)


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_a_kernel_that_keeps_w_loads_x_alone(capability):
    found = analyzed(False, capability)
    assert found.arch == f"sm_{capability}" and found.warps == WARPS
    assert found.global_load_arguments == {"x_ptr": 1}
    assert found.global_loads == {16: 1} and found.global_stores == {16: 1}
    assert global_load_bytes(found) == 2 * B * H  # each lane brings 8 of the tile's values
    assert found.mma == (H // 16) * (B // 16) * (H // 8) / WARPS  # m16n8k16
    assert found.barriers >= 2 and found.shared_loads > 0 and found.shared_stores > 0
    assert found.spill_loads == found.spill_stores == found.stack_bytes == 0
    assert 16 < found.registers < 256 and found.shared_bytes >= 2 * H * H


def test_a_kernel_that_reloads_w_is_seen():
    found = analyzed(True)
    assert found.global_load_arguments == {"w_ptr": H * H * 2 // (16 * 32 * WARPS), "x_ptr": 1}
    assert global_load_bytes(found) == 2 * B * H + 2 * H * H


def test_unrolling_is_normalised_away(keeps):
    """ptxas unrolls the keeping kernel on sm_90 and not the reloading one; a step has the same work in both."""
    reloads = analyzed(True)
    assert (keeps.barriers, keeps.mma) == (reloads.barriers, reloads.mma)
    assert 0.5 < keeps.instructions / reloads.instructions < 1.1


def test_a_kernel_without_a_time_loop_is_refused():
    with pytest.raises(ValueError, match="copy has no loop with a global store"):
        resources.analyze(compiled(copy, {"x_ptr": "*fp32", "y_ptr": "*fp32"}, {}))


def test_as_dict_is_json_with_string_keys(keeps):
    assert keeps.as_dict()["global_loads"] == {"16": 1}


# Listings by hand: what the compilers above do not produce on demand.


def sass(*lines):
    return "\n".join(f"        /*{16 * i:04x}*/  {line} ;  /* 0x0 */" for i, line in enumerate(lines))


def test_cold_code_behind_the_loop_is_not_a_loop():
    """A branch back from code placed behind the kernel's end spans half of it but dominates nothing."""
    code = machine_code.parse_sass(
        sass(
            "MOV R0, R1",
            "LDG.E R2, [R4]",  # 0x10 the loop
            "@P0 BRA 0x70",
            "STG.E [R4], R2",  # 0x30
            "@P1 BRA 0x10",
            "STG.E.128 [R6], R2",
            "EXIT",
            "BAR.SYNC 0x0",  # 0x70 cold
            "BRA 0x30",
        )
    )
    graph = machine_code.Graph(code, machine_code.sass_flow)
    body, inner = machine_code.time_loop(graph, lambda i: i.opcode.startswith("STG"), "it")
    assert [i.address for i in body] == [0x10, 0x20, 0x30, 0x40, 0x70, 0x80] and inner == []


def test_the_outer_loop_is_the_time_loop():
    code = machine_code.parse_sass(
        sass("MOV R0, R1", "BAR.SYNC 0x0", "LDG.E R2, [R4]", "@P0 BRA 0x20", "STG.E [R4], R2", "@P1 BRA 0x10", "EXIT")
    )
    body, inner = machine_code.time_loop(machine_code.Graph(code, machine_code.sass_flow), lambda i: "STG" in i.opcode, "it")
    assert [i.address for i in body] == [0x10, 0x20, 0x30, 0x40, 0x50]
    assert [[i.address for i in loop] for loop in inner] == [[0x20, 0x30]]


def test_where_a_load_is_read_first():
    def reads(*lines):
        return [
            (r.opcode, r.behind, r.same_trip, r.moves) for r in first_reads.first_reads(machine_code.parse_sass(sass(*lines)))
        ]

    # by a move at the end of the trip; by a product of the next trip; not by one that writes the register
    assert reads("LDG.E.128 R4, [R2.64]", "FADD R1, R1, R0", "IMAD.MOV.U32 R8, RZ, RZ, R7") == [("IMAD.MOV.U32", 2, True, True)]
    ahead = ["HMMA.16816.F32.BF16 R12, R20, R4, R12", "CS2R R4, SRZ", "LDG.E.64 R4, [R2.64]", "@P0 BRA 0x0"]
    assert reads(*ahead) == [("HMMA.16816.F32.BF16", 2, False, False)]
    # registers of an address, of a wide store, of a product's operands: 4, 2 and 4
    assert reads("LDG.E R9, [R2.64]", "LDG.E R1, [R8.64]")[0] == ("LDG.E", 1, True, False)
    assert reads("LDG.E R7, [R2.64]", "STG.E.128 [R2.64], R4")[0][:2] == ("STG.E.128", 1)
    assert reads("LDG.E R6, [R2.64]", "HMMA.16816.F32.BF16 R12, R20, R4, R12", "FADD R1, R6, R1") == [("FADD", 2, True, False)]


def test_steps_that_triton_unrolls():
    loop = ["  %0 = scf.for %i = %a to %b step %c4_i32  : i32 {", "    %1 = tt.load %p", "  }"]
    time = ["  %2 = scf.for %i = %a to %b step %c2_i32 iter_args(%x = %y) -> (i32)  : i32 {", "    tt.store %p, %v", "  }"]
    rest = ["  scf.for %i = %b to %T step %c1_i32  : i32 {", "    tt.store %p, %v", "  }"]
    assert resources._steps_a_trip("\n".join(loop + time + rest)) == 2
    assert resources._steps_a_trip("\n".join(loop)) == 1
