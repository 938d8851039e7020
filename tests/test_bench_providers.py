"""Providers: every one gives torch's numbers, the libraries on stand-ins with their signatures; what is missing or
unsupported says why; the gate, for cells, stacks, directions, models and lengths, refuses what is wrong."""

import contextlib
import enum
import importlib
import itertools
import math
import runpy
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn

from bench.cases import inputs
from bench.cases.case import Job, case
from bench.cases.suites import parse, suites
from bench.measure import check, compiling
from bench.providers import interface, loops, peers, registry, sessions
from bench.records import schema
from rnn_triton import UnsupportedError
from rnn_triton.plan.problem import plan_from_fields

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PROVIDERS = registry.PROVIDERS


def small(**how):
    return case(16, 3, 5, "fp32", 6, ieee=True, **how)


# ---- tensors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["elman_tanh", "gru", "lstm"])
def test_tensors_have_torchs_names_and_shapes(cell):
    of = replace(small(cell=cell), layers=2, bidirectional=True)
    module = sessions.module_of(nn, of, torch.empty(0))
    found = inputs.tensors(of, CPU)
    weights = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert {name: tuple(t.shape) for name, t in found.items() if name in weights} == weights
    y, last = module(found["x"], (found["h0"], found["c0"]) if cell == "lstm" else found["h0"])
    assert y.shape == found["dy"].shape and set(found) - set(weights) == {"x", "h0", "dy", "dhn"} | (
        {"c0", "dcn"} if cell == "lstm" else set()
    )
    bound = of.H**-0.5
    assert all(0.8 * bound < found[name].abs().max() <= bound for name in weights if "weight" in name)
    assert found["x"].std() == pytest.approx(1, abs=0.25)


def test_models_have_inputs_and_weights_of_their_own():
    found = inputs.tensors(small(models=3), CPU)
    for name, shape in inputs.shapes(small()).items():
        assert found[name].shape == (3, *shape) and not torch.equal(found[name][0], found[name][1])


def test_a_seed_gives_the_same_values_again_and_another_others():
    first, again, other = (inputs.tensors(small(), CPU, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name]) for name in first)
    # the steps of a shorter problem are other values, the weights are the same
    shorter = inputs.tensors(small().at(3), CPU)
    assert torch.equal(shorter["weight_hh_l0"], first["weight_hh_l0"])


def test_large_tensors_are_drawn_where_they_are_used():
    drawn = []

    def spy(values, device, drawn_on=inputs.drawn_on):
        drawn.append((values, device))
        return drawn_on(values, device)

    with mock.patch.object(inputs, "drawn_on", spy):
        found = inputs.tensors(small(models=2), CPU)
    assert drawn == [(t.numel(), CPU) for t in found.values()]
    assert inputs.drawn_on(2**20, CUDA) == CPU and inputs.drawn_on(2**20 + 1, CUDA) == CUDA


@pytest.mark.parametrize("law, mean", [("uniform", 256.5), ("heavy", 511 / math.log(512))])
def test_lengths_follow_their_law(law, mean):
    of = case(8, 4000, 512, "bf16", lengths=law)
    lengths = inputs.lengths_of(of)
    assert torch.equal(lengths, inputs.lengths_of(of)) and lengths.dtype is torch.int64
    assert (int(lengths.min()), int(lengths.max())) == (1, 512)
    # five standard errors; a length is rounded to a whole one, which moves the mean by 1/2 at most
    assert abs(lengths.double().mean() - mean) < 5 * lengths.double().std() / 4000**0.5 + 0.5
    if law == "heavy":  # every octave as likely as the next: 1/9 of 4000, five standard deviations
        octaves = lengths.double().log2().floor().long().clamp_max(8).bincount()
        assert all(abs(n - 4000 / 9) < 5 * (4000 / 9) ** 0.5 for n in octaves[1:].tolist())
    for B in (1, 2):
        assert int(inputs.lengths_of(replace(of, B=B)).max()) == 512


# ---- the reference --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["elman_tanh", "gru", "lstm"])
def test_the_reference_of_several_models_is_that_of_each(cell):
    of = replace(small(cell=cell), layers=2, bidirectional=True, models=2)
    given = inputs.tensors(of, CPU)
    found = check.reference(of, given)
    for model in range(2):
        one = check.reference(replace(of, models=1), inputs.of_model(given, model))
        assert set(one) == set(found)
        for name, value in one.items():
            assert value.dtype is torch.float64 and torch.allclose(found[name][model], value, rtol=1e-11, atol=1e-12), name


def test_the_reference_of_packed_sequences_is_that_of_each_sequence():
    of = replace(small(lengths="uniform"), B=4, bidirectional=True)
    given = inputs.tensors(of, CPU)
    found, lengths = check.reference(of, given), inputs.lengths_of(of)
    packed = inputs.packed(of, given["x"])
    y, _ = nn.utils.rnn.pad_packed_sequence(packed._replace(data=found["y"]))
    dx, _ = nn.utils.rnn.pad_packed_sequence(packed._replace(data=found["dx"]))
    total = 0
    for b, T in enumerate(lengths.tolist()):
        alone = {name: t[:T, b : b + 1] if name in ("x", "dy") else t for name, t in given.items()}
        alone |= {name: given[name][:, b : b + 1] for name in ("h0", "dhn")}
        one = check.reference(replace(of, T=T, B=1, lengths="full"), alone)
        assert torch.allclose(y[:T, b], one["y"][:, 0]) and torch.allclose(dx[:T, b], one["dx"][:, 0])
        assert torch.allclose(found["hn"][:, b], one["hn"][:, 0]) and torch.allclose(found["dh0"][:, b], one["dh0"][:, 0])
        total = total + one["dweight_hh_l0_reverse"]
    assert torch.allclose(found["dweight_hh_l0_reverse"], total)


