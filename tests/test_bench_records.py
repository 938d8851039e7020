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
    assert first["environment"] == ENVIRONMENT and first["run"] == "run-1" and len(first["date"]) == 20


def test_a_file_goes_on_where_it_ended_or_starts_empty(tmp_path):
    path = tmp_path / "run.jsonl"
    fields = {k: v for k, v in timing(CASE, "fwd", "rnn_triton", 0.3).items() if k not in records.COMMON}
    for run in ("run-1", "run-2"):
        with records.Writer(path, run, ENVIRONMENT, fresh=False) as writer:
            writer.write("timing", **fields)
    assert [r["run"] for r in records.read([path])[0]] == ["run-1", "run-2"]
    path.write_text(path.read_text() + '{"schema": 2, "kin')  # a run that was ended while it wrote
    with records.Writer(path, "run-3", ENVIRONMENT, fresh=False) as writer:
        writer.write("timing", **fields)
    found, problems = records.read([path])
    assert [r["run"] for r in found] == ["run-1", "run-2", "run-3"] and [p.line for p in problems] == [3]
    with records.Writer(path, "run-4", ENVIRONMENT) as writer:
        writer.write("timing", **fields)
    assert [r["run"] for r in records.read([path])[0]] == ["run-4"]


def test_writer_refuses_what_a_reader_would(tmp_path):
    with records.Writer(tmp_path / "x.jsonl", "run-1", ENVIRONMENT) as writer:
        with pytest.raises(ValueError, match="field case is missing"):
            writer.write("timing")
    assert (tmp_path / "x.jsonl").read_text() == ""


def test_damage_names_the_line_and_loses_nothing(tmp_path):
    good = json.dumps(timing(CASE, "fwd", "rnn_triton", 0.3))
    path = tmp_path / "damaged.jsonl"
    lines = [good, good[:50], '{"schema": 7}', "[1]", "", good, '{"schema": 2, "kind": "song"}', good]
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    found, problems = records.read([path])
    assert len(found) == 3
    assert [(p.line, p.path) for p in problems] == [(n, str(path)) for n in (2, 3, 4, 7, 9)]
    reasons = [str(p) for p in problems]
    assert "schema 7; this reader knows 2" in reasons[1]
    assert "expected a JSON object, got list" in reasons[2]
    assert "unknown kind 'song'" in reasons[3]
    assert reasons[0].startswith(f"{path}:2: ") and "utf-8" in reasons[4]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"status": "great"}, "status 'great'"),
        ({"device_us": records.sampled([1.0, -2.0])}, "device_us: -2.0 is not a time"),
        ({"device_us": records.sampled([float("nan")])}, "device_us: nan is not a time"),
        ({"device_us": records.sampled([float("inf")])}, "device_us: inf is not a time"),
        ({"graph_us": records.sampled([True])}, "graph_us: True is not a time"),
        ({"wall_us": [1.0]}, "field wall_us: expected dict, got list"),
        ({"wall_us": {}}, "field wall_us.samples is missing"),
        ({"short_us": records.sampled([1.0, 2.0]) | {"median": 1.4}}, "short_us.median is 1.4, but its samples give 1.5"),
        ({"short_us": records.sampled() | {"p20": 1.0}}, "short_us.p20 is 1.0, but its samples give None"),
        ({"short_us": {"samples": [1.0]}}, "short_us.p20 is None, but its samples give 1.0"),
        ({"peak_bytes": 1.5}, "field peak_bytes: expected int or NoneType, got float"),
        ({"peak_bytes": True}, "field peak_bytes: expected int or NoneType, got bool"),
        ({"environment": {}}, "field environment.commit is missing"),
        ({"date": None}, "field date: expected str, got NoneType"),
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
    found = records.rows([timing(CASE, "fwd", "rnn_triton", 0.25), timing(CASE, "fwd", "cudnn", 1.0, launch_us=20.0)])
    ours, theirs = found
    assert ours.us[1] == pytest.approx(5 + 256 * 0.25)
    assert ours.us_per_step == pytest.approx((5 + 256 * 0.25) / 256)
    assert ours.slope_us_per_step == pytest.approx(0.25)  # the 5 us of launch are gone
    assert ours.speedup == pytest.approx((20 + 256) / (5 + 64)) and ours.graph_speedup == pytest.approx(ours.speedup)
    assert ours.fraction_of_floor == pytest.approx((0.25 / 4) * 256 / (5 + 64))
    assert theirs.speedup == 1 and ours.baseline == "cudnn"
    assert ours.bound == "exchange" and len(ours.samples) == 11 and ours.error == pytest.approx(1e-3)


def test_the_baseline_is_the_faster_way_to_cudnn():
    stack = case(128, 16, 256, "bf16", layers=4)
    made = [timing(stack, "fwd", name, us) for name, us in (("rnn_triton", 0.25), ("cudnn", 4.0), ("cudnn-layers", 1.0))]
    ours, whole, layers = records.rows(made)
    assert (ours.baseline, ours.speedup) == ("cudnn-layers", pytest.approx((5 + 256) / (5 + 64)))
    assert whole.speedup == pytest.approx((5 + 256) / (5 + 1024)) and layers.speedup == 1
    ours, *_ = records.rows([made[0], made[1], made[2] | {"status": "wrong"}])
    assert (ours.baseline, ours.speedup) == ("cudnn", pytest.approx((5 + 1024) / (5 + 64)))


def test_a_tidy_row_is_scalars_of_the_same_names():
    made = [timing(CASE, "fwd", "rnn_triton", 0.25, regime="grid"), timing(CASE, "fwd", "cudnn", 1.0, status="wrong")]
    ours, theirs = (row.tidy() for row in records.rows(made))
    assert list(ours) == list(theirs)
    assert all(value is None or isinstance(value, str | int | float) for value in (*ours.values(), *theirs.values()))
    assert (ours["H"], ours["regime"], ours["us_median"], theirs["us_median"]) == (128, "grid", 5 + 256 * 0.25, None)


def test_rows_give_no_speed_to_a_wrong_result_or_across_runs():
    wrong = timing(CASE, "fwd", "rnn_triton", 0.25, status="wrong")
    base = timing(CASE, "fwd", "cudnn", 1.0)
    row = records.rows([wrong, base])[0]
    assert (row.us, row.us_per_step, row.speedup, row.fraction_of_floor) == (None, None, None, None)
    ours = timing(CASE, "fwd", "rnn_triton", 0.25)
    assert records.rows([ours, timing(CASE, "fwd", "cudnn", 1.0, status="wrong")])[0].speedup is None
    assert records.rows([ours, timing(CASE, "fwd", "cudnn", 1.0, run="run-2")])[0].speedup is None


def test_rows_keep_the_newest():
    newer = timing(CASE, "fwd", "rnn_triton", 0.5, date="2026-02-01T00:00:00Z", run="run-2")
    found = records.rows([newer, timing(CASE, "fwd", "rnn_triton", 0.25)])
    assert [row.slope_us_per_step for row in found] == [pytest.approx(0.5)]
