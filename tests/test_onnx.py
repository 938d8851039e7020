"""Export to ONNX: the exported model in onnxruntime beside the module, at other T and B than it was exported with."""

import io
import warnings
from unittest import mock

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import rnn_triton
from rnn_triton.launch import launcher

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")

I, H = 3, 5
OPTIONS = [
    dict(),
    dict(nonlinearity="relu", bias=False),
    dict(num_layers=2, bidirectional=True),
    dict(num_layers=2, dropout=0.5),
]


class All(torch.nn.Module):
    """Every kind of module, of one input [T,B,I], without a state and with one"""

    def __init__(self):
        super().__init__()
        self.networks = torch.nn.ModuleList(rnn_triton.RNN(I, H, **options) for options in OPTIONS)
        self.batch_first = rnn_triton.RNN(I, H, 1, "relu", batch_first=True, bidirectional=True)
        self.simple = rnn_triton.SimpleRNN(I, H, 2, batch_first=True)
        self.cell = rnn_triton.RNNCell(I, H, nonlinearity="relu")
        self.gru = torch.nn.ModuleList([rnn_triton.GRU(I, H, 2, bidirectional=True), rnn_triton.GRU(I, H, bias=False)])
        self.lstm = torch.nn.ModuleList([rnn_triton.LSTM(I, H, 2, bidirectional=True), rnn_triton.LSTM(I, H, bias=False)])

    def forward(self, x, hx):
        found = []
        for network in self.networks:
            found += network(x)
            found += network(x, hx[: len(network.all_weights)])
        for gru, lstm in zip(self.gru, self.lstm):
            h, c = hx[: len(gru.all_weights)], hx.cos()[: len(gru.all_weights)]
            found += [*gru(x), *gru(x, h)]
            for y, states in (lstm(x), lstm(x, (h, c))):
                found += [y, *states]
        found += self.batch_first(x.transpose(0, 1), hx[:2])
        found += self.simple(x.transpose(0, 1))
        # a single bias, and time backwards, of the function
        w_ih, w_hh, b_ih = self.cell.weight_ih, self.cell.weight_hh, self.cell.bias_ih
        found += rnn_triton.rnn(x, w_ih, w_hh, b_ih, None, hx[0], reverse=True)
        return *found, self.cell(x[0]), self.cell(x[-1], hx[0])


def export(module, arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(module, arguments, dynamo=True, verbose=False, **options)


def check(program, module, T, B, atol=None):
    file = io.BytesIO()
    program.save(file)
    session = runtime.InferenceSession(file.getvalue())
    x, hx = torch.randn(T, B, I), torch.randn(4, B, H)
    given = dict(zip([i.name for i in session.get_inputs()], (x.numpy(), hx.numpy()), strict=True))
    with torch.no_grad():
        expected = module(x, hx)
    for got, wanted in zip(session.run(None, given), expected, strict=True):
        # fp32: 2^-24 a rounding, sqrt(I + H) < 3 of them and one of tanh a step, over T steps and 2 layers, on values below 4;
        # times two, for both sides round
        limit = 2 * 4 * 4 * 2 * T * 2.0**-24 if atol is None else atol
        torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=0, atol=limit)


DYNAMIC = {0: "T", 1: "B"}, {1: "B"}


def test_every_kind_of_module_in_onnxruntime():
    """One model, as one export costs seconds; T and B are left open."""
    torch.manual_seed(0)
    module = All().eval()
    program = export(module, (torch.randn(4, 2, I), torch.randn(4, 2, H)), dynamic_shapes=DYNAMIC)
    nodes = [node.op_type for node in program.model.graph]
    assert nodes.count("RNN") == 2 * (1 + 1 + 4 + 2) + 2 + 1 + 1 + 2
    assert nodes.count("GRU") == nodes.count("LSTM") == 2 * (4 + 1)
    assert not {node.domain for node in program.model.graph} - {""}
    for T, B in ((4, 2), (7, 3), (1, 1)):
        check(program, module, T, B)


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = rnn_triton.RNN(I, H, 2, bidirectional=True)

    def forward(self, x, hx):
        return self.rnn(x, hx)


