"""Launches of cells with gates, as an operator calls them: through launch/dispatch.py, forward and backward, with the gradients that
follow, by the interpreter on one CTA and in single steps, and by the cooperative one in groups, against fp64 torch.nn.LSTM and GRU
and autograd.

Tolerances are those of test_gates.py, relative, in the Frobenius norm: the state is rounded once a step, each kept tile once, and in
tf32 both operands of every product; errors add in quadrature over the T steps of both passes:

    4 * (u_state * sqrt(1 + kept) + 2 u_product) * sqrt(2 T + 1)
"""

import contextlib
from dataclasses import replace

import pytest
import torch
from cooperative import RaceError, cooperate
from support import stuck
from support.grids import KINDS
from support.mutants import Change, launched_with

from rnn_triton import overriding
from rnn_triton.cells import named
from rnn_triton.launch import dispatch, faults, recurrence
from rnn_triton.op import dropout
from rnn_triton.op.gradients import DB, DH0, DW_HH, DW_IH, DX, Saved
from rnn_triton.plan import choose, hardware, latency
from rnn_triton.plan.overriding import overrides
from rnn_triton.plan.problem import Bundle, Problem

MODULES = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
LEAKY = ["leaky_tanh", "leaky_relu"]


class Loop(torch.nn.Module):
    """A layer of a cell that torch has none of, by the cell's step; what it takes and returns is that of torch's layers."""

    def __init__(self, cell, I, H):
        super().__init__()
        self.cell = cell
        gates = len(cell.gates)
        for n, shape in enumerate([(gates * H, I), (gates * H, H), (gates * H,), (gates * H,), *[(H,)] * len(cell.vectors)]):
            # vectors as a leak: in (0, 1)
            value = torch.rand(shape) * 0.8 + 0.1 if n >= 4 else (torch.rand(shape) * 2 - 1) / H**0.5
            self.register_parameter(f"p{n}", torch.nn.Parameter(value))

    def forward(self, x, states):
        w_ih, w_hh, b_ih, b_hh, *vectors = self.parameters()
        alone = isinstance(states, torch.Tensor)
        states, ys = tuple(s[0] for s in ([states] if alone else states)), []
        for x_t in x:
            a = (x_t @ w_ih.T + b_ih + states[0] @ w_hh.T + b_hh).chunk(len(self.cell.gates), -1)
            states = self.cell.step(a, states, tuple(vectors))
            ys.append(states[0])
        last = tuple(s[None] for s in states)
        return torch.stack(ys), last[0] if alone else last


def exact(name, I, H):
    """A layer of this cell"""
    return MODULES[name](I, H) if name in MODULES else Loop(named(name), I, H)


