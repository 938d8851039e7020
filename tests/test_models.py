"""Models trained twice, with torch.nn's modules and with rnn_triton's, from the same seeds: the loss curves agree.  The last two are
models of torch.nn, of which one goes through rnn_triton.replace.

Ours trains through the kernels, by interpreter or on a GPU, torch's on the CPU, both in the same dtype and by SGD.
Tolerance of a loss after n steps: a step of T time steps rounds sums of K = I + H products, and all these roundings are
independent, so that what they do to the weights, and to the loss, adds up in quadrature:

    4 sqrt(n T K) 2^-p max(1, loss)          p = 24 for fp32, 53 for fp64

4 covers both implementations, the readout, and the way back; training at these rates amplifies little.  bf16 (by autocast, weights in fp32): a gradient is off by
the tolerance of tests/test_kernels.py at most, so the way that the weights go is, and so is what the loss loses by it.
"""

import codecs
import contextlib
import csv
import importlib.util
import io
from pathlib import Path

import pytest
import torch
from test_kernels import KINDS, tolerance
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

import rnn_triton

STEPS = 50
ROOT = Path(__file__).resolve().parents[1]


class Net(nn.Module):
    """[encoder,] recurrence and readout; `cell` is a module's class, of torch.nn or of rnn_triton"""

    def __init__(self, cell, inputs, hidden, outputs, symbols=0, **options):
        super().__init__()
        self.encoder = nn.Embedding(symbols, inputs) if symbols else nn.Identity()
        self.rnn = cell(inputs, hidden, **options)
        self.readout = nn.Linear(hidden, outputs)

    def forward(self, x, h=None):
        y, h = self.rnn(self.encoder(x), h)
        return self.readout(y), h


def pair(kind, device, seed, *sizes, name="RNN", **options):
    """(ours, torch's) of the same initial weights: the seed gives both the same numbers"""
    nets = []
    for cell, more in ((getattr(rnn_triton, name), dict(precision=KINDS[kind][1])), (getattr(nn, name), {})):
        torch.manual_seed(seed)
        nets.append(Net(cell, *sizes, **options, **more))
    ours, theirs = nets
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    return prepared(kind, device, ours, theirs)


def prepared(kind, device, ours, theirs):
    dtype = torch.float32 if kind == "bf16" else KINDS[kind][0]
    return ours.to(device, dtype), theirs.to(torch.float32 if kind == "bf16" else dtype)


def train(net, losses_of, steps, rate, kind):
    """`losses_of(net, device)`: an iterator of the losses to minimise, one a step"""
    optimiser = torch.optim.SGD(net.parameters(), rate)
    device = next(net.parameters()).device
    losses = losses_of(net, device)
    found = []
    for _ in range(steps):
        with torch.autocast(device.type, torch.bfloat16, enabled=kind == "bf16" and type(net.rnn).__module__.startswith("rnn_triton")):
            loss = next(losses)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.detach())
    return torch.stack(found).double().cpu()


def check(nets, losses_of, *, kind, T, K, rate, least, steps):
    """The curves agree, and the loss of the last ten steps is `least` of the first ten's at most: something was learned"""
    ours, theirs = (train(net, losses_of, steps, rate, kind) for net in nets)
    if kind == "bf16":
        limit = torch.full_like(theirs, 2 * tolerance("bf16", 2 * T) * theirs.max().item())
    else:
        unit = torch.finfo(KINDS[kind][0]).eps / 2
        n = torch.arange(1, steps + 1, dtype=torch.float64)
        limit = 4 * (n * T * K) ** 0.5 * unit * theirs.clamp(min=1)
    assert ((ours - theirs).abs() <= limit).all(), ((ours - theirs).abs() / limit).max()
    assert ours[-10:].mean() <= least * ours[:10].mean()


def variants(default, long=False):
    """(kind, steps): a default (`long`: that, too, in long runs alone), and for these the other dtypes and four times the steps"""
    return pytest.mark.parametrize("kind, steps", [
        pytest.param(*c, marks=() if c == (default, STEPS) and not long else pytest.mark.long) for c in in_turn(default)
    ])  # fmt: skip