def test_the_reference_leaves_torchs_switches_as_they_were():
    before = torch.backends.cudnn.enabled, torch.backends.cudnn.rnn.fp32_precision
    check.reference(small(), inputs.tensors(small(), CPU))
    assert (torch.backends.cudnn.enabled, torch.backends.cudnn.rnn.fp32_precision) == before


# ---- providers that need torch alone --------------------------------------------------------------------------------


def test_they_are_listed_in_order_with_what_a_record_and_a_figure_need():
    names = ["rnn_triton", "rnn_triton-layers", "rnn_triton-recompute", "rnn_triton-packed", "cudnn", "cudnn-layers", "loop", "hoisted", "compile", "graph", "compile-graph", "flashrnn", "xma", "flaggems", "torchrl"]
    assert list(PROVIDERS) == names and {schema.OURS, *schema.BASELINES} <= set(names)
    assert len({p.label for p in PROVIDERS.values()}) == len(names) and all(p.label for p in PROVIDERS.values())
    assert [name for name, p in PROVIDERS.items() if p.captured] == ["graph", "compile-graph"]
    for p in PROVIDERS.values():
        assert p.version() is None or isinstance(p.version(), str)
        assert p.missing(torch.device("cuda")) is not None


SHAPES = {
    "": {}, "l2": dict(layers=2), "bi": dict(bidirectional=True), "l2-bi": dict(layers=2, bidirectional=True),
    "m3": dict(models=3), "l2-bi-m2": dict(layers=2, bidirectional=True, models=2), "uniform": dict(lengths="uniform"),
    "l2-heavy": dict(layers=2, lengths="heavy"), "bi-uniform": dict(bidirectional=True, lengths="uniform"),
    "n4": dict(heads=4), "l2-bi-n2": dict(layers=2, bidirectional=True, heads=2),
}  # fmt: skip


