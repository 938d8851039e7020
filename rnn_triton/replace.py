"""Swaps the recurrent modules of torch.nn inside a model for those of this package, and back."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from . import modules
from .modules.cells import Step
from .modules.layers import Layers
from .plan import hardware

Model = TypeVar("Model")
Classes = dict[type[nn.Module], type[nn.Module]]
_NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
_OURS: Classes = {getattr(nn, name): getattr(modules, name) for name in _NAMES}
_FORWARDS = [cls.forward for cls in _OURS]
_TORCHS: Classes = {ours: torchs for torchs, ours in _OURS.items()}


@dataclass(frozen=True)
class Replaced(Generic[Model]):
    """What `replace` or `restore` did with a model.  str() says it in a line for each recurrent module.

    model: the model, or its copy.
    swapped: the modules that were swapped: their names in the model ("" for the model itself), and of which class they are now.
    kept: the recurrent modules that were left alone, and why.

    A module that the model has in several places stands in either under each of its names.
    """

    model: Model
    swapped: dict[str, str]
    kept: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{name or 'the model itself'}: is now of {now}" for name, now in self.swapped.items()]
        lines += [f"{name or 'the model itself'}: left alone, because {why}" for name, why in self.kept.items()]
        return "\n".join(lines) or "no recurrent module was found"


def replace(model: Model, *, inplace: bool = True) -> Replaced[Model]:
    """Has every torch.nn.RNN, LSTM, GRU, RNNCell, LSTMCell and GRUCell inside `model` computed by this package, and says which.

    A module stays the object it is and only changes its class.  So parameters (and with them optimizers), buffers, hooks,
    parametrizations, training mode, names, sharing, and references from elsewhere stay as they are.  The model itself may be such a
    module.  isinstance(module, torch.nn.LSTM) is False afterwards.  `precision` and `recompute` are the attributes of a module that
    the constructors of this package set; they are None and False.  With inplace=False a deep copy is changed in place of `model`.

    Left alone, and named with the reason in the result: what is no torch.nn.Module; modules of a subclass, or with a forward of their
    own, and the parts of such a module; scripted and quantized ones; those with complex weights or sizes of 0; those on a device that
    has no kernels.
    """
    return _swap(model, inplace, _OURS, _why_not_ours)


def restore(model: Model, *, inplace: bool = True) -> Replaced[Model]:
    """Undoes `replace`, with arguments and result as there: every RNN, LSTM, GRU and cell of this package, however it came into the
    model, is one of torch.nn again, without its `precision` and `recompute`.  Modules that torch.nn does not have are left alone."""
    return _swap(model, inplace, _TORCHS, _why_not_torchs)


def _swap(model: Model, inplace: bool, classes: Classes, why_not: Any) -> Replaced[Model]:
    if not isinstance(model, nn.Module):
        return Replaced(model, {}, {"": f"it is no torch.nn.Module, but of type {_name(type(model))}"})
    changed: Any = model if inplace else copy.deepcopy(model)
    result = Replaced(changed, {}, {})
    found = list(changed.named_modules(remove_duplicate=False))
    reasons = {module: why for _, module in found if (why := why_not(module, _base(type(module), classes))) is not None}
    parts = {part: name for name, outer in found if outer in reasons for part in outer.modules() if part is not outer}
    became: dict[nn.Module, str] = {}
    for name, module in found:
        if any(name.startswith(f"{outer}." if outer else "") for outer in result.kept):
            continue  # a part of a module that is left alone
        if module in became:
            result.swapped[name] = became[module]
            continue
        base, why = _base(type(module), classes), reasons.get(module)
        if base is not None and why is None and module in parts:
            why = f"it is a part of {parts[module]!r}, which is left alone"
        if why is not None:
            result.kept[name] = why
        elif base is not None:
            _become(module, base, classes[base])
            result.swapped[name] = became[module] = _name(classes[base])
    return result


def _base(cls: type, classes: Classes) -> type[nn.Module] | None:
    """Returns the class among `classes` that objects of `cls` behave as, None if there is none.  torch makes classes of its own while
    a program runs, for parametrizations and for sharding, and puts them in place of the class of a module."""
    if cls in classes:
        return cls
    return next((base for base in cls.__bases__ if base in classes and cls.__module__.startswith("torch.")), None)


def _become(module: nn.Module, base: Any, other: Any) -> None:
    """Makes a module, which behaves as one of `base`, one of `other`."""
    cls, attributes, before, after = type(module), vars(module), _attributes(base), _attributes(other)
    if cls is not base:  # made by torch: the same upon the other class
        bases = tuple(other if b is base else b for b in cls.__bases__)
        other = type(cls.__name__, bases, {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")})
    module.__class__ = other
    for name in before.keys() - after.keys():
        attributes.pop(name, None)
    for name in after.keys() - before.keys():
        attributes[name] = after[name]
    if isinstance(module, nn.RNN | modules.RNN):
        module.nonlinearity = module.mode.removeprefix("RNN_").lower()  # by which torch goes
    if isinstance(module, nn.RNNBase):
        module.flatten_parameters()  # as cuDNN likes to have them; ours does nothing


@functools.cache
def _attributes(cls: type[nn.Module]) -> dict[str, Any]:
    """Returns the attributes of a module of one of the twelve classes, with the values that the constructor gives them."""
    return vars(cls(1, 1, device="meta"))  # type: ignore[arg-type, call-arg]


def _why_not_ours(module: nn.Module, base: type[nn.Module] | None) -> str | None:
    """Returns why a recurrent module cannot be one of ours, None if it can, is one, or is no recurrent module."""
    cls = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a program of torch.jit, whose modules cannot be changed" if module.original_name in _NAMES else None
    if cls.__module__.startswith("torch.ao.nn.") and cls.__name__ in _NAMES:
        return f"it is quantized, or prepared for that ({_name(cls)})"
    if isinstance(module, Layers | Step) or not isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return None
    if base is None:
        own = ", with a forward of its own" if cls.forward not in _FORWARDS else ", whose methods may need torch's class"
        return f"it is of a subclass, {_name(cls)}{own}: derive that from rnn_triton's class"
    if cls.forward is not base.forward or "forward" in vars(module):
        return "it has a forward of its own"
    for t in (*module.parameters(), *module.buffers()):
        if t.is_complex():
            return f"its weights are of dtype {t.dtype}"
        if not t.numel():
            return f"it has sizes of 0: {module}"
        if (why := hardware.why_none(t.device)) is not None:
            return why
    return None


def _why_not_torchs(module: nn.Module, base: type[nn.Module] | None) -> str | None:
    """Returns why a recurrent module of this package cannot be one of torch's, None if it can, or is none of this package."""
    if isinstance(module, Layers) and module.heads > 1:
        return "torch.nn has no layers with heads"
    if base is not None or not isinstance(module, Layers | Step):
        return None
    return f"torch.nn has no {type(module).__name__}"


def _name(cls: type) -> str:
    """Returns the name of a class as people write it: torch.nn.LSTM, rnn_triton.LSTM."""
    for home in (nn, modules):
        if getattr(home, cls.__name__, None) is cls:
            return f"{home.__name__.removesuffix('.modules')}.{cls.__name__}"
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
