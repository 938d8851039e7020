"""Published figures: of cases that can be named and measured, in microseconds a step, each with its source."""

import pytest

from bench.cases import case as cases
from bench.cases import published, suites


def test_every_figure_is_of_a_case_and_sane():
    for p in published.PUBLISHED:
        assert suites.parse(p.case).name == p.case and p.pass_ in cases.PASSES
        # a step of a layer on a GPU: from a shared-memory round trip to a loop in eager mode
        assert 0.2 < p.us_per_step < 2000, p
        assert p.what and p.device and p.source
    keys = [(p.case, p.pass_, p.what, p.device) for p in published.PUBLISHED]
    assert len(set(keys)) == len(keys)


def test_every_figure_has_its_case_in_a_suite():
    listed = {c.name for suite in suites.SUITES.values() for c in suite}
    assert {p.case for p in published.PUBLISHED} <= listed
    assert {c.name for c in suites.suite("published")} <= {p.case for p in published.PUBLISHED}


def test_deepbench_is_whole():
    """both passes of every case of 50 steps, with more than one device in fp32"""
    for case in suites.suite("deepbench"):
        for pass_ in cases.PASSES:
            devices = {p.device for p in published.of(case.name, pass_)}
            expected = set() if case.T != 50 else {"V100"} if case.dtype == "fp16" else {"V100", "P100", "TitanX"}
            assert devices == expected, case.name


@pytest.mark.parametrize(
    "case, pass_, us",
    [
        ("h1760-b16-t50-fp16", "fwd", 59.16),  # 2.958 ms / 50
        ("h2560-b16-t50-fp16", "fwd", 86.66),
        ("h2560-b16-t50-fp16", "train", 152.38),  # 7.619 ms, the sheet's own total
        ("h120-b34-t1406-fp16", "fwd", 0.6248),  # 878.4 us / 1406
        ("h120-b34-t1406-fp32", "fwd", 0.7824),
        ("h264-i24-b16-t4600-fp32", "fwd", 9.478),
        ("h152-i288-b1-t5895-l4-fp16", "fwd", 2.383),
        ("h1152-b4-t512-fp32", "fwd", 3.792),
    ],
)
def test_conversions(case, pass_, us):
    assert published.of(case, pass_)[0].us_per_step == pytest.approx(us, rel=1e-3)


def test_fastest_first_and_nothing_for_others():
    found = published.of("h1760-b32-t50-fp32", "fwd")
    assert [p.device for p in found] == ["V100", "TitanX", "P100"]
    assert published.of("h1760-b32-t51-fp32", "fwd") == []
