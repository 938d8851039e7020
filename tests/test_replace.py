"""rnn_triton.replace and restore: what of a model changes, what does not, and what is left alone, and why.

All in fp64 on CPU tensors, where this package runs torch's own operators, in an order of its own.  Models that train through the kernels
after `replace`: tests/test_models.py."""

import contextlib
import copy
import io

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnn_triton
from rnn_triton.plan import hardware

NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")


class Model(nn.Module):
    """Encoder, attention by a cell in a loop, a shared layer, layers in containers: one of each class"""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder = nn.LSTM(6, 5, 2, bidirectional=True, batch_first=True, proj_size=3, dropout=0.5)
        self.middle = nn.ModuleList([nn.Sequential(nn.Linear(6, 4), nn.GRU(4, 6, batch_first=True)), nn.RNN(6, 6, nonlinearity="relu")])
        self.again = self.middle[1]
        self.cells = nn.ModuleDict({"lstm": nn.LSTMCell(6, 6), "gru": nn.GRUCell(6, 6, bias=False), "rnn": nn.RNNCell(6, 6, nonlinearity="relu")})
        self.readout = nn.Linear(6, 11)

    def forward(self, symbols):
        x, _ = self.encoder(self.embedding(symbols))
        x, _ = self.middle[0](x)
        x, h = self.middle[1](x.transpose(0, 1))
        c, h = h[0], h[0]
        for x_t in x:
            h, c = self.cells["lstm"](x_t, (h, c))
            h = self.cells["rnn"](h, self.cells["gru"](h))
        return self.readout(h + self.again(x)[1][0])


SWAPPED = {
    "encoder": "LSTM", "middle.0.1": "GRU", "middle.1": "RNN", "again": "RNN",
    "cells.lstm": "LSTMCell", "cells.gru": "GRUCell", "cells.rnn": "RNNCell",
}  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model().double()


@pytest.fixture
def symbols():
    return torch.randint(11, (3, 4), generator=torch.Generator().manual_seed(1))


def results(model, *inputs):
    """Outputs and gradients of all parameters"""
    torch.manual_seed(2)  # of dropout
    output = flat(model(*inputs))
    loss = sum(t.square().sum() for t in output)
    return [*output, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])]


def flat(output):
    if isinstance(output, PackedSequence):
        return [output.data]
    return [t for part in output for t in flat(part)] if isinstance(output, (tuple, list)) else [output]


def same(got, expected):
    """But for rounding: 2^-53, in a thousand sums on the way, at the scale of each result"""
    pairs = list(zip(flat(got), flat(expected), strict=True))
    return all(((a - b).abs() <= 1000 * 2**-53 * b.abs().max().clamp(min=1)).all() for a, b in pairs)


def kinds(model):
    return {name: type(module) for name, module in model.named_modules(remove_duplicate=False)}


