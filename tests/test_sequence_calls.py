"""Lengths and resets as callers give them: functions, modules, derivatives, transforms, programs, PackedSequence; beside the reference."""

import itertools

import pytest
import torch
from support.problems import gradients, like, problem
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnn_triton
from rnn_triton import cells, functional
from rnn_triton.cells import reference
from rnn_triton.cells.sequences import Sequences
from rnn_triton.errors import UnsupportedError
from rnn_triton.op import network

T, B, I, H = 6, 5, 3, 4
LENGTHS = torch.tensor([4, 6, 0, 1, 3])
RESET = torch.zeros(T, B, dtype=torch.bool)
for t, b in ((2, 0), (1, 1), (2, 1), (5, 1), (0, 3), (0, 2), (5, 0), (2, 4), (0, 4)):
    RESET[t, b] = True
# fp64: 2^-53 a rounding, T * sqrt(I + H) < 16 of them deep, on values up to about 10, and a decade to spare; reduced by reference.py's sums
TOLERANCE = dict(rtol=0, atol=10 * 16 * 10 * 2.0**-53)
CELLS = ["elman_tanh", "gru", "lstm", "leaky_tanh"]
kinds = pytest.mark.parametrize("kind", ["lengths", "resets", "both"])
places = pytest.mark.parametrize("place", [pytest.param("kernels", marks=pytest.mark.interpret), "torch"])


def given(cell, kind, layers=1, directions=1, **options):
    """(x with NaN beyond each end, states, weights of every layer and direction, options of the call); all require grad."""
    described = cells.named(cell)
    tensors = [problem(T, B, I if n < directions else directions * H, H, cell=cell, seed=n, **options) for n in range(layers * directions)]
    number = len(described.states)
    x, weights = tensors[0][0].detach(), [[*t[1:5], *t[5 + number :]] for t in tensors]
    states = [torch.stack([t[5 + n].detach() for t in tensors]).requires_grad_() for n in range(number)]
    lengths, reset = LENGTHS if kind != "resets" else None, RESET if kind != "lengths" else None
    restart = [] if reset is None else [t.requires_grad_() for t in like(states, seed=7)]
    live = Sequences(lengths).live(T)
    x = x if live is None else torch.where(live.unsqueeze(2), x, float("nan"))
    of_sequences = {} if lengths is None else {"lengths": lengths}
    of_sequences |= {} if reset is None else {"reset": reset, "reset_state": restart}
    return x.requires_grad_(), states, weights, of_sequences


def by_reference(x, states, weights, of_sequences, cell, directions=1, reverse=False):
    """(y, *last states) of layers one after the other, by plain torch."""
    restart, lasts = of_sequences.get("reset_state", []), []
    for n in range(0, len(weights), directions):
        ys = []
        for i in range(n, n + directions):
            w_ih, w_hh, b_ih, b_hh, *vectors = weights[i]
            anew = Sequences(of_sequences.get("lengths"), of_sequences.get("reset"), tuple(t[i] for t in restart))
            first = tuple(s[i] for s in states)
            backwards = reverse or i % directions == 1
            y, last = reference.recurrence(x, w_ih, w_hh, b_ih, b_hh, first, cells.named(cell), backwards, tuple(vectors), anew)
            ys.append(y)
            lasts.append(last)
        x = torch.cat(ys, -1)
    return x, *map(torch.stack, zip(*lasts))


def of_network(x, states, weights, of_sequences, cell, directions=1, **options):
    flat = [w for one in weights for w in one]
    y, last = functional.network(x, flat, states, cells.named(cell), bidirectional=directions == 2, **of_sequences, **options)
    return y, *last


def of_layer(x, states, weights, of_sequences, cell, reverse=False, **options):
    anew = {k: [t[0] for t in v] if k == "reset_state" else v for k, v in of_sequences.items()}
    y, last = functional.layer(x, weights[0], [s[0] for s in states], cells.named(cell), reverse=reverse, **anew, **options)
    return y, *[t[None] for t in last]


