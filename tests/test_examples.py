"""The examples: data and split of digits, that what they compare is the same net, and that each of them learns, in fewer steps than by itself."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where Triton looks for device functions
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits():
    return example("digits")


@pytest.fixture(scope="module")
def agent():
    return example("agent")


def test_data(digits):
    x, digit = digits.load()
    assert x.shape == (8, 1797, 8) and x.dtype == torch.float32
    assert x.min() == 0 and x.max() == 1 and torch.equal(x * 16, (x * 16).round())
    # as UCI counts the digits of its test set
    assert digit.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (x[0, 0] * 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0] and digit[0] == 0  # the first row of the first image


def test_split_is_seeded_random_and_80_to_20(digits):
    train, test = digits.split(1797, seed=0)
    assert len(train) == 1437 and len(test) == 360
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(1797))
    again, other = digits.split(1797, seed=0)[1], digits.split(1797, seed=1)[1]
    assert torch.equal(test, again) and not torch.equal(test, other)
    assert test[:20].tolist() != sorted(test[:20].tolist())


def test_both_implementations_learn_alike(digits):
    calls = []
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    ours = digits.run("rnn_triton", seed=0, epochs=3, progress=lambda *state: calls.append(state))
    torchs = digits.run("torch", seed=0, epochs=3)
    assert torch.equal(torch.get_rng_state(), random_state) and torch.get_num_threads() == threads
    assert calls == [(epoch, 3, loss) for epoch, loss in enumerate(ours["losses"], 1)]
    assert ours["accuracy"] > 0.85 and ours["losses"][-1] < ours["losses"][0] / 2
    # Same weights, batches and formulas: fp32 rounding, 1e-7, once a step for 69 steps, and a decade to spare
    assert ours["losses"] == pytest.approx(torchs["losses"], rel=1e-4)
    assert "torch" in torchs["ran"] and ours["ran"] != torchs["ran"]


def test_unknown_implementation(digits):
    with pytest.raises(ValueError, match="'rnn_triton' or 'torch', got 'keras'"):
        digits.run("keras", seed=0)


@pytest.mark.long
def test_three_steps_through_the_kernels(digits):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = digits.kernel_steps(device)
    assert "Triton kernels" in steps["ran"]
    assert max(steps["loss_difference"], steps["weight_difference"]) <= steps["tolerance"]
    assert steps["moved"] > 1000 * steps["tolerance"]  # or the check could not fail


def test_games_end_within_chunks(agent):
    games = agent.Games(100, seed=0)
    age, cue, right = torch.zeros(100, dtype=torch.long), games.cue.clone(), 0
    for _ in range(20):
        seen, begins, asks = games.look()
        age = torch.where(begins, 1, age + 1)
        cue = torch.where(begins, seen[:, :4].argmax(1), cue)  # what is shown once is what is asked for
        assert torch.equal(seen[:, :4].sum(1), begins.float()) and torch.equal(seen[:, 4], asks.float())
        assert (age <= agent.LONGEST).all() and (age[asks] >= agent.SHORTEST).all()
        reward = games.act(cue)
        assert torch.equal(reward, asks.float())
        right += reward.sum().item()
    assert 20 * 100 / agent.LONGEST - 100 <= right <= 20 * 100 / agent.SHORTEST


def test_an_agent_learns_the_same_in_one_call_and_by_pieces(agent):
    state = torch.get_rng_state()
    one, pieces = (agent.train(memory, 0, 4, dtype=torch.float64) for memory in (agent.in_one_call, agent.piece_by_piece))
    assert torch.equal(torch.get_rng_state(), state)
    # fp64 rounding, 1e-16, once a step for 4 chunks of 20 steps, each played and learned from, and four decades to spare for Adam, which
    # divides by gradients
    assert one["losses"] == pytest.approx(pieces["losses"], abs=1e-10)
    assert one["rewards"] == pieces["rewards"] and one["pieces"] > 15


@pytest.mark.long
@pytest.mark.parametrize("name, passed", [("digits", 3), ("agent", 3)])
def test_command_passes_and_needs_no_installation(name, passed, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")], cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("pass  ") == passed


# ---- the other examples: fewer steps than by themselves, and what must be so all the same --------------------------------------------


def drawn(module, result, folder):
    """The picture is a PNG that is no blank."""
    path = folder / "picture.png"
    module.draw(result, str(path))
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 10_000


def test_character_model(tmp_path):
    module = example("character_model")
    result = module.run(rounds=4)
    losses = result["losses"]
    assert len(losses) == 4 * -(-len(result["text"]) // module.CHUNK)
    # symbols by chance, 3.8 nats; by how often they occur about 3, and then by what comes before them
    assert losses[0] > 3.5 and sum(losses[-5:]) / 5 < 3.0
    assert len(result["recited"]) == len(result["text"]) and result["recited"].startswith(result["text"][:12])
    drawn(module, result, tmp_path)


def test_forecast(tmp_path):
    module = example("forecast")
    untrained, result = module.run(steps=0), module.run(steps=100)
    assert result["years"] == list(range(1700, 2009)) and len(result["forecast"]) == 308
    assert len(result["alone"]) == 2009 - module.FIRST_ALONE
    assert result["error"] < result["as_before"] and result["error"] < untrained["error"]
    drawn(module, result, tmp_path)


def test_flip_flop(tmp_path):
    module = example("flip_flop")
    x, target = module.trials(5, 30, torch.Generator().manual_seed(0))
    for row in range(5):
        for bit in range(module.BITS):
            held = None
            for t in range(30):
                held = x[t, row, bit] if x[t, row, bit] else held
                assert target[t, row, bit] == held
    result = module.run(updates=60)
    assert sum(result["losses"][-5:]) < 0.8 * sum(result["losses"][:5]) and result["accuracy"] > 0.6
    drawn(module, result, tmp_path)


def test_streaming(tmp_path):
    module = example("streaming")
    result = module.run(steps=40)
    # y of 24 units in fp32, each call of one step and one of 420: 2^-24 of 25 terms, and a decade for what steps hand on
    assert 0 <= result["difference"] <= 10 * 25 * 2**-24
    first, last = module.FAULTS["spike"]
    assert all(n > 100 for n in result["alarms"]) and len(result["signal"]) == len(result["predictions"]) == 420
    drawn(module, result, tmp_path)


def test_ensemble(tmp_path):
    module = example("ensemble")
    result = module.run(updates=12)
    assert (result["losses"][-1] < result["losses"][0]).all() and len(result["losses"][-1].unique()) == module.MODELS
    assert result["forecasts"].shape == (module.MODELS, module.ALONE) and result["truth"].shape == (module.KNOWN + module.ALONE,)
    drawn(module, result, tmp_path)


@pytest.mark.interpret
def test_forget_gate(tmp_path):
    """Its device functions against its step, and a training step through the kernels"""
    import rnn_triton

    module = example("forget_gate")
    rnn_triton.check_cell(module.FORGET_GATE)
    module.STEPS, module.BATCH = 4, 2
    result = module.run(updates=1)
    assert [len(losses) for losses in result.values()] == [1, 1] and all(0 < losses[0] < 2 for losses in result.values())
    drawn(module, result, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", ["character_model", "forecast", "flip_flop", "streaming", "ensemble", "forget_gate"])
def test_what_the_pages_say_of_an_example(name):
    """At full length: the pictures and the words in docs/examples.md are of such runs"""
    began = time.process_time()
    module = example(name)
    result = module.run()
    assert time.process_time() - began < 60
    if name == "character_model":
        assert sum(a == b for a, b in zip(result["recited"], result["text"])) > 0.9 * len(result["text"])
    elif name == "forecast":
        assert result["error"] < 0.8 * result["as_before"]
    elif name == "flip_flop":
        assert result["accuracy"] > 0.95
    elif name == "streaming":
        for first, last in module.FAULTS.values():
            assert any(first <= n <= last + 5 for n in result["alarms"])
    elif name == "ensemble":
        spread = result["forecasts"].std(0)
        assert spread[-10:].mean() > 1.5 * spread[:10].mean()
    else:
        assert all(sum(losses[-10:]) / 10 < 0.1 for losses in result.values())
        own, elman = (next(n for n, loss in enumerate(losses) if loss < 0.1) for losses in result.values())
        assert own < elman / 2
