"""Records: what is written is what is read, damage is named and costs one line, statistics are right."""

import copy
import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.bench_records import ENVIRONMENT, timing

from bench.cases import estimate as model
from bench.cases import suites
from bench.cases.case import case
from bench.first_run import items, listed
from bench.measure.run import blank, model_estimate
from bench.providers import registry
from bench.providers.ours import plans_on
from bench.records import environment, rows, schema, store
from bench.show import formats, tables
from rnn_triton.plan.hardware import RECORDS, Device
from rnn_triton.plan.problem import plan_fields

CASE = case(128, 16, 256, "bf16")
SHAPE = dataclasses.asdict(CASE)
ERROR = {"rel": 1e-3, "rel_tol": 4e-3, "max": 1e-2, "max_tol": 2e-2}


def test_round_trip_and_appended_as_it_goes(tmp_path):
    path = tmp_path / "a" / "run.jsonl"
    fields = {k: v for k, v in timing(CASE, "fwd", "rnn_triton", 0.3).items() if k not in schema.COMMON}
    with store.Writer(path, "run-1", ENVIRONMENT) as writer:
        first = writer.write("timing", **fields)
        assert store.read([path]) == ([first], [])  # on disk before the file is closed
        second = writer.write("timing", **(fields | {"pass": "train"}))
    assert store.read([path]) == ([first, second], [])
    assert first["environment"] == ENVIRONMENT and first["run"] == "run-1" and len(first["date"]) == 20


def test_a_file_goes_on_where_it_ended_or_starts_empty(tmp_path):
    path = tmp_path / "run.jsonl"
    fields = {k: v for k, v in timing(CASE, "fwd", "rnn_triton", 0.3).items() if k not in schema.COMMON}
    for run in ("run-1", "run-2"):
        with store.Writer(path, run, ENVIRONMENT, fresh=False) as writer:
            writer.write("timing", **fields)
    assert [r["run"] for r in store.read([path])[0]] == ["run-1", "run-2"]
    path.write_text(path.read_text() + f'{{"schema": {schema.SCHEMA}, "kin')  # a run that was ended while it wrote
    with store.Writer(path, "run-3", ENVIRONMENT, fresh=False) as writer:
        writer.write("timing", **fields)
    found, problems = store.read([path])
    assert [r["run"] for r in found] == ["run-1", "run-2", "run-3"] and [p.line for p in problems] == [3]
    with store.Writer(path, "run-4", ENVIRONMENT) as writer:
        writer.write("timing", **fields)
    assert [r["run"] for r in store.read([path])[0]] == ["run-4"]


def test_writer_refuses_what_a_reader_would(tmp_path):
    with store.Writer(tmp_path / "x.jsonl", "run-1", ENVIRONMENT) as writer:
        with pytest.raises(ValueError, match="field case is missing"):
            writer.write("timing")
    assert (tmp_path / "x.jsonl").read_text() == ""


CPU = torch.device("cpu")
PLANNED = ("rnn_triton", "rnn_triton-layers", "cudnn", "cudnn-layers", "compile")  # providers that say what they chose


@pytest.mark.parametrize("suite", suites.SUITES)
def test_every_case_of_every_suite_can_be_recorded(suite, tmp_path):
    """A timing and a check of each provider that has a plan, as run.py and jobs.py write them, for an H200"""
    chosen, estimate = suites.suite(suite), model_estimate(RECORDS["sm_90"])
    with store.Writer(tmp_path / "t.jsonl", "run-1", ENVIRONMENT) as writer:
        written = []
        for listed in chosen:
            for name in PLANNED:
                provider = registry.PROVIDERS[name]
                if provider.unsupported(listed):
                    continue
                made = {"plan": provider.plan(listed, CPU)}
                fields = blank(listed, "train", name) | made | (estimate(listed, "train") if name == "rnn_triton" else {})
                written.append(writer.write("timing", **fields))
                shape = dataclasses.asdict(listed)
                checked = {"status": "ok", "message": "", "errors": {}, "implementation": "none", "choices": {}}
                written.append(writer.write("check", case=listed.name, shape=shape, provider=name, **checked, **made))
    assert store.read([tmp_path / "t.jsonl"]) == (written, [])
    assert {r["case"] for r in written} == {listed.name for listed in chosen}
    assert {r["status"] for r in written} == {"ok"}
    launches = [r["plan"]["launches"] for r in written if r["provider"] == "rnn_triton" and "launches" in r["plan"]]
    ours = [listed for listed in chosen if not registry.PROVIDERS["rnn_triton"].unsupported(listed)]
    assert bool(launches) == any(listed.layers * listed.directions > 1 for listed in ours)