def compare(call, cell, arguments, **options):
    """Outputs and all first derivatives of a call beside those of the reference.  In rows without steps the first states are NaN, which are
    the last ones and reach nothing else."""
    x, states, weights, of_sequences = arguments
    if of_sequences.get("lengths") is not None:
        for state in states:
            state.data[:, of_sequences["lengths"] <= 0] = float("nan")
    leaves, found = [x, *states, *[w for one in weights for w in one], *of_sequences.get("reset_state", [])], []
    keep = {k: v for k, v in options.items() if k in ("directions", "reverse")}
    for outputs in (call(*arguments, cell, **options), by_reference(*arguments, cell, **keep)):
        # NaN in dy beyond an end must reach nothing, either
        dy, *dlast = like(outputs)
        live = Sequences(arguments[3].get("lengths")).live(T)
        if live is not None and not found:
            dy = torch.where(live.unsqueeze(2), dy, float("nan"))
        grads = torch.autograd.grad(outputs, leaves, [dy, *dlast])
        found.append([*outputs, *grads])
    assert not any(g.isnan().any() for _, *of in found for g in of[len(states) :])
    torch.testing.assert_close(*found, **TOLERANCE, equal_nan=True)


@pytest.mark.thin(3)
@places
@kinds
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("cell", CELLS)
def test_layers(place, kind, reverse, cell):
    compare(of_layer, cell, given(cell, kind), reverse=reverse)


@pytest.mark.thin(9)
@places
@kinds
@pytest.mark.parametrize("cell, directions", [("elman_tanh", 2), ("gru", 1), ("lstm", 2), ("lstm", 1)])
def test_networks(place, kind, cell, directions):
    compare(of_network, cell, given(cell, kind, 2, directions), directions=directions)


@pytest.mark.thin(3)
@pytest.mark.interpret
@pytest.mark.parametrize("regime", ["one_cta", "per_step"])
@pytest.mark.parametrize("cell", ["elman_tanh", "lstm"])
def test_launches_of_their_own(regime, cell):
    with rnn_triton.overriding(regime=regime, recurrences=1):
        compare(of_network, cell, given(cell, "both", 2, 2), directions=2)


@pytest.mark.thin(4)
@pytest.mark.interpret
@kinds
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_recomputed(kind, cell):
    compare(of_network, cell, given(cell, kind, 2), recompute=True)


@places
def test_lengths_are_clamped_and_of_any_integers(place):
    x, states, weights, _ = given("gru", "resets")
    wide = torch.tensor([4, 99, -3, 1, 3])
    expected = of_layer(x, states, weights, dict(lengths=wide.clamp(0, T)), "gru", reverse=True)
    for dtype in (torch.int8, torch.int64):
        got = of_layer(x, states, weights, dict(lengths=wide.to(dtype)), "gru", reverse=True)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    long = torch.full((B,), 200, dtype=torch.uint8)  # T is no limit of the dtype
    if place == "torch":
        y, _ = rnn_triton.rnn(x.detach()[:1].expand(300, -1, -1), *[w.detach() for w in given("elman_tanh", "resets")[2][0]], lengths=long)
        assert (y[199] != 0).all() and (y[200:] == 0).all()


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "LeakyRNN", "Recurrent"])
@pytest.mark.parametrize("form", ["batch_first", "unbatched"])
def test_forms_of_a_module(name, form):
    """They are those of the input: [B,T] if batch_first, without B for an input [T,I]."""
    kwargs, first = (dict(leak=0.5) if name == "LeakyRNN" else {}), (["gru"] if name == "Recurrent" else [])
    module = getattr(rnn_triton, name)(*first, I, H, 2, dtype=torch.float64, **kwargs)
    x, hx = torch.randn(T, B, I, dtype=torch.float64), torch.randn(2, B, H, dtype=torch.float64)
    hx, anew = [(t, t.flip(0)) if name == "LSTM" else t for t in (hx, hx + 1)]
    y, last = module(x, hx, lengths=LENGTHS, reset=RESET, reset_state=anew, validate=True)
    if form == "batch_first":
        module.batch_first = True
        got, got_last = module(x.transpose(0, 1), hx, lengths=LENGTHS, reset=RESET.T, reset_state=anew)
        expected, got = (y, last), (got.transpose(0, 1), got_last)
    else:
        one = lambda states: tuple(t[:, 1] for t in states) if name == "LSTM" else states[:, 1]  # noqa: E731
        got = module(x[:, 1], one(hx), lengths=LENGTHS[1], reset=RESET[:, 1], reset_state=one(anew))
        expected = y[:, 1], one(last)
    torch.testing.assert_close(got, expected, **TOLERANCE)


