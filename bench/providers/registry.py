"""All providers, by the names that records have."""

from __future__ import annotations

from .interface import Provider
from .loops import Compiled, Graphed, Loop
from .ours import OurLayers, OurRecompute, Ours
from .peers import XMA, FlagGems, FlashRNN, TorchRL
from .torch_nn import TorchLayers, TorchRNN

_KINDS = (Ours, OurLayers, OurRecompute, TorchRNN, TorchLayers, Loop, Compiled, Graphed, FlashRNN, XMA, FlagGems, TorchRL)
PROVIDERS: dict[str, Provider] = {kind.name: kind() for kind in _KINDS}