@pytest.mark.parametrize("cell", ["elman_tanh", "gru", "lstm"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["cudnn", "cudnn-layers", "loop", "hoisted"])
def test_torchs_providers_give_torchs_numbers(name, shape, cell):
    of, provider = replace(small(cell=cell), **SHAPES[shape]), PROVIDERS[name]
    if provider.unsupported(of):
        assert (name, shape) in {
            *itertools.product(["cudnn-layers"], ("", "m3", "uniform", "bi-uniform", "n4", "l2-bi-n2")),
            *itertools.product(("loop", "hoisted"), ("uniform", "l2-heavy", "bi-uniform")),
        }  # fmt: skip
        return
    verdict = check.gate(of, provider, CPU)
    assert verdict.ok and 0 < verdict.worst() < 0.5, verdict.message  # fp32, far from its bound, and not fp64 itself


@pytest.mark.parametrize("name, products", [("loop", 2 * 5), ("hoisted", 1 + 5)])
def test_a_loop_projects_all_inputs_at_once_where_it_says_so(name, products):
    from torch.utils._python_dispatch import TorchDispatchMode

    called = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(function.__name__.partition(".")[0])
            return function(*args, **kwargs or {})

    session = PROVIDERS[name].session(small(), inputs.tensors(small(), CPU))
    with Noting():
        session.forward()
    assert sum(called.count(product) for product in ("mm", "addmm", "bmm")) == products


def test_our_layers_apart():
    """the numbers of the network, its overrides open during its calls alone, and a plan for each layer"""
    import rnn_triton
    from rnn_triton.plan.overriding import overrides

    of, apart = small(layers=2, bidirectional=True), PROVIDERS["rnn_triton-layers"]
    assert check.gate(of, apart, CPU).ok and overrides() == ()
    session = apart.session(of, inputs.tensors(of, CPU))
    seen = []
    session.call = lambda: seen.append(overrides()) or (torch.zeros(1), (torch.zeros(1),))
    session.forward()
    assert seen == [(("recurrences", 1),)] and overrides() == ()
    plans = apart.plan(parse("h512-b8-t9-l4-bf16"), torch.device("meta"))
    assert [part["bundle"]["count"] for part in plans["launches"]] == [1] * 4
    assert rnn_triton.explain(9, 8, 512, 512, dtype=torch.bfloat16, device="meta", num_layers=4).count("layers 0 to 3") == 1


def test_ours_runs_models_by_one_call_and_says_what_it_does_not_run():
    ours = PROVIDERS["rnn_triton"]
    assert check.gate(small(), ours, CPU).ok and check.gate(small(models=3), ours, CPU).ok
    for of in (small(layers=2), small(bidirectional=True), small(lengths="uniform")):
        try:
            verdict = check.gate(of, ours, CPU)
        except UnsupportedError as error:  # says so itself, as long as it does not
            assert "so far" in str(error)
        else:
            assert verdict.ok
    import rnn_triton

    assert ours.version() == rnn_triton.__version__


@pytest.mark.parametrize("name", ["rnn_triton", "rnn_triton-layers", "rnn_triton-recompute"])
@pytest.mark.parametrize("cell", ["elman_relu", "gru", "lstm", "leaky_tanh", "leaky_relu"])
def test_ours_runs_every_cell(cell, name):
    """by torch's module or Recurrent, whose vectors have gradients"""
    provider = PROVIDERS[name]
    for how in ({}, dict(layers=2, bidirectional=True), dict(models=3), dict(heads=4)):
        of = small(cell=cell, **how)
        if name == "rnn_triton-recompute" and cell == "elman_relu":
            assert "keeps y alone" in provider.unsupported(of)
        elif not provider.unsupported(of):
            verdict = check.gate(of, provider, CPU)
            assert verdict.ok and verdict.worst() < 0.5, verdict.message
            assert ("dleak_l0" in verdict.errors) == cell.startswith("leaky")


@pytest.mark.parametrize("name", ["rnn_triton", "rnn_triton-packed"])
def test_lengths_are_told_and_packed_input_is_the_other_call(name, monkeypatch):
    """Ours is timed on padded sequences and their lengths; what packing costs it is a provider of its own."""
    import rnn_triton

    of, called = small(cell="gru", lengths="uniform"), []
    forward = rnn_triton.GRU.forward
    monkeypatch.setattr(rnn_triton.GRU, "forward", lambda self, x, hx, **how: called.append((x, how)) or forward(self, x, hx, **how))
    verdict = check.gate(of, PROVIDERS[name], CPU)
    assert verdict.ok and verdict.worst() < 0.5
    for x, how in called:
        if name == "rnn_triton":
            assert x.shape == (of.T, of.B, of.I) and torch.equal(how["lengths"], inputs.lengths_of(of))
        else:
            assert isinstance(x, nn.utils.rnn.PackedSequence) and how == {}


def test_values_beyond_the_ends_of_sequences_are_a_fault():
    of = small(lengths="uniform")
    given = inputs.tensors(of, CPU)
    truth, result = check.reference(of, given), PROVIDERS["rnn_triton"].session(of, given).train()
    assert check.compare(of, result, truth).ok and int(inputs.lengths_of(of).min()) < of.T
    for name in ("y", "dx"):
        for value in (1e-9, math.nan):
            wrong = result[name].clone()
            wrong[-1, int(inputs.lengths_of(of).argmin())] = value
            assert check.compare(of, result | {name: wrong}, truth).message == f"{name} is not zero beyond the ends of the sequences"
        wrong = result[name].clone()
        wrong[0] *= 1.1
        assert check.compare(of, result | {name: wrong}, truth).message.startswith(f"{name}: ")


@pytest.mark.parametrize("name", ["rnn_triton", "cudnn", "hoisted"])
def test_heads_whose_weights_are_mixed_up_are_a_fault(name):
    of = small(cell="gru", heads=4)
    given = inputs.tensors(of, CPU)
    truth = check.reference(of, given)
    assert check.judge(of, PROVIDERS[name].session(of, given), "train", truth).ok
    mixed = given["weight_hh_l0"][[1, 0, 2, 3]]
    verdict = check.judge(of, PROVIDERS[name].session(of, given | {"weight_hh_l0": mixed}), "train", truth)
    assert {"y", "hn", "dweight_hh_l0"} <= {part.partition(":")[0] for part in verdict.message.split("; ")}


def test_the_reference_of_heads_is_that_of_a_dense_layer():
    """whose W_hh is zero but for the blocks, and whose gates lie one after the other"""
    of = small(cell="lstm", heads=4)
    given = inputs.tensors(of, CPU)
    found, size = check.reference(of, given), of.H // of.heads

    def dense(name, value):
        if name.startswith("weight_hh"):  # [N, 4 h, h] -> [4 H, H]
            gates = value.unflatten(1, (4, size)).transpose(0, 1)
            return torch.cat([torch.block_diag(*gate) for gate in gates])
        return value.unflatten(0, (of.heads, 4, size)).transpose(0, 1).flatten(0, 2) if name.startswith(("weight", "bias")) else value

    whole = check.reference(replace(of, heads=1), {name: dense(name, value) for name, value in given.items()})
    for name, value in found.items():
        expected, got = whole[name], dense(name[1:], value) if name[0] == "d" else value
        assert torch.allclose(got, torch.where(got != 0, expected, 0.0) if name == "dweight_hh_l0" else expected, rtol=1e-10, atol=1e-12), name


def test_computing_again_is_asked_of_the_module():
    of = small(cell="lstm")
    asked = [PROVIDERS[name].session(of, inputs.tensors(of, CPU)).module.recompute for name in ("rnn_triton", "rnn_triton-recompute")]
    assert asked == [False, True]


@pytest.mark.long
@pytest.mark.parametrize(
    "of",
    [
        small().at(11),
        pytest.param(replace(small(cell="lstm"), layers=2, models=2, T=6), marks=pytest.mark.long),
    ],
    ids=lambda c: c.name,
)
def test_the_compiled_loop_is_compiled_by_chunks(of):
    """Each graph that the compiler gets is a chunk of FEW_STEPS steps or the remainder; nothing runs beside them."""
    sizes, calls = [], []

    def backend(graph, _):
        steps = sum("tanh" in str(node.target) for node in graph.graph.nodes) // (2 if of.cell == "lstm" else 1)
        sizes.append(steps)
        return lambda *given: (calls.append(steps), graph(*given))[1]

    with mock.patch.object(loops, "FEW_STEPS", 4):
        verdict = check.gate(of, loops.Compiled(backend), CPU)
        assert PROVIDERS["compile"].shortest(of).T == min(of.T, 4 + of.T % 4)
    assert verdict.ok, verdict.message
    assert set(sizes) == {4, of.T % 4}
    assert sum(calls) == 2 * of.layers * of.T  # with and without gradients
    assert torch._dynamo.config.fail_on_recompile_limit_hit  # or it would go on eagerly


@pytest.mark.parametrize("name, inside", [("loop", "high"), ("cudnn", "highest"), ("rnn_triton", "highest")])
def test_products_are_in_tf32_for_what_is_made_of_them_and_only_there(name, inside):
    of, seen = case(16, 3, 5, "fp32", 6), []
    assert torch.get_float32_matmul_precision() == "highest"
    session = PROVIDERS[name].session(of, inputs.tensors(of, CPU))
    call = session.call
    session.call = lambda: (seen.append(torch.get_float32_matmul_precision()), call())[1]
    session.forward(), session.train()
    assert seen == [inside] * 2 and torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.rnn.fp32_precision == "tf32"


@pytest.mark.long  # a minute: a C++ compiler on the CPU
def test_the_compiled_loop_by_inductor():
    assert check.gate(small().at(19), PROVIDERS["compile"], CPU).ok


@pytest.mark.parametrize("name", ["graph", "compile-graph"])
def test_a_graph_is_captured_once_a_pass_and_replayed(name):
    made, provider = [], PROVIDERS[name] if name == "graph" else loops.CompiledGraph("eager")

    def capture(call):
        made.append(SimpleNamespace(replay=mock.Mock(side_effect=call)))
        return made[-1], call()

    of = small()
    given = inputs.tensors(of, CPU)
    with mock.patch("bench.instruments.timing.capture", capture):
        session = provider.session(of, given)
        assert made == []
        for _ in range(3):
            y, _ = session.forward()
        truth = check.reference(of, given)
        assert check.compare(of, session.train(), truth).ok and check.judge(of, session, "fwd", truth).ok
    assert [g.replay.call_count for g in made] == [4, 1] and y.shape == (of.T, of.B, of.H)
    assert "CUDA" in provider.missing(CPU)


# ---- libraries, by stand-ins with their signatures ------------------------------------------------------------------


@contextlib.contextmanager
def installed(**modules):
    """Modules by name, with an underscore for a dot"""
    found = {}
    for name, members in modules.items():
        module = found[name.replace("__", ".")] = ModuleType(name)
        vars(module).update(members)
    with mock.patch.dict(sys.modules, found):
        yield


def cells(kind, wx, wh, state):
    """h of the next step from W x + b and R h of every gate, [..., G, H], written as FlashRNN documents its gates"""
    if kind == "elman":
        return (torch.tanh(wx[0] + wh[0]),)
    i, f, g, o = (a + b for a, b in zip(wx, wh))
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@dataclass
class FlashRNNConfig:
    backend: str = "cuda_fused"
    function: str = "lstm"
    head_dim: int = -1
    num_heads: int = -1
    batch_size: int = 8
    dtype: str = "bfloat16"
    input_shape: str = "BTGHD"
    output_shape: str = "SBHTD"
    recurrent_shape: str = "GHDP"


def flashrnn(Wx, R, b, states=None, function="lstm", config=None, backend="cuda_fused", dtype="bfloat16"):
    """FlashRNN 1.0.8's, of which the real one's "vanilla" backend passed the same gate on a CPU."""
    assert (config.input_shape, config.output_shape, config.recurrent_shape) == ("TBGHD", "STBHD", "GHDP")
    T, B, G, M, H = Wx.shape
    assert (config.head_dim, config.num_heads, config.batch_size) == (H, M, B)
    assert R.shape[1:] == (M, H, H) and b.shape[1:] == (M, H) and states.shape[1:] == (1, B, M, H)
    state, every = tuple(states[:, 0]), []
    for t in range(T):
        Ry = torch.einsum("ghdp,bhp->gbhd", R, state[0])
        x = Wx[t].transpose(0, 1)
        if config.function == "gru":  # n of h, r, z, n of x
            r, z = ((x[k] + Ry[k + 1] + b[k + 1]).sigmoid() for k in (0, 1))
            n = (x[2] + b[3] + r * (Ry[0] + b[0])).tanh()
            state = (z * state[0] + (1 - z) * n,)
        else:
            state = cells(config.function, [x[g] + b[g] for g in range(G)], Ry, state)
        every.append(torch.stack(state))
    every = torch.stack(every, 1)
    return every, every[:, -1:]


class KernelBackend(enum.Enum):
    triton = "triton"
    torch = "torch"


def xma_rnn(
    input, weight, input_state=None, gradient_clipping=None, cu_seqlens=None, max_seqlen=None, *, kernel_backend=None
):
    """accelerated-model-architectures 0.1.0's, of which the real one's torch backend passed the same gate on a CPU."""
    B, S, N, H = input.shape
    assert weight.shape == (N, H, H) and weight.is_contiguous() and input_state.shape == (B, N, H)
    assert isinstance(kernel_backend, KernelBackend)
    h, ys = input_state, []
    for s in range(S):
        h = torch.tanh(torch.einsum("bnh,nhk->bnk", h, weight) + input[:, s])
        ys.append(h)
    return torch.stack(ys, 1), h


class RnnRelu(torch.autograd.Function):
    """FlagGems' (its main branch of August 2026): weights are not differentiated, their gradients are added to .grad."""

    @staticmethod
    def run(x, hx, w_ih, w_hh, b_ih, b_hh):
        h, ys = hx[0], []
        for x_t in x:
            h = torch.relu(x_t @ w_ih.T + b_ih + h @ w_hh.T + b_hh)
            ys.append(h)
        return torch.stack(ys), h[None]

    @staticmethod
    def forward(ctx, x, hx, params):
        ctx.save_for_backward(x, hx)
        ctx.params = params
        return RnnRelu.run(x, hx, *params)

    @staticmethod
    def backward(ctx, dy, dhn):
        given = [t.detach().requires_grad_() for t in (*ctx.saved_tensors, *ctx.params)]
        with torch.enable_grad():
            found = torch.autograd.grad(RnnRelu.run(*given), given, (dy, dhn))
        for p, g in zip(ctx.params, found[2:]):
            p.grad = g.clone() if p.grad is None else p.grad.add_(g)
        return found[0], found[1], None


def rnn_relu(
    input, hx=None, params=None, has_biases=True, num_layers=1, dropout=0.0, train=False, bidirectional=False, batch_first=False
):
    assert has_biases and (num_layers, dropout, bidirectional, batch_first) == (1, 0.0, False, False)
    return RnnRelu.apply(input, hx, params)


class TensorDict(dict):
    def __init__(self, values, size=()):
        super().__init__(values)

    def copy(self):
        return TensorDict(self)


def torchrl_module(cls, attribute):
    """TorchRL 0.14.1's GRUModule or LSTMModule in recurrent mode, whose "pad" and "scan" backends passed the same gate."""

    class Module(nn.Module):
        def __init__(
            self, input_size, hidden_size, num_layers=1, *, recurrent_backend="pad", recurrent_matmul_precision="auto",
            in_keys=None, out_keys=None, device=None, default_recurrent_mode=None,
        ):  # fmt: skip
            super().__init__()
            assert default_recurrent_mode and recurrent_backend == "triton" and recurrent_matmul_precision in ("ieee", "tf32")
            setattr(self, attribute, cls(input_size, hidden_size, num_layers, batch_first=True, device=device))
            self.network, self.in_keys, self.out_keys = getattr(self, attribute), in_keys, out_keys

        def forward(self, data):
            x, *states = (data[name] for name in self.in_keys)
            assert x.is_contiguous() and not data["is_init"].any()
            first = [s[:, 0].transpose(0, 1).contiguous() for s in states]
            y, last = self.network(x, tuple(first) if len(first) > 1 else first[0])
            data[self.out_keys[0]] = y
            for name, value in zip(self.out_keys[1:], last if isinstance(last, tuple) else (last,)):
                every = value.transpose(0, 1).unsqueeze(1)  # zero but for the last step
                data[name] = torch.cat([torch.zeros_like(every).expand(-1, x.shape[1] - 1, -1, -1), every], 1)
            return data

    return Module


FAKES = {
    "flashrnn": dict(flashrnn=dict(flashrnn=flashrnn, FlashRNNConfig=FlashRNNConfig)),
    "xma": dict(xma=dict(KernelBackend=KernelBackend), xma__layers=dict(rnn=xma_rnn)),
    "flaggems": dict(flag_gems={}, flag_gems__ops=dict(rnn_relu=rnn_relu, gru=torch._VF.gru, lstm=torch._VF.lstm)),
    "torchrl": dict(
        torchrl={}, tensordict=dict(TensorDict=TensorDict),
        torchrl__modules=dict(GRUModule=torchrl_module(nn.GRU, "gru"), LSTMModule=torchrl_module(nn.LSTM, "lstm")),
    ),
}  # fmt: skip
RUNS = {  # what each of them runs, of the shapes above; cells and nonlinearities apart
    **dict.fromkeys(("flashrnn", "xma"), ("", "l2", "bi", "l2-bi", "m3", "l2-bi-m2", "n4", "l2-bi-n2")),
    "flaggems": ("",), "flaggems lstm": ("", "l2", "bi", "l2-bi"), "torchrl": ("", "l2"),
}  # fmt: skip
CELLS = {
    "flashrnn": ("elman_tanh", "gru", "lstm"), "xma": ("elman_tanh",), "flaggems": ("elman_relu", "gru", "lstm"), "torchrl": ("gru", "lstm"),
}  # fmt: skip


def forward_alone(of, provider):
    """The verdict on the forward pass of what has no other"""
    given = inputs.tensors(of, CPU)
    session = provider.session(of, given)
    with pytest.raises(NotImplementedError, match="no backward pass"):
        session.train()
    return check.judge(of, session, "fwd", check.reference(of, given))


@pytest.mark.parametrize("name", FAKES)
def test_libraries_are_called_in_their_layouts(name):
    provider = PROVIDERS[name]
    for kind in ("elman_tanh", "elman_relu", "gru", "lstm", "leaky_tanh"):
        for shape, how in SHAPES.items():
            of = replace(small(cell=kind), **how)
            if (name, kind) == ("flaggems", "elman_tanh"):
                continue  # some releases have it
            runs = kind in CELLS[name] and shape in RUNS["flaggems lstm" if (name, kind) == ("flaggems", "lstm") else name]
            assert bool(provider.unsupported(of)) != runs, (kind, shape)
            if runs:
                with installed(**FAKES[name]):
                    if name == "flaggems" and kind in ("gru", "lstm"):
                        verdict = forward_alone(of, provider)
                    else:
                        verdict = check.gate(of, provider, CPU)
                assert verdict.ok and verdict.worst() < 0.5, (kind, shape, verdict.message)


def gru_scan_persistent(gi, h0, Wh_cat, bh_cat):
    """gru-qat 0.5.0's, without quantization"""
    h, ys = h0, []
    assert gi.shape[1:] == (*h0.shape[:1], 3 * h0.shape[1]) and Wh_cat.shape == (3 * h0.shape[1], h0.shape[1])
    for gi_t in gi:
        (xr, xz, xn), (hr, hz, hn) = gi_t.chunk(3, -1), (h @ Wh_cat.T + bh_cat).chunk(3, -1)
        z = (xz + hz).sigmoid()
        h = (1 - z) * (xn + (xr + hr).sigmoid() * hn).tanh() + z * h
        ys.append(h)
    return torch.stack(ys)


def flashrnn2(wx, recurrent, bias, initial, cell="lstm"):
    """FlashRNN2's persistent Triton kernel's, of FlashRNN's weights"""
    B, T, G, M, H = wx.shape
    config = FlashRNNConfig(function=cell, head_dim=H, num_heads=M, batch_size=B, input_shape="TBGHD", output_shape="STBHD")
    every, last = flashrnn(wx.transpose(0, 1), recurrent, bias, states=initial.transpose(1, 2), config=config)
    return every.transpose(1, 2), last.transpose(1, 2)


def newton_apply(cell, x, config=None, *, h0=None):
    """pararnn-torch 0.17.4's, step by step: what its Newton steps converge to, if the Jacobians are those of the steps. The real one passed
    the same gate on a CPU."""
    assert config == {"max_iters": 32, "scan_backend": "eager", "residual_atol": 1e-6} and (cell.jac_structure, cell.state_slots) == ("dense", 1)
    h, ys = h0, []
    assert x.shape[::2] == h0.shape == (x.shape[0], cell.d_h)
    for x_t in x.unbind(1):
        after, jacobian = cell.step_with_jacobian(h, x_t)
        expected = torch.func.vmap(torch.func.jacrev(lambda h, x: cell.step(h, x)))(h.detach(), x_t.detach())
        assert torch.allclose(jacobian, expected, atol=1e-6)
        h = after
        ys.append(h)
    return torch.stack(ys, 1)


@pytest.mark.parametrize("shape", ["", "l2-bi", "m3", "n4"])
@pytest.mark.parametrize("kind, cell", [("GruQat", "gru"), ("FlashRNN2", "lstm"), ("ParaRNN", "elman_tanh")])
def test_libraries_of_the_example_are_called_in_their_layouts(kind, cell, shape):
    path = Path(__file__).parents[1] / "examples" / "peers.py"
    provider = runpy.run_path(str(path))[kind]()
    of = replace(small(cell=cell), **SHAPES[shape])
    if shape in ("m3", "n4") and kind == "GruQat" or shape and kind == "ParaRNN":
        assert ("one layer" if kind == "ParaRNN" else "one model") in provider.unsupported(of)
        return
    assert "not installed" in provider.not_imported()
    assert provider.unsupported(replace(of, H=of.H * of.heads, dtype="bf16", precision=None)) == ""  # a head of 16 units
    fakes = dict(
        gru_qat__triton_kernels__scan=dict(gru_scan_persistent=gru_scan_persistent),
        flashrnn__flashrnn2__triton_persistent=dict(recurrence=flashrnn2),
        pararnn__solvers__newton=dict(newton_apply=newton_apply, NewtonConfig=dict),
    )
    with installed(pararnn={}, pararnn__solvers={}, gru_qat={}, gru_qat__triton_kernels={}, flashrnn={}, flashrnn__flashrnn2={}, **fakes):
        verdict = forward_alone(of, provider) if kind == "FlashRNN2" else check.gate(of, provider, CPU)
    assert verdict.ok and verdict.worst() < 0.5, verdict.message


def test_the_suite_of_the_crossover_is_what_the_example_runs():
    example = Path(__file__).parents[1] / "examples"
    provider = runpy.run_path(str(example / "peers.py"))["ParaRNN"]()
    listed = suites(str(example / "crossover.txt"))
    assert len({of.T for of in listed}) >= 4 and [provider.unsupported(of) for of in listed] == [""] * len(listed)
    assert "Jacobians" in provider.unsupported(parse("h1024-b16-t512-fp32"))


def test_what_a_library_gets_wrong_is_seen():
    def swapped(Wx, R, b, *rest, **how):
        return flashrnn(Wx.flip(2), R.flip(0), b.flip(0), *rest, **how)

    def transposed(input, weight, *rest, **how):
        return xma_rnn(input, weight.mT.contiguous(), *rest, **how)

    def forgets(*arguments):
        with torch.no_grad():
            RnnRelu.run(arguments[0], arguments[1], *arguments[2])
        return RnnRelu.apply(*arguments[:2], tuple(p.detach() for p in arguments[2]))

    wrong = [
        ("flashrnn", small(cell="lstm"), dict(flashrnn=dict(flashrnn=swapped, FlashRNNConfig=FlashRNNConfig)), "y: relative"),
        ("xma", small(), dict(xma=dict(KernelBackend=KernelBackend), xma__layers=dict(rnn=transposed)), "y: relative"),
        ("flaggems", small(cell="elman_relu"), dict(flag_gems={}, flag_gems__ops=dict(rnn_relu=forgets)), "dweight_ih_l0 is missing"),
    ]
    for name, of, modules, message in wrong:
        with installed(**modules):
            verdict = check.gate(of, PROVIDERS[name], CPU)
        assert not verdict.ok and message in verdict.message, name


def test_gradients_that_a_library_adds_up_are_those_of_one_call():
    with installed(**FAKES["flaggems"]):
        session = PROVIDERS["flaggems"].session(small(cell="elman_relu"), inputs.tensors(small(), CPU))
        first = {name: value.clone() for name, value in session.train().items()}  # they are added up in place
        again = session.train()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_flaggems_without_the_nonlinearity_is_unsupported():
    with installed(**FAKES["flaggems"]), pytest.raises(NotImplementedError, match="has no rnn_tanh"):
        PROVIDERS["flaggems"].session(small(), inputs.tensors(small(), CPU))


def test_a_librarys_memory_is_laid_out_before_the_call():
    value = torch.randn(2, 3, 4, 5)
    found = peers.lying(value, 2, 1, 0, 3)
    assert torch.equal(found, value) and found.permute(2, 1, 0, 3).is_contiguous()
    assert peers.lying(value, 1, 2, 0, 3).permute(1, 2, 0, 3).is_contiguous()


# ---- missing, unsupported -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, where",
    [
        ("flashrnn", "(pip install flashrnn)"), ("torchrl", "(pip install torchrl)"),
        ("xma", "(from github.com/open-lm-engine/accelerated-model-architectures)"), ("flaggems", "releases up to 5.0.2"),
    ],
)  # fmt: skip
def test_a_library_that_is_not_there_is_reported_missing(name, where):
    provider = PROVIDERS[name]
    real = importlib.import_module

    def none(module, *rest):
        if module == provider.module:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return real(module, *rest)

    with mock.patch.object(importlib, "import_module", none):
        said = provider.missing(CUDA)
    assert said.startswith(f"{provider.package} is not installed") and where in said


