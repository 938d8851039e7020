"""examples/digits.py: its data, its split, that it learns, and that its nets are the same net."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).resolve().parents[1] / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits():
    spec = importlib.util.spec_from_file_location("digits", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


@pytest.mark.long
def test_command_passes_and_needs_no_installation(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(PATH)], cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("pass  ") == 3
