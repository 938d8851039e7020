"""Sequences that end early (lengths) and begin anew (resets): what they mean, beside each segment by itself and torch's packed layers."""

import itertools

import pytest
import torch
from support.problems import gradients, like, problem
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnn_triton import cells
from rnn_triton.cells import reference
from rnn_triton.cells.sequences import Sequences
from rnn_triton.launch import sequences as launched
from rnn_triton.op import on_cpu
from rnn_triton.op.gradients import DB, DH0, DV, DW_HH, DW_IH, DX
from rnn_triton.op.layers import Layer

T, B, I, H = 6, 5, 3, 4
NAN = float("nan")
CELLS = ["elman_tanh", "elman_relu", "gru", "lstm", "leaky_tanh"]
LENGTHS = torch.tensor([4, 6, 0, 1, 3])
RESET = torch.zeros(T, B, dtype=torch.bool)
# within a row, twice in a row, at its first step, at its last one, beyond its end, and in a row without steps
for t, b in ((2, 0), (1, 1), (2, 1), (5, 1), (0, 3), (0, 2), (3, 2), (5, 0), (2, 4), (3, 4)):
    RESET[t, b] = True
# fp64: 2^-53 a rounding, T * sqrt(I + H) < 16 of them deep, on values up to about 10, and a decade to spare
TOLERANCE = dict(rtol=0, atol=10 * 16 * 10 * 2.0**-53)
kinds = pytest.mark.parametrize("lengths, reset", [(True, False), (False, True), (True, True)], ids=["lengths", "resets", "both"])
directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


def given(cell, lengths, reset, restart=True, seed=0, of=problem, **options):
    """A layer as `problem` makes it, in parts, and sequences: ((x, layer, states), sequences, all leaves)."""
    described = cells.named(cell)
    tensors = of(T, B, I, H, cell=cell, seed=seed, **options)
    states, vectors = tensors[5 : 5 + len(described.states)], tensors[5 + len(described.states) :]
    starts = [t.requires_grad_() for t in like(states, seed=9)] if restart and reset else []
    sequences = Sequences(LENGTHS if lengths else None, RESET if reset else None, tuple(starts))
    layer = Layer(*tensors[1:5], tuple(vectors))
    return (tensors[0], layer, tuple(states)), sequences, [*tensors[:1], *states, *starts, *tensors[1:5], *vectors]


def by_reference(x, layer, states, sequences, cell, reverse):
    w_ih, w_hh, b_ih, b_hh, vectors = layer
    return reference.recurrence(x, w_ih, w_hh, b_ih, b_hh, states, cells.named(cell), reverse, vectors, sequences)


def segments(sequences, b):
    """[(first step, step behind the last)] of row b, in the order of time."""
    length = T if sequences.lengths is None else int(sequences.lengths[b])
    cuts = [] if sequences.reset is None else [t for t in range(1, length) if sequences.reset[t, b]]
    return list(itertools.pairwise([0, *cuts, length])) if length else []


def one_by_one(x, layer, states, sequences, cell, reverse):
    """(y, last states) of the segments of each row, every one a call of its own, without sequences."""
    zeros = tuple(torch.zeros_like(s) for s in states)
    restart = sequences.restart or zeros
    ys, lasts = [], []
    for b in range(B):
        row = slice(b, b + 1)
        last, parts, first = tuple(s[row] for s in states), [], True
        of_row = segments(sequences, b)
        for start, end in reversed(of_row) if reverse else of_row:
            # forwards a reset at step 0 puts its states in place of the first ones
            begins_anew = not first or (not reverse and sequences.reset is not None and bool(sequences.reset[0, b]))
            before = tuple(s[row] for s in restart) if begins_anew else last
            y, last = by_reference(x[start:end, row], layer, before, Sequences(), cell, reverse)
            parts.append(y)
            first = False
        end = of_row[-1][1] if of_row else 0
        ys.append(torch.cat([*(parts[::-1] if reverse else parts), x.new_zeros(T - end, 1, H)]))
        lasts.append(last)
    return torch.cat(ys, 1), tuple(torch.cat(parts) for parts in zip(*lasts))


