"""Two more libraries beside ours in the benchmark, as providers from outside:

    python -m bench run --suite gates --provider examples/peers.py:GruQat --provider examples/peers.py:FlashRNN2

pararnn-torch (0.17.4, Newton's method over all steps at once) is none of them: its recurrent weights are diagonal or block-diagonal, its
GRU has no recurrent biases and resets the state before the product, and its LSTM has peepholes, so that its networks are not torch's."""

import functools
import importlib

from bench.providers.peers import Layerwise, Library, _FlashRNN


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
        yield case.cell != "gru" or case.models > 1, "gru-qat runs a GRU, one model a call"


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
    yet; models are its heads."""

    name, label = "flashrnn2", "FlashRNN2 (Triton)"
    package, module = "flashrnn", "flashrnn.flashrnn2.triton_persistent"
    origin = "from github.com/0z5a/flashrnn"
    kind = _FlashRNN2

    def refused(self, case):
        runs = case.cell == "lstm" and case.dtype != "fp32" and 16 <= case.H <= 128
        yield not runs, "FlashRNN2's persistent kernel runs an LSTM in bf16 or fp16, with H from 16 to 128"