def in_turn(default):
    return [(default, STEPS)] + [(k, STEPS) for k in ("fp64", "ieee", "tf32x3", "bf16") if k != default] + [(default, 4 * STEPS)]


def zen():
    """The Zen of Python, which every Python distribution carries"""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    return codecs.decode(this.s, "rot13").lower()


@variants("ieee", long=True)
def test_language_model(kind, steps, device):
    """Characters of a text in two streams, back-propagation truncated to chunks, the state carried from one to the next"""
    T, B, inputs, hidden = 3, 4, 8, 16
    text = zen()
    symbols = sorted(set(text))
    codes = torch.tensor([symbols.index(c) for c in text])
    length = len(codes) // B
    streams = codes[: B * length].view(B, length).t()  # [length, B]

    def losses(net, device):
        while True:
            h = None
            for t in range(0, length - T - 1, T):
                chunk = streams[t : t + T + 1].to(device)
                logits, h = net(chunk[:-1], None if h is None else h.detach())
                yield cross_entropy(logits.flatten(0, 1).float() if kind == "bf16" else logits.flatten(0, 1), chunk[1:].flatten())

    nets = pair(kind, device, 0, inputs, hidden, len(symbols), symbols=len(symbols))
    check(nets, losses, kind=kind, T=T, K=inputs + hidden, rate=0.6, least=0.9, steps=steps)


# by gates one kind: the interpreter takes a minute for it
FORECASTS = [("RNN", *c) for c in in_turn("fp64")] + [(name, "fp64", STEPS) for name in ("GRU", "LSTM")]


