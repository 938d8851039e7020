"""Where and on what a run happens: the `environment` of every record."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import os
import platform
import re
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing torch takes seconds, and the command line reads root() alone
    import torch

COMMIT = "RNN_TRITON_COMMIT"  # in the environment: the commit of a copy without its git directory
# The files of bench that a time depends on
_MEASURING = ("cases/inputs.py", "instruments/timing.py", "measure/check.py", "measure/run.py", "providers/*.py")


def root() -> Path:
    """The checkout that holds bench/, or the folder that holds the installed package."""
    return Path(__file__).resolve().parents[2]


def best_device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sources() -> list[tuple[str, Path]]:
    """(folder/name, file) of all code that a time depends on: the package with its kernels, and _MEASURING."""
    import rnn_triton

    bench, package = Path(__file__).resolve().parents[1], Path(rnn_triton.__file__).resolve().parent
    rooms = [room for room in package.iterdir() if (room / "__init__.py").exists() and room.name != "bench"]
    files = [file for room in (package, *rooms) for form in ("*.py", "*.json") for file in room.glob(form)]
    files += [file for form in _MEASURING for file in bench.glob(form)]
    return sorted((f"{file.parent.name}/{file.name}", file) for file in files)


@functools.cache
def source() -> str:
    """A digest of `sources`: the same for a commit, its copy without git, and its wheel.

    Commits that change only texts, tests or figures have the same one, and what they measured is comparable."""
    digest = hashlib.sha256()
    for name, file in sources():
        digest.update(f"{name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def new_run() -> str:
    """An id for one run: sorts by time, unique."""
    return f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"


def describe(device: torch.device) -> dict[str, Any]:
    """The environment of a record; None for what cannot be found out."""
    import torch
    import triton

    from rnn_triton.plan import hardware

    git = ("git", "-C", str(root()))
    commit = _output(*git, "rev-parse", "HEAD") if (root() / ".git").exists() else None
    changed = _output(*git, "status", "--porcelain", "--untracked-files=no") if commit else None
    out: dict[str, Any] = {
        "commit": commit or os.environ.get(COMMIT) or None, "dirty": None if changed is None else bool(changed), "source": source(),
        "device": f"CPU ({platform.machine()})", "capability": None, "hardware": None, "driver": None,
        "torch": torch.__version__, "triton": triton.__version__, "cudnn": None, "cuda": torch.version.cuda,
        "python": platform.python_version(), "cpu": _cpu(),
    }  # fmt: skip
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", smi_name(device))
        out |= {
            "device": torch.cuda.get_device_name(device), "capability": 10 * major + minor,
            "hardware": dataclasses.asdict(hardware.of(device)), "driver": driver.splitlines()[0].strip() if driver else None,
            "cudnn": torch.backends.cudnn.version(),
        }  # fmt: skip
    return out


def _cpu() -> str | None:
    """The model of the CPU, which launches and waits"""
    with contextlib.suppress(OSError):
        if found := re.search(r"^model name\s*:\s*(.*?)\s*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1]
    return platform.processor() or None


def smi_name(device: torch.device) -> str:
    """The device as nvidia-smi knows it, whatever CUDA_VISIBLE_DEVICES hides"""
    import torch

    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"


def _output(*command: str) -> str | None:
    """Standard output, stripped; None where the command is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


PACKAGE = (__package__ or "bench.records").removesuffix(".records")


def needs(error: ModuleNotFoundError) -> str:
    """What to install, of a package that is none of ours; the error itself otherwise"""
    name = (error.name or "").partition(".")[0]
    if name in ("", "bench", "rnn_triton", PACKAGE.partition(".")[0]):
        raise error
    return f"this needs {name}, which is not installed: pip install {name}"
