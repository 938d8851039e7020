"""The examples: data and split of digits, that both learn, and that what they compare is the same net."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
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