def test_a_model_goes_there_and_back(model, symbols):
    expected, modules, attributes = results(model, symbols), dict(model.named_modules()), [vars(m).copy() for m in model.modules()]
    before = kinds(model)
    done = rnn_triton.replace(model)
    assert done.model is model and done.kept == {}
    assert done.swapped == {name: f"rnn_triton.{kind}" for name, kind in SWAPPED.items()}
    assert kinds(model) == before | {name: getattr(rnn_triton, kind) for name, kind in SWAPPED.items()}
    assert dict(model.named_modules()) == modules and model.again is model.middle[1]
    assert same(results(model, symbols), expected)
    assert rnn_triton.replace(model) == rnn_triton.Replaced(model, {}, {})  # nothing is left to do

    done = rnn_triton.restore(model)
    assert done.model is model and done.kept == {}
    assert done.swapped == {name: f"torch.nn.{kind}" for name, kind in SWAPPED.items()}
    assert kinds(model) == before and [vars(m).keys() for m in model.modules()] == [a.keys() for a in attributes]
    assert same(results(model, symbols), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_by_itself_keeps_what_a_new_one_has(name):
    """its attributes are those that the constructor sets, whatever these may be"""
    options = dict(nonlinearity="relu") if name.startswith("RNN") else {}
    theirs, ours = getattr(nn, name)(3, 4, **options), getattr(rnn_triton, name)(3, 4, **options)
    done = rnn_triton.replace(theirs)
    assert done.model is theirs and done.swapped == {"": f"rnn_triton.{name}"}
    assert type(theirs) is type(ours) and repr(theirs) == repr(ours)
    values = [{k: v for k, v in vars(m).items() if isinstance(v, (str, int, float, type(None)))} for m in (theirs, ours)]
    assert values[0] == values[1] and vars(theirs).keys() == vars(ours).keys()


def test_parameters_hooks_and_flags_stay(model, symbols):
    seen = []

    def hook(name):
        return lambda *args: seen.append(name)

    for module in (model.encoder, model.cells["gru"]):
        module.register_forward_pre_hook(hook("pre"))
        module.register_forward_hook(hook("forward"))
        module.register_full_backward_hook(hook("backward"))
        module.register_state_dict_post_hook(hook("state_dict"))
        module.register_load_state_dict_pre_hook(hook("load"))
    handle = model.middle[1].register_forward_hook(hook("removed"))
    model.encoder.weight_hh_l0.requires_grad_(False)
    model.middle.eval()
    model.encoder.note = "of the user"
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    parameters, training = dict(model.named_parameters()), [m.training for m in model.modules()]

    for change in (rnn_triton.replace, rnn_triton.restore):
        change(model)
        assert all(p is parameters[name] for name, p in model.named_parameters()) and len(parameters) == len(list(model.parameters()))
        assert [m.training for m in model.modules()] == training and model.encoder.note == "of the user"
        assert not model.encoder.weight_hh_l0.requires_grad
        seen.clear()
        model(symbols).sum().backward()
        model.load_state_dict(model.state_dict())
        steps = symbols.shape[1]
        assert [seen.count(name) for name in ("pre", "forward", "backward", "state_dict", "load", "removed")] == [1 + steps] * 3 + [2, 2, 2]
        before = model.encoder.weight_ih_l0.clone()
        optimizer.step()
        assert not torch.equal(model.encoder.weight_ih_l0, before)
    handle.remove()  # works on a module that was swapped
    seen.clear()
    model(symbols)
    assert "removed" not in seen


def test_a_copy_leaves_the_model_alone(model, symbols):
    expected, before = results(model, symbols), kinds(model)
    done = rnn_triton.replace(model, inplace=False)
    assert done.model is not model and kinds(model) == before and done.swapped.keys() == SWAPPED.keys()
    assert not {id(p) for p in model.parameters()} & {id(p) for p in done.model.parameters()}
    assert done.model.again is done.model.middle[1]
    assert same(results(done.model, symbols), expected)
    back = rnn_triton.restore(done.model, inplace=False)
    assert kinds(back.model) == before and type(done.model.encoder) is rnn_triton.LSTM


def weight_norm(rnn):
    parametrizations.weight_norm(rnn, "weight_hh_l0")


def spectral_norm(rnn):
    parametrizations.spectral_norm(rnn, "weight_hh_l0")  # with a state, which each call in training moves


def old_weight_norm(rnn):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(rnn, "weight_hh_l0")


def pruned(rnn):
    prune.l1_unstructured(rnn, "weight_hh_l0", amount=0.5)


@pytest.mark.parametrize("change", [weight_norm, spectral_norm, old_weight_norm, pruned])
@pytest.mark.parametrize("first", ["changed", "replaced"])
@pytest.mark.parametrize("name", ["RNN", "LSTM"])
def test_weights_that_are_computed(name, first, change):
    """Parametrized before or after, and called before or not; copied, and restored, too"""
    torch.manual_seed(0)
    theirs = getattr(nn, name)(3, 4)
    theirs.double()
    ours, x = copy.deepcopy(theirs), torch.randn(3, 2, 3, dtype=torch.float64)
    torch.manual_seed(0)
    change(theirs)
    torch.manual_seed(0)
    if first == "changed":
        change(ours)
        rnn_triton.replace(ours)
    else:
        rnn_triton.replace(ours)
        change(ours)
    assert isinstance(ours, getattr(rnn_triton, name)) and ours.state_dict().keys() == theirs.state_dict().keys()
    for step in range(2):
        assert same(results(ours, x), results(theirs, x)), step
        for nets in (ours, theirs):
            for p in nets.parameters():
                p.data.mul_(0.9)
    assert same(results(rnn_triton.restore(ours).model, x), results(theirs, x))
    assert isinstance(ours, getattr(nn, name)) and type(ours).__name__ == type(theirs).__name__


def test_a_parametrization_is_removed_after_the_swap():
    layer, x = nn.GRU(3, 4, dtype=torch.float64), torch.randn(3, 2, 3, dtype=torch.float64)
    weight_norm(layer)
    expected = layer(x)
    rnn_triton.replace(layer)
    nn.utils.parametrize.remove_parametrizations(layer, "weight_hh_l0")
    assert type(layer) is rnn_triton.GRU and same(layer(x), expected)


def test_files_hold_the_class_of_now(model, symbols):
    """torch.save of a model as a whole, and of its state alone"""
    expected = results(model, symbols)
    rnn_triton.replace(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded.encoder) is rnn_triton.LSTM and same(results(loaded, symbols), expected)
    fresh = Model().double()
    fresh.load_state_dict(model.state_dict())
    assert same(results(fresh, symbols), expected)


def test_packed_input():
    x = pack_padded_sequence(torch.randn(5, 3, 3, dtype=torch.float64), [2, 5, 3], enforce_sorted=False)
    rnn = nn.LSTM(3, 4, bidirectional=True, dtype=torch.float64)
    expected = results(rnn, x)
    assert same(results(rnn_triton.replace(rnn).model, x), expected)


# ---- what surrounds a model ---------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.cell = nn.GRU(3, 4, dtype=torch.float64), nn.LSTMCell(4, 3, dtype=torch.float64)

    def forward(self, x):
        return self.cell(self.rnn(x)[0][-1])


@pytest.mark.parametrize("called", [False, True])
def test_compile(called):
    """The whole model becomes one graph, which torch.nn.GRU does not allow; if it was compiled before, then anew at the next call"""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.GRU(3, 4, dtype=torch.float64)), torch.randn(3, 2, 3, dtype=torch.float64)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled, expected = torch.compile(model, backend=backend, fullgraph=not called), results(model, x)
    if called:
        compiled(x)
        assert graphs == []
    assert [*rnn_triton.replace(compiled).swapped] == ["_orig_mod.0"]
    assert same(results(compiled, x), expected)
    assert len(graphs) == 1


