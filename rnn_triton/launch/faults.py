"""Launches whose CTAs waited for each other in vain: how the host learns of one without ever waiting for the GPU.

A launch that exchanges data between CTAs is given a 64-bit word in host memory, one per device, and its launch id.  A
group that gives up (kernels/exchange.py) stores into it, by one store:

    bits 0-31   the time step it waited in, in launch order
    bits 32-43  the group, of the n-th of several recurrences n * groups + group
    bits 44-62  the launch id, never 0

The host looks at the word, a load from its own memory, before every such launch and in `synchronize`: a stuck launch is
an ExchangeError at the first look after its end.  With RNN_TRITON_SYNC=1 in the environment when the package is imported,
every launch is waited for and looked at at once, so that the traceback shows the call (not while a CUDA graph is
captured: nothing runs then).

There is one word: of several failures between two looks the last one stored is reported, and one stored in the instant
between reading the word and clearing it may go unreported.  Its outputs are NaN all the same.
"""

from __future__ import annotations

import ctypes
import os
import threading

import torch
from torch import Tensor

from ..errors import ExchangeError

_IDS = 2**19 - 1  # 1 .. _IDS
_SYNC = os.environ.get("RNN_TRITON_SYNC") == "1"
_CPU = torch.device("cpu")

_lock = threading.Lock()
# By device, CUDA devices with their index.  Kept for ever: a captured graph may store into a word at any later time.
_words: dict[torch.device, Tensor] = {}
_views: dict[torch.device, ctypes.c_int64] = {}  # the same memory, read past torch and its modes
_ids: dict[str, int] = {}
_descriptions: dict[int, str] = {}
_shared: dict[str, tuple[int, tuple[str, ...]]] = {}  # by description, where there are several
_registered = 0


def word(device: torch.device) -> Tensor:
    """int64[1], always the same one for a device: pinned host memory for a CUDA device, else (interpreter) the CPU's.

    The first call for a CUDA device allocates, so it must not come while a CUDA graph is captured: warm up before."""
    found = _words.get(device)
    return _allocated(_key(device)) if found is None else found


def register(description: str, groups: int = 0, names: tuple[str, ...] = ("",)) -> int:
    """The launch id, 1 <= id < 2**19, by which a kernel names this launch; the same for the same description.

    `names`: names of several recurrences of `groups` groups each, which are numbered through; part of the description.  After
    2**19 - 1 descriptions the oldest is forgotten and its id given to the next."""
    global _registered
    if len(names) > 1:
        description = f"{description}, {len(names)} recurrences ({', '.join(names)})"
        _shared[description] = groups, names
    known = _ids.get(description)
    if known is not None:
        return known
    with _lock:
        known = _ids.get(description)
        if known is None:
            known = _registered % _IDS + 1
            _registered += 1
            forgotten = _descriptions.get(known)
            if forgotten is not None:
                del _ids[forgotten]
                _shared.pop(forgotten, None)
            _descriptions[known] = description
            _ids[description] = known
        return known


def check(device: torch.device) -> None:
    """Raise ExchangeError if a launch on the device has reported itself, once per report.  Waits for nothing."""
    if not _views:
        return
    view = _views.get(device)
    if view is None:
        view = _views.get(_key(device))
    if view is not None and view.value:
        _report(device, view)


def synchronize(device: torch.device | str | int | None = None) -> None:
    """Waits until a device has done all work submitted to it, and raises ExchangeError if a launch on it got stuck.

    `device` is the current CUDA device by default.  Without one there is nothing to wait for: launches of the interpreter are over
    when they return."""
    if device is not None:
        device = torch.device(device)
    elif torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    else:
        device = _CPU
    if device.type != "cpu":
        torch.cuda.synchronize(device)
    check(device)


def after_launch(device: torch.device) -> None:
    """With RNN_TRITON_SYNC=1, unless the device's current stream is being captured: `synchronize`.  Else nothing."""
    if not _SYNC:
        return
    if device.type == "cuda":
        with torch.cuda.device(device):
            if torch.cuda.is_current_stream_capturing():
                return
    synchronize(device)


def _key(device: torch.device) -> torch.device:
    if device.type != "cuda":
        return _CPU
    return torch.device("cuda", torch.cuda.current_device()) if device.index is None else device


def _allocated(device: torch.device) -> Tensor:
    with _lock:
        if device not in _words:
            if device.type == "cuda":
                with torch.cuda.device(device):  # else memory is pinned by a context on another device
                    tensor = torch.zeros(1, dtype=torch.int64, device="cpu", pin_memory=True)
            else:
                tensor = torch.zeros(1, dtype=torch.int64, device="cpu")
            _words[device] = tensor
            _views[device] = ctypes.c_int64.from_address(tensor.data_ptr())
        return _words[device]


def _report(device: torch.device, view: ctypes.c_int64) -> None:
    with _lock:  # of several threads one raises
        value = view.value
        view.value = 0
        description = _descriptions.get(value >> 44)
    if value == 0:
        return
    step, group = value & 0xFFFFFFFF, value >> 32 & 0xFFF
    where = f"group {group}"
    if description in _shared:
        groups, names = _shared[description]
        where = f"group {group % groups} of {names[group // groups]}"
    if description is None:
        description = f"launch {value >> 44}, whose description is no longer kept,"
    raise ExchangeError(
        f"{description} got stuck on {_key(device)}: {where} waited in vain for other CTAs at time step {step} "
        "(in launch order). From that step on this group's outputs are NaN; the pass after it is unaffected. "
        "If several launches got stuck, this is the last of them."
    )