def test_every_item_of_the_first_run_can_be_recorded(tmp_path):
    place = items.Place(CPU)
    with store.Writer(tmp_path / "t.jsonl", "run-1", ENVIRONMENT) as writer:
        written = []
        for item in listed.items():
            for fields in item.blank():
                if fields.get("plan", 0) is None and fields.get("provider", "rnn_triton") == "rnn_triton":
                    with place.choosing(item.choices):
                        whole = item.kind in ("check", "timing")
                        found = plans_on(item.case, place.record) if whole else None
                        fields["plan"] = found or plan_fields(place.plan(model.problems(item.case)[0]))
                written.append(writer.write(item.kind, **fields))
    assert store.read([tmp_path / "t.jsonl"]) == (written, []) and {r["status"] for r in written} == {"ok"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"plan": {"forward": {"tiles": [1, 2]}}}, "field plan.forward.tiles: expected str or int or float or bool or NoneType, got list"),
        ({"plan": {"dtype": torch.bfloat16}}, "Object of type dtype is not JSON serializable"),
        ({"errors": {"y": ERROR | {"rel_tol": math.inf}}, "kernels": None}, "field errors.y.rel_tol: inf is not from 1e-09 to 1e+15"),
        ({"device_us": schema.sampled([0.0])}, "field device_us: 0.0 is not a time"),
    ],
)
def test_what_cannot_be_recorded_costs_its_record_alone(changes, message, tmp_path):
    fields = {k: v for k, v in timing(CASE, "fwd", "rnn_triton", 0.3).items() if k not in schema.COMMON}
    with store.Writer(tmp_path / "t.jsonl", "run-1", ENVIRONMENT) as writer:
        written = [writer.write("timing", **(fields | {"message": "said before"} | changes)), writer.write("timing", **fields)]
    assert store.read([tmp_path / "t.jsonl"]) == (written, [])
    assert [r["status"] for r in written] == ["error", "ok"]
    assert written[0]["message"] == f"cannot be recorded: {message}; said before"
    kept = set(fields) - set(changes) - {"status", "message"}
    assert all(written[0][name] == written[1][name] for name in kept)  # a plan that is refused costs no times


def test_a_kind_without_a_status_is_refused(tmp_path):
    """A training run of accuracy 0 would be taken for one."""
    with store.Writer(tmp_path / "t.jsonl", "run-1", ENVIRONMENT) as writer, pytest.raises(ValueError, match="field accuracy"):
        writer.write("training", example="d", implementation="torch", seed=0, accuracy=None, loss=[], seconds=1.0)
    assert (tmp_path / "t.jsonl").read_text() == ""


