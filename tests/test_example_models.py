"""examples/models.py: both sides of every model are the same network, and train alike."""

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLE = runpy.run_path(str(Path(__file__).resolve().parents[1] / "examples" / "models.py"))


@pytest.mark.parametrize("name", ["words", "speaker", "digits", "blocks"])
def test_both_sides_train_alike(name):
    """in fp32, where a loss is off by the rounding of sums of up to 800 terms in each of three steps"""
    ours, theirs, batch = EXAMPLE["models"](name, small=True)
    assert type(ours.rnn).__module__.startswith("rnn_triton") and not type(theirs.rnn).__module__.startswith("rnn_triton")
    both = [[float(step()) for _ in range(3)] for step in (EXAMPLE["step_of"](model, batch) for model in (ours, theirs))]
    assert both[0] == pytest.approx(both[1], rel=EXAMPLE["LIMITS"][torch.float32])
    assert both[0][0] > both[0][-1] > 0  # and learn
