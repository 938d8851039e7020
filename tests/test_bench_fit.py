"""The latency model fitted to records: constants known to be others are found, the rest is left alone."""

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest
from support.bench_records import ENVIRONMENT, timing

from bench.cases import estimate
from bench.cases.case import case
from bench.model import fit, job, observations
from bench.records import schema
from rnn_triton.plan import latency
from rnn_triton.plan.candidates import candidates
from rnn_triton.plan.choose import plan
from rnn_triton.plan.hardware import Device
from rnn_triton.plan.problem import plan_fields, plan_from_fields

DEVICE = Device(**ENVIRONMENT["hardware"])
TRUE = replace(
    latency.CONSTANTS, local_us=0.3, sentinel_us=(0.161, 0.6), node_us=2.5, host_us=2.0, k_loop_cycles=170.0, efficiency=0.6,
    counter_us=(0.55, 5.0), counter_busy_us=4.0,
)  # fmt: skip  (no plan of these records has a counter)
SHAPES = [
    case(H, B, 256, dtype) for dtype in ("bf16", "fp16")
    for H, B in ((32, 16), (64, 16), (128, 16), (256, 4), (128, 4096), (256, 2048), (64, 8192), (384, 16), (512, 16), (768, 16),
                 (1024, 16), (1024, 64), (1024, 256), (2048, 16), (2048, 128), (8192, 16), (10000, 32), (16384, 16), (8192, 512))
] + [case(H, B, 256, "fp32", ieee=True) for H in (256, 320, 384, 512, 640, 768) for B in (4, 16)]  # fmt: skip


def measurement(c, constants=TRUE, direction="forward", noise=0.0, generator=None, **fields):
    """A record of ours (an exchange, for a backward pass) that takes what the model says, +-noise"""
    problem = estimate.problems(c)[direction == "backward"]
    ran = plan(problem, DEVICE)
    us = latency.practical_us(problem, ran, DEVICE, constants)
    us *= math.exp(noise * generator.standard_normal()) if generator else 1.0
    of = timing(c, "fwd", "rnn_triton", us, plan={"forward": plan_fields(ran), "backward": None}, **fields)
    if direction == "backward":
        of = of | {
            "kind": "exchange", "direction": direction, "choices": {}, "plan": plan_fields(ran), "practical_us_per_step": us,
        }  # fmt: skip
    schema.validate(of)
    return of


def measurements(noise=0.0, shapes=SHAPES, constants=TRUE, seed=0):
    generator = np.random.default_rng(seed)
    return [
        measurement(c, constants, direction, noise, generator) for c in shapes for direction in ("forward", "backward")
    ]


def by_name(found):
    return {value.name: value for value in found.values}


@pytest.fixture(scope="module")
def found():
    return fit.fit(measurements(noise=0.02))


def test_known_constants_are_recovered(found):
    values = by_name(found)
    assert found.refused == "" and found.device == "Test GPU" and found.skipped == {}
    fitted = {name for name, value in values.items() if value.factor}
    assert {"local_us", "sentinel_us", "efficiency", "node_us"} <= fitted
    # a launch from the host hides behind the kernels: that it is short is all that shows
    host = values["host_us"]
    assert not host.factor and host.new < 0.7 * host.old and host.why == "moved to where it no longer shows"
    for name in fitted:
        value, true = values[name], fit._get(TRUE, name)
        assert value.old == fit._get(latency.CONSTANTS, name) and value.new == fit._get(found.constants, name)
        # 95 % intervals, of which one or another may miss: twice as wide, none does by chance (4 deviations)
        half = math.log(value.factor)
        assert abs(math.log(value.new / true)) <= 2 * half + 1e-9, name
    # the floor of a pair, and all that is no candidate, stay
    assert found.constants.sentinel_us[0] == 0.161
    moved = {n: getattr(latency.CONSTANTS, n) for n in (*fitted, "host_us")}
    assert dataclasses.replace(found.constants, **moved) == latency.CONSTANTS
    before, after = (g["all"] for g in (found.before, found.after))
    assert before.records == after.records == 2 * len(SHAPES)
    assert after.median < 0.03 < before.median
    assert set(found.before) == {"one_cta", "cta_group", "per_step", "all"}


def test_what_the_records_do_not_exercise_stays(found):
    counter = by_name(found)["counter_us"]
    assert (counter.new, counter.factor, counter.records) == (1.18, None, 0)
    assert counter.why == "0 records depend on it, 5 are needed"
    assert found.constants.counter_us == latency.CONSTANTS.counter_us
    # of one CTA alone nothing about exchanges and launches is known
    alone = fit.fit(measurements(shapes=[c for c in SHAPES if c.H <= 256 and c.dtype != "fp32"]))
    fitted = {name for name, value in by_name(alone).items() if value.factor}
    assert fitted and fitted <= {"local_us", "efficiency"}