class Case:
    """A layer and what it is given, in the dtype of the kind; `exact` is the layer in fp64, of the same rounded values"""

    def __init__(self, name, kind, T, B, I, H, reverse=False, first=True):
        self.name, self.T, self.B, self.I, self.H, self.reverse = name, T, B, I, H, reverse
        self.dtype, self.precision, _, *self.roundoff = KINDS[kind]
        torch.manual_seed(0)
        self.cell = named(name)
        self.exact = exact(name, I, H).to(self.dtype).double()
        parameters = [p.detach().to(self.dtype) for p in self.exact.parameters()]
        self.weights = parameters[:4]
        wide = torch.promote_types(self.dtype, torch.float32)
        self.vectors = torch.stack(parameters[4:]).to(wide) if self.cell.vectors else None
        number = len(self.cell.states)
        self.x, self.dy = self.normal(T, B, I), self.normal(T, B, H)
        self.states = tuple(self.normal(B, H) if first else None for _ in range(number))
        self.dstates = tuple(self.normal(B, H) for _ in range(number))

    def normal(self, *shape):
        return torch.randn(*shape).to(self.dtype)

    def run(self, forward, backward):
        """Returns y, the last states, and the gradients of x, the weights and the first states, as the operator makes them."""
        w_ih, w_hh, _, _ = self.weights
        settings = (self.name, self.reverse, self.precision)
        with forward:
            y, last, kept = dispatch.forward(self.x, *self.weights, self.states, *settings, True, self.vectors)
        assert y.is_contiguous() and kept.shape == (self.T, self.B, self.cell.kept, self.H) and kept.is_contiguous()
        assert len({t.untyped_storage().data_ptr() for t in (y, *last, kept)}) == 2 + len(last)
        with backward:
            da, carried = dispatch.backward(w_hh, y, kept, self.dy, self.dstates, *settings, self.vectors)
        states, vectors = carried[: len(self.states)], carried[len(self.states) :]
        assert all(v.shape == (self.B, self.H) and v.dtype == torch.promote_types(self.dtype, torch.float32) for v in vectors)
        layer = Saved(self.x, w_ih, w_hh, self.states[0], y, self.reverse, self.precision or "ieee", DX | DW_IH | DW_HH | DB | DH0)
        dx, dw_ih, dw_hh, *db, dh0 = layer.gradients(da, None, states[0])
        return [y, *last, dx, dw_ih, dw_hh, db[0], db[-1], *[v.sum(0) for v in vectors], dh0, *states[1:]]

    def expected(self):
        x = self.x.double().requires_grad_()
        states = [(torch.zeros(self.B, self.H) if s is None else s).double().requires_grad_() for s in self.states]
        given = tuple(s[None] for s in states)
        y, last = self.exact(x.flip(0) if self.reverse else x, given if len(given) > 1 else given[0])
        y, last = y.flip(0) if self.reverse else y, last if len(given) > 1 else (last,)
        loss = (y * self.dy.double()).sum() + sum((s[0] * d.double()).sum() for s, d in zip(last, self.dstates, strict=True))
        return [y, *[s[0] for s in last], *torch.autograd.grad(loss, [x, *self.exact.parameters(), *states])]

    def check(self, forward=None, backward=None):
        state, product = self.roundoff
        limit = 4 * (state * (1 + self.cell.kept) ** 0.5 + 2 * product) * (2 * self.T + 1) ** 0.5
        results = self.run(forward or contextlib.nullcontext(), backward or contextlib.nullcontext())
        for n, (value, exact) in enumerate(zip(results, self.expected(), strict=True)):
            assert value.shape == exact.shape
            error = (value.double() - exact).norm() / exact.norm()
            assert error <= limit, f"number {n}: error {error:.2e} > {limit:.2e}"


cells = pytest.mark.parametrize("name", list(MODULES))
all_cells = pytest.mark.parametrize("name", [*MODULES, *LEAKY])


# rows that are no whole vectors; several batch tiles; no first states; x by a GEMM, in one case since W_ih may not be on chip
@pytest.mark.interpret
@all_cells
@pytest.mark.parametrize("kind, T, B, I, H, how", [
    ("bf16", 3, 3, 24, 29, {}),
    ("fp16", 3, 9, 7, 16, dict(w_ih_home="gemm")),
    ("tf32", 3, 3, 16, 32, {}),
    ("tf32x3", 2, 3, 9, 21, {}),
    ("ieee", 2, 2, 5, 29, {}),
    ("fp64", 3, 2, 5, 13, {}),
])  # fmt: skip
def test_one_cta(name, kind, T, B, I, H, how):
    with overriding(regime="one_cta", **how):
        Case(name, kind, T, B, I, H, reverse=kind in ("fp16", "tf32"), first=kind != "tf32x3").check()


@pytest.mark.interpret
@all_cells
@pytest.mark.parametrize("kind, T, B, I, H", [("bf16", 3, 3, 24, 29), ("fp64", 2, 2, 5, 13)])
def test_a_launch_a_step(name, kind, T, B, I, H):
    with overriding(regime="per_step"):
        Case(name, kind, T, B, I, H, reverse=kind == "fp64", first=kind == "bf16").check()