def test_data_parallel(model, symbols):
    expected = results(model, symbols)
    wrapped = nn.DataParallel(model)
    assert {name.removeprefix("module.") for name in rnn_triton.replace(wrapped).swapped} == SWAPPED.keys()
    assert type(wrapped.module.encoder) is rnn_triton.LSTM and same(results(wrapped, symbols), expected)


@contextlib.contextmanager
def alone():
    """A group of this process alone"""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def sharded(model):
    from torch.distributed.fsdp import fully_shard

    for part in (model.rnn, model.cell, model):
        fully_shard(part)
    assert type(model.rnn).__name__ == "FSDPGRU"
    return model


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@pytest.mark.parametrize("wrap", [nn.parallel.DistributedDataParallel, sharded])
@pytest.mark.parametrize("when", ["before", "after"])
def test_distributed(when, wrap):
    """In one process; two train in tests/test_integration.py.  FSDP2 puts classes of its own in place of those of modules"""
    torch.manual_seed(0)
    model, x = Small(), torch.randn(3, 2, 3, dtype=torch.float64)
    expected = results(model, x)
    with alone():
        if when == "before":
            rnn_triton.replace(model)
        wrapped = wrap(model)
        if when == "after":
            assert {name.removeprefix("module.") for name in rnn_triton.replace(wrapped).swapped} == {"rnn", "cell"}
        assert isinstance(model.rnn, rnn_triton.GRU) and isinstance(model.cell, rnn_triton.LSTMCell)
        h, c = wrapped(x)
        (h.square().sum() + c.square().sum()).backward()
        gradients = [getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for p in model.parameters()]
        assert same([h, c, *gradients], expected)


# ---- what is left alone ---------------------------------------------------------------------------------------------------


class OwnForward(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


class OwnStart(nn.GRU):
    def __init__(self, size):
        super().__init__(size, size)

    def reset_parameters(self):
        super().reset_parameters()


class Unfinished(nn.RNNBase):
    pass


def other_forward():
    cell = nn.GRUCell(3, 4)
    cell.forward = lambda x, h=None: x
    return cell


def dynamic():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(3, 4)), {nn.LSTM})[0]


