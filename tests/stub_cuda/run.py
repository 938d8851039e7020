"""`python run.py CASES`: carries out launches against the stub libcuda and prints, as JSON, what reached the driver.

CASES is a JSON list.  A case with "H" is a problem given to rnn_triton.launch:
    direction, dtype, T, B, I, H    and, where wanted, precision, override {field: value}, sms, the number of SMs that the
                                    planner is told of (the stub has 132), and M, models that share w_ih and h0; with
                                    "layers" a stack, dropout between them
A case with "network", a list of layers and directions, is one for both passes of rnn_triton.network.
A case with "module", a class of rnn_triton, is one of its training steps: a call for the forward pass, and one for the backward pass.
A case with "gemm", a list of [M, N, K, columns between a's rows], is a product of fp32, a transposed, for each call.
A case with "grid" launches a kernel of no use in so many programs:  grid and, where wanted, cooperative, num_ctas.
Any may have "together": of each call, how many CTAs of a cooperative launch fit (else all calls: 132).

An answer is {"plan": the plan's fields or null, "ahead": the hash of the kernel compiled ahead of time, "calls": one for each of CALLS calls with the same tensors,
"explained": what `explain` then says}, a call
    {"jit": passes through Triton's own launch path, "error": text or null, "tensors": {name: address},
     "driver": the stub's records, "compiled": {function: what the compiler asked for}},
with the tensors given, the results and the error word of faults.py.
"""

import contextlib
import dataclasses
import json
import os
import sys

import stub
import torch
import triton
import triton.language as tl
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

import rnn_triton
from rnn_triton import overriding
from rnn_triton.launch import dispatch, faults, gemm
from rnn_triton.op import network
from rnn_triton.op.gradients import DW_HH, DW_IH, DX
from rnn_triton.op.layers import Settings
from rnn_triton.plan import choose, hardware
from rnn_triton.plan.explain import explain
from rnn_triton.plan.problem import DTYPES, Bundle, Problem, plan_fields

CALLS = 2


@triton.jit
def useless(ptr, value, EXTRA: tl.constexpr):
    tl.store(ptr + tl.program_id(0), value + EXTRA)


class Observed:
    """What Triton does above the driver: passes through its launch path, and what it compiled."""

    def __init__(self):
        self.jit = 0
        self.compiled = {}
        run, load = JITFunction.run, CompiledKernel._init_handles

        def counted(function, *arguments, **options):
            self.jit += 1
            return run(function, *arguments, **options)

        def loaded(kernel):
            load(kernel)
            m = kernel.metadata
            self.compiled[kernel.function] = {
                "kernel": kernel.src.fn.__name__,
                "shared": m.shared,
                "num_warps": m.num_warps,
                "cooperative": m.launch_cooperative_grid,
                "registers": kernel.n_regs,
                "hash": kernel.hash,
            }

        JITFunction.run, CompiledKernel._init_handles = counted, loaded


def calls(function, given, log, observed, together):
    """`function` returns {name: tensor} of its results."""
    answers = []
    for most in together or [None] * CALLS:
        os.environ.pop(stub.TOGETHER, None)
        if most is not None:
            os.environ[stub.TOGETHER] = str(most)
        before, results, error = observed.jit, {}, None
        try:
            results = function()
        except Exception as e:
            error = f"{type(e).__name__}: {e}"
        records = log.read()
        functions = {record.get("function") for record in records}
        tensors = {**given, **results, "word": faults.word(torch.device("cpu"))}
        answers.append(
            {
                "jit": observed.jit - before,
                "error": error,
                "tensors": {name: t.data_ptr() for name, t in tensors.items()},
                "driver": records,
                "compiled": {f: what for f, what in observed.compiled.items() if f in functions},
            }
        )
    return answers


def on_device(**changes):
    """An H200's record, that of CPU tensors' device from now on: they pass for CUDA ones."""
    record = dataclasses.replace(hardware.RECORDS["sm_90"], **changes)
    hardware._record = lambda device: record
    hardware._together.clear()
    dispatch._launch_for.cache_clear()
    return record


