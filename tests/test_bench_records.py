"""Records: what is written is what is read, damage is named and costs one line, statistics are right."""

import copy
import json

import pytest
from support.bench_records import ENVIRONMENT, timing

from bench import records
from bench.cases import case

CASE = case(128, 16, 256, "bf16")


def test_round_trip_and_appended_as_it_goes(tmp_path):
    path = tmp_path / "a" / "run.jsonl"
    fields = {k: v for k, v in timing(CASE, "fwd", "rnn_triton", 0.3).items() if k not in records.COMMON}
    with records.Writer(path, "run-1", ENVIRONMENT) as writer:
        first = writer.write("timing", **fields)
        assert records.read([path]) == ([first], [])  # on disk before the file is closed
        second = writer.write("timing", **(fields | {"pass": "train"}))
    assert records.read([path]) == ([first, second], [])


def test_writer_refuses_what_a_reader_would(tmp_path):
    with records.Writer(tmp_path / "x.jsonl", "run-1", ENVIRONMENT) as writer:
        with pytest.raises(ValueError, match="field case is missing"):
            writer.write("timing")
    assert (tmp_path / "x.jsonl").read_text() == ""


def test_damage_names_the_line_and_loses_nothing(tmp_path):
    good = json.dumps(timing(CASE, "fwd", "rnn_triton", 0.3))
    path = tmp_path / "damaged.jsonl"
    lines = [good, good[:50], '{"schema": 7}', "[1]", "", good, '{"schema": 1, "kind": "song"}', good]
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    found, problems = records.read([path])
    assert len(found) == 3
    assert [(p.line, p.path) for p in problems] == [(n, str(path)) for n in (2, 3, 4, 7, 9)]
    reasons = [str(p) for p in problems]
    assert "schema 7; this reader knows 1" in reasons[1]
    assert "expected a JSON object, got list" in reasons[2]
    assert "unknown kind 'song'" in reasons[3]
    assert reasons[0].startswith(f"{path}:2: ") and "utf-8" in reasons[4]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"status": "great"}, "status 'great'"),
        ({"device_us": [1.0, -2.0]}, "device_us: -2.0 is not a time"),
        ({"device_us": [float("nan")]}, "device_us: nan is not a time"),
        ({"graph_us": [True]}, "graph_us: True is not a time"),
        ({"peak_bytes": 1.5}, "field peak_bytes: expected int or NoneType, got float"),
        ({"peak_bytes": True}, "field peak_bytes: expected int or NoneType, got bool"),
        ({"environment": {}}, "field environment.date is missing"),
    ],
)
def test_validation_names_the_fault(change, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        records.validate(copy.deepcopy(timing(CASE, "fwd", "rnn_triton", 0.3)) | change)


def test_quantiles():
    assert records.quantiles([]) is None
    assert records.quantiles([3.0]) == (3.0, 3.0, 3.0)
    assert records.quantiles([5.0, 1.0, 2.0, 4.0, 3.0]) == pytest.approx((1.8, 3.0, 4.2))
    assert records.quantiles([1.0] * 99 + [1e6])[1] == 1.0  # an outlier moves a mean, not this


def test_rows_derive_steps_slopes_speedups_and_fractions():
    found = records.rows(
        [timing(CASE, "fwd", "rnn_triton", 0.25), timing(CASE, "fwd", "torch.nn.RNN", 1.0, launch_us=20.0)]
    )
    ours, theirs = found
    assert ours.us[1] == pytest.approx(5 + 256 * 0.25)
    assert ours.us_per_step == pytest.approx((5 + 256 * 0.25) / 256)
    assert ours.slope_us_per_step == pytest.approx(0.25)  # the 5 us of launch are gone
    assert ours.speedup == pytest.approx((20 + 256) / (5 + 64)) and ours.graph_speedup == pytest.approx(ours.speedup)
    assert ours.fraction_of_floor == pytest.approx((0.25 / 4) * 256 / (5 + 64))
    assert theirs.speedup == 1


def test_rows_give_no_speed_to_a_wrong_result_or_across_runs():
    wrong = timing(CASE, "fwd", "rnn_triton", 0.25, status="wrong")
    base = timing(CASE, "fwd", "torch.nn.RNN", 1.0)
    row = records.rows([wrong, base])[0]
    assert (row.us, row.us_per_step, row.speedup, row.fraction_of_floor) == (None, None, None, None)
    ours = timing(CASE, "fwd", "rnn_triton", 0.25)
    assert records.rows([ours, timing(CASE, "fwd", "torch.nn.RNN", 1.0, status="wrong")])[0].speedup is None
    assert records.rows([ours, timing(CASE, "fwd", "torch.nn.RNN", 1.0, run="run-2")])[0].speedup is None


def test_rows_keep_the_newest():
    newer = ENVIRONMENT | {"date": "2026-02-01T00:00:00Z"}
    found = records.rows(
        [
            timing(CASE, "fwd", "rnn_triton", 0.5, environment=newer, run="run-2"),
            timing(CASE, "fwd", "rnn_triton", 0.25),
        ]
    )
    assert [row.slope_us_per_step for row in found] == [pytest.approx(0.5)]
