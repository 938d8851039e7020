"""RNN on PackedSequences beside torch.nn.RNN, and beside itself on the sequences one by one."""

import pytest
import torch
from support.pairs import STACKS, TOLERANCE, H, I, data, outcome, pair
from support.problems import gradients, like
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import rnn_triton


def packed(lengths, **options):
    """A PackedSequence of sequences of normal numbers, and those."""
    sequences = [data(n, I, seed=i) for i, n in enumerate(lengths)]
    return pack_sequence(sequences, **options), sequences


@pytest.mark.parametrize("lengths", [(5, 3, 3, 1), (4, 4), (1,), (3, 2, 1)])
@pytest.mark.parametrize("options", [{}, *STACKS])
@pytest.mark.parametrize("hx", [False, True])
def test_packed_sequences(lengths, options, hx):
    ours, theirs = pair(**options)
    state = data(len(ours.all_weights), len(lengths), H, seed=9) if hx else None
    for order in (lengths, lengths[::-1]):
        x, _ = packed(order, enforce_sorted=order == lengths)
        results = []
        for module in (ours, theirs):
            leaf = PackedSequence(x.data.detach().requires_grad_(), *x[1:])
            output, h_n = module(leaf, state)
            assert isinstance(output, PackedSequence) and output.batch_sizes.equal(x.batch_sizes)
            assert output.sorted_indices is x.sorted_indices and output.unsorted_indices is x.unsorted_indices
            outputs = (output.data, h_n)
            results.append((outputs, gradients(outputs, like(outputs), [leaf.data, *module.parameters()])))
        torch.testing.assert_close(*results, **TOLERANCE)


@pytest.mark.parametrize("options", [{}, *STACKS])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_a_packed_sequence_is_its_sequences_one_by_one(options, nonlinearity):
    module = rnn_triton.RNN(I, H, nonlinearity=nonlinearity, dtype=torch.float64, **options)
    x, sequences = packed((2, 5, 1, 3, 3), enforce_sorted=False)
    hx = data(len(module.all_weights), 5, H)
    output, h_n = module(x, hx)
    padded, lengths = nn.utils.rnn.pad_packed_sequence(output)
    for i, sequence in enumerate(sequences):
        alone, alone_h_n = module(sequence, hx[:, i])
        torch.testing.assert_close(padded[: lengths[i], i], alone, **TOLERANCE)
        torch.testing.assert_close(h_n[:, i], alone_h_n, **TOLERANCE)


def test_one_sequence_s_nan_stays_in_it():
    """Others' outputs and gradients are as without it; there is no padding to leak through."""
    module = rnn_triton.RNN(I, H, 2, "relu", bidirectional=True, dtype=torch.float64)
    clean, _ = packed((5, 4, 2))
    rows = torch.tensor([1, 4, 7, 9])  # of sequence 1: the 2nd row of each step it has
    assert clean.batch_sizes.tolist() == [3, 3, 2, 2, 1]
    others = torch.ones(len(clean.data), dtype=torch.bool).index_fill_(0, rows, False)
    found = []
    for value in (0.0, float("nan"), float("inf")):
        leaf = clean.data.index_fill(0, rows, value).requires_grad_()
        output, h_n = module(PackedSequence(leaf, *clean[1:]))
        (dx,) = torch.autograd.grad(output.data.sum() + h_n.sum(), leaf)
        found.append((output.data[others], h_n[:, [0, 2]], dx[others]))
        assert torch.isfinite(found[-1][0]).all() and torch.isfinite(found[-1][2]).all()
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


def test_packed_calls_are_as_many_as_different_lengths(monkeypatch):
    shapes = []
    original = rnn_triton.functional.rnn
    monkeypatch.setattr(
        rnn_triton.functional, "rnn", lambda x, *a, **k: shapes.append(tuple(x.shape)) or original(x, *a, **k)
    )
    rnn_triton.RNN(I, H, dtype=torch.float64)(packed((6, 6, 2, 1, 1))[0])
    assert shapes == [(1, 5, I), (1, 3, I), (4, 2, I)]


def test_nothing_is_read_off_the_device():
    """Meta tensors have no data to wait for: whoever asks for some fails."""
    x, _ = packed((2, 5, 1, 3), enforce_sorted=False)
    module = rnn_triton.RNN(I, H, 2, bidirectional=True, dropout=0.5, dtype=torch.float64, device="meta")
    rows, order = x.data.to("meta").requires_grad_(), [t.to("meta") for t in x[2:]]
    output, h_n = module(PackedSequence(rows, x.batch_sizes, *order), torch.zeros(4, 4, H, device="meta").double())
    (output.data.sum() + h_n.sum()).backward()
    assert rows.grad.shape == rows.shape and output.data.shape == (11, 2 * H) and h_n.shape == (4, 4, H)


def test_packed_errors():
    ours, theirs = pair()
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


def test_packed_second_derivatives():
    module = rnn_triton.RNN(2, 3, 2, bidirectional=True, dtype=torch.float64)
    x = pack_sequence([data(3, 2), data(1, 2)])

    def call(rows, hx):
        output, h_n = module(PackedSequence(rows, x.batch_sizes), hx)
        return output.data, h_n

    inputs = (x.data.requires_grad_(), data(4, 2, 3).requires_grad_())
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def test_empty_packed_sequence():
    ours, theirs = pair(num_layers=2, bidirectional=True)
    x = PackedSequence(data(0, I), torch.tensor([0]))
    (output, h_n), (expected, expected_h_n) = ours(x), theirs(x)
    assert output.data.shape == expected.data.shape and h_n.shape == expected_h_n.shape == (4, 0, H)