@pytest.mark.parametrize("shared", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_program_exported_before(shared):
    """Also one in which layers share launches, as exported on a GPU"""
    module = Two().eval()
    T, B = torch.export.Dim("T"), torch.export.Dim("B")
    with mock.patch("rnn_triton.functional.has_kernels", lambda _: True) if shared else mock.MagicMock():
        arguments = torch.randn(4, 2, I), torch.randn(4, 2, H)
        program = torch.export.export(module, arguments, dynamic_shapes=({0: T, 1: B}, {1: B}))
    assert str(program.graph).count("rnn_triton.forward.default") == 1
    program = program.run_decompositions(rnn_triton.onnx.decompositions())
    check(export(program, ()), module, 7, 3)


def test_launches_are_not_shared_in_an_export():
    with mock.patch("rnn_triton.functional.has_kernels", lambda _: True):
        program = export(Two().eval(), (torch.randn(4, 2, I), torch.randn(4, 2, H)))
    assert [node.op_type for node in program.model.graph].count("RNN") == 4
    assert launcher.has_kernels(torch.zeros(1)) is False


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("module", [rnn_triton.RNN(I, H, 2), rnn_triton.SimpleRNN(I, H, 2)], ids=["RNN", "SimpleRNN"])
def test_the_legacy_exporter_names_the_way_out(module, grad):
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        with pytest.raises(rnn_triton.UnsupportedError, match=r"torch\.onnx\.export\(\.\.\., dynamo=True\)"):
            torch.onnx.export(module, (torch.randn(4, 2, I),), io.BytesIO(), dynamo=False)


class Rounded(torch.nn.Module):
    """bf16 within, fp32 without, for numpy has no bf16"""

    def __init__(self):
        super().__init__()
        self.rnn = rnn_triton.RNN(I, H, dtype=torch.bfloat16)

    def forward(self, x, hx):
        return [t.float() for t in self.rnn(x.bfloat16(), hx[:1].bfloat16())]


def test_bf16_is_computed_in_fp32():
    module = Rounded().eval()
    program = export(module, (torch.randn(4, 2, I), torch.randn(4, 2, H)))
    # bf16: 2^-9 a rounding of each state and of the results, |h| < 1, over T steps of norm below sqrt(H) * sqrt(1/3) < 2
    check(program, module, 4, 2, atol=(1 + 2 + 4 + 8 + 1) * 2.0**-9)


def test_what_onnx_has_no_operator_for():
    table = rnn_triton.onnx.decompositions()
    network = table[torch.ops.rnn_triton.forward.default]
    weights = [torch.zeros(H, size) for size in (I, H)]
    with pytest.raises(rnn_triton.UnsupportedError, match="ONNX has no operator for an ensemble"):
        ensemble = [torch.zeros(2, H, size) for size in (I, H)]
        network(torch.zeros(2, 4, 2, I), ensemble, [], None, True, True, "elman_tanh", "forward", None, 0, False, False)
    with pytest.raises(rnn_triton.UnsupportedError, match="dropout"):
        network(torch.zeros(4, 2, I), weights, [], None, False, False, "elman_tanh", "forward", None, 7, False, False)
    with pytest.raises(rnn_triton.UnsupportedError, match="ONNX has no operator for the cell 'leaky_tanh'"):
        network(torch.zeros(4, 2, I), weights, [], None, False, False, "leaky_tanh", "forward", None, 0, False, False)


def test_packed_input_is_refused_by_torch():
    class Packed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = rnn_triton.RNN(I, H)

        def forward(self, x, lengths):
            return self.rnn(pack_padded_sequence(x, lengths))[1]

    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="Failed to export the model with torch.export"):
        export(Packed(), (torch.randn(4, 2, I), torch.tensor([4, 2])))