def test_damage_names_the_line_and_loses_nothing(tmp_path):
    good = json.dumps(timing(CASE, "fwd", "rnn_triton", 0.3))
    path = tmp_path / "damaged.jsonl"
    lines = [good, good[:50], '{"schema": 99}', "[1]", "", good, f'{{"schema": {schema.SCHEMA}, "kind": "song"}}', good]
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    found, problems = store.read([path])
    assert len(found) == 3
    assert [(p.line, p.path) for p in problems] == [(n, str(path)) for n in (2, 3, 4, 7, 9)]
    reasons = [str(p) for p in problems]
    assert f"schema 99; this reader knows {schema.SCHEMA}" in reasons[1]
    assert "expected a JSON object, got list" in reasons[2]
    assert "unknown kind 'song'" in reasons[3]
    assert reasons[0].startswith(f"{path}:2: ") and "utf-8" in reasons[4]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"status": "great"}, "field status: expected one of ok, inaccurate, wrong, error, timeout, unsupported, missing, got 'great'"),
        ({"device_us": schema.sampled([1.0, -2.0])}, "device_us: -2.0 is not a time"),
        ({"device_us": schema.sampled([float("nan")])}, "device_us: nan is not a time"),
        ({"device_us": schema.sampled([float("inf")])}, "device_us: inf is not a time"),
        ({"graph_us": schema.sampled([True])}, "graph_us: True is not a time"),
        ({"wall_us": [1.0]}, "field wall_us: expected dict, got list"),
        ({"wall_us": {}}, "field wall_us.samples is missing"),
        ({"short_us": schema.sampled([1.0, 2.0]) | {"median": 1.4}}, "short_us.median is 1.4, but its samples give 1.5"),
        ({"short_us": schema.sampled() | {"p20": 1.0}}, "short_us.p20 is 1.0, but its samples give None"),
        ({"short_us": {"samples": [1.0]}}, "short_us.p20 is None, but its samples give 1.0"),
        ({"peak_bytes": 1.5}, "field peak_bytes: expected int, got float"),
        ({"peak_bytes": True}, "field peak_bytes: expected int, got bool"),
        ({"environment": {}}, "field environment.commit is missing"),
        ({"date": None}, "field date: expected str, got NoneType"),
        ({"run": "\ud800"}, "field run: '\\ud800' has half of a surrogate pair"),
        ({"telemetry": {"\ud800": 1.0}}, "field telemetry: a name: '\\ud800' has half of a surrogate pair"),
        ({"kind": []}, "unknown kind []"),
        ({"shape": {}}, "field shape.T is missing"),
        ({"shape": SHAPE | {"T": 0}}, "field shape.T: 0 is not from 1"),
        ({"shape": SHAPE | {"T": 10**400}}, "field shape.T: 1000"),
        ({"shape": SHAPE | {"T": 512}}, "field shape: it is Case(T=512"),
        ({"shape": SHAPE | {"bidirectional": 0}}, "field shape: it is Case("),
        ({"shape": SHAPE | {"gates": 5}}, "field shape.gates is of no cases.Case"),
        ({"shape": SHAPE | {"dtype": "fp8"}, "case": CASE.name.replace("bf16", "fp8")}, "field case: unknown case 'h128-b16-t256-fp8'"),
        ({"shape": SHAPE | {"precision": "tf32"}}, "field shape: it is Case("),
        ({"pass": "foo"}, "field pass: expected one of fwd, train, got 'foo'"),
        ({"errors": {"y": 3}}, "field errors.y: expected dict, got int"),
        ({"errors": {"y": ERROR | {"rel": "small"}}}, "field errors.y.rel: expected int or float, got str"),
        ({"errors": {"y": ERROR | {"rel_tol": float("inf")}}}, "field errors.y.rel_tol: inf is not from"),
        ({"parts_us_per_step": {"exchange": "x"}}, "field parts_us_per_step.exchange: expected int or float, got str"),
        ({"floor_us_per_step": 0.0}, "field floor_us_per_step: 0.0 is not from"),
        ({"practical_us_per_step": float("nan")}, "field practical_us_per_step: nan is not from"),
        ({"short_T": None}, "field short_T: None, but short_us has samples"),
        ({"plan": {"forward": 3}}, "field plan.forward: expected dict, got int"),
        ({"plan": {"calls": [2]}}, "field plan.calls: expected"),
        ({"kernels": [{"name": "k", "us": 1.0}]}, "field kernels[0].count is missing"),
        ({"telemetry": {"power_w": "[N/A]"}}, "field telemetry.power_w: expected int or float, got str"),
        ({"environment": ENVIRONMENT | {"hardware": {"sms": 132}}}, "field environment.hardware.name is missing"),
        ({"environment": ENVIRONMENT | {"hardware": ENVIRONMENT["hardware"] | {"clock_ghz": 0}}}, "clock_ghz: 0 is not from"),
    ],
)
def test_validation_names_the_fault(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        schema.validate(copy.deepcopy(timing(CASE, "fwd", "rnn_triton", 0.3)) | change)


def test_what_is_valid_can_be_shown():
    """Every leaf of a record in turn becomes what it should not be: validate() names a fault, or rows and tables are made."""
    good = timing(CASE, "fwd", "rnn_triton", 0.3, regime="cta_group", kernels=[{"name": "k<int>(x)", "count": 2, "us": 3.0}])
    base = timing(CASE, "fwd", "cudnn", 1.0)
    odd = [None, True, 0, -1, 10**400, 1e-320, math.nan, math.inf, "", "$x", "\ud800", [], [1], {}, {"y": 3}, {"forward": 3}]
    shown = 0
    for path in leaves(good):
        for value in odd:
            changed = copy.deepcopy(good)
            at = changed
            for name in path[:-1]:
                at = at[name]
            at[path[-1]] = value
            try:
                schema.validate(changed)
            except ValueError as error:
                assert str(error)
                continue
            found = rows.rows([changed, base])
            for text in (tables.markdown_document(found), *tables.latex_tables(found).values(), formats.csv_text(found)):
                text.encode("utf-8")
            shown += 1
    assert shown > 100


def leaves(of, path=()):
    """Paths of all fields of nested dicts, and of the first item of each list"""
    for name in of if isinstance(of, dict) else range(min(1, len(of))):
        yield (*path, name)
        if isinstance(of[name], dict | list):
            yield from leaves(of[name], (*path, name))


def test_other_kinds_are_as_strict():
    common = {name: value for name, value in timing(CASE, "fwd", "rnn_triton", 0.3).items() if name in schema.COMMON}
    problem = {"direction": "forward", "H": 128, "I": 128, "B": 16, "dtype": "bf16", "precision": None}
    compiled = {"problem": problem, "plan": {"regime": "cta_group"}, "resources": {}, "status": "error", "message": "",
                "floor_us_per_step": None, "practical_us_per_step": None}  # fmt: skip
    schema.validate(common | {"kind": "resources"} | compiled)
    with pytest.raises(ValueError, match=r"field resources\.registers is missing"):
        schema.validate(common | {"kind": "resources"} | compiled | {"status": "ok"})
    run = {"example": "digits", "implementation": "torch", "seed": 0, "accuracy": 0.97, "loss": [1.0, math.nan], "seconds": 1.0}
    schema.validate(common | {"kind": "training"} | run)
    with pytest.raises(ValueError, match="field accuracy: nan is not from"):
        schema.validate(common | {"kind": "training"} | run | {"accuracy": math.nan})


def test_a_wrong_result_may_be_wrong_without_bounds():
    schema.validate(timing(CASE, "fwd", "cudnn", 1.0, errors={"y": ERROR | {"rel": math.nan, "max": math.inf}}, status="wrong"))


def test_the_fields_of_hardware_are_those_of_a_device():
    assert {f.name for f in dataclasses.fields(schema.Hardware)} == {f.name for f in dataclasses.fields(Device)}
    Device(**ENVIRONMENT["hardware"])


def test_brackets_without_end_are_a_damaged_line(tmp_path):
    path = tmp_path / "deep.jsonl"
    path.write_text("[" * 200_000 + "\n" + json.dumps(timing(CASE, "fwd", "rnn_triton", 0.3)))
    found, problems = store.read([path])
    assert len(found) == 1 and [p.line for p in problems] == [1] and "recursion" in str(problems[0])


def test_reading_records_loads_neither_torch_nor_numpy():
    code = "import sys, bench.records.schema; sys.exit(bool({'torch', 'numpy', 'triton', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


def test_the_source_of_a_record_is_the_code_that_a_time_depends_on(monkeypatch, tmp_path):
    """docs/benchmarks.md names the files of bench"""
    names = [name for name, _ in environment.sources()]
    assert {"rnn_triton/functional.py", "kernels/one_cta.py", "plan/measured.json", "launch/dispatch.py", "cells/elman.py"} <= set(names)
    assert {"cases/inputs.py", "instruments/timing.py", "measure/check.py", "measure/run.py", "providers/ours.py"} <= set(names)
    assert not [name for name in names if name.split("/")[0] in ("show", "records", "model", "tests", "docs")]
    page = (Path(__file__).parents[1] / "docs" / "benchmarks.md").read_text()
    assert all(f"`bench/{form}`" in page for form in environment._MEASURING)
    (tmp_path / "a.py").write_text("1")
    monkeypatch.setattr(environment, "sources", lambda: [("x/a.py", tmp_path / "a.py")])
    before = environment.source.__wrapped__()
    assert before == environment.source.__wrapped__()
    (tmp_path / "a.py").write_text("2")
    assert before != environment.source.__wrapped__()


def test_quantiles():
    assert schema.quantiles([]) is None
    assert schema.quantiles([3.0]) == (3.0, 3.0, 3.0)
    assert schema.quantiles([5.0, 1.0, 2.0, 4.0, 3.0]) == pytest.approx((1.8, 3.0, 4.2))
    assert schema.quantiles([1.0] * 99 + [1e6])[1] == 1.0  # an outlier moves a mean, not this


def test_rows_derive_steps_slopes_speedups_and_fractions():
    found = rows.rows([timing(CASE, "fwd", "rnn_triton", 0.25), timing(CASE, "fwd", "cudnn", 1.0, launch_us=20.0)])
    ours, theirs = found
    assert ours.us[1] == pytest.approx(5 + 256 * 0.25)
    assert ours.us_per_step == pytest.approx((5 + 256 * 0.25) / 256)
    assert ours.slope_us_per_step == pytest.approx(0.25)  # the 5 us of launch are gone
    assert ours.speedup == pytest.approx((20 + 256) / (5 + 64)) and ours.graph_speedup == pytest.approx(ours.speedup)
    assert ours.fraction_of_floor == pytest.approx((0.25 / 4) * 256 / (5 + 64))
    assert theirs.speedup == 1 and ours.baseline == "cudnn"
    assert ours.bound == "exchange" and ours.error == pytest.approx(1e-3)


def test_the_baseline_is_the_faster_way_to_cudnn():
    stack = case(128, 16, 256, "bf16", layers=4)
    made = [timing(stack, "fwd", name, us) for name, us in (("rnn_triton", 0.25), ("cudnn", 4.0), ("cudnn-layers", 1.0))]
    ours, whole, layers = rows.rows(made)
    assert (ours.baseline, ours.speedup) == ("cudnn-layers", pytest.approx((5 + 256) / (5 + 64)))
    assert whole.speedup == pytest.approx((5 + 256) / (5 + 1024)) and layers.speedup == 1
    ours, *_ = rows.rows([made[0], made[1], made[2] | {"status": "wrong"}])
    assert (ours.baseline, ours.speedup) == ("cudnn", pytest.approx((5 + 1024) / (5 + 64)))


def test_a_tidy_row_is_scalars_of_the_same_names():
    made = [timing(CASE, "fwd", "rnn_triton", 0.25, regime="cta_group"), timing(CASE, "fwd", "cudnn", 1.0, status="wrong")]
    ours, theirs = (row.tidy() for row in rows.rows(made))
    assert list(ours) == list(theirs)
    assert all(value is None or isinstance(value, str | int | float) for value in (*ours.values(), *theirs.values()))
    assert (ours["H"], ours["regime"], ours["us_median"], theirs["us_median"]) == (128, "cta_group", 5 + 256 * 0.25, None)


def test_rows_give_no_speed_to_a_wrong_result_or_across_runs():
    wrong = timing(CASE, "fwd", "rnn_triton", 0.25, status="wrong")
    base = timing(CASE, "fwd", "cudnn", 1.0)
    row = rows.rows([wrong, base])[0]
    assert (row.us, row.us_per_step, row.speedup, row.fraction_of_floor) == (None, None, None, None)
    ours = timing(CASE, "fwd", "rnn_triton", 0.25)
    assert rows.rows([ours, timing(CASE, "fwd", "cudnn", 1.0, status="wrong")])[0].speedup is None
    assert rows.rows([ours, timing(CASE, "fwd", "cudnn", 1.0, run="run-2")])[0].speedup is None


def test_a_dry_run_gives_no_rows():
    dry = ENVIRONMENT | {"device": "none (dry run)", "capability": None, "hardware": None}
    made = [timing(CASE, "fwd", name, 1.0, environment=dry) for name in ("rnn_triton", "cudnn")]
    assert rows.rows(made) == []
    assert [row.environment["device"] for row in rows.rows([*made, timing(CASE, "fwd", "rnn_triton", 1.0)])] == ["Test GPU"]


LATER = {"run": "run-2", "date": "2026-02-01T00:00:00Z"}


def test_measuring_ours_alone_once_more_keeps_the_speedup_of_the_run_with_both():
    both = [timing(CASE, "fwd", "rnn_triton", 0.25), timing(CASE, "fwd", "cudnn", 1.0)]
    for made in ([*both, timing(CASE, "fwd", "rnn_triton", 0.5, **LATER)], [timing(CASE, "fwd", "rnn_triton", 0.5, **LATER), *both]):
        ours = next(row for row in rows.rows(made) if row.provider == "rnn_triton")
        assert ours.run == "run-2" and ours.slope_us_per_step == pytest.approx(0.5)  # its own times are the newest
        assert ours.speedup == ours.graph_speedup == pytest.approx((5 + 256) / (5 + 64))
        assert (ours.baseline, ours.gap) == ("cudnn", "")
    # as soon as a newer run has both, it counts
    newer = [timing(CASE, "fwd", "rnn_triton", 0.5, **LATER), timing(CASE, "fwd", "cudnn", 1.0, **LATER)]
    assert rows.rows([*newer, *both])[0].speedup == pytest.approx((5 + 256) / (5 + 128))


@pytest.mark.parametrize("field", schema.VERSIONS)
def test_a_speedup_of_other_code_or_versions_does_not_count(field):
    both = [timing(CASE, "fwd", "rnn_triton", 0.25), timing(CASE, "fwd", "cudnn", 1.0)]
    alone = timing(CASE, "fwd", "rnn_triton", 0.5, environment=ENVIRONMENT | {field: "another"}, **LATER)
    row = rows.rows([*both, alone])[-1 if field == "device" else 0]
    assert (row.run, row.speedup, row.baseline) == ("run-2", None, None)
    assert row.gap == (rows.NO_BASELINE if field == "device" else rows.APART)


def test_why_there_is_no_speedup_is_said():
    ours, theirs = timing(CASE, "fwd", "rnn_triton", 0.25), timing(CASE, "fwd", "cudnn", 1.0, run="run-2")
    assert rows.rows([ours])[0].gap == "no cuDNN time"
    assert rows.rows([ours, theirs | {"status": "wrong"}])[0].gap == "no cuDNN time"
    assert rows.rows([ours, theirs])[0].gap == "not in one run"
    assert rows.rows([ours | {"status": "wrong"}, theirs])[0].gap == ""


def test_rows_keep_the_newest():
    newer = timing(CASE, "fwd", "rnn_triton", 0.5, date="2026-02-01T00:00:00Z", run="run-2")
    found = rows.rows([newer, timing(CASE, "fwd", "rnn_triton", 0.25)])
    assert [row.slope_us_per_step for row in found] == [pytest.approx(0.5)]
