"""The modules on PackedSequences beside those of torch.nn, and beside themselves on the sequences one by one."""

import pytest
import torch
from support.pairs import IDS, MODULES, STACKS, TOLERANCE, H, I, data, flat, outcome, pair, state
from support.problems import gradients, like
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import rnn_triton

modules = pytest.mark.parametrize("module", MODULES, ids=IDS)


def packed(lengths, **options):
    """A PackedSequence of sequences of normal numbers, and those."""
    sequences = [data(n, I, seed=i) for i, n in enumerate(lengths)]
    return pack_sequence(sequences, **options), sequences


@modules
@pytest.mark.parametrize("lengths", [(5, 3, 3, 1), (4, 4), (1,), (3, 2, 1)])
@pytest.mark.parametrize("options", [{}, *STACKS])
@pytest.mark.parametrize("hx", [False, True])
def test_packed_sequences(module, lengths, options, hx):
    ours, theirs = pair(**module, **options)
    for order in (lengths, lengths[::-1]):
        x, _ = packed(order, enforce_sorted=order == lengths)
        results = []
        for one in (ours, theirs):
            leaf = PackedSequence(x.data.detach().requires_grad_(), *x[1:])
            first = state(theirs, len(lengths), seed=9) if hx else None
            leaves = [leaf.data, *[t.requires_grad_() for t in flat(first)]]
            output, last = one(leaf, first)
            assert isinstance(output, PackedSequence) and output.batch_sizes.equal(x.batch_sizes)
            assert output.sorted_indices is x.sorted_indices and output.unsorted_indices is x.unsorted_indices
            outputs = flat((output.data, last))
            results.append((outputs, gradients(outputs, like(outputs), [*leaves, *one.parameters()])))
        torch.testing.assert_close(*results, **TOLERANCE)


@pytest.mark.parametrize("module", [*MODULES, dict(name="RNN", nonlinearity="relu")], ids=[*IDS, "relu"])
@pytest.mark.parametrize("options", [{}, *STACKS])
def test_a_packed_sequence_is_its_sequences_one_by_one(module, options):
    ours = pair(**module, **options)[0]
    x, sequences = packed((2, 5, 1, 3, 3), enforce_sorted=False)
    hx = state(ours, 5)
    output, last = ours(x, hx)
    padded, lengths = nn.utils.rnn.pad_packed_sequence(output)
    for i, sequence in enumerate(sequences):
        start = tuple(t[:, i] for t in flat(hx))
        alone, alone_last = ours(sequence, start if len(start) > 1 else start[0])
        torch.testing.assert_close(padded[: lengths[i], i], alone, **TOLERANCE)
        torch.testing.assert_close([t[:, i] for t in flat(last)], flat(alone_last), **TOLERANCE)


@pytest.mark.parametrize("module", [*MODULES, dict(name="RNN", nonlinearity="relu")], ids=[*IDS, "relu"])
def test_one_sequence_s_nan_stays_in_it(module):
    """Others' outputs and gradients are as without it; there is no padding to leak through."""
    module = pair(num_layers=2, bidirectional=True, **module)[0]
    clean, _ = packed((5, 4, 2))
    rows = torch.tensor([1, 4, 7, 9])  # of sequence 1: the 2nd row of each step it has
    assert clean.batch_sizes.tolist() == [3, 3, 2, 2, 1]
    others = torch.ones(len(clean.data), dtype=torch.bool).index_fill_(0, rows, False)
    found = []
    for value in (0.0, float("nan"), float("inf")):
        leaf = clean.data.index_fill(0, rows, value).requires_grad_()
        output, last = module(PackedSequence(leaf, *clean[1:]))
        last = flat(last)
        (dx,) = torch.autograd.grad(output.data.sum() + sum(t.sum() for t in last), leaf)
        found.append((output.data[others], *[t[:, [0, 2]] for t in last], dx[others]))
        assert all(torch.isfinite(t).all() for t in found[-1])
    assert all(torch.equal(a, b) for later in found[1:] for a, b in zip(found[0], later))


def test_padding_is_never_read():
    """What pad_packed_sequence and its inverse leave out, whatever stands there."""
    module = rnn_triton.RNN(I, H, bidirectional=True, dtype=torch.float64)
    x = data(5, 3, I)
    x[3:, 1] = float("nan")
    x[1:, 2] = float("inf")
    x.requires_grad_()
    output, h_n = module(pack_padded_sequence(x, torch.tensor([5, 3, 1])))
    (dx,) = torch.autograd.grad(output.data.sum() + h_n.sum(), x)
    assert torch.isfinite(output.data).all() and torch.isfinite(dx).all()
    assert (dx[3:, 1] == 0).all() and (dx[1:, 2] == 0).all() and (dx[:3, 1] != 0).all()


