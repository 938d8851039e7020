"""Who is measured: each provider runs a case's forward and forward+backward on the same tensors."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from .cases import Case

Result = dict[str, torch.Tensor]  # y, hn and, after a backward, the keys of GRADIENTS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
GRADIENTS = {"dx": "x", "dh0": "h0", "dw_ih": "w_ih", "dw_hh": "w_hh", "db_ih": "b_ih", "db_hh": "b_hh"}
PARAMETERS = {"w_ih": "weight_ih_l0", "w_hh": "weight_hh_l0", "b_ih": "bias_ih_l0", "b_hh": "bias_hh_l0"}


class Session(Protocol):
    """One provider, set up for one case."""

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(y [T,B,H], hn [B,H]) in eval mode under no_grad."""

    def train(self) -> Result:
        """y, hn and all gradients of <dy, y> + <dhn, hn>, in training mode."""


class Provider(Protocol):
    name: str

    def missing(self, device: torch.device) -> str:
        """Why it cannot run here; empty where it can."""

    def session(self, case: Case, inputs: dict[str, torch.Tensor]) -> Session: ...

    def plan(self, case: Case, device: torch.device) -> dict[str, Any] | None:
        """What it chose for the case, JSON-able; None where it does not say."""


def tensors(case: Case, device: torch.device, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs of a case: x, h0, dy, dhn normal, weights and biases U(-1/sqrt(H), 1/sqrt(H)); same on any device."""
    generator = torch.Generator().manual_seed(seed)
    bound = case.H**-0.5
    shapes = {
        "x": (case.T, case.B, case.I), "h0": (case.B, case.H), "dy": (case.T, case.B, case.H), "dhn": (case.B, case.H),
        "w_ih": (case.H, case.I), "w_hh": (case.H, case.H), "b_ih": (case.H,), "b_hh": (case.H,),
    }  # fmt: skip
    out = {}
    for name, shape in shapes.items():
        if name in PARAMETERS:
            value = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        else:
            value = torch.randn(shape, generator=generator)
        out[name] = value.to(device, DTYPES[case.dtype])
    return out


def set_precision(case: Case) -> None:
    """TF32 on or off for cuDNN's RNNs, which rnn_triton follows; other switches stay as torch ships them."""
    if case.precision is not None:
        torch.backends.cudnn.rnn.fp32_precision = case.precision  # type: ignore[attr-defined]


class ModuleSession:
    """A module with torch.nn.RNN's interface and parameter names, time-major, one layer, one direction."""

    def __init__(self, module: torch.nn.Module, inputs: dict[str, torch.Tensor]):
        self.module, self.inputs = module, inputs
        with torch.no_grad():
            for name, parameter in PARAMETERS.items():
                getattr(module, parameter).copy_(inputs[name])  # in place: cuDNN's weights stay in one buffer
        self.leaves = [inputs["x"].detach().requires_grad_(), inputs["h0"].detach().requires_grad_()]
        self.parameters = [getattr(module, parameter) for parameter in PARAMETERS.values()]
        self.state = inputs["h0"][None]

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.module.eval()
        with torch.no_grad():
            y, hn = self.module(self.inputs["x"], self.state)
        return y, hn[0]

    def train(self) -> Result:
        self.module.train()
        x, h0 = self.leaves
        y, hn = self.module(x, h0[None])
        gradients = torch.autograd.grad(
            (y, hn), [*self.leaves, *self.parameters], (self.inputs["dy"], self.inputs["dhn"][None])
        )
        return {"y": y.detach(), "hn": hn.detach()[0], **dict(zip(GRADIENTS, gradients))}


class Ours:
    """rnn_triton.RNN."""

    name = "rnn_triton"

    def missing(self, device: torch.device) -> str:
        return ""

    def session(self, case: Case, inputs: dict[str, torch.Tensor]) -> Session:
        import rnn_triton

        x = inputs["x"]
        set_precision(case)
        module = rnn_triton.RNN(case.I, case.H, nonlinearity=case.nonlinearity, device=x.device, dtype=x.dtype)
        return ModuleSession(module, inputs)

    def plan(self, case: Case, device: torch.device) -> dict[str, Any] | None:
        from rnn_triton import hardware, plans
        from rnn_triton.plan import plan

        from .model import problems

        return {p.direction: plans.fields(plan(p, hardware.of(device))) for p in problems(case)}


class TorchRNN:
    """torch.nn.RNN: cuDNN on a GPU, in the algorithm PyTorch picks; the kernels it ran are in the record."""

    name = "torch.nn.RNN"

    def missing(self, device: torch.device) -> str:
        if device.type == "cuda" and not torch.backends.cudnn.is_available():
            return "this torch has no cuDNN"
        return ""

    def session(self, case: Case, inputs: dict[str, torch.Tensor]) -> Session:
        x = inputs["x"]
        set_precision(case)
        module = torch.nn.RNN(case.I, case.H, nonlinearity=case.nonlinearity, device=x.device, dtype=x.dtype)
        return ModuleSession(module, inputs)

    def plan(self, case: Case, device: torch.device) -> dict[str, Any] | None:
        return None


PROVIDERS: dict[str, Provider] = {provider.name: provider for provider in (Ours(), TorchRNN())}
