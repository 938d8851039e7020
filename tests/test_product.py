"""The products of a projection (op/product.py): in the precision of their layer, with the derivatives of torch's own product."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import rnn_triton
from rnn_triton import checks
from rnn_triton.launch import gemm
from rnn_triton.op import product

T, B, I, H, P = 3, 2, 3, 4, 2


def data(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def ours(a, b):
    return product.product(a, b, None)


@pytest.mark.interpret
@pytest.mark.parametrize("precision", [None, "tf32", "tf32x3", "ieee"])
def test_a_projection_is_multiplied_as_its_layer_is(precision, monkeypatch):
    """Forwards, backwards, and in the derivatives of gradients"""
    seen = []

    def matmul(a, b, how):
        seen.append(how)
        return gemm.matmul(a, b, how)

    monkeypatch.setattr(product, "gemm", SimpleNamespace(matmul=matmul))
    x = data(T, B, I, dtype=torch.float32)
    y, (h, c) = rnn_triton.LSTM(I, H, proj_size=P, precision=precision)(x)
    expected = checks.precision_of(torch.float32, precision)
    assert seen == [expected] * 3  # W_hh W_hr, y and h_n
    (dx,) = torch.autograd.grad(sum(t.square().sum() for t in (y, h, c)), x, create_graph=True)
    before = len(seen)
    dx.square().sum().backward()
    assert 3 < before < len(seen) and {*seen} == {expected}


@pytest.mark.interpret
def test_precision_of_another_dtype_is_refused():
    for precision, dtype, message in (("tf32", torch.float64, "unless the dtype is torch.float32"), ("fp8", torch.float32, "got 'fp8'")):
        with pytest.raises(ValueError, match=message):
            rnn_triton.LSTM(I, H, proj_size=P, precision=precision, dtype=dtype)(torch.zeros(T, B, I, dtype=dtype))
    with torch.autocast("cpu", torch.bfloat16):  # replaces the fp32 that precision is meant for
        y, _ = rnn_triton.LSTM(I, H, proj_size=P, precision="tf32x3")(data(T, B, I, dtype=torch.float32))
    assert y.dtype is torch.bfloat16


@pytest.mark.interpret
def test_flops_are_counted():
    module, x = rnn_triton.LSTM(I, H, proj_size=P), data(T, B, I, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        y, _ = module(x)
        forward = counter.get_flop_counts()["Global"][torch.ops.rnn_triton.matmul]
        y.sum().backward()
    whole = counter.get_flop_counts()["Global"][torch.ops.rnn_triton.matmul]
    assert forward == 2 * (4 * H * P * H + T * B * H * P + B * H * P)
    assert whole - forward == 2 * 2 * (4 * H * P * H + T * B * H * P)  # gradients of both operands; none comes to h_n


@pytest.mark.interpret
def test_derivatives():
    a, b, several, columns = data(3, 4), data(4, 5), data(2, 3, 4), data(4, 2, 5)
    assert torch.equal(ours(a, b), a @ b)
    assert torch.autograd.gradcheck(ours, (a, b), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert torch.autograd.gradgradcheck(ours, (a, b), check_batched_grad=True, check_fwd_over_rev=True, check_rev_over_rev=True)
    assert torch.autograd.gradcheck(ours, (several, b), check_forward_ad=True)
    for dims, given in (((0, None), (several, b)), ((None, 1), (a, columns)), ((0, 1), (several, columns))):
        mapped = torch.vmap(ours, in_dims=dims)
        torch.testing.assert_close(mapped(*given), torch.vmap(torch.matmul, in_dims=dims)(*given))
        assert torch.autograd.gradcheck(mapped, given, check_forward_ad=True)


@pytest.mark.interpret
@pytest.mark.parametrize("transform", [
    lambda f: torch.func.hessian(f, (0, 1)),
    lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    lambda f: torch.func.jacfwd(torch.func.jacfwd(f)),
    lambda f: torch.func.jacrev(torch.func.jacfwd(f)),
    lambda f: lambda a, b: torch.vmap(torch.func.grad(f, (0, 1)), in_dims=(0, None))(torch.stack([a, 2 * a]), b),
    lambda f: lambda a, b: torch.func.grad(lambda b: torch.vmap(f, in_dims=(0, None))(torch.stack([a, 2 * a]), b).sum())(b),
    lambda f: torch.compile(torch.func.grad(f), backend="aot_eager", fullgraph=True),
    lambda f: torch.compile(lambda a, b: torch.vmap(f, in_dims=(0, None))(torch.stack([a, 2 * a]), b), backend="aot_eager", fullgraph=True),
], ids=["hessian", "rev-rev", "fwd-fwd", "rev-fwd", "per-sample", "grad-vmap", "compiled-grad", "compiled-vmap"])  # fmt: skip
def test_transforms(transform):
    torch._dynamo.reset()
    given = data(3, 4).detach(), data(4, 5).detach()
    results = [transform(lambda a, b, f=f: f(a, b).sin().sum())(*given) for f in (ours, torch.matmul)]
    torch.testing.assert_close(*results)


@pytest.mark.interpret
def test_the_operator():
    a, b = data(2, 3, 4), data(4, 5)
    torch.library.opcheck(product.matmul, (a[0], b, None))
    torch.library.opcheck(product.matmul, (a, b.expand(2, 4, 5), None))
    for empty in (torch.zeros(0, 4), torch.zeros(3, 0)):
        assert torch.equal(ours(empty, empty.new_zeros(empty.shape[1], 5)), torch.zeros(len(empty), 5))
    torch._dynamo.reset()
    compiled = torch.compile(lambda a, b: ours(a, b).sum(), backend="aot_eager", fullgraph=True)
    of_each = [torch.autograd.grad(run(a, b), (a, b)) for run in (compiled, lambda a, b: (a @ b).sum())]
    torch.testing.assert_close(*of_each)
