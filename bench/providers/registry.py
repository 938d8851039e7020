"""All providers, by the names that records have: those of this folder, and those from outside, of entry points and of files.

A name is known without importing what stands behind it, which may take seconds, fail or hang."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import sys
from collections import UserDict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .interface import Provider

_INSIDE = {
    "rnn_triton": "ours:Ours", "rnn_triton-layers": "ours:OurLayers", "rnn_triton-recompute": "ours:OurRecompute",
    "rnn_triton-packed": "ours:OurPacked",
    "cudnn": "torch_nn:TorchRNN", "cudnn-layers": "torch_nn:TorchLayers", "loop": "loops:Loop", "hoisted": "loops:Hoisted",
    "compile": "loops:Compiled", "graph": "loops:Graphed", "compile-graph": "loops:CompiledGraph", "flashrnn": "peers:FlashRNN",
    "xma": "peers:XMA", "flaggems": "peers:FlagGems", "torchrl": "peers:TorchRL",
}  # fmt: skip
GROUP = "rnn_triton.providers"  # of entry points: a name, and module:Class
VARIABLE = "RNN_TRITON_PROVIDERS"  # in the environment of worker processes: what `add` and `give_up` were told, as JSON


class Providers(UserDict[str, Any]):
    """name -> Provider, made when it is first asked for"""

    def __getitem__(self, name: str) -> Provider:
        if isinstance(where := self.data[name], str):
            module, _, kind = where.partition(":")
            inside = _INSIDE.get(name) == where
            self.data[name] = getattr(importlib.import_module(f".{module}", __package__), kind)() if inside else _from_outside(name, where)
        return self.data[name]


def _from_outside(name: str, where: str) -> Provider:
    """The provider of "module:Class" or "file.py:Class", which needs a method set_up(case, inputs), and may have others of Provider; Absent where it
    cannot be made, and of "!why".  One of a file has the digest of the file for a version, so that it is measured again when it was changed."""
    from .interface import Absent, Outside, Provider

    place, _, attribute = where.rpartition(":")
    try:
        if where.startswith("!"):
            raise ImportError(where[1:])
        edition = None
        if place.endswith(".py"):
            source = Path(place).read_bytes()
            edition = hashlib.sha256(source).hexdigest()[:12]
            module = sys.modules[place] = ModuleType(place)
            exec(compile(source, place, "exec"), module.__dict__)
        else:
            module = importlib.import_module(place)
        kind: Any = getattr(module, attribute)
        if not isinstance(kind, type):
            raise TypeError(f"expected a class, got {type(kind).__name__}")
        if not issubclass(kind, Provider):
            kind = type(attribute, (kind, Outside), {"edition": edition})
        if not callable(kind.set_up) or kind.set_up is Provider.set_up:
            raise TypeError("the class has no method set_up(case, inputs)")
        found: Provider = kind()
    except Exception as error:  # it is anyone's code
        found = Absent(f"{type(error).__name__}: {error}")
    found.name, found.label = name, found.label or name
    return found


def _outside() -> dict[str, str]:
    found = {entry.name: entry.value for entry in importlib.metadata.entry_points(group=GROUP)}
    for name in found.keys() & _INSIDE:
        print(f"left out: entry point {name} of {GROUP}, for that is the name of a provider that comes with the benchmark", file=sys.stderr)
        del found[name]
    return found | json.loads(os.environ.get(VARIABLE, "{}"))


PROVIDERS = Providers(_INSIDE | _outside())


def add(where: str) -> str:
    """Take a provider "file.py:Class", here and in worker processes started from now on; its name, which is the class's.
    ValueError where there is no such file, or the name is another provider's."""
    found = re.fullmatch(r"(.+\.py):([A-Za-z_]\w*)", where)
    if not found:
        raise ValueError(f"expected a provider as file.py:Class, got {where!r}")
    file, name = Path(found[1]).resolve(), found[2]
    if not file.is_file():
        raise ValueError(f"provider {where!r}: there is no file {found[1]}")
    if name in _INSIDE:
        raise ValueError(f"provider {where!r}: {name} is the name of a provider that comes with the benchmark")
    _told(name, f"{file}:{name}")
    return name


def give_up(name: str, why: str) -> None:
    """What importing a provider from outside does cannot be had: it is missing, for this reason."""
    if name not in _INSIDE:
        _told(name, f"!{why}")


def _told(name: str, where: str) -> None:
    PROVIDERS[name] = where
    os.environ[VARIABLE] = json.dumps(json.loads(os.environ.get(VARIABLE, "{}")) | {name: where})