def explained(case, **sizes):
    T, B, I, H = (case[name] for name in "TBIH")
    dtypes = {name: dtype for dtype, name in DTYPES.items()}
    return explain(
        T, B, I, H, dtype=dtypes[case["dtype"]], direction=case["direction"], device=hardware.of(torch.device("cpu")), **sizes
    )


def problem(case, log, observed):
    dtype = {name: dtype for dtype, name in DTYPES.items()}[case["dtype"]]
    T, B, I, H = (case[name] for name in "TBIH")
    precision = case.get("precision")

    M = [case["M"]] if "M" in case else []

    def tensor(*shape, shared=False):
        t = torch.zeros(shape if shared else (*M, *shape), dtype=dtype)
        return t.expand(*M, *shape) if shared else t

    record = on_device(sms=case.get("sms", 132))
    if case["direction"] == "forward":
        shapes = dict(x=(T, B, I), w_ih=(H, I), w_hh=(H, H), b_ih=(H,), b_hh=(H,), h0=(B, H))
        given = {name: tensor(*shape, shared=name in ("w_ih", "h0")) for name, shape in shapes.items()}

        def function():
            *tensors, h0 = given.values()
            y, (hn,), _ = dispatch.forward(*tensors, (h0,), "elman_tanh", False, precision)
            return {"y": y, "hn": hn}
    else:
        given = {"w_hh": tensor(H, H), "y": tensor(T, B, H), "dy": tensor(T, B, H), "dhn": tensor(B, H)}

        def function():
            w_hh, y, dy, dhn = given.values()
            return {"da": dispatch.backward(w_hh, y, None, dy, (dhn,), "elman_tanh", False, precision)[0]}

    with overriding(**case["override"]) if case.get("override") else contextlib.nullcontext():
        inputs = I if case["direction"] == "forward" else 1
        of = Problem(case["direction"], B, inputs, H, case["dtype"], precision, "elman_tanh", *M)
        p = choose.plan(of, record)
        ahead = dispatch.compile_ahead(of, p, record).hash
        made = calls(function, given, log, observed, case.get("together"))
        restricted = {"explained": explained(case)} if "together" in case else {}
        return {"plan": plan_fields(p), "ahead": ahead, "calls": made, **restricted}


def layers(case, log, observed):
    T, B, I, H, L = (case[name] for name in ("T", "B", "I", "H", "layers"))
    forward = case["direction"] == "forward"

    def tensor(*shape):
        return torch.zeros(shape, dtype=torch.bfloat16)

    record = on_device()
    bundle = Bundle(L, True, True)
    w_ih, w_hh = [tensor(H, I), *(tensor(H, H) for _ in range(L - 1))], [tensor(H, H) for _ in range(L)]
    given = {"seed": torch.zeros(1, dtype=torch.int64)}
    if forward:
        given |= {"x": tensor(T, B, I), "h0": tensor(L, B, H)}
    else:
        given |= {"y": tensor(L, T, B, H), "dy": tensor(T, B, H), "dhn": tensor(L, B, H)}
    biases = [tensor(H)] * L

    def function():
        settings = ("elman_tanh", False, None)
        if forward:
            tensors = (given["x"], w_ih, w_hh, biases, biases, (given["h0"],))
            y, (hn,), _ = dispatch.forward(*tensors, *settings, False, None, (bundle, 5), given["seed"], 100)
            return {"y": y, "hn": hn}
        tensors = (w_hh, given["y"], None, given["dy"], (given["dhn"],))
        return {"da": dispatch.backward(*tensors, *settings, None, (bundle, 5), w_ih, given["seed"], 100)[0]}

    of = Problem(case["direction"], B, I if forward else 1, H, "bf16", None, "elman_tanh")
    p = choose.shared_plan(of, bundle, record)
    ahead = dispatch.compile_ahead(of, p, record, bundle).hash
    return {"plan": plan_fields(p), "ahead": ahead, "calls": calls(function, given, log, observed, case.get("together"))}


