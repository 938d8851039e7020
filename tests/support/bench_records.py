"""Synthetic timing records: times follow formulas, so that every statistic made from them is known."""

import dataclasses

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