def test_what_moves_together_is_not_told_apart():
    """Waiting for an exchange and the chain inside a CTA add up: records of small batches over a grid know their sum alone"""
    shapes = [case(H, B, 256, dtype) for H in (384, 512, 768) for B in (1, 4, 8) for dtype in ("bf16", "fp16")]
    found = fit.fit(measurements(noise=0.02, shapes=shapes))
    values = by_name(found)
    left = [n for n in ("local_us", "sentinel_us") if not values[n].factor]
    assert left and all("not told apart from the others" in values[n].why for n in left)
    assert found.refused == "" and found.after["all"].median < found.before["all"].median


def test_no_interval_is_wider_than_a_factor_of_uncertain():
    found = fit.fit(measurements(noise=0.6))
    factors = [value.factor for value in found.values if value.factor]
    assert factors and max(factors) <= 1.5
    assert any("not told apart" in value.why for value in found.values)


def test_only_the_readers_of_a_constant_change_with_it():
    seen = fit._Seen(observations.observations(measurements())[0])
    for factor in (0.1, 1.3, 8):  # hidden behind another limit here, perhaps not there
        for name in fit.FITTED:
            before, after = (
                seen.predicted(fit._with(TRUE, {name: math.log(fit._get(TRUE, name) * f)})) for f in (1, factor)
            )
            assert set(np.flatnonzero(before != after)) <= set(seen.readers[name]), name
    assert 0 < len(seen.readers["sentinel_us"]) < len(seen.truth) and len(seen.readers["counter_us"]) == 0


def test_outliers_do_not_pull():
    given = measurements(noise=0.02)
    for i in range(0, len(given), 9):  # one in nine takes three times as long
        for field in ("device_us", "short_us"):
            given[i][field] = schema.sampled([3 * s for s in given[i][field]["samples"]])
    found = by_name(fit.fit(given))
    for name in ("local_us", "sentinel_us", "efficiency"):
        assert found[name].new == pytest.approx(fit._get(TRUE, name), rel=0.1), name


def test_a_model_that_is_right_already_changes_little(monkeypatch):
    given, calls, time = measurements(noise=0.02, constants=latency.CONSTANTS), [], latency.practical_us
    monkeypatch.setattr(latency, "practical_us", lambda *a: calls.append(1) or time(*a))
    found = fit.fit(given)
    # What a fit costs.  Here 462 a record; 1200 and more where every step times every record again for every constant
    assert len(calls) < 600 * len(given)
    if found.refused:  # nothing was better than before
        assert found.constants is latency.CONSTANTS and "no better than before" in found.refused
    for value in found.values:
        assert value.new == pytest.approx(value.old, rel=0.15), value.name


@pytest.mark.parametrize("n", [0, 1, 5])
def test_too_few_records_change_nothing(n):
    found = fit.fit(measurements(shapes=SHAPES[:n]))
    assert found.constants is latency.CONSTANTS and not found.after
    assert found.refused.startswith(f"{2 * n} records of single recurrences, at least 12 are needed")
    assert all(value.new == value.old and not value.factor for value in found.values)
    assert len(job.constants_body(found)) == len(fit.FITTED)


def test_what_is_no_single_recurrence_is_left_out_and_said():
    good = measurement(SHAPES[0])
    ran, shape, hardware = good["plan"]["forward"], good["shape"], ENVIRONMENT["hardware"]
    stack = case(128, 16, 256, "bf16", layers=2)
    left_out = [
        (good | {"status": "wrong"}, "no time: wrong"),
        (good | {"pass": "train"}, "not a forward pass alone"),
        (good | {"plan": None}, "without hardware or plan"),
        (good | {"shape": dataclasses.asdict(stack)}, "not one layer in one direction"),
        (good | {"short_us": schema.sampled([1e6])}, "a slope that is not positive"),
        (good | {"environment": ENVIRONMENT | {"hardware": None}}, "without hardware or plan"),
        # JSON of the right outline that is no plan, shape or device
        *[
            (good | odd, "shape, plan or hardware of another version")
            for odd in (
                *[{"plan": {"forward": p}} for p in ({"regime": "cta_group", "speed": 9}, "cta_group", [1], {"regime": []}, 7)],
                *[{"plan": {"forward": ran | p}} for p in ({"block_b": 0}, {"block_b": "8"}, {"warps": [8]}, {"accuracy": []})],
                *[
                    {"shape": shape | s}
                    for s in ({"T": 0}, {"T": "256"}, {"H": None}, {"dtype": "int8"}, {"dtype": []}, {"speed": 1})
                ],
                {"shape": {}},
                *[
                    {"environment": ENVIRONMENT | {"hardware": hardware | h}}
                    for h in ({"sms": 0}, {"clock_ghz": 0}, {"clock_ghz": "2"}, {"clock_ghz": math.nan}, {"speed": 1})
                ],
                {"environment": ENVIRONMENT | {"hardware": {}}},
                {"short_T": None},
            )
        ],
        (measurement(SHAPES[0], direction="backward") | {"direction": "up"}, "shape, plan or hardware of another version"),
    ]
    seen, skipped = observations.observations([good, *[r for r, _ in left_out], good | {"provider": "cudnn"}])
    assert [o.case for o in seen] == [good["case"]]
    assert skipped == {why: [w for _, w in left_out].count(why) for _, why in left_out}


