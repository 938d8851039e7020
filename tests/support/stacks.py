"""Launches of several recurrences by hand-written plans, as support/grids.py does it for one.

Tolerances: those of a layer (support/grids.py) times sqrt(L): the roundings of L layers add in quadrature.
"""

from dataclasses import dataclass

import torch

from rnn_triton.cells import reference
from rnn_triton.launch import recurrence
from rnn_triton.op import dropout
from rnn_triton.plan.problem import DTYPES, Bundle, CtaGroup, OneCta, Problem, row_units

from .grids import KINDS, MODES, Case, pre_activation_gradients
from .problems import problem


@dataclass(frozen=True)
class Stack(Case):
    """`layers` layers, or with `both` the two directions of one; dropped: of 65536; depth: of x, and each layer on one
    CTA (kernels/one_cta.py), else on groups (kernels/cta_group.py)"""

    layers: int = 2
    both: bool = False
    dropped: int | None = None
    bottom: int = 0  # the number of the first layer
    depth: int | None = None

    @property
    def tolerance(self):
        return super().tolerance * self.layers**0.5

    @property
    def polled(self):
        return super().polled and not (self.both and self.depth is not None)

    def __str__(self):
        fields = type(self).__dataclass_fields__
        changed = [f"{k}={v}" for k, v in vars(self).items() if v != fields[k].default]
        return "-".join(changed).replace("(", "").replace(")", "").replace(" ", "")

    def launch(self, direction, module=recurrence):
        _, precision, accuracy, *_ = KINDS[self.kind]
        name = DTYPES[self.dtype]
        forward = direction == "forward"
        home = self.home if forward or not self.both else "none"
        of = Problem(direction, self.B, self.I if forward else 1, self.H, name, precision, f"elman_{self.nonlinearity}")
        formulation = "fma" if precision == "ieee" or name == "fp64" else "mma32" if name == "fp32" else "mma16"
        common = dict(
            block_b=self.block_b, formulation=formulation, precision=precision or "ieee", accuracy=accuracy, w_ih_home=home,
            chains=self.chains, reason="test",
        )  # fmt: skip
        if self.depth is not None:
            h_pad = max(16, 1 << (self.H - 1).bit_length())
            plan = OneCta(
                warps=min(8, h_pad // 16), h_pad=h_pad, chunk=32 if formulation == "mma16" else 16, x_depth=self.depth,
                pad_w_hh=False, **common,
            )  # fmt: skip
        else:
            plan = CtaGroup(
                warps=self.warps, units=self.units, ctas=-(-row_units(self.H, name) // self.units),
                groups=self.groups, w_hh_shared=self.shared, protocol=self.protocol, x_loads=self.x_loads, look_every=self.look_every,
                probe_delay=self.probe_delay, **common,
            )  # fmt: skip
        bundle = Bundle(2) if self.both else Bundle(self.layers, True, self.dropped is not None)
        return module.Recurrence(of, plan, bundle, self.bottom)

    @property
    def weights(self):
        """[(w_ih, w_hh, b_ih, b_hh)] of each lane"""
        found = []
        for n in range(2 if self.both else self.layers):
            I = self.I if self.both or n == 0 else self.H
            tensors = problem(1, 1, I, self.H, bias=self.bias, dtype=self.dtype, seed=n)[1:5]
            found.append(tuple(None if t is None else t.detach() for t in tensors))
        return found

    def inputs(self, direction):
        """{name: tensor, list of a tensor for each lane, or None}"""
        n = 2 if self.both else self.layers
        g = torch.Generator().manual_seed(5)
        w_ih, w_hh, b_ih, b_hh = (list(t) for t in zip(*self.weights, strict=True))

        def normal(*shape):
            return torch.randn(*shape, generator=g).to(self.dtype)

        if direction == "forward":
            h0 = normal(n, self.B, self.H) if self.first else None
            biases = (None if b[0] is None else b for b in (b_ih, b_hh))
            return [normal(self.T, self.B, self.I), w_ih, w_hh, *biases, h0]
        y = [normal(self.T, self.B, self.H) for _ in range(n)]
        y = [t.tanh() if self.nonlinearity == "tanh" else t.relu() for t in y]
        dy = normal(self.T, self.B, (1 + self.both) * self.H) if self.dy else None
        dhn = normal(n, self.B, self.H) if self.first else None
        return [w_hh, torch.cat(y, 2), dy, dhn] if self.both else [w_ih, w_hh, torch.stack(y), dy, dhn]

    def expected(self, direction, tensors, masks=None):
        """What `run` returns, in fp64; masks: what the outputs of the layers are multiplied by on their way up"""
        exact = [
            [None if e is None else e.double() for e in t] if isinstance(t, list) else None if t is None else t.double()
            for t in tensors
        ]
        if direction == "forward":
            x, w_ih, w_hh, b_ih, b_hh, h0 = exact
            ys, hns = [], []
            for n in range(len(w_ih)):
                given = x if self.both or n == 0 else ys[-1] if masks is None else ys[-1] * masks[n - 1]
                bias = [None if b is None else b[n] for b in (b_ih, b_hh)]
                y, hn = reference.rnn(
                    given, w_ih[n], w_hh[n], *bias, None if h0 is None else h0[n], self.nonlinearity, self.both and n == 1
                )
                ys.append(y)
                hns.append(hn)
            return torch.cat(ys, 2) if self.both else torch.stack(ys), torch.stack(hns)
        if self.both:
            w_hh, y, dy, dhn = exact
            ys, dys = y.chunk(2, 2), (None, None) if dy is None else dy.chunk(2, 2)
            of = [(w_hh[n], ys[n], dys[n], None if dhn is None else dhn[n], self.nonlinearity, n == 1) for n in (0, 1)]
            return (torch.cat([pre_activation_gradients(*each) for each in of], 2),)
        w_ih, w_hh, y, u, dhn = exact
        das = []
        for n in reversed(range(self.layers)):
            das.append(
                pre_activation_gradients(w_hh[n], y[n], u, None if dhn is None else dhn[n], self.nonlinearity, False)
            )
            u = das[-1] @ w_ih[n]
            if n and masks is not None:
                u = u * masks[n - 1]
        return (torch.stack(das[::-1]),)

    def run(self, direction, tensors, device="cpu", module=recurrence, mode=MODES[0], seed=None):
        """(y, hn) or (da,)"""
        there = [[e.to(device) for e in t] if isinstance(t, list) else None if t is None else t.to(device) for t in tensors]
        launch = self.launch(direction, module)
        options = {} if self.dropped is None else dict(seed=torch.tensor([seed], device=device), dropped=self.dropped)
        if direction == "backward" and not self.both:
            options["w_ih"], *there = there
        with self.interpreted(direction, mode):
            if direction == "forward":
                *tensors, h0 = there
                y, (hn,), _ = launch.forward(*tensors, (h0,), **options)
                return y, hn
            w_hh, y, dy, dhn = there
            da, _ = launch.backward(w_hh, y, None, dy, (dhn,), **options)
        return (da.flatten(2) if self.both else da,)


def dropout_masks(case, seed, device="cpu"):
    """What the outputs of a case's layers are multiplied by on their way up, fp64, by the kernel of whole tensors"""
    ones = torch.ones(case.T, case.B, case.H, dtype=case.dtype, device=device)
    seed = torch.tensor([seed], device=device)
    layers = range(case.bottom, case.bottom + case.layers - 1)
    kept = [dropout.drop(ones, seed, layer, case.dropped).cpu() != 0 for layer in layers]
    return [k.double() * 65536 / (65536 - case.dropped) for k in kept]


def example(layers, directions, I, H, *, T=3, B=3, dtype=torch.bfloat16, device="cpu", seed=0):
    """(x, layers, h0) as functional.network takes them, and a function of nothing: torch's (y, hn, gradients) for cotangents of one,
    in fp64 of the same rounded values; gradients of x, h0 and the weights in torch's order"""
    torch.manual_seed(seed)
    exact = torch.nn.RNN(I, H, layers, bidirectional=directions == 2, dtype=torch.float64).to(dtype).double()
    x = torch.randn(T, B, I).to(dtype).double().requires_grad_()
    h0 = torch.randn(layers * directions, B, H).to(dtype).double().requires_grad_()

    def expected():
        y, hn = exact(x, h0)
        return [y, hn, *torch.autograd.grad(y.sum() + hn.sum(), [x, h0, *exact.parameters()])]

    def leaf(t):
        return t.detach().to(dtype).to(device).requires_grad_()

    weights = [leaf(p) for p in exact.parameters()]
    return leaf(x), [tuple(weights[i : i + 4]) for i in range(0, len(weights), 4)], leaf(h0), expected
