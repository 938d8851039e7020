"""A Triton driver that executes PTX on the CPU.

Triton sees an NVIDIA GPU of the given capability: it compiles for it, with the argument specialisation of its own launch
path, up to PTX.  The "cubin" is the PTX's text, "loading" it parses it, "launching" it runs a `Launch` on the memory of
the CPU tensors.  Nothing of Triton's launch path above the driver is replaced."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.backends.driver import GPUDriver
from triton.backends.nvidia.compiler import CUDABackend

from .launch import Launch
from .parser import parse


class Backend(CUDABackend):
    """Triton's for NVIDIA GPUs, without ptxas"""

    def make_cubin(self, src: str, *_: Any) -> bytes:
        return src.encode()

    @functools.lru_cache  # noqa: B019
    def hash(self) -> str:
        """A part of the cache's keys: what is kept holds no machine code."""
        return f"{super().hash()}-executed"


_program = functools.cache(parse)


class Utils:
    """What Triton asks of a driver about devices and binaries"""

    def __init__(self, driver: PtxDriver) -> None:
        self.driver = driver

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": 227 * 1024 if self.driver.capability >= 90 else 163 * 1024,
            "max_num_regs": 65536, "multiprocessor_count": self.driver.sms, "warpSize": 32, "sm_clock_rate": 1980000,
            "mem_clock_rate": 1, "mem_bus_width": 1,
        }  # fmt: skip

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, Any, int, int, int]:
        program = _program(self.driver.rewrite(binary.decode()))
        return program, program, 255, 0, 1024


class PtxDriver(GPUDriver):
    """options: of every `Launch`.  `before` and `after`: functions that are called with each launch, before it runs and when
    it has ended.  `rewrite`: the text of every kernel that is loaded -> the text to execute.  `launches`: their number, which is
    the seed of the schedule."""

    def __init__(self, capability: int = 90, sms: int = 132, **options: Any) -> None:
        self.capability, self.sms, self.options = capability, sms, options
        self.before: list[Callable[[Launch], None]] = []
        self.after: list[Callable[[Launch], None]] = []
        self.rewrite: Callable[[str], str] = lambda text: text
        self.launches = 0
        self.utils = Utils(self)
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0
        self.get_device_capability = lambda device=0: divmod(capability, 10)
        self.launcher_cls = self._launcher

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    @staticmethod
    def is_active() -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    def _launcher(self, source: Any, metadata: Any) -> Callable[..., None]:
        """What Triton makes of a compiled kernel's source, to call with the grid and all arguments"""
        constants = {key[0] for key in source.constants}
        kinds = list(source.signature.values())
        arguments = [
            (n, name, kind) for n, (name, kind) in enumerate(zip(source.fn.arg_names, kinds, strict=True))
            if n not in constants and kind != "constexpr"
        ]  # fmt: skip

        def run(x, y, z, stream, program, packed, launch_metadata, enter, leave, *values):
            self.launches += 1
            launch = Launch(
                program, [(name, kind, values[n]) for n, name, kind in arguments], (x, y, z), metadata.num_warps,
                metadata.shared, cooperative=bool(metadata.launch_cooperative_grid), sms=self.sms,
                **{"seed": self.launches, **self.options},
            )  # fmt: skip
            launch.kernel_name = source.fn.__name__
            for function in self.before:
                function(launch)
            launch.run()
            for function in self.after:
                function(launch)

        return run


def install(capability: int = 90, cache: Path | None = None, **options: Any) -> PtxDriver:
    """In this process, for good.  `cache`: Triton's cache directory, by default one beside the one it would use; shared with
    no process that compiles for a GPU."""
    knobs.cache.dir = str(cache or f"{knobs.cache.dir.rstrip('/')}-executed")
    backends["nvidia"] = dataclasses.replace(backends["nvidia"], compiler=Backend)
    driver = PtxDriver(capability, **options)
    triton.runtime.driver.set_active(driver)
    torch.cuda.current_device = lambda: None  # the index of a CPU tensor's device
    return driver