@pytest.mark.thin(2)
@places
@pytest.mark.parametrize("reverse", [False, True])
def test_a_projection(place, reverse):
    """Resets beside the segments one by one, each from its own first states; NaN beyond the ends in the gradient of y is not seen."""
    P = 2
    x, states, ((*weights,),), _ = given("lstm", "resets")
    w_ih, w_hh, b_ih, b_hh = weights
    w_hh, w_hr = w_hh[:, :P].detach().requires_grad_(), torch.randn(P, H, dtype=torch.float64).requires_grad_()
    tensors = [x, w_ih, w_hh, b_ih, b_hh, w_hr]
    first, anew = [[torch.randn(B, n, dtype=torch.float64) for n in (P, H)] for _ in range(2)]
    call = dict(lengths=LENGTHS, reset=RESET, reset_state=tuple(anew), reverse=reverse)
    y, last = rnn_triton.lstm(x, w_ih, w_hh, b_ih, b_hh, tuple(first), w_hr, **call)
    rows, lasts = [], []
    for b, n in enumerate(LENGTHS.tolist()):
        row, parts = slice(b, b + 1), []
        cuts = [0, *[t for t in range(1, n) if RESET[t, b]], n]
        now = [s[row] for s in (anew if RESET[0, b] and n and not reverse else first)]
        for i, (start, end) in enumerate(list(itertools.pairwise(cuts))[:: -1 if reverse else 1] if n else []):
            now = [s[row] for s in anew] if i else now
            part, now = rnn_triton.lstm(x[start:end, row], w_ih, w_hh, b_ih, b_hh, tuple(now), w_hr, reverse=reverse)
            parts.append(part)
        rows.append(torch.cat([*parts[:: -1 if reverse else 1], x.new_zeros(T - n, 1, P)]))
        lasts.append(now)
    expected = [torch.cat(rows, 1), *[torch.cat(parts) for parts in zip(*lasts)]]
    got = [y, *last]
    torch.testing.assert_close(got, expected, **TOLERANCE)
    cotangents = like(expected)
    dirty = torch.where(Sequences(LENGTHS).live(T).unsqueeze(2), cotangents[0], float("nan"))
    of_each = [gradients(got, [dirty, *cotangents[1:]], tensors), gradients(expected, cotangents, tensors)]
    torch.testing.assert_close(*of_each, **TOLERANCE)


@pytest.mark.thin(4)
@places
@kinds
@pytest.mark.parametrize("cell", ["elman_tanh", "lstm"])
def test_second_and_forward_derivatives(place, kind, cell):
    """Beside the reference: double backward, and a tangent of forward mode."""
    x, states, weights, of_sequences = given(cell, kind, 2)
    leaves, found = [x, *states, *[w for one in weights for w in one], *of_sequences.get("reset_state", [])], []
    tangents = like(leaves, seed=5)
    live = Sequences(of_sequences.get("lengths")).live(T)
    if live is not None:
        tangents[0] = torch.where(live.unsqueeze(2), tangents[0], float("nan"))
    for call in (of_network, by_reference):
        outputs = call(x, states, weights, of_sequences, cell)
        first = gradients(outputs, like(outputs), leaves, create_graph=True)
        second = torch.autograd.grad(first, leaves, like(first), allow_unused=True, materialize_grads=True)
        with forward_ad.dual_level():
            dual = iter([forward_ad.make_dual(t.detach(), d) for t, d in zip(leaves, tangents, strict=True)])
            x_dual, states_dual = next(dual), [next(dual) for _ in states]
            weights_dual = [[next(dual) for _ in one] for one in weights]
            anew = {"reset_state": list(dual)} if "reset_state" in of_sequences else {}
            pushed = [forward_ad.unpack_dual(o).tangent for o in call(x_dual, states_dual, weights_dual, of_sequences | anew, cell)]
        found.append([*first, *second, *pushed])
    # second derivatives have two sums over T in a row
    torch.testing.assert_close(*found, rtol=0, atol=T * TOLERANCE["atol"])


