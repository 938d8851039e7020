"""What a provider is, and what its sessions return.

Results: y[T,B,D*H], hn[L*D,B,H], an LSTM's cn, and "d" and the name of each input and parameter for its gradient. Where lengths differ, y
and dx hold the valid steps alone, in the order of a PackedSequence's data. Of several models each result has a leading dimension, or is a
list with a tensor for each of them. """

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any, Protocol

import torch
from torch import Tensor

from ..cases.case import Case
from ..cases.inputs import tensors

Result = dict[str, Any]  # name -> tensor, or a list of one for every model
FEW_STEPS = 16  # of a call that compiles: more of them run the same kernels again


class Session(Protocol):
    """One provider, set up for one case."""

    def forward(self) -> tuple[Any, Any]:
        """(y, hn) in eval mode under no_grad."""

    def train(self) -> Result:
        """y, hn (cn) and all gradients of <dy, y> + <dhn, hn> (+ <dcn, cn>), in training mode."""


class Provider:
    """Who runs a case. `package` and `module`: of a library that torch does not bring, and what it is imported as."""

    name = ""  # in records
    label = ""  # in figures and tables
    package, module = "", ""
    origin = ""  # where to get it, if not by pip install `package`
    captured = False  # its calls replay CUDA graphs, and are not to be captured again
    compiles = False  # its first call compiles what another process can find in a cache

    def version(self) -> str | None:
        """Of its package; None where it is torch's, and where it is not installed."""
        try:
            return importlib.metadata.version(self.package) if self.package else None
        except importlib.metadata.PackageNotFoundError:
            return None

    def missing(self, device: torch.device) -> str:
        """Why it cannot run on this device; empty where it can."""
        return self.not_imported() or ("" if device.type == "cuda" else "needs a CUDA GPU")

    def not_imported(self) -> str:
        """Why its module cannot be imported; empty where it can."""
        if not self.module:
            return ""
        try:
            importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name not in (self.module, self.module.partition(".")[0]):
                return f"{self.package} cannot be imported: {error}"
            return f"{self.package} is not installed ({self.origin or f'pip install {self.package}'})"
        except Exception as error:  # some look for a GPU or a compiler when they are imported
            return f"{self.package} cannot be imported: {type(error).__name__}: {error}".strip()
        return ""

    def unsupported(self, case: Case) -> str:
        """Why it cannot run this case on any device; empty where it can, or where only trying tells."""
        return ""

    def session(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        """Set up with tensors(), in the case's precision; NotImplementedError where it cannot run the case."""
        set_precision(case)
        return self.set_up(case, inputs)

    def set_up(self, case: Case, inputs: dict[str, Tensor]) -> Session:
        raise NotImplementedError

    def plan(self, case: Case, device: torch.device) -> dict[str, Any] | None:
        """What it chose for the case, JSON-able; None where it does not say."""
        return None

    def shortest(self, case: Case) -> Case:
        """Over as few steps as compile what those of the case do."""
        return case.at(min(case.T, FEW_STEPS))

    def prepare(self, case: Case, pass_: str, device: torch.device) -> None:
        """Fill the caches of what it compiles for a pass ("fwd" or "train") of a case, so that another process finds it."""
        if self.compiles and not self.missing(device) and not self.unsupported(case):
            short = self.shortest(case)
            session = self.session(short, tensors(short, device))
            session.forward() if pass_ == "fwd" else session.train()


def set_precision(case: Case) -> None:
    """TF32 on or off for cuDNN's RNNs, which rnn_triton follows; other switches stay as torch ships them."""
    if case.precision is not None:
        torch.backends.cudnn.rnn.fp32_precision = case.precision  # type: ignore[attr-defined]


class Outside(Provider):
    """What a class from outside has that is none of Provider"""

    edition: str | None = None  # changes with its source

    def missing(self, device: torch.device) -> str:
        return ""

    def version(self) -> str | None:
        return self.edition


class Absent(Outside):
    """One from outside that cannot be had, and why"""

    def __init__(self, why: str):
        self.why = why

    def missing(self, device: torch.device) -> str:
        return self.why
