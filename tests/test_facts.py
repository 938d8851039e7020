"""kernels/facts.py: what kernels are told at compile time, in a few objects that Triton can tell apart and name."""

import dataclasses
import importlib.util
import json

import pytest
import triton
from triton.backends.compiler import GPUTarget

from rnn_triton.cells import elman
from rnn_triton.kernels import cells, facts
from rnn_triton.launch import cta_group, dispatch, one_cta, per_step
from rnn_triton.launch.operands import Operands
from rnn_triton.plan import choose, hardware
from rnn_triton.plan.problem import Problem

REGIMES = {"one_cta": (one_cta, Operands), "cta_group": (cta_group, Operands), "per_step": (per_step, per_step.Operands)}

KERNEL = '''
import triton
import triton.language as tl


@triton.jit
def double(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    return (a[0] * 2.0,), (), ()


@triton.jit
def step(a, CELL: tl.constexpr):
    published, _, _ = CELL.step((a,), (), (), (), CELL.accuracy)
    return published[0]


@triton.jit
def kernel(x_ptr, out_ptr, CELL: tl.constexpr, OTHER: tl.constexpr):
    i = tl.arange(0, 128)
    tl.store(out_ptr + i, step(tl.load(x_ptr + i), CELL))
    tl.store(out_ptr + 128 + i, step(tl.load(x_ptr + i), OTHER))
'''


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing is compiled yet"""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def module(folder, name, source):
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def cell(step, **facts_of):
    routes = facts.Routes(**elman.ELMAN["tanh"].routes(True)._asdict())
    return facts.Cell(**{"name": "a", "step": step, "accuracy": "full", "forward": True, "routes": routes, **facts_of})


def compiled(kernel, *cells):
    signature = {"x_ptr": "*fp32", "out_ptr": "*fp32", "CELL": "constexpr", "OTHER": "constexpr"}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs={(2,): cells[0], (3,): cells[-1]})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32))


@pytest.mark.compiled
def test_an_edited_cell_is_compiled_again(tmp_path):
    """The kernel's own source is the same, and so is its cell's name: what is in the cache is another cell's"""
    first = module(tmp_path, "first", KERNEL)
    edited = module(tmp_path, "edited", KERNEL.replace("a[0] * 2.0", "a[0] * 3.0"))
    before, after = cell(first.double), cell(edited.double)
    assert before.cache_key != after.cache_key and repr(before) != repr(after)
    texts = [compiled(first.kernel, of).asm["ptx"] for of in (before, after)]
    again = compiled(first.kernel, cell(first.double))
    assert texts[0] != texts[1] and again.asm["ptx"] == texts[0]
    assert again.hash == compiled(first.kernel, before).hash


@pytest.mark.compiled
def test_two_facts_in_a_kernel_are_two(tmp_path):
    """A helper that is called with either is compiled for both"""
    first = module(tmp_path, "both", KERNEL)
    other = module(tmp_path, "another", KERNEL.replace("a[0] * 2.0", "a[0] - 3.0"))
    text = compiled(first.kernel, cell(first.double), cell(other.double)).asm["ttir"]
    assert "arith.subf" in text and text.count("arith.mulf") == 1


def test_facts_are_equal_where_all_are_and_frozen():
    one, two = (cell(cells.elman_tanh_forward) for _ in range(2))
    assert one == two and hash(one) == hash(two) and repr(one) == repr(two) and {one: 1}[two] == 1
    for change in ({"accuracy": "fast"}, {"forward": False}, {"step": cells.elman_relu_forward}, {"name": "b"}):
        other = cell(**{"step": cells.elman_tanh_forward, **change})
        assert one != other and other != 1 and one.cache_key != other.cache_key
    assert facts.Share() != facts.Has()
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.accuracy = "fast"


def test_a_hook_of_triton_gets_the_facts():
    """as JSON: a launch with a hook does not fail on constants that it cannot write"""
    device = hardware.RECORDS["sm_90"]
    for problem, choices in (
        (Problem("forward", 8, 8, 16, "bf16", None, "elman_tanh"), ()),
        (Problem("backward", 8, 1, 320, "bf16", None, "elman_tanh"), ()),
        (Problem("forward", 8, 250, 250, "bf16", None, "elman_tanh"), (("regime", "per_step"),)),
    ):
        p = choose.plan(problem, device, choices)
        regime, operands = REGIMES[p.regime]
        constants = regime.constants(problem, p, (True,) * len(operands._fields))
        text = json.loads(json.dumps(constants))
        assert text["TILE"]["dtype"] == "bf16" and text["SHAPE"]["H"] == str(problem.H) and text["HAS"]["u"] == "True"
        assert "elman_tanh" in text["CELL"]["step"]


def test_has_is_a_flag_a_name():
    has = facts.Has.of(("x", "first", "u", "out"), (True, True, False, True)).plain
    absent = ("bias0", "bias1", "u", "saved", "last", "kept", "lengths", "reset", "events", "restart")
    assert has == {"first": True} | dict.fromkeys(absent, False)


@pytest.mark.compiled
@pytest.mark.parametrize("problem, choices, name", [
    (Problem("forward", 8, 8, 16, "bf16", None, "elman_tanh"), (), "one_cta_forward_elman_tanh_H16_bf16"),
    (Problem("backward", 8, 1, 16, "fp32", "tf32", "elman_relu"), (), "one_cta_backward_elman_relu_H16_fp32"),
    (Problem("backward", 8, 1, 320, "bf16", None, "elman_tanh"), (), "cta_group_backward_elman_tanh_H320_bf16"),
    (Problem("forward", 8, 250, 250, "bf16", None, "elman_tanh"), (("regime", "per_step"),), "per_step_forward_elman_tanh_H250_bf16"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_a_profiler_is_told_what_a_kernel_is(problem, choices, name):
    device = hardware.RECORDS["sm_90"]
    kernel = dispatch.compile_ahead(problem, choose.plan(problem, device, choices), device)
    assert kernel.metadata.name == name and f".entry {name}(" in kernel.asm["ptx"]