@pytest.mark.parametrize(
    "place, mapped, cell",
    [
        *[("torch", mapped, "lstm") for mapped in ("data", "weights", "all", "restart")],
        pytest.param("kernels", "weights", "elman_tanh", marks=pytest.mark.interpret),
        *[pytest.param("kernels", n, "elman_tanh", marks=[pytest.mark.interpret, pytest.mark.long]) for n in ("data", "all")],
    ],
)
def test_vmap(place, mapped, cell, monkeypatch):
    """Data with lengths and resets join the batch; models share theirs, or go one by one."""
    x, states, weights, of_sequences = given(cell, "both")
    first, anew = ([t[0].detach() for t in some] for some in (states, of_sequences["reset_state"]))
    weights = [w.detach() for w in weights[0]]
    data, models, restarts = mapped in ("data", "all"), mapped in ("weights", "all"), mapped != "weights"
    many = lambda t, on: torch.stack([t, t + 0.1, t - 0.2]) if on else t  # noqa: E731
    lengths = torch.stack([LENGTHS, LENGTHS.flip(0), LENGTHS.clamp_min(2)]) if data else LENGTHS
    reset = torch.stack([RESET, RESET.flip(1), ~RESET]) if data else RESET
    x = torch.where(Sequences(LENGTHS).live(T).unsqueeze(2), x.detach(), 1.0)
    given_ = [many(x, data), [many(w, models) for w in weights], [many(s, data) for s in first], lengths, reset, [many(s, restarts) for s in anew]]
    dims = tuple(0 if of else None for of in (data, models, data, data, data, restarts))

    def loss(x, weights, states, lengths, reset, anew):
        y, last = functional.layer(x, weights, states, cells.named(cell), lengths=lengths, reset=reset, reset_state=anew)
        return sum((t * t.cos()).sum() for t in (y, *last))

    run = torch.func.grad_and_value(loss, argnums=(0, 1, 2, 5))
    calls, forward = [], network.forward
    monkeypatch.setattr(network, "forward", lambda *a: calls.append(a[0].dim()) or forward(*a))
    got = torch.vmap(run, dims)(*given_)
    assert len(calls) <= (4 if mapped == "all" else 2)
    pick = lambda t, d, i: [pick(s, d, i) for s in t] if isinstance(t, list) else t if d is None else t[i]  # noqa: E731
    each = [run(*[pick(t, d, i) for t, d in zip(given_, dims, strict=True)]) for i in range(3)]
    leaves = [torch.utils._pytree.tree_leaves(one) for one in each]
    torch.testing.assert_close(torch.utils._pytree.tree_leaves(got), [torch.stack(parts) for parts in zip(*leaves)], **TOLERANCE)


