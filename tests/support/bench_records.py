"""Synthetic timing records: times follow formulas, so that every statistic made from them is known."""

import dataclasses
import math
import zlib

from bench.cases import case as cases
from bench.cases import suites
from bench.records import schema

ENVIRONMENT = {
    "commit": "0123456789abcdef", "dirty": False, "source": "5eed", "device": "Test GPU", "capability": 90,
    "hardware": {
        "name": "Test GPU", "capability": 90, "sms": 132, "shared_bytes": 232448, "registers": 65536,
        "l2_bytes": 52428800, "clock_ghz": 1.98, "cooperative": True,
    },
    "driver": "1.2", "torch": "2.11", "triton": "3.6.0", "cudnn": 91000,
    "cuda": "13.0", "python": "3.12",
}  # fmt: skip
DATE = "2026-01-02T03:04:05Z"
SPEEDUP = {"bf16": 3.0, "fp16": 2.0, "fp32": 0.8}
TELEMETRY = {"sm_mhz": 1980.0, "memory_mhz": 3201.0, "power_w": 400.0, "temperature_c": 45.0}


def samples(middle):
    """11 of them around `middle`, +-10 %; its median is `middle`."""
    return [middle * (0.9 + 0.02 * i) for i in range(11)]


def timing(
    case, pass_, provider, us_per_step, *, status="ok", run="run-1", date=DATE, environment=ENVIRONMENT, launch_us=5.0,
    regime=None, error=1e-3, **fields,
):  # fmt: skip
    """A valid timing record of launch_us + T * us_per_step; its estimates are a floor of a quarter and exactly that.

    regime: of the forward and backward plan.  error: of y against fp64, as a fraction of 1."""
    short = max(1, case.T // 4)
    at = {T: schema.sampled(samples(launch_us + T * us_per_step)) for T in (case.T, short)}
    plan = regime and {direction: {"regime": regime} for direction in ("forward", "backward")}
    return {
        "schema": schema.SCHEMA, "kind": "timing", "run": run, "date": date, "environment": environment,
        "case": case.name, "shape": dataclasses.asdict(case), "pass": pass_, "provider": provider, "status": status,
        "message": "" if status == "ok" else f"it is {status}", "version": None, "device_us": at[case.T],
        "spin_us": 50.0, "late": 0,
        "graph_us": at[case.T], "wall_us": at[case.T], "short_T": short, "short_us": at[short], "peak_bytes": 1000,
        "errors": {"y": {"rel": error, "rel_tol": 4 * error, "max": 2 * error, "max_tol": 24 * error}}, "plan": plan,
        "kernels": [], "floor_us_per_step": us_per_step / 4, "practical_us_per_step": us_per_step,
        "parts_us_per_step": {"exchange": us_per_step / 2, "local": us_per_step / 3}, "telemetry": TELEMETRY,
        "seconds": 1.5, **fields,
    }  # fmt: skip


def us_of(case, pass_):
    """What ours takes a step in synthetic suites"""
    return (0.2 + case.H / 512 + case.B / 1024) * case.layers * (2.5 if pass_ == "train" else 1)


def suite(name, providers=("rnn_triton", "cudnn"), wrong=(), left_out=(), slow=()):
    """Records of a suite, ours SPEEDUP times faster than cuDNN (half as fast for the names in `slow`); ours wrong for the
    names in `wrong`; nothing for those in `left_out`."""
    out = []
    for case in suites.suite(name):
        if case.name in left_out:
            continue
        regime = "one_cta" if case.H <= 256 else "cta_group" if case.H * case.B <= 2**17 else "per_step"
        for pass_ in cases.PASSES:
            for provider in providers:
                speedup = 0.5 if case.name in slow else SPEEDUP[case.dtype]
                if provider == "rnn_triton":
                    status = "wrong" if case.name in wrong else "ok"
                    out.append(timing(case, pass_, provider, us_of(case, pass_), status=status, regime=regime))
                else:
                    times = speedup if provider == "cudnn" else 4 * speedup
                    us = us_of(case, pass_) * times
                    out.append(timing(case, pass_, provider, us, launch_us=5.0 * times, error=2e-3))
    return out


# provider -> its time over ours, about
EVERYONE = {
    "rnn_triton": 1.0, "rnn_triton-layers": 0.8, "rnn_triton-recompute": 0.6, "rnn_triton-packed": 1.1, "cudnn": 1.7, "cudnn-layers": 1.9, "loop": 17.0, "compile": 6.0,
    "graph": 3.0, "flashrnn": 1.4, "xma": 1.2, "flaggems": 4.0, "torchrl": 3.0, "someones-own": 2.0,
}  # fmt: skip


def _supports(provider, case):
    gated, plain = case.cell in ("gru", "lstm"), case.layers == 1 and not case.bidirectional and case.lengths == "full"
    return {
        "rnn_triton-packed": case.lengths != "full", "rnn_triton-layers": not plain, "cudnn-layers": not plain, "rnn_triton-recompute": gated, "flashrnn": plain,
        "xma": plain and not gated and case.H <= 512, "flaggems": case.models == 1, "torchrl": gated and case.dtype == "fp32",
        "cudnn": not case.cell.startswith("leaky"),
    }.get(provider, True)  # fmt: skip


def everything(names=tuple(suites.SUITES)):
    """Records of every case of the suites but "check", and of sizes of leaky cells and LSTM besides, for all providers: times differ
    from case to case, and some are unsupported or wrong."""
    listed = [case for name in names if name != "check" for case in suites.SUITES[name]]
    sizes = [(H, dtype, cell) for H in (128, 256, 512, 1024) for dtype in ("bf16", "fp32") for cell in ("leaky_tanh", "lstm")]
    out = []
    for case in dict.fromkeys([*listed, *(cases.case(H, 16, 512, dtype, cell=cell) for H, dtype, cell in sizes)]):
        regime = "one_cta" if case.H <= 256 else "cta_group" if case.H * case.B <= 2**17 else "per_step"
        for pass_ in cases.PASSES:
            for name, times in EVERYONE.items():
                some = math.exp(0.8 * zlib.crc32(f"{case.name} {pass_} {name}".encode()) / 2**32)  # 1 to 2.2
                us = us_of(case, pass_) * times * some * {"lstm": 2.0, "gru": 1.6}.get(case.cell, 1.0)
                status = "ok" if _supports(name, case) else "unsupported"
                if name == "loop" and pass_ == "train" and case.dtype != "fp32" and case.T > 240:
                    status = "wrong"
                fields = {"regime": regime} if name.startswith("rnn_triton") else {"version": "1.2"} if name == "flashrnn" else {}
                peak = int(case.T * case.B * case.H * case.layers * (1 + some))
                ran = [{"name": f"void {name}::kernel<{case.H}>(int)", "count": case.T, "us": us}] if status == "ok" else []
                found = timing(
                    case, pass_, name, us, status=status, launch_us=5 * times, error=1e-3 * some, peak_bytes=peak, kernels=ran, **fields
                )
                if pass_ == "train":
                    wrong = 40 if status == "wrong" else 1.5
                    found["errors"]["dx"] = {k: v * (wrong if k in ("rel", "max") else 1.5) for k, v in found["errors"]["y"].items()}
                out.append(found)
    return out