def beyond(sequences):
    """[T,B,1], True where no sequence has a step."""
    live = sequences.live(T)
    return torch.zeros(T, B, 1, dtype=torch.bool) if live is None else ~live.unsqueeze(2)


def test_where_steps_are_and_where_segments_begin():
    lengths, reset = torch.tensor([3, 0, 2]), torch.tensor([[1, 1, 0], [0, 0, 1], [1, 0, 1]], dtype=torch.bool)
    assert Sequences(lengths).live(3).int().tolist() == [[1, 0, 1], [1, 0, 1], [1, 0, 0]]
    assert Sequences(reset=reset).cuts(3, False).int().tolist() == [[1, 1, 0], [0, 0, 1], [1, 0, 1]]
    assert Sequences(reset=reset).cuts(3, True).int().tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0]]
    assert Sequences(lengths, reset).cuts(3, False).int().tolist() == [[1, 0, 0], [0, 0, 1], [1, 0, 0]]
    assert Sequences(lengths, reset).cuts(3, True).int().tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert Sequences().live(3) is None and Sequences().cuts(3, True) is None


@directions
@kinds
@pytest.mark.parametrize("cell", CELLS)
def test_sequences_are_their_segments_one_by_one(cell, lengths, reset, reverse):
    """The reference, and the operator's part on CPU tensors, in values and gradients; NaN beyond the ends in x and dy is not seen"""
    (x, layer, states), sequences, leaves = given(cell, lengths, reset)
    expected = one_by_one(x, layer, states, sequences, cell, reverse)
    cotangents = like([expected[0], *expected[1]])
    wanted = gradients([expected[0], *expected[1]], cotangents, leaves)

    outside = beyond(sequences)
    dirty = x.detach().masked_fill(outside, NAN).requires_grad_()
    cotangents[0] = cotangents[0].masked_fill(outside, NAN)
    y, last = by_reference(dirty, layer, states, sequences, cell, reverse)
    found = torch.autograd.grad([y, *last], [dirty, *leaves[1:]], cotangents)
    torch.testing.assert_close((y, last, *found), (*expected, *wanted), **TOLERANCE)

    of_cell = cells.named(cell)
    of_op = on_cpu.forward(dirty.detach(), layer, states, of_cell, reverse, sequences)
    torch.testing.assert_close(of_op, expected, **TOLERANCE)
    needs = DX | DH0 | DW_IH | DW_HH | DB | DV
    dx, dstates, (dw_ih, dw_hh, *others) = on_cpu.backward(
        dirty, layer, states, cotangents[0], cotangents[1:], of_cell, reverse, needs, sequences=sequences
    )
    biases = others[:2] if of_cell.split else others[:1] * 2
    torch.testing.assert_close((dx, *dstates, dw_ih, dw_hh, *biases, *others[len(others) - len(of_cell.vectors) :]), wanted, **TOLERANCE)
    assert (dx[outside.expand_as(dx)] == 0).all() and (y[outside.expand_as(y)] == 0).all()


