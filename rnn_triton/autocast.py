"""Casts weights under autocast, each once for all calls of a region, as torch's own operators do.

torch casts an fp32 leaf that requires grad once and keeps the cast until the outermost region ends (or torch.clear_autocast_cache
is called). If the weight changes meanwhile, that cast is stale, and a cast made under no_grad has no gradients. So the casts here
are kept beside torch's, for exactly as long. But they are no longer used once the weight has another version or other memory, or
once a gradient has reached it, because fused optimizers change weights without a new version. Each stream has casts of its own,
because nothing makes it wait for those of another stream. Every call gets a node of its own in the graph, and the gradients of
all calls are added up in the dtype of the weight.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_is_grad_enabled = torch.is_grad_enabled
_is_inference = torch.is_inference_mode_enabled
_is_tracing = torch._C._is_tracing
_are_transforms_active = torch._C._are_functorch_transforms_active
_autograd: Any = torch._C._autograd  # its stubs lack some
_markers: dict[torch.device, Tensor] = {}


class _Entry:
    """A cast of a weight, and the signs by which a later change of the weight is noticed."""

    def __init__(self, weight: Tensor, dtype: torch.dtype):
        self.memory = weight.detach()  # keeps the memory alive, so that no other tensor gets its address
        self.version = weight._version
        self.cast = self.memory.to(dtype)
        self.has_gradient = False  # since the cast was made

    def holds(self, weight: Tensor, dtype: torch.dtype) -> bool:
        unchanged = not self.has_gradient and self.version == weight._version and self.memory.is_set_to(weight)
        return unchanged and self.cast.dtype is dtype


class _Casts:
    """The casts of a region of autocast on one device, by weight and stream."""

    def __init__(self) -> None:
        self._entries: dict[tuple[int, int], _Entry] = {}

    def entry(self, weight: Any, dtype: torch.dtype) -> _Entry:
        """Returns the entry of a weight, with a new cast if the weight has changed since the last one."""
        key = id(weight), _stream(weight)
        entry = self._entries.get(key)
        if entry is None or not entry.holds(weight, dtype):
            entry = self._entries[key] = _Entry(weight, dtype)
        return entry


def _stream(t: Tensor) -> int:
    """Returns the current stream of t's device; 0 on a CPU."""
    return torch._C._cuda_getCurrentRawStream(t.get_device()) if t.is_cuda else 0


_kept: dict[torch.device, weakref.ref[_Casts]] = {}


def cast(
    dtype: torch.dtype, x: Tensor, weights: Sequence[Tensor | None], states: Sequence[Tensor]
) -> tuple[Any, list[Any], list[Any]]:
    """Returns (x, weights, states) in `dtype`, that of autocast on x's device; tensors in fp64 or no floating point stay as they are.

    Only casts of matrices are kept: those of biases take next to no memory."""
    if (
        not torch.compiler.is_compiling()  # first: Dynamo looks no further
        and dtype is not torch.float32
        and _is_grad_enabled()
        and not _is_inference()  # in inference mode even enable_grad records nothing
        and torch.is_autocast_cache_enabled()
        and not _is_tracing()
        and forward_ad._current_level < 0
        and not _are_transforms_active()
        and not (x.is_cuda and torch.cuda.is_current_stream_capturing())  # a replay would not cast again
        and (leaves := [w for w in weights if _can_keep(w)])
    ):
        reference = _kept.get(x.device)
        casts = (reference and reference()) or _open(x.device)
        # past Function.apply, which binds its arguments with inspect.signature for torch.func's sake
        apply = super(torch.autograd.Function, _Cast).apply  # type: ignore[misc]
        kept = iter(apply([casts.entry(w, dtype) for w in leaves], *leaves))
        new = [next(kept) if any(w is leaf for leaf in leaves) else _cast(w, dtype) for w in weights]
    else:
        new = [_cast(w, dtype) for w in weights]
    return _cast(x, dtype), new, [_cast(t, dtype) for t in states]


def _cast(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Returns t in `dtype` by a cast of its own, unless it is in fp64 or no floating point."""
    return t.to(dtype) if t is not None and t.is_floating_point() and t.dtype is not torch.float64 else t


def _can_keep(t: Tensor | None) -> bool:
    """True if a cast of t may serve several calls."""
    if t is None or not (t.requires_grad and t.dim() >= 2 and t.dtype is torch.float32 and t.is_leaf):
        return False
    return not t.is_inference() and (type(t) is nn.Parameter or type(t) is Tensor)  # a tensor of inference mode has no version


def _open(device: torch.device) -> _Casts:
    """Returns casts that live as long as those of torch on this device: as metadata of the graph of torch's cast of a marker, a
    tensor without elements."""
    # neither a user's hooks nor modes that count, record or fake may see it
    hooks: Any = contextlib.nullcontext()
    if _autograd._saved_tensors_hooks_is_enabled():
        hooks = torch.autograd.graph.saved_tensors_hooks(_same, _same)
    with torch._C._DisableTorchDispatch(), hooks:
        marker = _markers.get(device)
        if marker is None:
            marker = _markers[device] = torch.zeros(0, 0, device=device, requires_grad=True)
        product: Any = torch.mm(marker, marker).grad_fn
        node = product.next_functions[0][0]  # that of torch's cast
    casts = node.metadata["rnn_triton"] = _Casts()
    _kept[device] = weakref.ref(casts)
    return casts


def _same(t: Any) -> Any:
    return t


class _Cast(torch.autograd.Function):
    """Hands out kept casts of weights; autograd brings the gradient of each call to the dtype of the weight."""

    @staticmethod
    def forward(ctx: Any, entries: list[_Entry], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.entries = entries
        ctx.set_materialize_grads(False)
        return tuple(entry.cast.detach() for entry in entries)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        for entry, gradient in zip(ctx.entries, gradients, strict=True):
            if gradient is not None:
                entry.has_gradient = True
        return None, *gradients