KEPT = [
    (lambda: OwnForward(3, 4), "it is of a subclass, test_replace.OwnForward, with a forward of its own"),
    (lambda: OwnStart(3), "it is of a subclass, test_replace.OwnStart, "),
    (lambda: Unfinished("GRU", 3, 4), "it is of a subclass, test_replace.Unfinished, "),
    (other_forward, "it has a forward of its own"),
    (dynamic, "it is quantized, or prepared for that (torch.ao.nn.quantized.dynamic.modules.rnn.LSTM)"),
    (lambda: torch.ao.nn.quantizable.LSTM(3, 4), "it is quantized, or prepared for that (torch.ao.nn.quantizable.modules.rnn.LSTM)"),
    (lambda: torch.jit.script(nn.GRU(3, 4)), "it is a program of torch.jit, whose modules cannot be changed"),
    (lambda: torch.jit.trace(nn.RNN(3, 4), torch.randn(2, 2, 3)), "it is a program of torch.jit, whose modules cannot be changed"),
    (lambda: nn.RNN(3, 4, dtype=torch.complex64), "its weights are of dtype torch.complex64"),
    (lambda: nn.LSTMCell(0, 4), "it has sizes of 0: LSTMCell(0, 4)"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("make, why", KEPT, ids=[why for _, why in KEPT])
def test_left_alone_and_named(make, why):
    """by itself, and inside a model whose other modules are swapped"""
    module = make()
    kind = type(module)
    model = nn.Sequential(nn.ModuleDict({"odd": module}), nn.LSTM(2, 2))
    done = rnn_triton.replace(model)
    assert done.swapped == {"1": "rnn_triton.LSTM"} and [*done.kept] == ["0.odd"]
    assert done.kept["0.odd"].startswith(why) and type(module) is kind
    model.again = module
    assert [*rnn_triton.replace(model).kept] == ["0.odd", "again"]
    alone = rnn_triton.replace(module)
    assert alone.model is module and alone.swapped == {} and alone.kept == {"": done.kept["0.odd"]}


@pytest.mark.parametrize("names", [("odd", "again"), ("again", "odd")])
def test_a_part_of_what_is_left_alone_is_so_under_any_name(names):
    odd = OwnForward(3, 4)
    odd.inner = nn.GRU(2, 2)
    model = nn.Module()
    for name in names:
        setattr(model, name, odd if name == "odd" else odd.inner)
    done = rnn_triton.replace(model)
    assert {*done.kept} == {"odd", "again"} and not done.swapped and type(odd.inner) is nn.GRU
    assert done.kept["again"] == "it is a part of 'odd', which is left alone"


@pytest.mark.parametrize("thing, name", [(None, "NoneType"), ([nn.LSTM(3, 4)], "list"), (nn.LSTM, "type"), (torch.zeros(1), "torch.Tensor")])
@pytest.mark.parametrize("change", [rnn_triton.replace, rnn_triton.restore])
def test_no_module(change, thing, name):
    for inplace in (True, False):
        done = change(thing, inplace=inplace)
        assert done.model is thing and done.swapped == {}
        assert done.kept == {"": f"it is no torch.nn.Module, but of type {name}"}


def test_devices_without_kernels(monkeypatch):
    monkeypatch.setattr(hardware, "_record", lambda device: hardware.Device("V100", 70, 80, 96 * 1024, 65536, 6 * 2**20, 1.5))
    model = nn.Sequential(nn.LSTM(3, 4), nn.GRUCell(3, 4, device="meta"))
    there = FakeTensor(FakeTensorMode(), torch.empty(12, 3, device="meta"), torch.device("cuda", 0))
    model[1].weight_ih = nn.Parameter(there)
    done = rnn_triton.replace(model)
    assert done.swapped == {"0": "rnn_triton.LSTM"}
    assert done.kept == {"1": "V100 has compute capability 7.0; the kernels need 8.0 (Ampere) or newer"}
    assert hardware.why_none(torch.device("mps")) == "the kernels need an NVIDIA GPU, not the device mps"
    assert hardware.why_none(torch.device("meta")) is None
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert hardware.why_none(torch.device("cuda", 0)) == "the kernels need an NVIDIA GPU, not ROCm"


def test_restore_names_what_torch_does_not_have():
    class Mine(rnn_triton.GRU):
        pass

    model = nn.ModuleDict({
        "leaky": rnn_triton.LeakyRNN(3, 4, leak=0.1), "mine": Mine(3, 4), "simple": rnn_triton.SimpleRNN(3, 4, 2), "torch": nn.LSTM(3, 4),
    })  # fmt: skip
    done = rnn_triton.restore(model)
    assert done.swapped == {"simple.rnn": "torch.nn.RNN"}
    assert done.kept == {"leaky": "torch.nn has no LeakyRNN", "mine": "torch.nn has no Mine"}
    assert model["simple"](torch.randn(2, 2, 3))[0].shape == (2, 2, 2)


def test_the_result_in_words(model):
    model.odd = OwnForward(3, 4)
    lines = str(rnn_triton.replace(model)).splitlines()
    assert lines[0] == "encoder: is now of rnn_triton.LSTM" and len(lines) == 1 + len(SWAPPED)
    assert lines[-1].startswith("odd: left alone, because it is of a subclass, test_replace.OwnForward, with a forward of its own")
    assert str(rnn_triton.replace(nn.GRU(3, 4))) == "the model itself: is now of rnn_triton.GRU"
    assert str(rnn_triton.replace(nn.Linear(3, 4))) == "no recurrent module was found"
