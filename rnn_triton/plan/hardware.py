"""Reads the properties of devices, as the only module that does, and has records of known GPUs."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
import triton


@dataclass(frozen=True)
class Device:
    """One GPU as the planner sees it."""

    name: str
    capability: int  # 10 * major + minor
    sms: int
    shared_bytes: int  # per CTA, with opt-in
    registers: int  # of 32 bits, per CTA at most
    l2_bytes: int
    clock_ghz: float  # boost
    cooperative: bool = True  # all programs of a launch can run at the same time
    together: int | None = None  # CTAs that can, if a launch has shown that they are fewer than the SMs

    @property
    def coresident(self) -> int:
        """The number of CTAs that a cooperative launch may have."""
        return self.sms if self.together is None else self.together


# NVIDIA's data sheets and CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability".
RECORDS: dict[str, Device] = {
    "sm_80": Device("A100", 80, 108, 163 * 1024, 65536, 40 * 2**20, 1.41),
    "sm_86": Device("RTX 3090", 86, 82, 99 * 1024, 65536, 6 * 2**20, 1.70),
    "sm_89": Device("L40S", 89, 142, 99 * 1024, 65536, 96 * 2**20, 2.52),
    "sm_90": Device("H200", 90, 132, 227 * 1024, 65536, 60 * 2**20, 1.98),
    "sm_100": Device("B200", 100, 148, 227 * 1024, 65536, 126 * 2**20, 1.97),
}

_CPU = replace(RECORDS["sm_90"], cooperative=False)


def of(device: torch.device) -> Device:
    """Returns the record of a torch device; an H200's for the CPU, where the interpreter runs programs one after another, and for
    devices that cannot be asked."""
    together = _together.get(_index(device)) if _together else None
    return _record(device) if together is None else replace(_record(device), together=together)


def too_old(device: Device) -> str | None:
    """Says what the kernels need and this device does not have, None if it has that."""
    if device.capability >= 80:
        return None
    return f"{device.name} has compute capability {device.capability / 10:.1f}; the kernels need 8.0 (Ampere) or newer"


def why_none(device: torch.device) -> str | None:
    """Says why tensors on a torch device cannot be given to this package, None if they can: to the kernels, or on the CPU to torch's
    own operators."""
    if device.type in ("cpu", "meta"):
        return None
    if device.type != "cuda" or torch.version.hip:
        return f"the kernels need an NVIDIA GPU, not {'ROCm' if device.type == 'cuda' else f'the device {device}'}"
    return too_old(_record(device))


_together: dict[int, int] = {}  # by index


def too_many(device: torch.device, ctas: int) -> None:
    """Records that a cooperative launch of `ctas` CTAs did not fit, because MPS or a green context keeps a part of the SMs.  From
    now on `of` says so."""
    _together[_index(device)] = min(ctas - 1, of(device).coresident)


def _index(device: torch.device) -> int:
    if device.type != "cuda":
        return -1
    return torch.cuda.current_device() if device.index is None else device.index


def _record(device: torch.device) -> Device:
    if device.type == "cpu":
        return _CPU
    if device.type != "cuda":
        return RECORDS["sm_90"]
    return _cuda(_index(device))


@functools.cache
def _cuda(index: int) -> Device:
    p = torch.cuda.get_device_properties(index)
    limits = triton.runtime.driver.active.utils.get_device_properties(index)  # what Triton checks a launch against
    return Device(
        name=p.name,
        capability=10 * p.major + p.minor,
        sms=p.multi_processor_count,
        shared_bytes=limits["max_shared_mem"],
        registers=limits["max_num_regs"],
        l2_bytes=p.L2_cache_size,
        clock_ghz=limits["sm_clock_rate"] / 1e6,
    )
