"""Synthetic timing records: times follow formulas, so that every statistic made from them is known."""

from bench import cases

ENVIRONMENT = {
    "date": "2026-01-02T03:04:05Z", "commit": "0123456789abcdef", "dirty": False, "device": "Test GPU",
    "capability": 90, "driver": "1.2", "clocks": {"sm_mhz": 1980.0}, "torch": "2.11", "triton": "3.6.0",
    "cudnn": 91000, "cuda": "13.0", "python": "3.12",
}  # fmt: skip
SPEEDUP = {"bf16": 3.0, "fp16": 2.0, "fp32": 0.8}


def timing(case, pass_, provider, us_per_step, *, status="ok", run="run-1", environment=ENVIRONMENT, launch_us=5.0):
    """A valid timing record: 11 samples around launch_us + T * us_per_step, +-10 %."""

    def samples(T):
        middle = launch_us + T * us_per_step
        return [middle * (0.9 + 0.02 * i) for i in range(11)]

    short = max(1, case.T // 4)
    return {
        "schema": 1, "kind": "timing", "run": run, "environment": environment, "case": case.name,
        "shape": {"T": case.T, "B": case.B, "I": case.I, "H": case.H, "dtype": case.dtype, "precision": case.precision},
        "pass": pass_, "provider": provider, "status": status, "message": "" if status == "ok" else f"it is {status}",
        "device_us": samples(case.T), "graph_us": samples(case.T), "wall_us": samples(case.T), "short_T": short,
        "short_us": samples(short), "peak_bytes": 1000, "errors": {}, "plan": None, "kernels": [],
        "floor_us_per_step": us_per_step / 4, "practical_us_per_step": us_per_step,
    }  # fmt: skip


def quick_suite():
    """Both providers over the quick suite; ours SPEEDUP times faster, one case wrong, one not measured."""
    out = []
    for case in cases.suite("quick"):
        for pass_ in cases.PASSES:
            if case.name == "h32-b16-t1024-fp16":
                continue
            us = (0.2 + case.H / 512 + case.B / 1024) * (2.5 if pass_ == "train" else 1)
            wrong = case.name == "h256-b1-t1024-bf16"
            out.append(timing(case, pass_, "rnn_triton", us, status="wrong" if wrong else "ok"))
            launch = 5.0 * SPEEDUP[case.dtype]
            out.append(timing(case, pass_, "torch.nn.RNN", us * SPEEDUP[case.dtype], launch_us=launch))
    return out
