"""Reports launches whose CTAs waited for each other in vain, without ever waiting for the GPU.

A launch that exchanges data between CTAs is given its launch id and the address of a 64-bit word in host memory, one for each
device.  A group that gives up (kernels/exchange.py) stores into the word, by one store:

    bits 0-31   the time step it waited in, counted in the order of the launch
    bits 32-43  the group; n * groups + group for the n-th of several recurrences
    bits 44-62  the launch id, never 0

The host looks at the word, a load from its own memory, before every such launch and in `synchronize`, and raises an ExchangeError
at the first look after the launch has ended.  With RNN_TRITON_SYNC=1 in the environment when the package is imported, the host
waits for every launch and looks at once, so that the traceback shows the call (except while a CUDA graph is captured, when
nothing runs).

Of several failures between two looks the last one stored is reported.  One that is stored in the instant between reading the word
and clearing it may go unreported; its outputs are NaN nevertheless.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading

import torch
from torch import Tensor

from ..errors import ExchangeError

_IDS = 2**19 - 1  # ids are 1 to this
_SYNC = os.environ.get("RNN_TRITON_SYNC") == "1"
_CPU = torch.device("cpu")

_lock = threading.Lock()
# By device, with the index of CUDA devices.  Kept for ever: a captured graph may store into a word at any later time.
_words: dict[torch.device, Tensor] = {}
_views: dict[torch.device, ctypes.c_int64] = {}  # the same memory, read past torch and its modes
_ids: dict[str, int] = {}
_descriptions: dict[int, str] = {}
_shared: dict[str, tuple[int, tuple[str, ...]]] = {}  # (groups, names) of several recurrences, by description
_registered = 0


def word(device: torch.device) -> Tensor:
    """Returns the word of a device, int64[1]: in pinned host memory for a CUDA device, else (interpreter) in ordinary memory.

    The first call for a CUDA device allocates it, so it must not come while a CUDA graph is captured: warm up before."""
    tensor = _words.get(device)
    return _allocated(_key(device)) if tensor is None else tensor


def register(description: str, groups: int = 0, names: tuple[str, ...] = ("",)) -> int:
    """Returns the launch id, 1 <= id < 2**19, by which a kernel names a launch of this description: one id for each description.

    `names` names several recurrences, of `groups` groups each, whose groups are numbered through.  After 2**19 - 1 descriptions the
    oldest one is forgotten, and its id is given to the next."""
    global _registered
    if len(names) > 1:
        description = f"{description}, {len(names)} recurrences ({', '.join(names)})"
        _shared[description] = groups, names
    with _lock:
        launch = _ids.get(description)
        if launch is None:
            launch = _registered % _IDS + 1
            _registered += 1
            forgotten = _descriptions.get(launch)
            if forgotten is not None:
                del _ids[forgotten]
                _shared.pop(forgotten, None)
            _descriptions[launch] = description
            _ids[description] = launch
        return launch


def check(device: torch.device) -> None:
    """Raises ExchangeError if a launch on the device has reported itself, once for each report.  Waits for nothing."""
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
    """Calls `synchronize` with RNN_TRITON_SYNC=1, unless the device's current stream is being captured.  Else does nothing."""
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
    on_gpu = device.type == "cuda"
    with _lock:
        if device not in _words:
            # else memory would be pinned by a context on another device
            with torch.cuda.device(device) if on_gpu else contextlib.nullcontext():
                tensor = torch.zeros(1, dtype=torch.int64, device="cpu", pin_memory=on_gpu)
            _words[device] = tensor
            _views[device] = ctypes.c_int64.from_address(tensor.data_ptr())
        return _words[device]


def _report(device: torch.device, view: ctypes.c_int64) -> None:
    with _lock:  # only one of several threads raises
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