@pytest.mark.parametrize(
    "error, said",
    [
        (ModuleNotFoundError("No module named 'einops'", name="einops"), "flashrnn cannot be imported: No module named 'einops'"),
        (RuntimeError("No device were detected"), "flashrnn cannot be imported: RuntimeError: No device were detected"),
    ],
)
def test_a_library_that_does_not_import_says_why(error, said):
    with mock.patch.object(importlib, "import_module", mock.Mock(side_effect=error)):
        assert PROVIDERS["flashrnn"].missing(CUDA) == said


def test_another_package_of_the_same_name_is_not_taken_for_xma():
    with installed(xma={}):
        assert "is not accelerated-model-architectures" in PROVIDERS["xma"].missing(CUDA)
    with installed(**FAKES["xma"]):
        assert PROVIDERS["xma"].missing(CUDA) == "" and "CUDA" in PROVIDERS["xma"].missing(CPU)


def test_flashrnn_needs_a_compiler(tmp_path):
    from torch.utils import cpp_extension

    with installed(**FAKES["flashrnn"]):
        with mock.patch.object(cpp_extension, "CUDA_HOME", str(tmp_path)):
            assert "nvcc" in PROVIDERS["flashrnn"].missing(CUDA)
            (tmp_path / "bin").mkdir()
            (tmp_path / "bin" / "nvcc").touch()
            assert PROVIDERS["flashrnn"].missing(CUDA) == ""