@directions
@pytest.mark.parametrize("name, cell", [("RNN", "elman_tanh"), ("GRU", "gru"), ("LSTM", "lstm")])
def test_lengths_are_those_of_pack_padded_sequence(name, cell, reverse):
    """To the bit forwards.  In reverse torch's steps have other sequences in them than ours, and its products other tiles of them"""
    (x, layer, states), _, _ = given(cell, True, False, dtype=torch.float32)
    lengths = torch.tensor([4, 6, 2, 1, 4])
    module = getattr(nn, name)(I, H, bidirectional=True)
    suffix = "_reverse" if reverse else ""
    names = [f"{part}_l0{suffix}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    hx = [torch.stack([torch.zeros_like(s), s] if reverse else [s, torch.zeros_like(s)]) for s in states]
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    arguments = (packed, tuple(hx) if len(hx) > 1 else hx[0])
    output, last = torch.func.functional_call(module, dict(zip(names, layer[:4], strict=True)), arguments)
    output = pad_packed_sequence(output, total_length=T)[0].chunk(2, -1)[reverse]
    last = tuple(s[int(reverse)] for s in (last if len(hx) > 1 else [last]))
    ours = on_cpu.forward(x, layer, states, cells.named(cell), reverse, Sequences(lengths))
    # fp32: 2^-24 a rounding, T * sqrt(I + H) < 16 of them deep, on values below 1 and sums of them below 4, and a decade to spare
    tolerance = 10 * 16 * 4 * 2.0**-24 if reverse else 0
    torch.testing.assert_close(ours, (output, last), rtol=0, atol=tolerance)


@directions
@pytest.mark.parametrize("cell", ["elman_tanh", "gru", "lstm", "leaky_tanh"])
def test_derivatives_of_the_reference(cell, reverse):
    (x, layer, states), sequences, leaves = given(cell, True, True)

    def run(*tensors):
        x, *tensors = tensors
        count = len(states)
        start, restart, (w_ih, w_hh, b_ih, b_hh, *vectors) = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        of = Sequences(LENGTHS, RESET, tuple(restart))
        y, last = by_reference(x, Layer(w_ih, w_hh, b_ih, b_hh, tuple(vectors)), tuple(start), of, cell, reverse)
        return y, *last

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@directions
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_nan_reaches_nothing_that_does_not_read_it(cell, reverse):
    """In the first states of a row without steps, in those that a reset puts aside, and in a restart that no row takes"""
    (x, layer, states), (lengths, reset, restart), _ = given(cell, True, True)
    clean = [t.detach() for t in (*states, *restart)]
    aside = torch.zeros(B, 1, dtype=torch.bool)
    aside[2] = True  # no steps
    aside[3] = not reverse  # a reset at step 0
    never = torch.zeros(B, 1, dtype=torch.bool)
    never[2] = True
    never[3] = reverse  # its only reset is at step 0
    half = len(states)
    dirty = [t.masked_fill(aside if n < half else never, NAN).requires_grad_() for n, t in enumerate(clean)]
    found = []
    for of in (clean, dirty):
        y, last = by_reference(x, layer, tuple(of[:half]), Sequences(lengths, reset, tuple(of[half:])), cell, reverse)
        kept = torch.tensor([0, 1, 3, 4])
        results = [y, *[s[kept] for s in last]]
        found.append((results, gradients(results, like(results), [x, *layer[:4]])))
    torch.testing.assert_close(*found, **TOLERANCE)
    assert torch.isnan(last[0][2]).all()  # the last states of a row without steps are its first ones


@directions
@pytest.mark.parametrize("cell", ["elman_tanh", "lstm", "leaky_tanh"])
def test_no_sequence_has_a_step(cell, reverse):
    (x, layer, states), _, _ = given(cell, True, False)
    sequences = Sequences(torch.zeros(B, dtype=torch.int32))
    y, last = on_cpu.forward(x, layer, states, cells.named(cell), reverse, sequences)
    assert torch.equal(y, torch.zeros(T, B, H, dtype=x.dtype)) and all(map(torch.equal, last, states))
    dlast = like(states)
    needs = DX | DH0 | DW_IH | DW_HH | DB
    dx, dstates, dweights = on_cpu.backward(x, layer, states, y, dlast, cells.named(cell), reverse, needs, sequences=sequences)
    assert all(map(torch.equal, dstates, dlast)) and not any(d.any() for d in (dx, *dweights) if d is not None)


@directions
@pytest.mark.parametrize("cell", ["gru", "leaky_tanh"])
def test_models_share_sequences_and_groups_divide_them(cell, reverse):
    """An ensemble is its models one by one; parts of a batch are its rows one by one"""
    of_cell, needs = cells.named(cell), DX | DH0 | DW_IH | DW_HH | DB
    models = [given(cell, True, True, seed=seed) for seed in (0, 1)]
    sequences = models[0][1]._replace(restart=tuple(map(torch.stack, zip(*[m[1].restart for m in models]))))
    x, states = torch.stack([m[0][0] for m in models]), tuple(map(torch.stack, zip(*[m[0][2] for m in models])))
    columns = [torch.stack(parts) for parts in zip(*[m[0][1][:4] for m in models])]
    layer = Layer(*columns, tuple(map(torch.stack, zip(*[m[0][1].vectors for m in models]))))
    results = on_cpu.forward(x, layer, states, of_cell, reverse, sequences)
    dy = like([results[0]])[0]
    of_all = on_cpu.backward(x, layer, states, dy, [None], of_cell, reverse, needs, sequences=sequences)
    in_groups = on_cpu.backward(x, layer, states, dy, [None], of_cell, reverse, needs, B, sequences)
    for n, ((x, layer, states), of, _) in enumerate(models):
        y, (last,) = on_cpu.forward(x, layer, states, of_cell, reverse, of)
        assert torch.equal(results[0][n], y) and torch.equal(results[1][0][n], last)
        dx, dstates, dweights = on_cpu.backward(x, layer, states, dy[n], [None], of_cell, reverse, needs, sequences=of)
        for whole, group, alone in zip((*of_all[1], *of_all[2]), (*in_groups[1], *in_groups[2]), (*dstates, *dweights), strict=True):
            if alone is not None:
                group = group[n] if group.dim() == whole.dim() else group[n].sum(0)
                torch.testing.assert_close((whole[n], group), (alone, alone), **TOLERANCE)
        torch.testing.assert_close((of_all[0][n], in_groups[0][n]), (dx, dx), **TOLERANCE)


@pytest.mark.interpret
@pytest.mark.parametrize("descending", [(False,), (True,), (True, False)])
@pytest.mark.parametrize("T, B, rows, groups, live, given", [
    (5, 9, 8, 2, True, "both"), (70, 3, 8, 1, False, "both"), (300, 20, 8, 2, False, "reset"), (300, 40, 32, 1, True, "lengths"),
    (128, 20, 8, 1, False, "both"), (129, 20, 8, 1, False, "lengths"),
    (600, 2, 8, 1, False, "lengths"),  # of the blocks of steps that the kernel looks at together, two at least have no event
])  # fmt: skip
def test_events(T, B, rows, groups, live, given, descending):
    """Words as kernels/events.py says, of every link, tile and lane"""
    g = torch.Generator().manual_seed(T)
    lengths = torch.randint(0, T + 1, (B,), generator=g) if given != "reset" else None
    reset = torch.rand(T, B, generator=g) < 0.02 if given != "lengths" else None
    tiles = -(-B // rows)
    words = launched.events(Sequences(lengths, reset), T, rows, groups, live, *descending)[:-1].tolist()
    n = [T] * B if lengths is None else lengths.tolist()
    expected = []
    for down in descending:
        of_tile = {}
        cuts = Sequences(lengths, reset).cuts(T, down)
        steps = range(T - 1, -1, -1) if down else range(T)
        for tile in range(tiles):
            own = range(tile * rows, min(B, (tile + 1) * rows))
            starts = [[cuts is not None and bool(cuts[t, b]) or (down and k > 0 and t == n[b] - 1) for b in own] for k, t in enumerate(steps)]
            ends = [any(not down and t == n[b] for b in own) for t in steps]
            links = [k for k in range(1, T) if any(starts[k]) or ends[k] or k % 128 == 0]
            low = [sum(of_row << i for i, of_row in enumerate(row)) for row in starts]
            if live:
                high = [sum((t < n[b]) << i for i, b in enumerate(own)) for t in steps]
            else:
                high = [next((m for m in links if m > k), 0) for k in range(T)]
            of_tile[tile] = [h << 32 | l for h, l in zip(high, low, strict=True)]
        for group in range(groups):
            own = range(group, tiles, groups)
            expected += [of_tile[tile][k] for k in range(T) for tile in own]
    assert [word % 2**64 for word in words] == expected