@modules
def test_nothing_is_read_off_the_device(module):
    """Meta tensors have no data to wait for: whoever asks for some fails."""
    x, _ = packed((2, 5, 1, 3), enforce_sorted=False)
    ours, theirs = pair(num_layers=2, bidirectional=True, dropout=0.5, device="meta", **module)
    rows, order = x.data.to("meta").requires_grad_(), [t.to("meta") for t in x[2:]]
    first = tuple(t.to("meta") for t in flat(state(theirs, 4)))
    output, last = ours(PackedSequence(rows, x.batch_sizes, *order), first if len(first) > 1 else first[0])
    (output.data.sum() + sum(t.sum() for t in flat(last))).backward()
    assert rows.grad.shape == rows.shape and output.data.shape == (11, 2 * (ours.proj_size or H))
    assert [t.shape for t in flat(last)] == [t.shape for t in first]


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_packed_errors(name):
    ours, theirs = pair(name=name)
    x, _ = packed((3, 2))
    seven = PackedSequence(torch.cat([x.data, x.data], 1), *x[1:])
    for arguments in (
        (seven,),
        (PackedSequence(x.data.float(), *x[1:]),),
        (PackedSequence(x.data[None], *x[1:]),),
        (x, data(1, 3, H)),
        (x, data(1, 2, 7)),
        (x, data(2, H)),
        (seven, data(2, H)),
    ):
        expected = outcome(lambda arguments=arguments: theirs(*arguments))
        assert isinstance(expected[0], type)
        assert outcome(lambda arguments=arguments: ours(*arguments)) == expected
    # torch would sort the rows of hx first, and run with two of these three, or look for a row that is not there
    unsorted, _ = packed((2, 3), enforce_sorted=False)
    for batch in (1, 3):
        with pytest.raises(RuntimeError, match=rf"^Expected hidden size \(1, 2, 4\), got \[1, {batch}, 4\]$"):
            ours(unsorted, data(1, batch, H))
    for sizes in ([2, 2], [2, 1, 2], [1, 2, 2], [2, 2, 2]):
        with pytest.raises(ValueError, match="batch_sizes of a PackedSequence must never grow and sum to its 5 rows"):
            ours(PackedSequence(x.data, torch.tensor(sizes)))


@pytest.mark.parametrize("options", [{}, dict(proj_size=3)])
def test_packed_errors_of_lstm(options):
    """torch checks nothing here, and reads beyond its tensors; ours has the words that torch has for other input."""
    ours, theirs = pair(name="LSTM", **options)
    x, _ = packed((3, 2))
    h, c = state(theirs, 2)
    seven = PackedSequence(torch.cat([x.data, x.data], 1), *x[1:])
    for given, hx in (
        (seven, None),
        (PackedSequence(x.data.float(), *x[1:]), None),
        (PackedSequence(x.data[None], *x[1:]), None),
        (x, (data(1, 3, h.shape[2]), c)),
        (x, (h, data(1, 2, 7))),
        (x, (h[0], c)),
        (seven, (h, c[0])),
    ):
        check = theirs.check_input if hx is None else theirs.check_forward_args
        expected = outcome(lambda given=given, hx=hx, check=check: check(given.data, *([hx] * (hx is not None)), given.batch_sizes))
        assert isinstance(expected[0], type)
        assert outcome(lambda given=given, hx=hx: ours(given, hx)) == expected


@modules
def test_packed_second_derivatives(module):
    ours = pair(2, 4, num_layers=2, bidirectional=True, **module)[0]
    x = pack_sequence([data(3, 2), data(1, 2)])

    def call(rows, *states):
        output, last = ours(PackedSequence(rows, x.batch_sizes), states if len(states) > 1 else states[0])
        return tuple(flat((output.data, last)))

    inputs = [t.requires_grad_() for t in (x.data, *flat(state(ours, 2)))]
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@modules
def test_empty_packed_sequence(module):
    ours, theirs = pair(num_layers=2, bidirectional=True, **module)
    x = PackedSequence(data(0, I), torch.tensor([0]))
    (output, last), (expected, expected_last) = ours(x), theirs(x)
    assert output.data.shape == expected.data.shape
    assert [t.shape for t in flat(last)] == [t.shape for t in flat(expected_last)] and flat(last)[0].shape[:2] == (4, 0)
