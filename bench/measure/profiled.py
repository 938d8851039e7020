"""`run --profile nsys|ncu`: one case under NVIDIA's profiler, with a range for each provider and pass, and nothing else in the report.

The tool starts this module in a process of its own, which warms up before it opens the capture."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..cases.case import Case
from ..cases.inputs import tensors
from ..cases.suites import parse
from ..command import Answer
from ..instruments.timing import WARMUP
from ..providers.registry import PROVIDERS

CALLS = 3  # of each provider and pass in the report
TOOLS = {
    "nsys": "nsys profile --trace=cuda,nvtx --capture-range=cudaProfilerApi --capture-range-end=stop --force-overwrite=true -o",
    "ncu": "ncu --profile-from-start off --nvtx --target-processes all --force-overwrite -o",
}


def run(tool: str, case: Case, passes: Sequence[str], providers: Sequence[str], out: Path) -> Answer:
    """(where the report is, what failed)"""
    if shutil.which(tool) is None:
        raise ValueError(f"{tool} is not installed, or not in PATH: it comes with NVIDIA's CUDA toolkit")
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{tool}-{case.name}"
    asked = [case.name, ",".join(passes), ",".join(providers)]
    code = subprocess.run([*TOOLS[tool].split(), str(file), sys.executable, "-m", __name__, *asked]).returncode
    return f"{tool}'s report is {file}.* (a range is named after provider, pass and case)", [f"{tool} ended with status {code}"] if code else []


def calls(case: Case, passes: Sequence[str], providers: Sequence[str], device: torch.device, cuda: Any = torch.cuda) -> None:
    """Calls of every provider that is here, in a range each; one that cannot run the case says so on standard error."""
    inputs, warm = tensors(case, device), dict[str, Callable[[], object]]()
    for name in providers:
        provider = PROVIDERS[name]
        if why := provider.missing(device) or provider.unsupported(case):
            print(f"{name}: {why}", file=sys.stderr)
            continue
        try:
            session = provider.session(case, inputs)
            for pass_ in passes:
                call: Callable[[], object] = session.forward if pass_ == "fwd" else session.train
                for _ in range(WARMUP):
                    call()
                cuda.synchronize()
                warm[f"{name} {pass_} {case.name}"] = call
        except Exception as error:  # libraries raise their own
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    cuda.profiler.start()
    for label, call in warm.items():
        for _ in range(CALLS):
            with cuda.nvtx.range(label):
                call()
            cuda.synchronize()
    cuda.profiler.stop()


if __name__ == "__main__":
    calls(parse(sys.argv[1]), sys.argv[2].split(","), sys.argv[3].split(","), torch.device("cuda"))
