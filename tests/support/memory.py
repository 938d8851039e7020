"""Memory that torch operations hold, counted on any device; memory that is NaN where nobody wrote; memory that nobody touches."""

import contextlib
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """While open: `live` and `peak`, bytes of all storages that operations have returned and that still exist.

    Workspaces inside an operation are not seen."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if hasattr(t, "untyped_storage")}
        for t in tree_leaves(result):
            if hasattr(t, "untyped_storage"):
                storage = t.untyped_storage()
                key = storage._cdata
                if key not in self.known and key not in given:
                    self.known.add(key)
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self._freed, key, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _freed(self, key, size):
        self.known.discard(key)
        self.live -= size


@contextlib.contextmanager
def filled():
    """What torch.empty returns in here is NaN, so that a result that nobody writes is no right one by chance."""
    settings, wanted = torch.utils.deterministic, torch.are_deterministic_algorithms_enabled()
    fill, settings.fill_uninitialized_memory = settings.fill_uninitialized_memory, True
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(wanted)
        settings.fill_uninitialized_memory = fill


def reserved(n, device):
    """fp32 [n], of which no byte is written, even where torch fills what it allocates: pages that nobody touches cost nothing."""
    settings = torch.utils.deterministic
    fill, settings.fill_uninitialized_memory = settings.fill_uninitialized_memory, False
    try:
        return torch.empty(n, device=device)
    finally:
        settings.fill_uninitialized_memory = fill
