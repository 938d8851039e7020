"""`python -m rnn_triton` prints what this machine can do, tries it for about five seconds, and says what to do where it cannot.

The exit status is 1 if a trial failed, else 0: a machine without a GPU fails none."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch
import triton

from . import __version__, modules
from .interpret import interpreter
from .plan import hardware
from .plan.choose import plan
from .plan.overriding import overriding
from .plan.problem import Problem

SECONDS = 5.0  # after which no further trial begins
BATCH = 16
KINDS = {"bf16, fp16": ("bf16", None), **{f"fp32 {p}": ("fp32", p) for p in ("tf32", "tf32x3", "ieee")}, "fp64": ("fp64", None)}
CELLS = {"RNN": "elman_tanh", "GRU": "gru", "LSTM": "lstm"}
REGIMES = {"one_cta": "one CTA", "cta_group": "a group of CTAs", "per_step": "a launch for each step"}
# A trial: the module, its sizes I and H, its dtype, the regime and the limit of the error, relative to the result.  Sums of K terms
# err by sqrt(K) roundoffs, 2^-24 of "ieee" and 2^-9 of bf16, in which the state is rounded at every step, too.
TRIALS = (
    ("RNN", 8, 24, torch.float32, "one_cta", 1e-5),
    ("LSTM", 8, 24, torch.float32, "one_cta", 1e-5),
    ("GRU", 8, 24, torch.float32, "one_cta", 1e-5),
    ("RNN", 8, 160, torch.bfloat16, "per_step", 2**-5),
    ("RNN", 32, 512, torch.bfloat16, "cta_group", 2**-5),
)


def machine() -> Iterator[str]:
    """Yields lines about this machine: versions, each GPU, and what to do where there is none, or one that does not do."""
    yield f"rnn_triton {__version__}, torch {torch.__version__}, triton {triton.__version__}, Python {platform.python_version()}"
    if not torch.cuda.is_available():
        yield "GPU: none that torch can use. CPU tensors are computed by torch's own operators, behind the same API."
        if torch.version.cuda is None:
            yield "  This torch is built without CUDA: for the kernels, install a build of torch with CUDA, on a machine with an NVIDIA GPU."
        else:
            yield f"  This torch is built with CUDA {torch.version.cuda}: see whether nvidia-smi lists a GPU, and what CUDA_VISIBLE_DEVICES says."
        return
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        why = hardware.why_none(device)
        if why is None:
            record = hardware.of(device)
            yield f"GPU {index}: {record.name}, compute capability {record.capability / 10:.1f}, {record.sms} SMs: the kernels run here"
        else:
            yield f"GPU {index}: {torch.cuda.get_device_name(device)}: {why}"
            yield "  Use torch.nn's modules on it: rnn_triton.replace leaves them alone there, and rnn_triton.restore(model) brings them back."


def regimes(device: hardware.Device) -> Iterator[str]:
    """Yields a line for each cell and kind of product, with the largest hidden size, of powers of two, that each regime takes."""
    for name, cell in CELLS.items():
        for kind, (dtype, precision) in KINDS.items():
            ran: dict[str, int] = {}
            for H in (2**n for n in range(4, 14)):
                ran[plan(Problem("forward", BATCH, H, H, dtype, precision, cell), device).regime] = H
            ends = [f"{REGIMES[regime]} to H = {H}" for regime, H in ran.items() if regime != "per_step"]
            yield f"  {name:4} {kind:11}  {', '.join([*ends, 'then ' * bool(ends) + REGIMES['per_step']])}"


def trials(device: torch.device) -> Iterator[tuple[str, Callable[[], float], float]]:
    """Yields what can be tried on a device: its name, a function that returns the error, and the limit of that."""
    kernels = device.type == "cuda" or interpreter.active()
    for name, I, H, dtype, regime, limit in TRIALS:
        if kernels and (device.type == "cuda" or (regime != "cta_group" and dtype is torch.float32)):
            yield f"{name}, H = {H}, {REGIMES[regime]}", functools.partial(error, device, name, I, H, dtype, regime), limit
        elif not kernels and regime == "one_cta":
            yield f"{name}, H = {H}, torch's operators", functools.partial(error, device, name, I, H, dtype, None), limit


def error(device: torch.device, name: str, I: int, H: int, dtype: torch.dtype, regime: str | None) -> float:
    """Returns how far results and gradients of a layer lie from those of torch.nn in fp64 on the CPU: the largest relative norm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exact = getattr(torch.nn, name)(I, H).to(dtype).double()
        x = torch.randn(4, 2, I).to(dtype)
    layer = getattr(modules, name)(I, H, device=device, dtype=dtype)
    layer.load_state_dict(exact.state_dict())
    if dtype is torch.float32:
        layer.precision = "ieee"
    leaves, wide = [x.to(device).requires_grad_(), *layer.parameters()], [x.detach().double().requires_grad_(), *exact.parameters()]
    with overriding(**({} if regime is None else {"regime": regime})):
        y = layer(leaves[0])[0]
        found = [y, *torch.autograd.grad(y.sum(), leaves)]
    y = exact(wide[0])[0]
    pairs = zip(found, [y, *torch.autograd.grad(y.sum(), wide)])
    errors = [(a.detach().cpu().double() - b.detach()).norm() / b.detach().norm() for a, b in pairs]
    return torch.stack(errors).max().item()  # NaN if one of them is, which Python's max would pass over


