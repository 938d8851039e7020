"""The programs that PyTorch's documentation and courses teach RNNs with: `nn` and `rnn_triton` trade places."""

import pytest
import torch
from torch import nn

import rnn_triton


def both(program):
    """What `program` returns, given where RNN and RNNCell are from."""
    results = []
    for package in (rnn_triton, nn):
        torch.manual_seed(0)
        results.append(program(package))
    return results


def train(parameters, step, steps=10):
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = step()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert losses[-1] < losses[0]
    return torch.stack(losses)


@pytest.fixture
def in_fp64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def two_layers(package):
    layer = package.RNN(input_size=100, hidden_size=20, num_layers=2)
    x, h_0 = torch.randn(10, 3, 100), torch.zeros(2, 3, 20)
    out, h = layer(x, h_0)
    assert out.shape == (10, 3, 20) and h.shape == (2, 3, 20)
    return out, h


def cell_loop(package):
    rnn = package.RNNCell(10, 20)
    x, hx = torch.randn(6, 3, 10), torch.randn(3, 20)
    output = []
    for i in range(6):
        hx = rnn(x[i], hx)
        output.append(hx)
    loss = torch.stack(output).square().mean()
    return output, torch.autograd.grad(loss, list(rnn.parameters()))


def stacked_cells(package):
    cell1, cell2 = package.RNNCell(40, 30), package.RNNCell(30, 20)
    x = torch.randn(10, 3, 40)
    h1, h2 = torch.zeros(3, 30), torch.zeros(3, 20)
    for xt in x:
        h1 = cell1(xt, h1)
        h2 = cell2(h1, h2)
    return h1, h2, torch.autograd.grad(h2.sum(), [*cell1.parameters(), *cell2.parameters()])


def classifier(package):
    rnn, linear = package.RNN(7, 12, batch_first=True), nn.Linear(12, 4)
    x, labels = torch.randn(16, 5, 7), torch.randint(4, (16,))

    def step():
        output, _ = rnn(x)
        return nn.functional.nll_loss(nn.functional.log_softmax(linear(output[:, -1]), dim=1), labels)

    return train([*rnn.parameters(), *linear.parameters()], step)


class Predictor(nn.Module):
    """RNN -> Linear on every step, the state handed on detached: the sine-wave lesson."""

    def __init__(self, package):
        super().__init__()
        self.rnn = package.RNN(input_size=1, hidden_size=16, num_layers=1, batch_first=True)
        for p in self.rnn.parameters():
            nn.init.normal_(p, mean=0.0, std=0.1)
        self.linear = nn.Linear(16, 1)

    def forward(self, x, hidden_prev):
        out, hidden_prev = self.rnn(x, hidden_prev)
        out = self.linear(out.reshape(-1, 16))
        return out.unsqueeze(dim=0), hidden_prev


def every_step(package):
    model = Predictor(package)
    wave = torch.sin(torch.linspace(0, 10, 50))
    x, y = wave[:-1].view(1, 49, 1), wave[1:].view(1, 49, 1)
    state = torch.zeros(1, 1, 16)

    def step():
        nonlocal state
        output, state = model(x, state)
        state = state.detach()
        return nn.functional.mse_loss(output, y)

    return train(model.parameters(), step)


@pytest.mark.usefixtures("in_fp64")
@pytest.mark.parametrize("program", [two_layers, cell_loop, stacked_cells, classifier, every_step])
def test_tutorial(program):
    # fp64, 2^-53 a rounding: up to 10 updates of 49 steps of 40 products, values below 10
    torch.testing.assert_close(*both(program), rtol=0, atol=10 * 49 * 40 * 10 * 2.0**-53)
