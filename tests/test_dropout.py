"""Dropout by a recomputed mask (rnn_triton/op/dropout.py): its statistics, its scale, its gradient.

Statistics: a mean or a correlation of N independent elements has a standard deviation of 1 / sqrt(N), times that of an
element; five of them are exceeded once in 1.7 million times, and the seeds are fixed.
"""

import itertools

import pytest
import torch

from rnn_triton.op import dropout

T, B, H = 4, 32, 256
N = T * B * H


def kept(p, device, seed=11, layer=0, dtype=torch.float32):
    ones = torch.ones(T, B, H, dtype=dtype, device=device)
    return (dropout.drop(ones, torch.tensor([seed], device=device), layer, dropout.count(p)) != 0).double().cpu()


@pytest.mark.parametrize("p, dtype", [
    (0.5, torch.bfloat16),
    *(pytest.param(p, torch.bfloat16, marks=pytest.mark.long) for p in (0.03, 0.9)),
    *(pytest.param(p, torch.float32, marks=pytest.mark.long) for p in (0.03, 0.5, 0.9)),
])  # fmt: skip
def test_frequency(p, dtype, device):
    mask = kept(p, device, dtype=dtype)
    for part in (mask, mask[..., ::2], mask[..., 1::2], mask[0], mask[:, 0]):  # both halves of words, a step, a row
        assert abs(part.mean() - (1 - p)) < 5 * (p * (1 - p) / part.numel()) ** 0.5


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.long), torch.bfloat16], ids=str)
def test_independence(dtype, device):
    """of neighbours in units, words, vectors, rows and steps, of other layers and of other seeds"""
    mask = kept(0.5, device, dtype=dtype)
    centred = 2 * mask - 1
    others = [centred.roll(shift, dim) for shift, dim in itertools.product((1, 2, 4, 8), (2,))]
    others += [centred.roll(1, 1), centred.roll(1, 0)]
    others += [2 * kept(0.5, device, seed, layer, dtype) - 1 for seed, layer in ((11, 1), (12, 0), (11 + 2**32, 0))]
    for other in others:
        assert abs((centred * other).mean()) < 5 / N**0.5


@pytest.mark.long
def test_the_same_place_is_the_same_element(device):
    """whatever the number of steps is, and whatever the values"""
    mask = kept(0.5, device)
    seed = torch.tensor([11], device=device)
    y = torch.randn(2, B, H, device=device)
    assert torch.equal(dropout.drop(y, seed, 0, dropout.count(0.5)).cpu() != 0, mask[:2].bool())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scale(dtype, device):
    """What is kept is y / (1 - p) rounded once; expectations are kept exactly by the rounded p."""
    y = torch.randn(3, 5, 21, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    count = dropout.count(0.3)
    dropped = dropout.drop(y, torch.tensor([4], device=device), 2, count)
    expected = (y.float() * torch.tensor(65536 / (65536 - count))).to(dtype)
    here = dropped != 0
    assert dropped.shape == y.shape and 0 < here.sum() < y.numel()
    assert torch.equal(dropped[here], expected[here])


def test_count():
    assert [dropout.count(p) for p in (0.0, 1.0, 0.5, 1e-9, 1 - 1e-9)] == [0, 65536, 32768, 1, 65535]


def test_nothing_and_all(device):
    y = torch.randn(2, 3, 8, device=device)
    y[0, 0, 0] = float("nan")
    seed = torch.tensor([4], device=device)
    assert torch.equal(dropout.drop(y, seed, 0, 0).nan_to_num(7.0), y.nan_to_num(7.0))
    assert not dropout.drop(y, seed, 0, 65536).any()


def test_by_a_mask_in_memory(device):
    """the same values, to the bit, and the same of the gradient and its gradient"""
    for dtype in (torch.float32, torch.bfloat16):
        y, g = (torch.randn(2, 3, 16, device=device).to(dtype).requires_grad_() for _ in range(2))
        place = torch.tensor([9], device=device), 1, dropout.count(0.4)
        z = dropout.drop_by_mask(y, dropout.mask(y.shape, dtype, *place), place[2])
        assert torch.equal(z, dropout.drop(y.detach(), *place))
        (dy,) = torch.autograd.grad(z, y, g, create_graph=True)
        assert torch.equal(dy, dropout.drop(g.detach(), *place))
        (again,) = torch.autograd.grad(dy.sum(), g)
        assert torch.equal(again, dropout.drop(torch.ones_like(g), *place))


def test_a_new_seed_follows_torchs_generator():
    torch.manual_seed(5)
    first = [int(dropout.new_seed(torch.device("cpu"))) for _ in range(2)]
    torch.manual_seed(5)
    assert first == [int(dropout.new_seed(torch.device("cpu"))) for _ in range(2)] and first[0] != first[1]
