"""The samples and error samples that torch tests its own modules with, with our classes in their place."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import rnn_triton

# fp64: some 100 roundings of 2^-53 on values up to 10, which torch's samples stay below, and a decade to spare
TOLERANCE = dict(rtol=0, atol=100 * 10 * 10 * 2.0**-53)


def samples(info, function, **options):
    torch.manual_seed(0)  # their tensors are random
    found = getattr(info, function)(
        info, device="cpu", dtype=torch.float64, requires_grad=True, training=True, **options
    )
    assert found
    return found


def built(cls, sample):
    torch.manual_seed(1)
    arguments = sample.constructor_input
    return cls(*arguments.args, **{"dtype": torch.float64, **arguments.kwargs})


def tensors(found):
    """Those of a module's arguments or outputs."""
    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, PackedSequence):
        return [found.data]
    return [t for part in found if part is not None for t in tensors(part)]


def called(module, arguments):
    outputs = tensors(module(*arguments.args, **arguments.kwargs))
    leaves = [t for t in tensors(arguments.args) if t.requires_grad] + list(module.parameters())
    return outputs, torch.autograd.grad(sum(o.sin().sum() for o in outputs), leaves)


def check_samples(ours, theirs, given, against_reference):
    for sample in given:
        arguments = sample.forward_input
        module = built(ours, sample)
        got = called(module, arguments)
        torch.testing.assert_close(got, called(built(theirs, sample), arguments), **TOLERANCE)
        if against_reference and not isinstance(arguments.args[0], PackedSequence):
            expected = tensors(sample.reference_fn(module, *arguments.args))
            torch.testing.assert_close(got[0], expected, **TOLERANCE)


def check_errors(ours, given, on_construction):
    for error in given:
        arguments = error.module_error_input.constructor_input
        with pytest.raises(error.error_type, match=error.error_regex):
            if error.error_on is on_construction:
                ours(*arguments.args, **arguments.kwargs)
            else:
                module = built(ours, error.module_error_input)
                module(*error.module_error_input.forward_input.args)


# One test, for torch's file takes seconds to import, and here, where CPU tensors can go either way.
@pytest.mark.long
@pytest.mark.interpret
@pytest.mark.parametrize("every", [1, 5])  # 5: of all four kinds in turn
@pytest.mark.parametrize("theirs", [nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_samples_of_torch(monkeypatch, theirs, every):
    pytest.importorskip("expecttest")  # torch's file imports it
    from torch.testing._internal import common_modules

    launched = []
    run = rnn_triton.launch.dispatch.forward
    monkeypatch.setattr(rnn_triton.launch.dispatch, "forward", lambda *a, **k: launched.append(a) or run(*a, **k))
    (info,) = [info for info in common_modules.module_db if info.module_cls is theirs]
    packed = theirs in (nn.RNN, nn.GRU)  # torch has no such samples for LSTM
    ours = getattr(rnn_triton, theirs.__name__)
    for kernels in (True, False):
        monkeypatch.setattr(rnn_triton.interpret.interpreter, "active", lambda: kernels)
        launched.clear()
        given = samples(info, "module_inputs_func", **dict(with_packed_sequence=True) if packed else {})
        check_samples(ours, theirs, given[:: every if kernels else 1], against_reference=not kernels)
        assert bool(launched) is kernels
        errors = samples(info, "module_error_inputs_func")
        check_errors(ours, errors, common_modules.ModuleErrorEnum.CONSTRUCTION_ERROR)
