"""Three more libraries beside ours in the benchmark, as providers from outside; one that is not installed is reported missing:

    python -m bench run --suite gates --provider examples/peers.py:GruQat --provider examples/peers.py:FlashRNN2
    python -m bench run --suite examples/crossover.txt --provider examples/peers.py:ParaRNN   # over T, where Newton's method may win
"""

import functools
import importlib

import torch

from bench.cases.inputs import KINDS
from bench.providers.peers import Layerwise, Library, _FlashRNN, lying
from bench.providers.sessions import Differentiated, leaf


class _GruQat(Layerwise):
    """gi[T,B,3H] = W_ih x + b_ih, state [B,H], W_hh and b_hh as torch has them"""

    names = ("w_ih", "w_hh", "b_ih", "b_hh")

    def __init__(self, case, inputs, backend):
        self.function = importlib.import_module(GruQat.module).gru_scan_persistent
        super().__init__(case, inputs, (0, 1, 2, 3))

    def convert(self, weights):
        return dict(zip(self.names, weights))

    def restore(self, gradients):
        return tuple(gradients[name] for name in self.names)

    def recurrence(self, k, x, state):
        w = self.weights[k]
        y = self.function(self.projected(x, w["w_ih"], w["b_ih"], batch_first=False)[:, :, 0], state[0][0], w["w_hh"][0], w["b_hh"][0])
        return y[None], (y[-1:],)


class GruQat(Library):
    """gru-qat (tried: 0.5.0), its persistent Triton kernels without quantization: tiles of 8 rows and 128 units, CTAs that wait for each
    other at every step, as many as there are SMs at most.  Its weights are torch's; x is projected before."""

    name, label = "gru-qat", "gru-qat (Triton)"
    package, module = "gru-qat", "gru_qat.triton_kernels.scan"
    kind = _GruQat

    def refused(self, case):
        yield case.cell != "gru" or case.models * case.heads > 1, "gru-qat runs a GRU, one model a call, of one head"


class _FlashRNN2(_FlashRNN):
    """FlashRNN's layouts, with the batch before the steps: Wx[B,T,G,M,H], states [S,B,1,M,H] -> [S,B,T,M,H]"""

    steps = 1

    def __init__(self, case, inputs, backend):
        self.function = functools.partial(importlib.import_module(FlashRNN2.module).recurrence, cell="lstm")
        Layerwise.__init__(self, case, inputs, (2, 1, 0, 3))

    def train(self):
        raise NotImplementedError("FlashRNN2's persistent kernel has no backward pass")


class FlashRNN2(Library):
    """FlashRNN2 (github.com/0z5a/flashrnn, tried: a22cf10), its Triton kernel that keeps an LSTM's W_hh in one CTA.  It has no backward pass
    yet; models and heads are its heads."""

    name, label = "flashrnn2", "FlashRNN2 (Triton)"
    package, module = "flashrnn", "flashrnn.flashrnn2.triton_persistent"
    origin = "from github.com/0z5a/flashrnn"
    kind = _FlashRNN2

    def refused(self, case):
        runs = case.cell == "lstm" and case.dtype != "fp32" and 16 <= case.H // case.heads <= 128
        yield not runs, "FlashRNN2's persistent kernel runs an LSTM in bf16 or fp16, with heads of 16 to 128"


class TanhCell(torch.nn.Module):
    """torch's tanh step as pararnn-torch wants a cell, of projected inputs: h[..,H], x[..,H] -> h, and its Jacobian [..,H,H] by h"""

    jac_structure, state_slots = "dense", 1

    def __init__(self, w_hh, b_hh):
        super().__init__()
        self.d_h = self.hidden_size = len(w_hh)
        self.w, self.b = torch.nn.Parameter(w_hh.clone()), torch.nn.Parameter(b_hh.clone())

    def step(self, h, x):
        return torch.tanh(x + torch.nn.functional.linear(h, self.w, self.b))

    def step_with_jacobian(self, h, x):
        after = self.step(h, x)
        return after, (1 - after * after).unsqueeze(-1) * self.w


class _ParaRNN(Differentiated):
    """x[B,T,H] projected before, state [B,H] -> y[B,T,H]; Newton's steps end when no state misses its equation by more than `enough`"""

    def __init__(self, case, inputs, backend):
        newton = importlib.import_module("pararnn.solvers.newton")
        enough = 1e-6 if case.dtype == "fp32" else 2.0**-7
        config = newton.NewtonConfig(max_iters=ParaRNN.most_steps, scan_backend=backend, residual_atol=enough)
        x, h0 = leaf(lying(inputs["x"], 1, 0, 2)), leaf(inputs["h0"])
        w_ih, w_hh, b_ih, b_hh = (leaf(inputs[f"{kind}_l0"]) for kind in KINDS)
        cell = TanhCell(w_hh.detach(), b_hh.detach())

        def call():
            y = newton.newton_apply(cell, torch.nn.functional.linear(x.transpose(0, 1), w_ih, b_ih), config, h0=h0[0]).transpose(0, 1)
            return y, (y[-1:],)

        weights = dict(zip((f"{kind}_l0" for kind in KINDS), (w_ih, cell.w, b_ih, cell.b)))
        cotangents = [lying(inputs["dy"], 1, 0, 2), inputs["dhn"]]
        super().__init__(call, {"x": x, "h0": h0} | weights, cotangents, precision=case.precision)


class ParaRNN(Library):
    """pararnn-torch (tried: 0.17.4), Newton's method over all steps at once, with a scan of log T products of Jacobians.  Its own GRU and LSTM are
    other functions than torch's (weights of blocks, a reset before the product, peepholes), so what it runs here is torch's tanh RNN with a
    dense W_hh, whose Jacobians of all steps lie in memory: small H, few sequences, many steps."""

    name, label = "pararnn", "ParaRNN (Newton's method)"
    package, module = "pararnn-torch", "pararnn"
    kind, backend = _ParaRNN, "eager"
    most_steps, most_values = 32, 2**28  # of Newton's method; of all Jacobians

    def refused(self, case):
        one = case.layers * case.directions * case.models * case.heads == 1
        yield case.cell != "elman_tanh" or not one, "of torch's networks ParaRNN runs one layer of tanh in one direction"
        values = case.T * case.B * case.H**2
        yield values > self.most_values, f"ParaRNN keeps T B H H values of Jacobians: {self.most_values} at most, got {values}"
