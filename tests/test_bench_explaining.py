"""bench explain: every kind of case has its plans, estimates, cuDNN's algorithm, records and published figures in the text."""

import re

import pytest
from support.bench_records import timing

from bench.cases import case as cases
from bench.cases import estimate as model
from bench.cases import suites
from bench.model import explaining
from rnn_triton.plan.hardware import RECORDS

H200 = RECORDS["sm_90"]


def text(name, records=()):
    return explaining.explain(suites.parse(name), H200, list(records))


def test_a_case_without_records():
    found = text("h1760-b16-t50-fp16")
    assert found.startswith("h1760-b16-t50-fp16: Elman, H 1760, B 16, T 50, fp16\n")
    for direction in ("forward", "backward"):
        assert f"{direction} of fp16 T=50 B=16 I=1760 H=1760 on H200: " in found
        assert f"torch.nn.RNN, {direction}: cuDNN's STANDARD, because PERSIST_STATIC is for H <= 1024, not 1760." in found
    assert found.count("cuDNN's") == 2  # once each, not again from rnn_triton.explain
    for pass_ in cases.PASSES:
        estimate = model.of_case(suites.parse("h1760-b16-t50-fp16"), pass_, H200)
        assert f"{pass_}: floor {estimate.floor_us:.3f}, practical {estimate.practical_us:.3f}; " in found
        assert f"largest limits: {estimate.bound} {max(estimate.parts.values()):.3f}, " in found
    assert "recorded: nothing; `python -m bench run --case h1760-b16-t50-fp16` measures it on a GPU" in found
    assert "59.160" in found and "DeepBench_NV_V100.xlsx" in found
    assert "published" not in text("h1761-b16-t50-fp16")


def test_records_of_the_case_and_no_other():
    case = suites.parse("h128-b16-t256-bf16")
    other = suites.parse("h129-b16-t256-bf16")
    found = text(
        case.name,
        [
            timing(case, "fwd", "rnn_triton", 0.5), timing(case, "fwd", "cudnn", 2.0), timing(other, "fwd", "rnn_triton", 77.0),
            timing(case, "train", "rnn_triton", 0.5, status="wrong"),
        ],
    )  # fmt: skip
    ours = next(line.split() for line in found.splitlines() if line.startswith("Test GPU  fwd    rnn_triton"))
    us = (5 + 256 * 0.5) / 256
    assert ours[4:] == [
        f"{us:.3f}", f"{us * 0.94:.3f}", "to", f"{us * 1.06:.3f}", f"{(5 + 512) / (5 + 128):.2f}x", "over", "cudnn",
        f"{0.125 / us:.0%}", "exchange", "2026-01-02",
    ]  # fmt: skip
    assert re.search(r"wrong: it is\b[^\n]*\n +wrong\b", found)  # in a cell of two lines: the table is no wider than a terminal
    assert "77" not in found.split("recorded:")[1] and "recorded: nothing" not in found


def test_clocks_and_the_kernels_that_ran_are_named():
    case = suites.parse("h128-b16-t256-bf16")
    ran = [{"name": "void RNN_blockPersist_fp<float>(int)", "count": 1, "us": 9.0}]
    recorded = text(case.name, [timing(case, "fwd", "cudnn", 2.0, kernels=ran)]).split("recorded:")[1]
    assert "SM clock 1980 MHz" in recorded and "\nkernels that ran, by the profiler:\npass  provider" in recorded
    assert "\nfwd   cudnn     1         100% 1 x RNN_blockPersist_fp\n" in f"{recorded}\n"
    apart = text(case.name, [timing(case, "fwd", "rnn_triton", 1.0), timing(case, "fwd", "cudnn", 2.0, run="run-2")])
    assert "not in one run" in apart and "kernels that ran" not in apart


def test_a_stack_says_each_launch():
    found = text("h128-i40-b16-t512-l3-fp16")
    assert "layers 0 to 2: one launch of" in found and found.count("forward of fp16") == 1 and ": Elman, L 3, H 128, I 40, B 16" in found
    assert f"{model.of_case(suites.parse('h128-i40-b16-t512-l3-fp16'), 'fwd', H200).practical_us:.2f} us per step" in found
    assert text("h128-i40-b16-t512-l3-bi-fp16").count("layer 2, both directions: ") == 2


def test_layer_by_layer_each_different_layer_is_said_once():
    found = text("h128-i40-b16-t512-l3-bi-m2-fp16")
    assert "layer 0, each direction:\nforward of fp16 T=512 B=16 I=40 H=128" in found
    assert "layers 1, 2, each direction:\nforward of fp16 T=512 B=16 I=256 H=128" in found
    assert found.count("forward of fp16") == 2 and "both directions" in found and "2 models" in found
    ragged = text("h128-i40-b16-t512-l3-bi-uniform-fp16")  # sequences of different lengths share launches as others do
    assert ragged.count("layer 2, both directions: ") == 2 and "Elman, uniform lengths, L 3" in ragged


def test_what_else_is_said_of_a_case():
    found = text("h128-b16-t8-bf16")
    assert "not 3" in text("h512-b16-t512-l3-fp16")  # cuDNN's persistent algorithm is for one layer
    assert "STANDARD, because the input is packed" in text("h128-b16-t512-uniform-bf16")
    assert ": Elman, H 128" in found and ": Elman relu, H 128" in text("elman_relu-h128-b16-t8-bf16") and "(ieee)" in text("h128-b16-t8-fp32-ieee")


@pytest.mark.parametrize("cell, module", [("gru", "torch.nn.GRU, forward: cuDNN's STANDARD"), ("lstm", "torch.nn.LSTM, forward: cuDNN's PERSIST_STATIC,")])
def test_a_cell_of_several_gates(cell, module):
    found = text(f"{cell}-h768-b16-t1024-fp16")
    assert f"{cell.upper()}, H 768, B 16, T 1024" in found and module in found and "none: no plan" not in found and "gates each" in found
    assert "2 models" in text(f"{cell}-h768-b16-t1024-m2-bf16")
    assert "torch.nn has no module of leaky_tanh" in text("leaky_tanh-h768-b16-t1024-bf16")


def test_the_device_at_hand_or_an_h200():
    assert "on H200" in explaining.explain(suites.parse("h128-b16-t8-bf16"), RECORDS["sm_90"], [])
    assert "on A100" in explaining.explain(suites.parse("h128-b16-t8-bf16"), RECORDS["sm_80"], [])
    assert "latency model" in explaining.explain(suites.parse("h128-b16-t8-bf16"), None, [])
