"""rnn_triton on the executor of PTX (tests/ptx_executor): its kernels run on CPU tensors, compiled for an H200."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import ptx_executor
import torch

IDLE = 20_000  # polls in vain of all CTAs together, without any progress: nobody will come
BLOCKS = 20_000_000  # basic blocks of a launch, some ten minutes: far more than any test's

EXCHANGED = ("one_cta", "cta_group")  # kernels whose every output word is stored once


driver: ptx_executor.PtxDriver | None = None  # where `install` was called


def install() -> ptx_executor.PtxDriver:
    """In this process, for good, before anything is planned"""
    global driver
    driver = ptx_executor.install(gang=None, idle=IDLE, max_blocks=BLOCKS)
    import rnn_triton
    from rnn_triton.plan import hardware

    for name, module in sys.modules.items():
        if name.startswith(rnn_triton.__name__) and hasattr(module, "has_kernels"):
            module.has_kernels = lambda t: t.is_cpu
    hardware._CPU = hardware.RECORDS["sm_90"]
    driver.after.append(stored_once)
    # what torch.empty returns is NaN
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    return driver


def stored_once(launch: Any) -> None:
    """Every word of an exchanged output is stored, and none twice: a second store could be seen by one who waits.  One CTA stores rows
    of sequences while they last, where none waits."""
    out = launch.extent("out_ptr")
    if launch.kernel_name not in EXCHANGED or out is None:
        return
    stores = out.stores[(out.base - out.start) // 2 : (out.end - out.start) // 2]
    assert stores.max() <= 1, f"{launch.kernel_name}: a word of out is stored {stores.max()} times"
    ends = launch.kernel_name == "one_cta" and launch.extent("events_ptr") is not None
    assert ends or stores.min() == 1, f"{launch.kernel_name}: {int((stores < 1).sum())} halves of words of out are never stored"


@contextlib.contextmanager
def incomplete() -> Iterator[None]:
    """A launch in here may leave words of its output unwritten."""
    driver.after.remove(stored_once)
    try:
        yield
    finally:
        driver.after.append(stored_once)


@contextlib.contextmanager
def observed() -> Iterator[list[ptx_executor.Launch]]:
    """The launches in here, in order"""
    seen: list[ptx_executor.Launch] = []
    driver.after.append(seen.append)
    try:
        yield seen
    finally:
        driver.after.remove(seen.append)