def test_a_device_is_what_the_environment_calls_it():
    """as everywhere else in bench: what the driver calls it besides is nothing to choose by"""
    given = measurement(SHAPES[0], environment=ENVIRONMENT | {"hardware": ENVIRONMENT["hardware"] | {"name": "another"}})
    assert fit.fit([given, measurement(SHAPES[1])]).before["all"].records == 2


def test_an_observation_is_the_slope_of_the_newest():
    old, new = (measurement(SHAPES[2], date=f"2026-01-0{i}T00:00:00Z", launch_us=50.0) for i in (1, 2))
    new["device_us"] = schema.sampled([50.0 + 256 * 0.7] * 3)
    new["short_us"] = schema.sampled([50.0 + 64 * 0.7] * 3)
    (seen,), _ = observations.observations([new, old])
    assert seen.us == pytest.approx(0.7)
    assert seen.problem == estimate.problems(SHAPES[2])[0] and seen.device == DEVICE
    (back,), _ = observations.observations([measurement(SHAPES[2], direction="backward")])
    assert back.problem == estimate.problems(SHAPES[2])[1] and back.model_us(TRUE) == pytest.approx(back.us)
    (seen,), _ = observations.observations([new | {"short_T": None, "short_us": schema.sampled()}])
    assert seen.us == pytest.approx((50 + 256 * 0.7) / 256)


def test_devices_are_not_mixed():
    other = ENVIRONMENT | {"device": "B", "hardware": ENVIRONMENT["hardware"] | {"name": "B"}}
    given = [measurement(SHAPES[0]), measurement(SHAPES[0], environment=other)]
    with pytest.raises(ValueError, match="fitted to one device, got records of B, Test GPU"):
        fit.fit(given)
    assert fit.fit(given[1:]).before["all"].records == 1


def test_every_plan_survives_a_record():
    for c in SHAPES:
        for problem in estimate.problems(c):
            for p in candidates(problem, DEVICE):
                assert plan_from_fields(plan_fields(p)) == p
    fields = plan_fields(p)
    with pytest.raises(ValueError, match="regime must be one of one_cta, cta_group, per_step, got 'song'"):
        plan_from_fields(fields | {"regime": "song"})
    with pytest.raises(ValueError, match="not the fields of a per_step plan: .*'speed'"):
        plan_from_fields(fields | {"speed": 1})
    with pytest.raises(ValueError, match="not the fields of a per_step plan: .*'block_b'"):
        plan_from_fields({k: v for k, v in fields.items() if k != "block_b"})


def test_text(found):
    lines = job.constants_body(found)
    assert {len(line) for line in lines} == {len(job.HEADINGS)}
    local = next(line for line in lines if line[0] == "local_us")
    assert local[1] == "0.2" and float(local[2]) == pytest.approx(0.3, rel=0.1) and local[-1] == "fitted"
    errors = job.errors_body(found)
    assert [line[0] for line in errors] == ["one_cta", "cta_group", "per_step", "all"]
    assert {len(line) for line in errors} == {len(job.ERROR_HEADINGS)}


def test_bottlenecks():
    slow, fast = (case(128, B, 256, "bf16") for B in (16, 32))
    given = [
        timing(slow, "fwd", "rnn_triton", 0.3, floor_us_per_step=0.03),
        timing(fast, "fwd", "rnn_triton", 0.3, parts_us_per_step={"MMA": 0.1, "DRAM": 0.4, "host": 0.2, "L2": 0.0}),
        timing(fast, "train", "rnn_triton", 0.3, status="wrong"),
        timing(fast, "fwd", "cudnn", 0.3),
    ]
    lines = job.bottlenecks(given)
    assert [line[0] for line in lines] == [slow.name, fast.name]
    us = (5 + 256 * 0.3) / 256
    assert lines[0] == (
        slow.name, "fwd", "Test GPU", f"{us:.3f}", "0.300", "0.030", f"{0.03 / us:.0%}", "exchange 0.150, local 0.100",
    )  # fmt: skip
    assert lines[1][-1] == "DRAM 0.400, host 0.200, MMA 0.100"
    assert len(lines[0]) == len(job.BOTTLENECK_HEADINGS)
    assert job.bottlenecks(given, parts=1)[1][-1] == "DRAM 0.400"
