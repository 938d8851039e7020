"""examples/models.py: both sides of every model are the same network, and train alike; one whose weights are mixed up is told."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from support import bench_dry

EXAMPLE = runpy.run_path(str(Path(__file__).resolve().parents[1] / "examples" / "models.py"))


@pytest.mark.parametrize("name", EXAMPLE["NAMES"])
def test_both_sides_train_alike(name):
    """in fp32, where a loss is off by the rounding of sums of up to 800 terms in each of three steps"""
    ours, theirs, batch = EXAMPLE["models"](name, small=True)
    assert type(ours.rnn).__module__.startswith("rnn_triton") and not type(theirs.rnn).__module__.startswith("rnn_triton")
    both = [[float(step()) for _ in range(3)] for step in (EXAMPLE["step_of"](model, batch) for model in (ours, theirs))]
    assert both[0] == pytest.approx(both[1], rel=EXAMPLE["LIMITS"][torch.float32])
    assert both[0][0] > both[0][-1] > 0  # and learn


@pytest.mark.parametrize("kind", ["weight_hh_l0", "weight_ih_l0", "bias_hh_l0"])
def test_blocks_whose_weights_are_mixed_up_are_wrong(kind, monkeypatch, capsys):
    """in fp32 and by the tolerance of bf16, which a loss alone would pass"""
    ours, theirs, batch = EXAMPLE["models"]("blocks", small=True)
    ours, theirs = ours.to(torch.bfloat16).float(), theirs.to(torch.bfloat16).float()  # as on a GPU
    limits = EXAMPLE["allowed"](ours.bfloat16(), batch)
    ours.float()
    assert all(error < limit / 10 for error, limit in zip(EXAMPLE["differences"](ours, theirs, batch), limits))
    grus = theirs.rnn.grus
    with torch.no_grad():
        for a, b in ((0, 1), (1, 0)):
            grus[a].get_parameter(kind).copy_(ours.rnn.get_parameter(kind).chunk(8)[b].squeeze(0))
    found = EXAMPLE["differences"](ours, theirs, batch)
    assert all(error > limit for error, limit in zip(found, limits)), (found, limits)
    monkeypatch.setitem(EXAMPLE["main"].__globals__, "models", lambda name, small: (ours, theirs, batch))
    monkeypatch.setitem(EXAMPLE["main"].__globals__, "NAMES", ["blocks"])
    assert EXAMPLE["main"](["--small", "--device", "cpu"]) == 1 and "WRONG" in capsys.readouterr().out


def test_the_script_runs_to_its_end(capsys):
    assert EXAMPLE["main"](["--small", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(EXAMPLE["NAMES"]) and all("of torch's, outputs" in line for line in lines)


def test_what_a_gpu_adds_is_said_in_words():
    """by a clock that stands in for one"""
    ours, theirs, batch = EXAMPLE["models"]("digits", small=True)
    steps = {of: EXAMPLE["step_of"](model, batch) for of, model in (("rnn_triton", ours), ("torch", theirs))}
    said = EXAMPLE["timed"](steps, bench_dry.Flush(None), bench_dry)
    assert re.fullmatch(r"a step \d+ us, torch's \d+ us, \d+\.\d\d to \d+\.\d\d times ours", said)