def whole_network(case, log, observed):
    T, B, I, H = (case[name] for name in "TBIH")
    L, D = case["network"]

    def tensor(*shape):
        return torch.zeros(shape, dtype=torch.bfloat16)

    on_device()
    network.has_kernels = lambda t: True
    weights = [w for layer in range(L) for _ in range(D) for w in (tensor(H, D * H if layer else I), tensor(H, H))]
    given = {"x": tensor(T, B, I), "dy": tensor(T, B, D * H)}
    net = Settings(False, False, "elman_tanh", "both" if D == 2 else "forward", None)

    call = network.Call(given["x"], net.layers(weights), (), None, net)

    def function():
        if case["direction"] == "forward":
            y, (hn,), _ = call.forward(False)
            return {"y": y, "hn": hn}
        kept = tensor(*([L] if L > 1 else []), T, B, D * H)
        needs = [DX, *[DW_IH | DW_HH] * L * D]
        dx, *_ = call.backward([kept], given["dy"], [None], needs, None)
        return {"dx": dx}

    made = calls(function, given, log, observed, case.get("together"))
    return {"plan": None, "calls": made, "explained": explained(case, num_layers=L, bidirectional=D == 2)}


def training_step(case, log, observed):
    """Products of fp32 go to the Triton kernel, as where torch's setting is another than that of its RNNs."""
    T, B, I, H = (case[name] for name in "TBIH")
    on_device()
    network.has_kernels = lambda t: True
    dtype = {name: dtype for dtype, name in DTYPES.items()}[case["dtype"]]
    module = getattr(rnn_triton, case["module"])(I, H, dtype=dtype, precision="tf32" if dtype is torch.float32 else None)
    x, results = torch.zeros(T, B, I, dtype=dtype, requires_grad=True), {}

    def forward():
        results["y"], _ = module(x)
        return results

    def backward():
        results["y"].sum().backward()
        return {}

    matmul = gemm.matmul
    gemm.matmul = lambda a, b, precision: (gemm.triton_matmul if precision else matmul)(a, b, precision)
    try:
        made = [call for run in (forward, backward) for call in calls(run, {"x": x}, log, observed, [None])]
    finally:
        gemm.matmul = matmul
    return {"plan": None, "calls": made}


def products(case, log, observed):
    """By one tiling, so that sizes alone differ from call to call"""
    on_device()
    gemm.tiling = lambda M, N, K, *_: gemm.Tiling(64, 64, -(-K // 1024), 1024)
    answers, ahead = [], None
    for M, N, K, apart in case["gemm"]:
        given = {"a": torch.zeros(K, apart), "b": torch.zeros(K, N)}
        a = given["a"][:, :M].t()

        def function(a=a, b=given["b"]):
            return {"out": gemm.triton_matmul(a, b, "tf32")}

        if ahead is None:
            ahead = gemm.compile_ahead(a, given["b"], gemm.tiling(M, N, K), "tf32", 90).hash
        answers += calls(function, given, log, observed, [None])
    return {"plan": None, "ahead": ahead, "calls": answers}


def kernel(case, log, observed):
    given = {"ptr": torch.zeros(max(case["grid"], 1), dtype=torch.int32)}
    options = {"launch_cooperative_grid": True} if case.get("cooperative") else {}

    def function():
        useless[(case["grid"],)](given["ptr"], 70_000, EXTRA=1, num_ctas=case.get("num_ctas", 1), **options)
        return {}

    return {"plan": None, "calls": calls(function, given, log, observed, None)}


def main():
    stub.install()
    log, observed = stub.Log(), Observed()
    cases = json.loads(sys.argv[1])
    kinds = {"module": training_step, "network": whole_network, "gemm": products, "layers": layers, "H": problem, "grid": kernel}
    carry_out = [next(function for name, function in kinds.items() if name in case) for case in cases]
    answers = [function(case, log, observed) for function, case in zip(carry_out, cases, strict=True)]
    print(json.dumps({"triton": triton.__version__, "answers": answers}))


if __name__ == "__main__":
    main()
