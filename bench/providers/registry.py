"""All providers, by the names that records have: each runs the forward pass and the training pass of a case."""

from __future__ import annotations

from ..cases.inputs import DTYPES, lengths_of, tensors
from .interface import (
    Differentiated,
    ModuleSession,
    Provider,
    Result,
    Session,
)
from .loops import Compiled, Graphed, Loop
from .ours import OurLayers, Ours
from .peers import XMA, FlagGems, FlashRNN, TorchRL
from .torch_nn import TorchLayers, TorchRNN

__all__ = [
    "DTYPES", "PROVIDERS", "Differentiated", "ModuleSession", "Provider", "Result", "Session", "lengths_of", "tensors",
]  # fmt: skip


PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Ours(), OurLayers(), TorchRNN(), TorchLayers(), Loop(), Compiled(), Graphed(), FlashRNN(), XMA(), FlagGems(), TorchRL(),
    )
}  # fmt: skip