def grouped(passes, **roles):
    """Runs a launch's CTAs side by side, in memory where they see each other's words late."""
    return cooperate(channels=("out_ptr",), poisoned=("last_ptr",) if passes == "forward" else (), schedule="rr", **roles)


@pytest.mark.interpret
@all_cells
@pytest.mark.parametrize("kind, T, B, I, H, how", [
    ("bf16", 3, 3, 24, 40, dict(w_ih_home="registers")),
    ("fp16", 2, 9, 8, 30, dict(w_ih_home="gemm")),
    ("tf32", 2, 3, 7, 29, dict(w_ih_home="shared")),
])  # fmt: skip
def test_groups(name, kind, T, B, I, H, how):
    with overriding(regime="cta_group", warps=4, units=16, block_b=8, protocol="sentinel", **how):
        Case(name, kind, T, B, I, H, reverse=kind == "fp16").check(grouped("forward"), grouped("backward"))


@pytest.mark.interpret
@all_cells
@pytest.mark.parametrize("regime", ["one_cta", "per_step"])
def test_models_of_an_ensemble(name, regime):
    """on one CTA each in one launch, else one after the other: what each alone computes"""
    case = Case(name, "bf16", 3, 2, 8, 13)
    with overriding(regime=regime):
        check_models(name, case)


def check_models(name, case):
    settings = (name, False, None)
    x, dy, states = case.x.expand(2, -1, -1, -1), torch.stack([case.dy, 2 * case.dy]), tuple(torch.stack([s, -s]) for s in case.states)
    weights = [torch.stack([w, w * 0.5]) for w in case.weights]
    vectors = None if case.vectors is None else torch.stack([case.vectors, case.vectors * 0.5])
    y, last, kept = dispatch.forward(x, *weights, states, *settings, True, vectors)
    da, carried = dispatch.backward(weights[1], y, kept, dy, states, *settings, vectors)
    for m in range(2):
        given, own = tuple(s[m] for s in states), None if vectors is None else vectors[m]
        alone = dispatch.forward(x[m], *[w[m] for w in weights], given, *settings, True, own)
        of_da = dispatch.backward(weights[1][m], alone[0], alone[2], dy[m], given, *settings, own)
        pairs = zip([y, *last, kept, da, *carried], [alone[0], *alone[1], alone[2], of_da[0], *of_da[1]], strict=True)
        assert all(one is None if together is None else torch.equal(together[m], one) for together, one in pairs)