def test(device: torch.device) -> bool:
    """Tries what can be tried on a device for SECONDS, prints a line for each trial, and returns whether all went well."""
    began, good = time.perf_counter(), True
    for name, run, limit in trials(device):
        if time.perf_counter() - began > SECONDS:
            print(f"  not tried for want of time: {name}")
            continue
        try:
            found = run()
            passed, what = found <= limit, f"differs from torch.nn in fp64 by {found:.1e} (limit {limit:.0e})"
        except Exception as failure:  # what it is says more than that it is
            passed, what = False, f"{type(failure).__name__}: {failure}"
        good &= passed
        print(f"  {'pass' if passed else 'FAIL'}  {name}: {what}")
    return good


def interpreted() -> bool:
    """Tries the kernels in Triton's interpreter, in a process of its own, and returns whether all went well."""
    if importlib.util.find_spec("numpy") is None:
        print("  not tried: the kernels in Triton's interpreter, which needs numpy")
        return True
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "rnn_triton", "--trials"]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    print(done.stdout + done.stderr if done.returncode else done.stdout, end="")
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m rnn_triton", description=__doc__.splitlines()[0])
    parser.add_argument("--trials", action="store_true", help="only the trials, in this process")
    only = parser.parse_args().trials
    usable = [n for n in range(torch.cuda.device_count()) if hardware.why_none(torch.device("cuda", n)) is None]
    device = torch.device("cuda", usable[0]) if usable and not interpreter.active() else torch.device("cpu")
    if only:
        return 0 if test(device) else 1
    print("\n".join(machine()))
    record = hardware.of(device if device.type == "cuda" else torch.device("meta"))
    would = "run on the" if device.type == "cuda" else "would run on an"
    print(f"How layers of hidden size H, with H inputs and {BATCH} sequences, {would} {record.name}, by its plans:")
    print("\n".join(regimes(record)))
    print("  (a CTA is a block of threads on one of the GPU's multiprocessors; all but the last regime take one launch for all time steps)")
    print(f"Trials of forward and backward passes on {record.name if device.type == 'cuda' else 'the CPU'}:", flush=True)
    good = test(device)
    if device.type == "cpu":
        print("The kernels in Triton's interpreter, on the CPU:", flush=True)
        good &= interpreted()
    else:
        print(f"Compiled kernels are kept in {triton.knobs.cache.dir}; TRITON_CACHE_DIR in the environment chooses another place.")
    print("All that was tried passed." if good else "A trial failed: please report it with these lines.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
