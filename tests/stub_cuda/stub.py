"""Triton's launch path against the stub libcuda: build it, put it in place of the driver, read what it saw."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.nvidia.driver import CudaDriver

SOURCE = Path(__file__).with_name("libcuda.c")
LOG = "RNN_TRITON_STUB_LOG"
TOGETHER = "RNN_TRITON_STUB_TOGETHER"  # CTAs of a cooperative launch that fit, read at each; by default one on every SM


def compiler() -> str:
    """The C compiler, sought as Triton seeks it.  RuntimeError where there is none."""
    found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if not found:
        raise RuntimeError(
            "no C compiler: the stub libcuda is built with the one that Triton itself needs to launch any kernel; "
            "install gcc or clang, or name one in CC"
        )
    return found


def build(directory: Path) -> Path:
    """`directory`, with libcuda.so.1 in it."""
    include = Path(triton.backends.nvidia.driver.__file__).with_name("include")
    command = [compiler(), str(SOURCE), "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-fvisibility=hidden"]
    command += [f"-I{include}", "-Wl,-soname,libcuda.so.1", "-o", str(directory / "libcuda.so.1")]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr}")
    return directory


def environment(directory: Path, log: Path) -> dict[str, str]:
    """Of a process that is to call `install`: kernels compiled, not interpreted, and no real GPU in sight."""
    root = Path(__file__).parents[2]
    settings = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "RNN_TRITON_SYNC")}
    path = [str(root), *filter(None, [settings.get("PYTHONPATH")])]
    libraries = [str(directory), *filter(None, [settings.get("LD_LIBRARY_PATH")])]  # whoever asks finds the stub first
    settings |= {"PYTHONPATH": os.pathsep.join(path), "LD_LIBRARY_PATH": os.pathsep.join(libraries)}
    settings |= {"TRITON_LIBCUDA_PATH": str(directory), "CUDA_VISIBLE_DEVICES": "", "CC": compiler()}
    return settings | {LOG: str(log)}


def install() -> None:
    """In this process, for good: the stub is libcuda, Triton's driver is active, and CPU tensors pass for CUDA ones."""
    torch.cuda.current_device = lambda: None  # the index of a CPU tensor's device
    driver = CudaDriver()
    driver.get_current_device = lambda: 0
    driver.get_current_stream = lambda device: 0
    driver.get_device_capability = lambda device=0: (9, 0)
    triton.runtime.driver.set_active(driver)


class Log:
    """What the stub has seen, read from where the last reading ended."""

    def __init__(self) -> None:
        self.path = Path(os.environ[LOG])
        self.position = 0

    def read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open() as file:
            file.seek(self.position)
            lines = file.read()
            self.position = file.tell()
        return [json.loads(line) for line in lines.splitlines()]