class Network:
    """Two layers or directions that share a launch, in bf16, and torch's layers of the same rounded values.  dropped: of 65536, between layers"""

    def __init__(self, name, linked, T, B, I, H, dropped=None):
        self.name, self.linked, self.bundle = name, linked, Bundle(2, linked, dropped is not None)
        self.dropout = () if dropped is None else (torch.tensor([7]), dropped)
        torch.manual_seed(1)
        self.exact = [exact(name, size, H).to(torch.bfloat16).double() for size in (I, H if linked else I)]
        parameters = [[p.detach().to(torch.bfloat16) for p in layer.parameters()] for layer in self.exact]
        self.columns = [list(column) for column in zip(*parameters)][:4]  # w_ih, w_hh, b_ih, b_hh of both
        self.vectors = torch.stack([torch.stack(own[4:]) for own in parameters]).float() if named(name).vectors else None
        number = len(named(name).states)

        def normal(*shape):
            return torch.randn(*shape).to(torch.bfloat16)

        self.x, self.dy = normal(T, B, I), normal(T, B, H * (2 - linked))
        self.states, self.dstates = (tuple(normal(2, B, H) for _ in range(number)) for _ in range(2))

    def run(self):
        settings = (self.name, False, None)
        w_ih, w_hh, *_ = self.columns
        with self.together("forward"):
            y, last, kept = dispatch.forward(
                self.x, *self.columns, self.states, *settings, True, self.vectors, (self.bundle, 0), *self.dropout
            )
        with self.together("backward"):
            linked = (w_ih, *self.dropout) if self.linked else ()
            da, carried = dispatch.backward(w_hh, y, kept, self.dy, self.dstates, *settings, self.vectors, (self.bundle, 0), *linked)
        states, own = carried[: len(self.states)], carried[len(self.states) :]
        gradients = []
        for n, da_n in enumerate(da.unbind(0 if self.linked else 2)):
            x, y_n = (self.between(y[0]) if self.linked and n else self.x), y[n] if self.linked else y.chunk(2, -1)[n].contiguous()
            layer = Saved(x, w_ih[n], w_hh[n], self.states[0][n], y_n, not self.linked and n == 1, None, DW_IH | DW_HH | DB | DH0)
            _, dw_ih, dw_hh, *db, _ = layer.gradients(da_n.contiguous(), None, None if states[0] is None else states[0][n])
            gradients += [dw_ih, dw_hh, db[0], db[-1], *[v[n].sum(0) for v in own]]
        return [y[-1] if self.linked else y, *last, *gradients, *states[1:]]

    def together(self, passes):
        """Runs programs that wait for each other side by side."""
        alone = not self.linked and dict(overrides()).get("regime") == "one_cta"
        return contextlib.nullcontext() if alone else grouped(passes)

    def between(self, y):
        """What the upper layer gets of the lower one's y"""
        if not self.dropout:
            return y
        seed, dropped = self.dropout
        mask = dropout.mask(y.shape, torch.bfloat16, seed, 0, dropped)
        return dropout.drop_by_mask(y, mask, dropped)

    def expected(self):
        states = [s.double().requires_grad_() for s in self.states]
        x, ys, lasts = self.x.double(), [], []
        for n, layer in enumerate(self.exact):
            given = tuple(s[n : n + 1] for s in states)
            flipped = not self.linked and n == 1
            y, last = layer(x.flip(0) if flipped else x, given if len(given) > 1 else given[0])
            ys.append(y.flip(0) if flipped else y)
            lasts.append(last if len(given) > 1 else (last,))
            x = self.between(y) if self.linked else x
        y, last = ys[-1] if self.linked else torch.cat(ys, -1), [torch.cat(s) for s in zip(*lasts)]
        loss = (y * self.dy.double()).sum() + sum((s * d.double()).sum() for s, d in zip(last, self.dstates, strict=True))
        return [y, *last, *torch.autograd.grad(loss, [*[p for layer in self.exact for p in layer.parameters()], *states[1:]])]


GROUPS = dict(regime="cta_group", warps=4, units=16, block_b=8)


@pytest.mark.interpret
@all_cells
@pytest.mark.parametrize("linked, dropped", [(True, None), (True, 20000), (False, None)])
@pytest.mark.parametrize("how, I", [(GROUPS, 24), (dict(regime="one_cta"), 24), (dict(regime="one_cta"), 100)], ids=str)
def test_layers_and_directions(name, linked, dropped, how, I):
    """Wide inputs are projected before."""
    with overriding(**how):
        check_network(Network(name, linked, 3, 3, I, 29, dropped))


def check_network(network):
    """What passes through two layers is rounded in both."""
    T, kept, state = network.x.shape[0], named(network.name).kept, KINDS["bf16"][3]
    limit = 4 * state * (1 + kept) ** 0.5 * (4 * T + 1) ** 0.5
    for n, (value, exact) in enumerate(zip(network.run(), network.expected(), strict=True)):
        assert value.shape == exact.shape
        error = (value.double() - exact).norm() / exact.norm()
        assert error <= limit, f"number {n}: error {error:.2e} > {limit:.2e}"


