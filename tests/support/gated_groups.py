"""Launches of cells of several gates by kernels/cta_group.py, by hand-written plans, and what they compute in fp64.

Tolerances as in grids.py.  A training step passes through twice as many steps, and what the forward pass keeps is rounded, too,
each tile once; errors add in quadrature."""

import math
from dataclasses import dataclass

import torch

from rnn_triton import cells
from rnn_triton.launch import faults, recurrence
from rnn_triton.plan import hardware
from rnn_triton.plan.problem import DTYPES, ONE, Bundle, CtaGroup, Problem, row_units

from .grids import KINDS, MODES, Case, assert_close
from .stacks import dropout_masks

GATES = {"leaky_tanh": 1, "gru": 3, "lstm": 4}


def step(name, of_x, of_h, h, c, leak):
    """(h, c) after a step, as torch has it; of_x, of_h: W_ih x + b_ih and W_hh h + b_hh, [B, gates, H]"""
    if name == "lstm":
        i, f, g, o = (of_x + of_h).unbind(1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    if name == "gru":
        r, z = torch.sigmoid(of_x + of_h)[:, :2].unbind(1)
        n = torch.tanh(of_x[:, 2] + r * of_h[:, 2])
        return (1 - z) * n + z * h, c
    return (1 - leak) * h + leak * torch.tanh((of_x + of_h)[:, 0]), c


@dataclass(frozen=True)
class Gated(Case):
    """A Case of another cell.  layers > 1: a stack in one launch; both: both directions of a layer; dropped: as in stacks.Stack"""

    cell: str = "lstm"
    layers: int = 1
    both: bool = False
    dropped: int | None = None
    bottom = 0

    def __str__(self):
        fields = type(self).__dataclass_fields__
        return "-".join(f"{k}={v}" for k, v in vars(self).items() if v != fields[k].default or k == "cell").replace(" ", "")

    @property
    def lanes(self):
        return 2 if self.both else self.layers

    def limit(self, direction):
        *_, state, product = KINDS[self.kind]
        if direction == "forward":
            return 4 * (state + 2 * product) * (self.T + 1) ** 0.5 * self.layers**0.5
        kept = cells.named(self.cell).kept
        return 4 * (state * (1 + kept) ** 0.5 + 2 * product) * (2 * self.T + 1) ** 0.5 * self.layers**0.5

    @property
    def tolerance(self):
        return self.limit("backward")

    # ---- tensors

    def inputs(self, direction=None):
        """[x, w_ih, w_hh, b_ih, b_hh, h0, c0, leak, dy, dhn, dcn]; weights are lists with one of each lane, [gates, H, ..]"""
        g = torch.Generator().manual_seed(3)
        n, G, H = self.lanes, GATES[self.cell], self.H

        def uniform(*shape):
            return ((torch.rand(*shape, generator=g) * 2 - 1) * 1.5 / H**0.5).to(self.dtype)

        def normal(*shape):
            return torch.randn(*shape, generator=g).to(self.dtype)

        widths = [self.I if self.both or not lane else H for lane in range(n)]
        x = normal(self.T, self.B, self.I)
        w_ih, w_hh = [uniform(G, H, width) for width in widths], [uniform(G, H, H) for _ in range(n)]
        b_ih, b_hh = [uniform(G, H) for _ in range(n)], [uniform(G, H) for _ in range(n)]
        h0, c0 = normal(n, self.B, H), torch.randn(n, self.B, H, generator=g)
        leak = torch.rand(n, 1, H, generator=g) * 0.8 + 0.1  # the cell's vectors, of a leaky one
        dy, dhn = normal(self.T, self.B, (1 + self.both) * H), normal(n, self.B, H)
        dcn = torch.randn(n, self.B, H, generator=g)
        if self.cell != "lstm":
            dcn = torch.zeros_like(dcn)  # of what is carried there is no gradient but that of h
        return [x, w_ih, w_hh, b_ih, b_hh, h0, c0, leak, dy, dhn, dcn]

    def expected(self, direction, tensors, masks=None):
        """What `run` returns, in fp64"""
        exact = [[e.double() for e in t] if isinstance(t, list) else t.double() for t in tensors]
        x, w_ih, w_hh, b_ih, b_hh, h0, c0, leak, dy, dhn, dcn = exact
        h0, c0 = h0.requires_grad_(), c0.requires_grad_()
        leak = leak.expand(-1, self.B, -1).clone().requires_grad_()  # a gradient of each row
        shape = (self.lanes, self.T, self.B, GATES[self.cell], self.H)
        to_x, to_h = (torch.zeros(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
        ys, hn, cn = [], [], []
        for n in range(self.lanes):
            below = x if self.both or not n else ys[-1] if masks is None else ys[-1] * masks[n - 1]
            h, c, y = h0[n], c0[n], [None] * self.T
            steps = range(self.T)
            for t in steps[::-1] if self.reverse ^ (self.both and n == 1) else steps:
                of_x = torch.einsum("bi,ghi->bgh", below[t], w_ih[n]) + b_ih[n] + to_x[n, t]
                of_h = torch.einsum("bi,ghi->bgh", h, w_hh[n]) + b_hh[n] + to_h[n, t]
                h, c = step(self.cell, of_x, of_h, h, c, leak[n])
                y[t] = h
            ys.append(torch.stack(y))
            hn.append(h)
            cn.append(c)
        top = torch.cat(ys, 2) if self.both else ys[-1]
        hn, cn = torch.stack(hn), torch.stack(cn)
        carried = cn if self.cell == "lstm" else hn
        if direction == "forward":
            return tuple(t.detach() for t in (torch.stack(ys), hn, carried))
        loss = (top * dy).sum() + (hn * dhn).sum() + (cn * dcn).sum()
        d_hh, d_ih, dh0, dc0, dleak = torch.autograd.grad(loss, [to_h, to_x, h0, c0, leak], allow_unused=True)
        if self.cell == "lstm":
            return d_hh, d_ih, dc0
        first = [self.T - 1 if self.reverse ^ (self.both and n == 1) else 0 for n in range(self.lanes)]
        products = [torch.einsum("bgh,ghk->bk", d_hh[n, t], w_hh[n]) for n, t in enumerate(first)]
        dh0 = dh0 - torch.stack(products)
        return d_hh, d_ih, dh0 if dleak is None else torch.cat([dh0, dleak], -1)

    # ---- launches

    def _plan(self, direction):
        _, precision, accuracy, *_ = KINDS[self.kind]
        name, forward = DTYPES[self.dtype], direction == "forward"
        problem = Problem(direction, self.B, self.I if forward else 1, self.H, name, precision, self.cell)
        linked = self.layers > 1
        plan = CtaGroup(
            block_b=self.block_b, warps=self.warps, formulation="mma32" if name == "fp32" else "mma16",
            precision=precision or "ieee", accuracy=accuracy, units=self.units,
            ctas=-(-row_units(self.H, name) // self.units), groups=self.groups, w_hh_shared=self.shared,
            w_ih_home=self.home if forward or linked else "none", protocol=self.protocol, x_loads=self.x_loads,
            look_every=self.look_every, probe_delay=self.probe_delay, chains=self.chains, reason="test",
        )  # fmt: skip
        bundle = ONE if self.lanes == 1 else Bundle(self.lanes, linked, self.dropped is not None)
        return problem, plan, bundle

    def _launch(self, direction, module, device, mode, tensors, shape, seed):
        """Launches the kernel; returns out, [.., published, H].  tensors: of Operands, but for words"""
        problem, plan, bundle = self._plan(direction)
        operands, forward = module.operands, direction == "forward"
        engine = module.cta_group.engine(problem, plan, bundle)
        sync_words = operands.LINE_WORDS * bundle.count * (engine.groups + math.ceil(self.B / self.block_b))
        published = cells.named(self.cell).routes(forward).published
        like = tensors["w_rec"]
        out, sync = operands.words(like, published * engine.row, shape, sync_words, -1)
        strides = dict(stride_x_t=0, stride_x_b=0, stride_u_t=0, stride_u_b=0)
        for name, unit in (("x", engine.x_unit), ("u", engine.u_unit)):
            if name in tensors:
                tensors[name], strides[f"stride_{name}_t"], strides[f"stride_{name}_b"], _ = operands.strided(tensors[name], unit)
        if self.dropped is not None:
            tensors["seed"] = torch.tensor([seed], device=device)
        number = faults.register(
            f"{direction} of {problem.dtype} B={self.B} I={problem.I} H={self.H} over {engine.groups} groups of {engine.ctas} CTAs",
            engine.groups, bundle.names(direction, 0),
        )  # fmt: skip
        given = operands.Operands(out=out, sync=sync, report=faults.word(out.device), **tensors)
        scalars = operands.Scalars(
            T=self.T, B=self.B, reverse=int(self.reverse ^ (not forward)), launch=number, limit=operands.poll_limit(),
            dropped=self.dropped or 0, **strides,
        )  # fmt: skip
        with self.interpreted(direction, mode):
            engine.launch(given, out, scalars[: engine.scalars])
            faults.after_launch(out.device)
        return out.view(self.dtype).unflatten(-1, (published, engine.row))[..., : self.H]

    def _rows(self, t):
        """t with rows of whole vectors"""
        row = row_units(self.H, DTYPES[self.dtype])
        return torch.nn.functional.pad(t, (0, row - self.H)).contiguous()

    def _weight(self, w, columns):
        row = row_units(self.H, DTYPES[self.dtype])
        return torch.nn.functional.pad(w, (0, columns - w.shape[-1], 0, row - w.shape[-2]))

    def _lanes_first(self, t):
        return t.movedim(-3, 0) if self.both else t

    def forward(self, tensors, module=recurrence, device="cpu", mode=MODES[0], seed=None):
        """(y, hn, what is carried last, kept), those with lanes in front"""
        x, w_ih, w_hh, b_ih, b_hh, h0, c0, leak, *_ = [[e.to(device) for e in t] if isinstance(t, list) else t.to(device) for t in tensors]
        of, n, row = cells.named(self.cell), self.lanes, row_units(self.H, DTYPES[self.dtype])
        width = row_units(self.I, DTYPES[self.dtype])
        first = self._rows(h0.transpose(0, 1) if self.both else h0)
        # as rows, to be compared with what the kernel writes last
        carried = self._rows((c0 if self.cell == "lstm" else h0).float()[:, None])
        kept = torch.full((n, self.T, self.B, of.kept, row), float("nan"), dtype=self.dtype, device=device)
        given = dict(w_rec=torch.stack([self._weight(w, row) for w in w_hh]).contiguous(), first=first, carried=carried, kept=kept)
        given |= dict(bias0=self._rows(torch.stack(b_ih)), bias1=self._rows(torch.stack(b_hh)), last=torch.full_like(first, float("nan")))
        given["last"] = given["last"].view(torch.int32)
        if of.vectors:
            given["vectors"] = self._rows(leak)
        if self.home == "gemm":
            u = torch.einsum("tbi,nghi->tbngh", x.double(), torch.stack(w_ih).double()).float()
            given["u"] = self._rows(u).flatten(2)
        else:
            given["x"] = torch.nn.functional.pad(x, (0, width - self.I)).contiguous()
            columns = row if self.layers > 1 else width
            given["w_in"] = torch.stack([self._weight(w, columns) for w in w_ih]).contiguous()
        shape = (self.T, self.B, 2) if self.both else (n, self.T, self.B)
        y = self._launch("forward", module, device, mode, given, shape, seed)[..., 0, :]
        hn = given["last"].view(self.dtype)[..., : self.H]
        if self.both:
            y, hn = y.movedim(2, 0), hn.movedim(1, 0)
        return y, hn, carried[:, 0, :, : self.H], kept

    def backward(self, tensors, y, kept, module=recurrence, device="cpu", mode=MODES[0], seed=None):
        """(gradients of W_hh's gates, of W_ih's, of what is carried first and behind it of vectors), those with lanes in front"""
        _, w_ih, w_hh, *_, leak, dy, dhn, dcn = [[e.to(device) for e in t] if isinstance(t, list) else t.to(device) for t in tensors]
        of, row = cells.named(self.cell), row_units(self.H, DTYPES[self.dtype])
        routes, n = of.routes(False), self.lanes
        carried = self._rows(torch.stack([dcn, *[torch.zeros_like(dcn)] * len(of.vectors)], 1).float())

        def transposed(w, order):
            return torch.cat([self._weight(w[g].t(), row) for g in order], 1)

        given = dict(first=self._rows(dhn.transpose(0, 1) if self.both else dhn), kept=kept, carried=carried)
        given["w_rec"] = torch.stack([transposed(w, routes.rec_gates) for w in w_hh]).contiguous()
        if self.layers > 1:
            above = [transposed(w, range(len(of.gates))) for w in w_ih[1:]]
            given["w_in"] = torch.stack([*above, torch.zeros_like(above[0])]).contiguous()
        given["u"] = self._rows(dy.unflatten(2, (1 + self.both, self.H))).flatten(2)
        if of.reads_y:
            given["saved"] = self._rows(y.movedim(0, 2) if self.both else y)
        if of.vectors:
            given["vectors"] = self._rows(leak)
        shape = (self.T, self.B, 2) if self.both else (n, self.T, self.B)
        da = self._launch("backward", module, device, mode, given, shape, seed)
        if self.both:
            da = da.movedim(2, 0)
        order = torch.tensor(routes.rec_gates).argsort()
        d_hh, d_ih = da[..., : routes.exchanged, :][..., order, :], da[..., routes.published - routes.exchanged :, :]
        return d_hh, d_ih, carried[..., : self.H].transpose(1, 2).flatten(2)

    def run(self, direction, tensors, device="cpu", module=recurrence, mode=MODES[0], seed=None):
        """Forward (y, hn, what is carried last), of lanes [N, ..]; backward, behind a forward pass of the same module,
        (gradients of W_hh's gates, of W_ih's, of what is carried first)"""
        y, hn, carried, kept = self.forward(tensors, module, device, mode, seed)
        if direction == "forward":
            return y, hn, carried
        return self.backward(tensors, y, kept, module, device, mode, seed)

    def check(self, direction, tensors=None, device="cpu", **how):
        tensors = self.inputs() if tensors is None else tensors
        results = self.run(direction, tensors, device, **how)
        seed = how.get("seed")
        masks = None if self.dropped is None else dropout_masks(self, seed, device)
        assert_close(results, self.expected(direction, tensors, masks), self.limit(direction))
        return results


def compiled(name, direction, H, kind, **plan):
    """The kernel for a batch of 8 on sm_90, with every tensor that the cell has in this pass, and its plan"""
    changes = {"warps": 8, "chains": 2 if direction == "backward" else 1, "home": "gemm", **plan}
    problem, p, bundle = Gated(1, 8, H, H, kind=kind, cell=name, **changes)._plan(direction)
    return recurrence.compile_ahead(problem, p, hardware.RECORDS["sm_90"], bundle), problem, p