@pytest.mark.long
@pytest.mark.parametrize("name, kind, steps", FORECASTS)
def test_forecast(name, kind, steps, device):
    """Sunspot numbers: the next year from five before it"""
    T, B, hidden = 5, 8, 16
    with open(ROOT / "examples" / "data" / "sunspots.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["YEAR"]) for row in rows] == list(range(1700, 2009))
    series = torch.tensor([float(row["SUNACTIVITY"]) for row in rows], dtype=torch.float64) / 100
    windows = series.unfold(0, T + 1, 1).t().unsqueeze(-1)  # [T + 1, windows, 1]

    def losses(net, device):
        shuffle = torch.Generator().manual_seed(1)
        dtype = net.readout.weight.dtype
        while True:
            batch = windows[:, torch.randint(windows.shape[1], (B,), generator=shuffle)].to(device, dtype)
            y, _ = net(batch[:-1])
            yield mse_loss(y[-1].float() if kind == "bf16" else y[-1], batch[-1])

    nets = pair(kind, device, 0, 1, hidden, 1, name=name)
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[name]  # as many sums as those of a layer of one gate, on the way back in one
    least = 0.6 if gates == 1 else 0.75  # torch's gated networks learn more slowly at this rate: 0.69 and 0.64
    check(nets, losses, kind=kind, T=T, K=gates * (1 + hidden), rate=0.1, least=least, steps=steps)


@variants("ieee", long=True)  # three steps of it run by default: tests/test_examples.py
def test_digits(kind, steps, device, monkeypatch):
    """examples/digits.py's classifier, narrower"""
    spec = importlib.util.spec_from_file_location("digits", ROOT / "examples" / "digits.py")
    digits = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(digits)
    monkeypatch.setattr(digits, "HIDDEN", 16)
    B = 8
    x, digit = digits.load()
    rows, _ = digits.split(len(digit), seed=0)

    def losses(net, device):
        dtype = net.readout.weight.dtype
        while True:
            for part in rows.split(B):
                y, _ = net(x[:, part].to(device, dtype))
                yield cross_entropy(y[-1].float() if kind == "bf16" else y[-1], digit[part].to(device))

    precision = KINDS[kind][1]
    ours, theirs = digits.build("rnn_triton", 0, precision=precision), digits.build("torch", 0)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    nets = prepared(kind, device, ours, theirs)
    check(nets, losses, kind=kind, T=8, K=8 + 16, rate=0.2, least=0.93, steps=steps)


class WordModel(nn.Module):
    """The language model that PyTorch's examples teach: embedding, recurrence with dropout around it, decoder with tied weights"""

    def __init__(self, kind, words, size):
        super().__init__()
        self.drop = nn.Dropout(0.0)  # torch's masks on a CPU are not those of the kernels on a GPU
        self.encoder = nn.Embedding(words, size)
        options = dict(nonlinearity=kind.removeprefix("RNN_").lower()) if kind.startswith("RNN") else {}
        self.rnn = getattr(nn, kind.partition("_")[0])(size, size, 1, **options)
        self.decoder = nn.Linear(size, words)
        self.decoder.weight = self.encoder.weight

    def forward(self, codes, state=None):
        y, state = self.rnn(self.drop(self.encoder(codes)), state)
        return self.decoder(self.drop(y)), state


class SpeakerEncoder(nn.Module):
    """Utterances [B,T,I] to embeddings of length one: LSTM layers, a projection of the last state"""

    def __init__(self, inputs, hidden):
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, num_layers=2, batch_first=True)
        self.linear = nn.Linear(hidden, hidden)
        self.scale, self.shift = nn.Parameter(torch.tensor(5.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        _, (h, _) = self.lstm(x)
        return normalize(self.linear(h[-1]), dim=-1)


def replaced(device, make):
    """(ours, torch's) in fp64: the same model of torch.nn twice, the first one with its modules replaced"""
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(make().double())
    done = rnn_triton.replace(nets[0])
    assert done.kept == {} and len(done.swapped) == 1
    return nets[0].to(device), nets[1]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["RNN_TANH", "RNN_RELU", "GRU", "LSTM"])
def test_word_model_after_replace(kind, device):
    T, B, size = 2, 4, 8
    text = zen().split()
    words = sorted(set(text))
    codes = torch.tensor([words.index(word) for word in text])
    length = len(codes) // B
    streams = codes[: B * length].view(B, length).t()

    def losses(net, device):
        while True:
            state = None
            for t in range(0, length - T - 1, T):
                chunk = streams[t : t + T + 1].to(device)
                logits, state = net(chunk[:-1], state)
                state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
                yield cross_entropy(logits.flatten(0, 1), chunk[1:].flatten())

    nets = replaced(device, lambda: WordModel(kind, len(words), size))
    check(nets, losses, kind="fp64", T=T, K=4 * 2 * size, rate=0.5, least=0.99, steps=STEPS)


@pytest.mark.long
def test_speaker_encoder_after_replace(device):
    """Utterances of speakers are to lie near the mean of their speaker's others: a softmax over scaled cosines"""
    T, speakers, utterances, inputs, hidden = 2, 4, 2, 6, 8
    generator = torch.Generator().manual_seed(2)
    voices = 3 * torch.randn(speakers, 1, 1, inputs, generator=generator, dtype=torch.float64)

    def losses(net, device):
        noise = torch.Generator().manual_seed(3)
        while True:
            x = voices + torch.randn(speakers, utterances, T, inputs, generator=noise, dtype=torch.float64)
            e = net(x.flatten(0, 1).to(device)).unflatten(0, (speakers, utterances))
            mean = normalize(e.sum(1), dim=-1)
            others = normalize(e.sum(1, keepdim=True) - e, dim=-1)
            near = torch.einsum("sud,td->sut", e, mean)
            own = (e * others).sum(-1, keepdim=True)
            same = torch.eye(speakers, dtype=torch.bool, device=device).unsqueeze(1)
            logits = net.scale * torch.where(same, own, near) + net.shift
            yield cross_entropy(logits.flatten(0, 1), torch.arange(speakers, device=device).repeat_interleave(utterances))

    nets = replaced(device, lambda: SpeakerEncoder(inputs, hidden))
    check(nets, losses, kind="fp64", T=T, K=2 * 4 * (inputs + hidden), rate=0.03, least=0.8, steps=STEPS)
