"""Random calls of the modules beside torch.nn's, see support/fuzz.py, and with lengths and resets, see support/sequence_fuzz.py."""

import pytest
from support import fuzz, sequence_fuzz

import rnn_triton


@pytest.mark.parametrize("first", [pytest.param(n, marks=() if n < 200 else pytest.mark.long) for n in range(0, 1000, 200)])
def test_as_torch(first):
    for number in range(first, first + 200):
        fuzz.check(number)


@pytest.mark.long
@pytest.mark.parametrize("first", range(1000, 5000, 500))
def test_as_torch_for_longer(first):
    for number in range(first, first + 500):
        fuzz.check(number)


@pytest.mark.interpret
@pytest.mark.parametrize("first", [pytest.param(n, marks=() if n < 45 else pytest.mark.long) for n in range(0, 150, 15)])
def test_kernels_as_torch(first, monkeypatch):
    launched = []
    run = rnn_triton.launch.dispatch.run
    monkeypatch.setattr(rnn_triton.launch.dispatch, "run", lambda *a, **k: launched.append(number) or run(*a, **k))
    for number in range(first, first + 15):
        fuzz.check(number, kernels=True)
    assert set(launched) == set(range(first, first + 15))  # every case went through a kernel


@pytest.mark.parametrize("first", [0, *[pytest.param(n, marks=pytest.mark.long) for n in range(60, 600, 60)]])
def test_sequences_as_the_reference(first):
    for number in range(first, first + 60):
        sequence_fuzz.check(number)


@pytest.mark.interpret
@pytest.mark.parametrize("first", [0, *[pytest.param(n, marks=pytest.mark.long) for n in range(4, 60, 4)]])
def test_sequences_by_the_kernels(first):
    for number in range(first, first + 4):
        sequence_fuzz.check(number, kernels=True)


def test_cases_are_what_they_are_meant_to_be():
    cases = [fuzz.case(number) for number in range(800)]
    assert 0.5 < sum(case.what == "fine" for case in cases) / 800 < 0.8
    for what in ("input_size", "input_dim", "input_dtype", "state_size", "state_dim", "state_batch", "state_dtype",
                 "empty_batch", "no_steps", "nonlinearity", "constructor"):  # fmt: skip
        assert sum(what in case.what for case in cases) >= 5, what
    for option, least in (("bidirectional", 100), ("batch_first", 100), ("dropout", 100), ("proj_size", 30)):
        assert sum(bool(case.options.get(option)) for case in cases) >= least, option
    for name in ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"):
        assert sum(case.name == name for case in cases) >= 40, name
    assert sum(isinstance(case.input, fuzz.PackedSequence) for case in cases) >= 100


def test_a_difference_is_reported_with_the_line_that_shows_it(monkeypatch):
    number = next(n for n in range(100) if fuzz.case(n).what == "fine" and fuzz.case(n).options.get("num_layers", 1) == 1 and not fuzz.case(n).options.get("proj_size"))
    run = rnn_triton.op.autograd.network

    def shifted(*arguments):
        y, last = run(*arguments)
        return y + 0.5, tuple(t + 0.5 for t in last)

    monkeypatch.setattr(rnn_triton.op.autograd, "network", shifted)
    with pytest.raises(AssertionError, match="output 0 differs by 0.5"):
        fuzz.check(number)
    with pytest.raises(AssertionError, match=rf"from support import fuzz; fuzz.check\({number}, False\)"):
        fuzz.check(number)
