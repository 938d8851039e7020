"""Launches whose sequences end before the last step, or begin anew within it, and a loop over rows and steps that says what they compute.

Beyond a length x and dy are NaN, which must not reach anything.  Tolerances are those of test_gates.py, relative, in the Frobenius norm."""

import contextlib

import torch

from rnn_triton.cells import named
from rnn_triton.cells.sequences import Sequences
from rnn_triton.launch import dispatch
from rnn_triton.plan.problem import ONE, Bundle

from .grids import KINDS
from .memory import filled

NOWHERE = contextlib.nullcontext


class Rows:
    """A layer (lanes "one"), two linked layers ("linked") or both directions of one ("both"), and what it is given, rounded to the dtype
    of the kind.  given: which of "lengths", "reset", "restart"."""

    def __init__(self, name, kind, T, B, I, H, given, lanes="one", reverse=False, first=True, seed=0):
        self.name, self.kind, self.T, self.B, self.I, self.H = name, kind, T, B, I, H
        self.lanes, self.reverse, self.cell = lanes, reverse, named(name)
        self.dtype, self.precision, _, self.state, self.product = KINDS[kind]
        self.g = torch.Generator().manual_seed(seed)
        self.count = 1 if lanes == "one" else 2
        self.bundle = ONE if lanes == "one" else Bundle(2, lanes == "linked")
        G, number = len(self.cell.gates), len(self.cell.states)
        widths = [H if lanes == "linked" and n else I for n in range(self.count)]
        self.weights = [[self.uniform(G * H, width), self.uniform(G * H, H), self.uniform(G * H), self.uniform(G * H)] for width in widths]
        wide = torch.promote_types(self.dtype, torch.float32)
        leak = torch.rand(self.count, len(self.cell.vectors), H, generator=self.g) * 0.8 + 0.1
        self.vectors = leak.to(self.dtype).to(wide) if self.cell.vectors else None
        self.states = tuple(self.normal(self.count, B, H) if first else None for _ in range(number))
        self.dstates = tuple(self.normal(self.count, B, H) for _ in range(number))
        self.x, self.dy = self.normal(T, B, I), self.normal(T, B, H * (2 if lanes == "both" else 1))
        self.lengths = self.reset = None
        self.restart = ()
        if "lengths" in given:  # all of T, none and one among them
            self.lengths = torch.randint(0, T + 1, (B,), generator=self.g)
            self.lengths[:3] = torch.tensor([T, 0, 1])[:B]
            for b, n in enumerate(self.lengths.tolist()):
                self.x[n:, b] = self.dy[n:, b] = float("nan")
        if "reset" in given:  # at step 0 and at the last one, too
            self.reset = torch.rand(T, B, generator=self.g) < 0.4
            self.reset[0, ::2] = True
        if "restart" in given:
            self.restart = tuple(self.normal(self.count, B, H) for _ in range(number))

    def uniform(self, *shape):
        return ((torch.rand(*shape, generator=self.g) * 2 - 1) / self.H**0.5).to(self.dtype)

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.g).to(self.dtype)

    @property
    def sequences(self):
        return Sequences(self.lengths, self.reset, tuple(self.of_lanes(s) for s in self.restart))

    def of_lanes(self, t):
        """As a launch takes a state: [B,H] of one recurrence"""
        return t if t is None or self.count > 1 else t[0]

    def backwards(self, lane):
        return self.reverse != (self.lanes == "both" and lane == 1)

    # ---- by launches

    def run(self, forward=NOWHERE, backward=NOWHERE):
        """Returns y, the last states, da of each lane [T,B,P,H], the gradients of the first states and of the vectors.  forward, backward:
        make a context that the launch runs in"""
        several = self.count > 1
        columns = [list(column) for column in zip(*self.weights)] if several else self.weights[0]
        vectors = None if self.vectors is None else self.of_lanes(self.vectors)
        settings = (self.name, self.reverse, self.precision)
        shared = ((self.bundle, 0),) if several else ()
        states = tuple(self.of_lanes(s) for s in self.states)
        with filled(), forward():
            y, last, kept = dispatch.forward(self.x, *columns, states, *settings, True, vectors, *shared, sequences=self.sequences)
        linked = (columns[0],) if self.lanes == "linked" else ()
        dstates = tuple(self.of_lanes(s) for s in self.dstates)
        with filled(), backward():
            da, carried = dispatch.backward(
                columns[1], y, kept, self.dy, dstates, *settings, vectors, *shared, *linked, sequences=self.sequences
            )  # fmt: skip
        das = [da] if not several else da.unbind(0 if self.lanes == "linked" else 2)
        das = [d.unflatten(-1, (-1, self.H)) for d in das]
        of_lane = [[None if c is None else c if not several else c[n] for c in carried] for n in range(self.count)]
        of_states = []
        for n, (d, c) in enumerate(zip(das, of_lane)):
            for k in range(len(self.states)):
                of_states.append(self._of_first(d, c[k], n) if k == 0 else c[k])
        of_vectors = [v.sum(0) for c in of_lane for v in c[len(self.states) :]]
        return [y[-1] if self.lanes == "linked" else y, *[s if several else s[None] for s in last], *das, *of_states, *of_vectors]

    def _of_first(self, da, carried, lane):
        """dh0, out of da of the step that reads it"""
        w_hh, routes = self.weights[lane][1].unflatten(0, (-1, self.H)), self.cell.routes(False)
        dh0 = torch.zeros(self.B, self.H, dtype=torch.float64)
        for b in range(self.B):
            n = self.T if self.lengths is None else int(self.lengths[b])
            t = n - 1 if self.backwards(lane) else 0
            if n == 0:
                dh0[b] = self.dstates[0][lane, b]
            elif self.backwards(lane) or self.reset is None or not self.reset[0, b]:
                for k, gate in enumerate(routes.rec_gates):
                    dh0[b] += da[t, b, routes.rec_states[k]].double() @ w_hh[gate].double()
        return dh0 if carried is None else dh0 + carried.double()

    # ---- by a loop

    def expected(self):
        """The same in fp64"""
        x = self.x.double()
        given = [torch.zeros(self.count, self.B, self.H) if s is None else s for s in self.states]
        states = [s.double().requires_grad_() for s in given]
        restart = [r.double() for r in self.restart] or [torch.zeros(self.count, self.B, self.H, dtype=torch.float64)] * len(states)
        parts = len(self.cell.gates) + len(self.cell.split)
        added = [torch.zeros(self.T, self.B, parts, self.H, dtype=torch.float64, requires_grad=True) for _ in range(self.count)]
        vectors = [] if self.vectors is None else [v.double().requires_grad_() for v in self.vectors]
        ys, lasts = [], []
        for lane in range(self.count):
            of_lane = [s[lane] for s in states], [r[lane] for r in restart]
            y, last = self._loop(x, lane, *of_lane, added[lane], vectors[lane] if vectors else ())
            ys.append(y)
            lasts.append(last)
            x = y if self.lanes == "linked" else x
        y = torch.cat(ys, -1) if self.lanes == "both" else ys[-1]
        last = [torch.stack(of) for of in zip(*lasts)]
        dy = torch.where(self.dy.isnan(), 0, self.dy).double()
        loss = (y * dy).sum() + sum((s * d.double()).sum() for s, d in zip(last, self.dstates, strict=True))
        found = torch.autograd.grad(loss, [*added, *states, *vectors], allow_unused=True, materialize_grads=True)
        das, of_states, of_vectors = found[: self.count], found[self.count : self.count + len(states)], found[self.count + len(states) :]
        G, S = len(self.cell.gates), len(self.cell.split)
        order = [*range(G - S, G), *range(G - S), *range(G, G + S)] if S else list(range(G))
        flat = [s[lane] for lane in range(self.count) for s in of_states]
        return [y, *last, *[d[:, :, order] for d in das], *flat, *[v for of in of_vectors for v in of]]

    def _loop(self, x, lane, first, restart, added, vectors):
        """y[T,B,H] and the last states of one lane, row by row"""
        w_ih, w_hh, b_ih, b_hh = (w.double() for w in self.weights[lane])
        G, S = len(self.cell.gates), len(self.cell.split)
        down, rows, lasts = self.backwards(lane), [], []
        for b in range(self.B):
            n = self.T if self.lengths is None else int(self.lengths[b])
            states = tuple(s[b] for s in first)
            ys = [torch.zeros(self.H, dtype=torch.float64)] * self.T
            for t in range(n - 1, -1, -1) if down else range(n):
                begin = t + 1 if down else t  # where a segment would begin between this step and the one before it
                if self.reset is not None and begin < n and self.reset[begin, b]:
                    states = tuple(s[b] for s in restart)
                of_x = (w_ih @ x[t, b] + b_ih).unflatten(0, (G, -1))
                of_h = (w_hh @ states[0] + b_hh).unflatten(0, (G, -1))
                a = torch.cat([of_x[: G - S] + of_h[: G - S], of_h[G - S :], of_x[G - S :]]) + added[t, b]
                states = self.cell.step(tuple(a), states, tuple(vectors))
                ys[t] = states[0]
            rows.append(torch.stack(ys))
            lasts.append(states)
        return torch.stack(rows, 1), [torch.stack(of) for of in zip(*lasts)]

    # ---- both

    def check(self, forward=NOWHERE, backward=NOWHERE):
        limit = 4 * (self.state * (1 + self.cell.kept) ** 0.5 + 2 * self.product) * (2 * self.count * self.T + 1) ** 0.5
        results = self.run(forward, backward)
        for n, (value, exact) in enumerate(zip(results, self.expected(), strict=True)):
            assert value.shape == exact.shape, f"number {n}: {value.shape} {exact.shape}"
            error = (value.double() - exact).norm() / exact.norm() if exact.any() else value.double().norm()
            assert error <= limit, f"number {n}: error {error:.2e} > {limit:.2e}"  # NaN is no result, either
        if self.lengths is not None:
            y, das = results[0], results[1 + len(self.states) : 1 + len(self.states) + self.count]
            assert not any(t[~self.sequences.live(self.T)].any() for t in (y, *das))