@pytest.mark.parametrize(
    "name, of, why",
    [
        ("xma", "gru-h16-b2-t3-bf16", "reset gate acts before the recurrent product"), ("xma", "h512-b2-t3-bf16", "got 512"),
        ("flashrnn", "elman_relu-h16-b2-t3-bf16", "tanh"), ("flaggems", "leaky_tanh-h16-b2-t3-bf16", "torch has none"),
        ("cudnn", "leaky_relu-h16-b2-t3-bf16", "no module of leaky_relu"),
        ("torchrl", "gru-h16-b2-t3-bf16", "fp32"), ("torchrl", "h16-b2-t3-fp32", "a GRU and an LSTM"),
        ("cudnn-layers", "h16-b2-t3-bf16", "the same as cudnn"), ("rnn_triton-layers", "h16-b2-t3-bf16", "the same as rnn_triton"),
        ("rnn_triton-layers", "h16-b2-t3-l2-m2-bf16", "share no launch"), ("rnn_triton", "h16-b2-t3-m2-heavy-bf16", "no reference"),
        ("rnn_triton-packed", "h16-b2-t3-bf16", "sequences of one length"), ("torchrl", "gru-h16-b2-t3-n2-fp32", "of one head"), ("loop", "h16-b2-t3-heavy-bf16", "padded"),
        ("graph", "h16-b2-t3-heavy-bf16", "padded"), ("compile", "h16-b2-t3-uniform-bf16", "padded"),
    ],
)  # fmt: skip
def test_what_a_provider_does_not_run_says_why(name, of, why):
    assert why in PROVIDERS[name].unsupported(parse(of))


