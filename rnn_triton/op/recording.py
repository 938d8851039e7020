"""Autograd where it is off or disturbed: within an op, whose body runs below it, and within a backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_autograd: Any = torch._C._autograd  # its stubs lack some
_C: Any = torch._C


@contextlib.contextmanager
def alone(device: str) -> Iterator[None]:
    """Keeps from derivatives what may surround a backward pass: autocast, which would round fp32, and hooks of saved tensors, which
    torch.func refuses: it saves for itself."""
    hooks: list[Any] = []
    while (pair := _autograd._top_saved_tensors_default_hooks(False)) is not None:
        hooks.append(pair)
        _autograd._pop_saved_tensors_default_hooks()
    try:
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else contextlib.nullcontext():
            yield
    finally:
        for pair in reversed(hooks):
            _autograd._push_saved_tensors_default_hooks(*pair)


@contextlib.contextmanager
def recording(device: str) -> Iterator[None]:
    """Lets autograd record within the body of an op, where the dispatcher leaves it out."""
    excluded = _C._dispatch_tls_local_exclude_set()
    for key in (_C.DispatchKey.AutogradFunctionality, _C.DispatchKey.ADInplaceOrView):
        excluded = excluded.remove(key)
    with _C._ForceDispatchKeyGuard(_C._dispatch_tls_local_include_set(), excluded), torch.enable_grad(), alone(device):
        yield