@pytest.mark.parametrize("how", ["compile", "export"])
@pytest.mark.parametrize("given", [["lengths"], ["reset"], ["lengths", "reset", "reset_state"]], ids=["lengths", "reset", "all"])
def test_programs(how, given):
    """Of the op torch leaves out arguments at the end that have their defaults."""
    module = rnn_triton.LSTM(I, H, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    anew = tuple(t.requires_grad_() for t in torch.randn(2, 4, B, H, dtype=torch.float64))
    call = dict(lengths=LENGTHS, reset=RESET, reset_state=anew)
    call = {name: call[name] for name in given}
    if how == "compile":
        program = torch.compile(module, fullgraph=True, backend="aot_eager")
    else:
        program = torch.export.export(module, (x,), call).module()
    found = []
    for run in (module, program):
        y, (hn, cn) = run(x, **call)
        leaves = [x, *(anew if "reset_state" in given else [])]
        found.append([y, hn, cn, *gradients([y, hn, cn], like([y, hn, cn]), leaves)])
    torch.testing.assert_close(*found, **TOLERANCE)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_heads(cell):
    """Heads share lengths and resets, and each has its part of the restart states."""
    N = 2
    module = rnn_triton.Recurrent(cell, I, H, 2, heads=N, dtype=torch.float64)
    number = len(cells.named(cell).states)
    x, (hx, anew) = torch.randn(T, B, I, dtype=torch.float64), torch.randn(2, number, 2, B, H, dtype=torch.float64)
    hx, anew = [tuple(t) if number > 1 else t[0] for t in (hx, anew)]
    y, last = module(x, hx, lengths=LENGTHS, reset=RESET, reset_state=anew)
    for b, n in enumerate(LENGTHS.tolist()):
        row = lambda states: tuple(s[:, b] for s in states) if number > 1 else states[:, b]  # noqa: B023, E731
        now, parts = row(anew if RESET[0, b] and n else hx), []
        for start, end in itertools.pairwise([0, *[t for t in range(1, n) if RESET[t, b]], n]):
            now = row(anew) if start else now
            if n:
                part, now = module(x[start:end, b], now)
                parts.append(part)
        torch.testing.assert_close(y[:, b], torch.cat([*parts, x.new_zeros(T - n, H)]), **TOLERANCE)
        torch.testing.assert_close(row(last), now, **TOLERANCE)


def test_onnx_takes_none():
    module = rnn_triton.RNN(I, H)
    x, options = torch.randn(T, B, I), dict(lengths=LENGTHS)
    program = torch.export.export(module, (x,), options)
    with pytest.raises(UnsupportedError, match="lengths and reset"):
        program.run_decompositions(rnn_triton.onnx.decompositions())


def test_the_op_passes_torchs_checks():
    x, states, weights, of_sequences = given("lstm", "both", 2)
    x = torch.where(Sequences(LENGTHS).live(T).unsqueeze(2), x.detach(), 1.0).requires_grad_()
    net = (True, True, "lstm", "forward", None, 0, False)
    flat = [w for one in weights for w in one]
    arguments = (x, flat, states, None, *net, True, LENGTHS, RESET, of_sequences["reset_state"])
    torch.library.opcheck(network.forward, arguments)


@places
def test_a_restart_state_may_be_all_that_requires_grad(place):
    """as a learned state that every episode begins with"""
    x, states, weights, of_sequences = given("gru", "both")
    anew, found = of_sequences["reset_state"], []
    fixed = x.detach(), [s.detach() for s in states], [[w.detach() for w in weights[0]]], of_sequences
    for run in (of_layer, by_reference):
        outputs = run(*fixed, "gru")
        found.append(torch.autograd.grad(outputs, anew, like(outputs)))
    torch.testing.assert_close(*found, **TOLERANCE)


@places
def test_autocast(place):
    module = rnn_triton.GRU(I, H)
    x, anew = torch.randn(T, B, I), torch.randn(1, B, H)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = module(x, reset=RESET, reset_state=anew)
        assert y.dtype is torch.bfloat16
    # of bf16: 2^-8 a rounding of values below 2, some of which add up over T steps
    torch.testing.assert_close(y.float(), module(x, reset=RESET, reset_state=anew)[0], rtol=0, atol=2 * T * 2.0**-8)


@pytest.mark.thin(2)
@places
@pytest.mark.parametrize("options", [{}, dict(num_layers=2, bidirectional=True)])
@pytest.mark.parametrize("name", ["RNN", "LSTM"])
def test_packed_sequences_are_one_call(place, options, name, monkeypatch):
    ours, theirs = [getattr(library, name)(I, H, dtype=torch.float64, **options) for library in (rnn_triton, nn)]
    theirs.load_state_dict(ours.state_dict())
    calls, run = [], functional.autograd.network
    monkeypatch.setattr(functional.autograd, "network", lambda *a: calls.append(a[0].shape) or run(*a))
    found = []
    for module in (ours, theirs):
        x = torch.randn(T, 4, I, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
        y, last = module(pack_padded_sequence(x, torch.tensor([3, 6, 1, 3]), enforce_sorted=False))
        outputs = [pad_packed_sequence(y)[0], *(last if name == "LSTM" else [last])]
        found.append([*outputs, *gradients(outputs, like(outputs), [x, *module.parameters()])])
    torch.testing.assert_close(*found, **TOLERANCE)
    assert calls == [(T, 4, I)]