# ---- the gate, generalized ------------------------------------------------------------------------------------------


def gated(of):
    given = inputs.tensors(of, CPU)
    truth = check.reference(of, given)
    result = {name: value.to(inputs.DTYPES[of.dtype]) for name, value in truth.items()}
    assert check.compare(of, result, truth).ok
    return result, truth


@pytest.mark.parametrize("cell", ["elman_tanh", "gru", "lstm"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("how", [{}, dict(layers=8), dict(layers=2, bidirectional=True)], ids=["1", "l8", "l2-bi"])
def test_honest_roundings_are_well_within_the_tolerance(cell, dtype, how):
    """An eager loop that rounds after every operator, over few steps: weight gradients are summed in its dtype, too"""
    of = case(32, 8, 40, dtype, 24, cell=cell, **how)
    if (cell, dtype) == ("lstm", "fp16") and of.layers == 8:
        return  # gradients below 2^-14: the module docstring of check.py
    verdict = check.gate(of, PROVIDERS["loop"], CPU)
    assert verdict.ok and 0.02 < verdict.worst() < 0.9, verdict.message
    worst = max(e["rel"] / e["rel_tol"] for name, e in verdict.errors.items() if name in ("y", "hn", "cn", "dx", "dh0", "dc0"))
    assert worst < 0.4


@pytest.mark.parametrize("of", ["h16-b3-t6-l3-m4-bf16", "gru-h16-b3-t6-l3-bi-bf16", "lstm-h16-b3-t6-l2-fp32"])
def test_one_wrong_part_among_many_is_seen(of):
    of = parse(of)
    result, truth = gated(of)
    states = [name for name in check.STATES if name in result]
    for name in states:
        wrong = result[name].clone()
        # of the last layer and direction of one model alone: of all of them it is within the tolerance
        wrong.flatten(0, -3)[-1] *= 1 + 1.5 * check.tolerance(of, name)[0]
        verdict = check.compare(of, result | {name: wrong}, truth)
        assert not verdict.ok and verdict.message.startswith(name)
    if of.models > 1:
        for name in result:
            wrong = result[name].clone()
            wrong[2] = wrong[1]
            assert not check.compare(of, result | {name: wrong}, truth).ok, name
            assert check.compare(of, result | {name: list(result[name])}, truth).ok  # as a list, one for each model
    if of.bidirectional:
        halves = result["y"].chunk(2, -1)
        assert not check.compare(of, result | {"y": torch.cat(halves[::-1], -1)}, truth).ok


def test_a_gradient_that_is_not_there_is_a_fault():
    of = small()
    result, truth = gated(of)
    verdict = check.compare(of, {k: v for k, v in result.items() if k != "dbias_hh_l0"}, truth)
    assert verdict.message == "dbias_hh_l0 is missing"


def test_a_wrong_gradient_does_not_make_the_forward_pass_wrong():
    of = small()
    given = inputs.tensors(of, CPU)
    truth = check.reference(of, given)
    session = PROVIDERS["cudnn"].session(of, given)
    session.cotangents[0] = 2 * session.cotangents[0]
    assert check.judge(of, session, "fwd", truth).ok and not check.judge(of, session, "train", truth).ok
    session.module.bias_hh_l0.data += 0.1
    assert "without gradients: y" in check.judge(of, session, "fwd", truth).message


def test_summed_in_bf16_step_by_step_weight_gradients_are_wrong_in_the_end():
    """As check.py says: 0.3 u sqrt(T), beyond the tolerance from about T = 240"""
    of = case(32, 2, 1024, "bf16", 8)
    given = inputs.tensors(of, CPU)
    truth = check.reference(of, given)
    session = PROVIDERS["loop"].session(of, given)
    verdict = check.judge(of, session, "train", truth)
    error = verdict.errors["dweight_hh_l0"]
    assert not verdict.ok and 0.2 < error["rel"] / (2**-8 * 32) < 0.45 and check.judge(of, session, "fwd", truth).ok


# ---- compiled ahead -------------------------------------------------------------------------------------------------


def test_all_that_compiles_is_compiled_ahead():
    of, packed = case(64, 8, 1000, "bf16"), case(64, 8, 1000, "bf16", lengths="heavy")
    jobs = [Job(of, ("fwd", "train"), tuple(PROVIDERS)), Job(packed, ("fwd",), tuple(PROVIDERS))]
    calls = compiling.calls_of(jobs, [name for name in PROVIDERS if name != "flashrnn"])
    ours = [c for c in calls if c.provider in ("rnn_triton", "compile", "xma")]
    assert [(c.case, c.provider, c.pass_) for c in ours] == [
        *[(t, name, p) for name in ("rnn_triton", "compile", "xma") for t in (of, of.at(250)) for p in ("fwd", "train")],
        *[(t, "rnn_triton", "fwd") for t in (packed, packed.at(250))],
    ]
    assert not {"flashrnn", "cudnn", "loop"} & {c.provider for c in calls}
    shortest = {(c.provider, PROVIDERS[c.provider].shortest(c.case).T) for c in ours}
    assert shortest == {("rnn_triton", 16), ("compile", 16 + 1000 % 16), ("compile", 16 + 250 % 16), ("xma", 16)}


def test_a_provider_prepares_by_running_its_shortest_case():
    ran = []

    class Slow(interface.Provider):
        name, compiles, module = "slow", True, "math"

        def session(self, case, inputs):
            assert inputs["x"].shape[0] == case.T
            return SimpleNamespace(forward=lambda: ran.append((case.T, "fwd")), train=lambda: ran.append((case.T, "train")))

        def missing(self, device):
            return ""

    of = small().at(100)
    for pass_ in ("fwd", "train"):
        Slow().prepare(of, pass_, CPU)
    assert ran == [(16, "fwd"), (16, "train")]
    with mock.patch.object(Slow, "missing", lambda *_: "gone"):
        Slow().prepare(of, "fwd", CPU)
    assert len(ran) == 2
    with mock.patch.dict(PROVIDERS, slow=Slow()), mock.patch.object(Slow, "prepare") as prepare:
        compiling.compile_call(compiling.Call(of, "fwd", provider="slow"))
    prepare.assert_called_once_with(of, "fwd", CUDA)


def test_the_plan_of_a_network_is_that_of_its_launches():
    ours, anywhere = PROVIDERS["rnn_triton"], torch.device("meta")  # which stands for an H200
    one = case(512, 8, 100, "bf16")
    assert set(ours.plan(one, anywhere)) == {"forward", "backward"}
    found = ours.plan(replace(one, layers=4), anywhere)
    (launch,) = found["launches"]
    assert launch["bundle"] == {"count": 4, "linked": True, "dropout": False}
    assert found["forward"] == launch["forward"] and plan_from_fields(launch["backward"]).regime == "cta_group"
    apart = ours.plan(replace(one, layers=2, bidirectional=True, models=3), anywhere)["launches"]
    assert [part["bundle"]["count"] for part in apart] == [1, 1, 1, 1]
