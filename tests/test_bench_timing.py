"""What of the measuring needs no GPU: how many samples, in which order, what nvidia-smi says."""

import itertools
import math

import pytest

from bench import timing


def test_every_callable_has_an_equal_share_of_the_time():
    found = timing.counts({"fast": 1000.0, "slow": 10_000.0}, budget_s=0.5)
    assert found == {"fast": timing.MOST, "slow": 25}  # 0.25 s each
    assert timing.counts({"a": 50_000.0, "b": 1e6}, budget_s=0.1) == {"a": timing.FEWEST, "b": timing.FEWEST_LONG}
    assert timing.counts({}, 1.0) == {} and timing.counts({"a": 0.0}, 1.0) == {"a": timing.MOST}


def test_callables_take_turns():
    assert "".join(timing.turns({"A": 3, "B": 3})) == "ABABAB"
    assert list(timing.turns({})) == []


@pytest.mark.parametrize("few, many", [(3, 200), (10, 64), (7, 7), (1, 5), (13, 100)])
def test_what_is_called_less_often_is_spread_over_the_whole_time(few, many):
    order = list(timing.turns({"few": few, "many": many}))
    assert (order.count("few"), order.count("many")) == (few, many)
    at = [i for i, name in enumerate(order) if name == "few"]
    gaps = [b - a for a, b in itertools.pairwise([-1, *at])]
    assert max(gaps) - min(gaps) <= 1 + math.ceil(many / few) - many // few
    assert order[-1] == "many" and "few" in order[-2:]  # to the end


def test_medians_of_what_nvidia_smi_says():
    lines = "1980, 3201, 400.5, 45\n1980, 3201, 500.5, 46\n[N/A], 3201, 600.5, 47\n345, 32"  # the last was cut short
    assert timing.telemetry_medians(lines) == {
        "sm_mhz": 1980.0, "memory_mhz": 3201.0, "power_w": 500.5, "temperature_c": 46.0,
    }  # fmt: skip
    assert timing.telemetry_medians("") == {} and "power_w" not in timing.telemetry_medians("1, 2, [N/A], 4")