@pytest.mark.interpret
@cells
def test_a_group_that_fails_leaves_nan_in_all_results(name):
    """One CTA of two is missing: what the other one carries is no result either."""
    case = Case(name, "bf16", 4, 3, 8, 32)
    problem = Problem("forward", 3, 8, 32, "bf16", None, name)
    plan = choose.plan(problem, hardware.RECORDS["sm_90"], (("protocol", "sentinel"), ("regime", "cta_group"), ("units", 16), ("warps", 4)))
    launch = recurrence.Recurrence(problem, replace(plan, ctas=plan.ctas - 1))
    try:
        with grouped("forward", races="off", max_idle=1 << 15, continued=True):
            y, last, kept = launch.forward(case.x, *case.weights, case.states, False, True)
        assert faults.word(torch.device("cpu")).item() != 0
    finally:
        faults.word(torch.device("cpu")).zero_()
    assert y[1:].isnan().all() and not y[0, :, :16].isnan().any()
    assert kept[1:, ..., :16].isnan().all()
    assert all(state[:, :16].isnan().all() for state in last)


DEVICE = hardware.RECORDS["sm_90"]


@all_cells
@pytest.mark.parametrize("dtype, precision", [("bf16", None), ("fp16", None), ("fp32", "tf32"), ("fp32", "tf32x3"), ("fp32", "ieee"), ("fp64", None)])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_problem_has_a_plan(name, dtype, precision, direction):
    regimes = set()
    for device in hardware.RECORDS.values():
        for H, B, M in ((1, 1, 1), (16, 8, 1), (100, 300, 1), (128, 8, 3), (512, 8, 1), (1000, 64, 1), (2048, 8, 1), (5000, 8, 1)):
            problem = Problem(direction, B, H if direction == "forward" else 1, H, dtype, precision, name, M)
            plan = choose.plan(problem, device)
            regimes.add(plan.regime)
            assert latency.floor_us(problem, device) <= latency.practical_us(problem, plan, device)
    assert regimes == ({"one_cta", "per_step"} if dtype == "fp64" or precision == "ieee" else {"one_cta", "cta_group", "per_step"})


# the largest sizes of design notes: 16 bits to H = 128 on one CTA and to 2048 in a group, tf32 to 64 and 512
@cells
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype, precision, H, regime", [
    ("bf16", None, 128, "one_cta"), ("bf16", None, 129, "cta_group"), ("bf16", None, 2048, "cta_group"),
    ("fp32", "tf32", 64, "one_cta"), ("fp32", "tf32", 65, "cta_group"), ("fp32", "tf32", 512, "cta_group"),
])  # fmt: skip
def test_where_weights_of_gates_stay(name, direction, dtype, precision, H, regime):
    plan = choose.plan(Problem(direction, 8, H if direction == "forward" else 1, H, dtype, precision, name), DEVICE)
    assert plan.regime == regime
    if regime == "one_cta" and direction == "forward":
        assert plan.w_ih_home == "gemm"


# ---- one CTA each: failures, and defects that these tests notice ----------------------------------------------------


@pytest.mark.interpret
@pytest.mark.parametrize("name, direction", [("lstm", "forward"), ("gru", "forward"), ("lstm", "backward")])
def test_layers_that_fail_leave_nan_in_all_results(name, direction):
    """The first layer to run fails in the step behind the third, for no reason; so the other one does not get its x."""
    T = 6
    network = Network(name, True, T, 3, 24, 29)
    linked = (network.bundle, 0)
    settings = (name, False, None)
    stuck_here = dict(races="off", max_idle=20 * 64, continued=True)
    with overriding(regime="one_cta"):
        with grouped("forward"):
            y, _, kept = dispatch.forward(network.x, *network.columns, network.states, *settings, True, None, linked)
        with launched_with(stuck.gives_up_alone(0)) as kernels, grouped(direction, **stuck_here):
            kernels.operands.SPIN_LIMIT = 64
            if direction == "forward":
                found, states, kept = dispatch.forward(network.x, *network.columns, network.states, *settings, True, None, linked)
            else:
                w_ih, w_hh, *_ = network.columns
                found, states = dispatch.backward(w_hh, y, kept, network.dy, network.dstates, *settings, None, linked, w_ih)
            assert faults.word(torch.device("cpu")).item() != 0
    results = [found] + [kept] * (direction == "forward")
    for result in results:
        in_order = result if direction == "forward" else result.flip(0, 1)
        assert in_order[:, -2:].isnan().all() and in_order[:, :2].isfinite().all()
    assert all(state.isnan().all() for state in states if state is not None)


CHANGES = {  # what is changed in kernels/one_cta.py, and the test that notices it
    "layers carry the same": ("        carried_ptr += layer * (step_own * ROUTES.carried)\n", "", ("network", "lstm", True, 24)),
    "layers keep the same": ("        kept_ptr += layer * (T * step_own * ROUTES.kept)\n", "", ("network", "lstm", True, 24)),
    "layers have the same vectors": ("        vectors_ptr += layer * (ROUTES.vectors * H)\n", "", ("network", "leaky_tanh", True, 24)),
    "the gradients of the wrong gates from above": (" + (PUBLISHED * H - K_IN)", "", ("network", "gru", True, 24)),
    "GRU's fourth part is added early": (
        "tiles = replaced(tiles, PARTS[g], tiles[PARTS[g]] + products[g])", "tiles = replaced(tiles, g, tiles[g] + products[g])",
        ("network", "gru", True, 24),
    ),
    "directions take the same u": ("u_ptr += lane * (len(INTO) * U.length)", "u_ptr += lane * H", ("network", "lstm", False, 100)),
    "models carry the same": ("        carried_ptr += model * (step_own * ROUTES.carried)\n", "", ("models", "lstm")),
    "models have the same vectors": ("        vectors_ptr += model * (ROUTES.vectors * H)\n", "", ("models", "leaky_tanh")),
    "a gate's product in the wrong part": ("v = tl.dot(w[n][0], s_n[0], a[ROUTES.rec_parts[n]]", "v = tl.dot(w[n][0], s_n[0], a[0]", ("case", "lstm")),
    "b_hn outside r": ("if HAS.bias1 and _place(ROUTES.rec_parts, n) >= 0", "if HAS.bias1 and _place(INTO, n) >= 0", ("case", "gru")),
    "what is carried is rounded": (
        "        kept = saved_tiles(kept, carried, ROUTES)\n",
        "        kept = saved_tiles(kept, carried, ROUTES)\n        if ROUTES.carried > 0:\n"
        "            carried = replaced(carried, 0, carried[0].to(tl.float32).to(ACC))\n", ("case", "lstm", "fp64"),
    ),
    "dc of the last step is dropped": ("load_state(carried_ptr + n * step_own, H, rows, True, OWN", "load_state(carried_ptr + n * step_own, H, rows, FIRST_IS_STATE, OWN", ("case", "lstm")),
    "the gradient of a vector of the last step alone": (
        "        kept = saved_tiles(kept, carried, ROUTES)\n",
        "        kept = saved_tiles(kept, carried, ROUTES)\n        if ROUTES.carried > 1:\n"
        "            carried = replaced(carried, 1, carried[1] * (step + 1 == T))\n", ("case", "leaky_relu"),
    ),
}  # fmt: skip


def noticed_by(what, name, *of):
    """Runs a test above, as it is or of a changed source."""
    with overriding(regime="one_cta"):
        if what == "network":
            linked, I = of
            check_network(Network(name, linked, 3, 3, I, 29))
        elif what == "models":
            check_models(name, Case(name, "bf16", 3, 2, 8, 13))
        else:
            Case(name, *of or ["tf32"], 3, 3, 16, 16).check()


@pytest.mark.interpret
@pytest.mark.parametrize("what", CHANGES)
def test_defects_are_noticed(what):
    old, new, by = CHANGES[what]
    with launched_with(Change("one_cta.py", old, new)):
        with pytest.raises((AssertionError, RaceError)):
            noticed_by(*by)


@pytest.mark.interpret
@pytest.mark.parametrize("by", sorted({by for *_, by in CHANGES.values()}, key=str), ids=str)
def test_the_source_as_it_is_passes(by):
    with launched_with():
        noticed_by(*by)
