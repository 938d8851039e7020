"""compare: intervals and verdicts on known distributions, sides that cannot be compared, names."""

import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from support import bench_records
from support.bench_records import ENVIRONMENT, timing

from bench.cases.case import case
from bench.records import compare, schema, statistics

CASE = case(128, 16, 256, "bf16")
N = 120  # simulations of each statistic


def side(name, *given):
    for record in given:
        schema.validate(record)
    return compare.Side(name, tuple(given))


def record(us, *, of=CASE, status="ok", run="run-1", environment=(), **fields):
    """A record of ours with these samples; us: how many, or the samples"""
    made = timing(of, "fwd", fields.pop("provider", "rnn_triton"), 0.3, status=status, run=run, **fields)
    return made | {"device_us": schema.sampled(list(map(float, us))), "environment": ENVIRONMENT | dict(environment)}


def lognormal(generator, n, sigma=0.05, rho=0.0, middle=100.0):
    """n positive samples around `middle`, neighbours correlated by rho"""
    x = generator.standard_normal(n)
    for i in range(1, n if rho else 0):
        x[i] = rho * x[i - 1] + np.sqrt(1 - rho**2) * x[i]
    return middle * np.exp(sigma * x)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Enough for shares of 95 %, and five times as fast"""
    monkeypatch.setattr(statistics, "DRAWS", 400)


def simulate(make, ratio, band=0.0):
    """(how often the interval covers the true ratio, how often B looks slower, how often p < 0.05)"""
    covered = slower = rejected = 0
    for seed in range(N):
        generator = np.random.default_rng(seed)
        a, b = ([s * factor for s in make(generator)] for factor in (1.0, ratio))
        low, high, p = statistics.interval(a, b, band, seed)
        covered, slower, rejected = covered + (low <= ratio <= high), slower + (low > 1 + band), rejected + (p < 0.05)
    return covered / N, slower / N, rejected / N


# Of N = 120 simulations a share of 95 % has a standard deviation of 2 %: 3 of them below are 0.89.  2.5 %, which look slower
# by chance, has 1.4 %: 3 above are 0.068.  5 % has 2 %: 3 above are 0.11.


@pytest.mark.parametrize("n, ratio", [(10, 1.1), (30, 1.0), (100, 0.8)])
def test_interval_of_independent_samples_covers_the_ratio(n, ratio):
    covered, slower, rejected = simulate(lambda g: [lognormal(g, n)], ratio)
    assert covered >= 0.89
    if ratio == 1:
        assert slower <= 0.068 and rejected <= 0.11


def test_interval_of_autocorrelated_samples_is_wider(monkeypatch):
    def make(generator):
        return [lognormal(generator, 100, rho=0.8)]

    # Blocks know less than nominal (Carlstein's lengths are short for a median): 0.92 in 300 simulations; 3 deviations below
    covered, slower, _ = simulate(make, 1.0)
    assert covered >= 0.85 and slower <= 0.1
    monkeypatch.setattr(statistics, "block_length", lambda samples: 1)
    assert simulate(make, 1.0)[0] < 0.7  # samples drawn one by one take chance for certainty


def test_interval_of_several_runs_is_about_runs(monkeypatch):
    def make(generator):  # runs 2 % apart, samples within them 0.5 %
        return [lognormal(generator, 20, 0.005, middle=100 * np.exp(0.02 * generator.standard_normal())) for _ in range(3)]

    covered, slower, rejected = simulate(make, 1.0)
    assert covered >= 0.89 and slower <= 0.068 and rejected <= 0.11
    pooled = simulate(lambda g: [np.concatenate(make(g))], 1.0)[0]
    assert pooled < covered


def test_a_shift_of_five_percent_is_found():
    _, slower, rejected = simulate(lambda g: [lognormal(g, 50)], 1.05)
    assert slower >= 0.85 and rejected >= 0.85  # 0.96 by 300 simulations
    _, slower, rejected = simulate(lambda g: [lognormal(g, 50)], 1 / 1.05)
    assert slower == 0 and rejected >= 0.85


def test_p_is_that_of_a_ratio_at_the_end_of_the_band():
    def make(generator):
        return [lognormal(generator, 20, 0.01)]

    for ratio in (1.02, 0.98):  # one of both sides is left to chance
        _, slower, rejected = simulate(make, ratio, 0.02)
        assert slower <= 0.068 * (ratio > 1) and 0 < rejected <= 0.068
    # in the middle, 2 % are 5 standard deviations of this ratio: of p against 1, 5 % would be below 0.05
    assert simulate(make, 1.0, 0.02)[1:] == (0, 0)


def drifting(generator, name, factor=1.0, drift=0.006, sigma=0.01, n=30, of=40):
    """A run of `of` cases; each by itself is off by a shift that all its samples share, as from one run to the next"""
    shapes = [case(16 + i, 16, 256, "bf16") for i in range(of)]
    shifts = factor * np.exp(drift * generator.standard_normal(of))
    return side(name, *[record(shift * lognormal(generator, n, sigma), of=c) for shift, c in zip(shifts, shapes)])


@pytest.mark.parametrize("sigma", [0.002, 0.01])
def test_how_runs_differ_is_no_regression(sigma):
    """Equal code, one run a side, B off by 0.6 % run to run: the band (2 %) is 3.3 deviations away, 0.04 % of 160 pairs are
    beyond it, and the samples, sure of a shift that is none, find none of them slower"""
    for seed in range(4):
        generator = np.random.default_rng(seed)
        found = compare.compare(drifting(generator, "a", drift=0.0, sigma=sigma), drifting(generator, "b", sigma=sigma))
        assert not found.regressions and not [pair for pair in found.pairs if pair.verdict in ("slower", "faster")]
        shifted = [pair for pair in found.pairs if not pair.low <= 1 <= pair.high]
        assert len(shifted) > 2  # there is something to mistake for a change


def test_five_percent_slower_is_found_whatever_runs_differ_by():
    """Of a shift of 0.6 %, twice, and samples 1 % apart, ten (the fewest there are) to a median, a ratio of 1.05 is over 2.5
    deviations beyond the band by itself; each of 20 pairs is found with a probability over 0.95 (0.98 in 60 simulations)"""
    generator = np.random.default_rng(3)
    a, b = (drifting(generator, name, factor, n=10, of=20) for name, factor in (("a", 1.0), ("b", 1.05)))
    assert len(compare.compare(a, b).regressions) >= 17  # 0.95 * 20 less 2 deviations
    assert len(compare.compare(b, a).regressions) == 0


def test_student_and_its_inverse():
    # 97.5 % quantiles of Student's t: 4.303, 2.228 and 1.984 for 2, 10 and 100 degrees of freedom
    for freedom, expected in ((2, 4.303), (10, 2.228), (100, 1.984)):
        t = statistics.student(1.959964, freedom)
        assert t == pytest.approx(expected, rel=0.05)
        assert statistics._normal(t, freedom) == pytest.approx(1.959964)
    assert statistics.student(1.96, float("inf")) == 1.96


def test_block_length():
    generator = np.random.default_rng(0)
    lengths = [statistics.block_length(lognormal(generator, 60)) for _ in range(100)]
    assert lengths.count(1) >= 87  # 5 % expected otherwise, 2.2 % deviation
    assert min(statistics.block_length(lognormal(generator, 60, rho=0.9)) for _ in range(20)) > 3
    drift = 100 + np.arange(40.0)
    drift[20] = 1e9  # an outlier hides nothing
    assert statistics.block_length(drift) == 10  # no longer than a quarter
    assert statistics.block_length(np.full(20, 3.0)) in range(1, 6)


def test_blocks_are_neighbours_on_a_circle():
    drawn = statistics._blocks(np.arange(7), np.random.default_rng(0), 9, 3)
    assert drawn.shape == (statistics.DRAWS, 9)
    blocks = drawn.reshape(-1, 3)
    assert (blocks[:, 1:] == (blocks[:, :-1] + 1) % 7).all()
    assert set(blocks[:, 0]) == set(range(7))


@pytest.mark.parametrize(
    "factor, sigma, verdict",
    [
        (1.0, 0.005, "same"), (1.01, 0.001, "same"), (1.05, 0.01, "slower"), (0.95, 0.01, "faster"), (1.01, 0.3, "noise"),
        (1.02, 0.01, "noise"), (0.98, 0.01, "noise"),  # not 1, but nobody knows whether it is beyond the band
    ],  # fmt: skip
)
def test_verdicts(factor, sigma, verdict):
    a = lognormal(np.random.default_rng(1), 60, sigma)
    found = compare.compare(side("a", record(a)), side("b", record(a[::-1] * factor)))
    (pair,) = found.pairs
    assert (pair.verdict, pair.samples, pair.runs) == (verdict, (60, 60), (1, 1))
    assert pair.ratio == pytest.approx(factor) and pair.low <= pair.ratio <= pair.high
    assert [p.verdict for p in found.regressions] == ["slower"] * (verdict == "slower")
    assert bool(found.regressions) == (verdict == "slower")


def test_equal_inputs_give_equal_output():
    a, b = (side(n, record(lognormal(np.random.default_rng(i), 20))) for i, n in enumerate("ab"))
    assert compare.compare(a, b) == compare.compare(a, b)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_few_samples_say_nothing(n):
    found = compare.compare(side("a", record([100.0] * 30)), side("b", record([200.0] * n)))
    (pair,) = found.pairs
    assert (pair.verdict, pair.ratio, pair.low, pair.p) == ("noise", 2.0, None, None)
    assert pair.message == f"{n} samples say nothing; 5 or more would"
    assert not found.regressions and found.tested == 0


def test_false_alarms_are_controlled_over_all_pairs():
    """100 cases as slow as the band allows: 2.5 look slower by chance, with a deviation of 1.6; a regression is reported in 5 %
    of such comparisons at most"""
    shapes = [case(16 + i, 16, 256, "bf16") for i in range(100)]
    generator = np.random.default_rng(5)
    a, b = (
        side(n, *[record(us * lognormal(generator, 20), of=c) for c in shapes]) for n, us in (("a", 1), ("b", 1.02))
    )
    found = compare.compare(a, b)
    assert found.expected_false_alarms == pytest.approx(2.5)
    assert sum(pair.verdict == "slower" for pair in found.pairs) <= 7
    assert found.regressions == [] and not found.regressions
    # one that is slower stands out of them
    slow = side("b", *b.records[1:], record(lognormal(generator, 20) * 1.2, of=shapes[0]))
    assert [pair.case for pair in compare.compare(a, slow).regressions] == [shapes[0].name]


def test_discoveries_of_benjamini_and_hochberg():
    p = [0.01, 0.04, 0.03, 0.02, 0.5]
    assert statistics.discoveries(p, 0.05) == [True, True, True, True, False]  # 0.04 <= 4/5 * 0.05 takes the smaller ones along
    assert statistics.discoveries([0.04, 0.5], 0.05) == [False, False]
    assert statistics.discoveries([]) == []


@pytest.mark.parametrize("status", get_args(schema.Status)[1:])
def test_what_no_longer_runs_is_a_regression(status):
    good, bad = (record(lognormal(np.random.default_rng(1), 20), status=s) for s in ("ok", status))
    other = record([100.0] * 20, of=CASE.at(7))
    found = compare.compare(side("a", good, other), side("b", bad, other))
    if status == "missing":  # the provider is not there: nothing is known
        assert [pair.case for pair in found.pairs] == [CASE.at(7).name] and not found.regressions
        assert found.only_b == (f"{CASE.name} fwd rnn_triton on Test GPU: missing",)
        return
    assert [pair.verdict for pair in found.pairs] == ["broken", "same"] and found.regressions
    assert found.pairs[0].message == f"{status}: it is {status}"
    back = compare.compare(side("b", bad, other), side("a", good, other))
    assert [pair.verdict for pair in back.pairs] == ["fixed", "same"] and not back.regressions


def test_the_newest_record_of_a_side_decides():
    old = record([100.0] * 9, run="run-1", date="2026-01-01T00:00:00Z")
    new = record([1.0], status="wrong", run="run-2", date="2026-01-02T00:00:00Z")
    assert compare.compare(side("a", old), side("b", new, old)).pairs[0].verdict == "broken"
    assert compare.compare(side("a", new, old), side("b", old)).pairs[0].verdict == "fixed"


def test_cases_of_one_side_are_listed():
    shared, left, right = (record([100.0] * 9, of=CASE.at(T)) for T in (4, 5, 6))
    theirs = record([90.0] * 9, of=CASE.at(4), provider="cudnn")
    a, b = side("a", shared, left, theirs), side("b", shared, right)
    found = compare.compare(a, b)
    assert found.only_a == (f"{CASE.at(5).name} fwd rnn_triton on Test GPU: ok",)
    assert found.only_b == (f"{CASE.at(6).name} fwd rnn_triton on Test GPU: ok",)
    assert len(compare.compare(a, b, providers=None).only_a) == 2
    with pytest.raises(ValueError, match="share no timed case of rnn_triton; a has 1 .*t5.* b has 1 .*t6"):
        compare.compare(side("a", left), side("b", right))


def test_other_devices_are_refused_and_other_versions_said():
    a = side("a", record([100.0] * 9))
    with pytest.raises(ValueError, match="different devices are not compared: a is of Test GPU, b of H100"):
        compare.compare(a, side("b", record([100.0] * 9, environment={"device": "H100"})))
    both = side(
        "b", record([100.0] * 9, environment={"torch": "2.12", "dirty": True}), record([1.0] * 9, environment={"device": "H100"})
    )
    found = compare.compare(a, both)
    assert len(found.pairs) == 1  # of the device they share
    assert "only in b: H100" in found.notes and "torch differs: A 2.11; B 2.11, 2.12" in found.notes
    assert "b was measured with uncommitted changes" in found.notes
    mixed = side("b", a.records[0], record([100.0] * 9, run="2", environment={"commit": "f" * 40}))
    assert "b mixes 2 states of the code, of 0123456789ab, ffffffffffff" in compare.compare(a, mixed).notes
    assert compare.compare(a, a).notes[0] == "A and B are the same records"


def test_text():
    good = record([100.0] * 9)
    slow = record(np.linspace(120, 121, 9))
    broken = record([1.0] * 9, of=CASE.at(4), status="wrong")
    a, b = side("a", good, record([100.0] * 9, of=CASE.at(4))), side("b", slow, broken)
    found = compare.compare(a, b)
    first, second = compare.body(found)
    assert len(first) == len(second) == len(compare.HEADINGS)
    assert first == (CASE.at(4).name, "fwd", "rnn_triton", "100.0", "-", "-", "-", "-", "-", "broken*: wrong: it is wrong")
    assert second[7:9] == ("1980", "1980") and second[:6] == (CASE.name, "fwd", "rnn_triton", "100.0", "120.5", "1.205") and second[-1] == "slower*"
    lines = compare.summary(found)
    assert lines.pop(0).startswith("note: one run on a side of 1 pairs: ")
    assert lines[0] == "A = a, B = b: 1 broken, 1 slower; same: within 2.0%, slower or faster: beyond it"
    assert lines[1] == (
        "of 1 pairs tested, 0.0 at most look slower by chance alone; regressions (*, at a false discovery rate of 5%): 2"
    )
    assert any(line.startswith("note: ") for line in compare.summary(compare.compare(a, a)))


@pytest.mark.parametrize("band", [0, -0.1, 1])
def test_band_must_be_a_share(band):
    a = side("a", record([100.0] * 9))
    with pytest.raises(ValueError, match=f"band must lie between 0 and 1, got {band}"):
        compare.compare(a, a, band=band)


# ---- clocks and runs ------------------------------------------------------------------------------------------------


def clocked(name, factor, sm, memory=3201.0, runs=3):
    """A side of three runs at these clocks"""
    generator = np.random.default_rng(7)
    telemetry = {"sm_mhz": sm, "memory_mhz": memory}
    made = [record(lognormal(generator, 20, 0.002) * factor, run=f"{name}{i}", telemetry=telemetry) for i in range(runs)]
    return side(name, *made)


@pytest.mark.parametrize(
    "factor, clocks, verdict",
    [
        (1.2, (1755, 3201, 1400, 3201), "clocks"),  # all of it is the clock
        (1.2, (1755, 3201, 1755, 3201), "slower"), (1.2, (1755, 3201, 1740, 3201), "slower"),
        (1.4, (1755, 3201, 1400, 3201), "slower"),  # more than the clock explains
        (1 / 1.2, (1400, 3201, 1755, 3201), "clocks"), (1 / 1.4, (1400, 3201, 1755, 3201), "faster"),
        (1.2, (1400, 3201, 1755, 3201), "slower"),  # at a higher clock
        (1.0, (1755, 3201, 1400, 3201), "clocks"),  # as fast at a lower clock: faster code, or nothing that follows the clock
        (1.2, (1755, 3201, 1755, 2600), "clocks"), (1.0, (1755, 3201, 1755, 3201), "same"),
    ],
)  # fmt: skip
def test_clocks_stand_beside_the_verdict_and_veto_it(factor, clocks, verdict):
    found = compare.compare(clocked("a", 1.0, *clocks[:2]), clocked("b", factor, *clocks[2:]))
    (pair,) = found.pairs
    assert (pair.verdict, pair.mhz) == (verdict, (clocks[0], clocks[2]))
    assert pair.ratio == pytest.approx(factor, rel=0.01) and bool(found.regressions) == (verdict == "slower")
    assert compare.body(found)[0][-3:] == (str(clocks[0]), str(clocks[2]), "slower*" if verdict == "slower" else verdict)
    assert (pair.p == 1) == (verdict in ("clocks", "same")) and found.notes == ()


def test_regressions_of_a_whole_suite_at_a_lower_clock_are_none():
    """The same times, 1.2 times over, at 1400 MHz against 1755: nothing is known to be slower"""
    listed = bench_records.suite("quick")
    later = []
    for r in listed:
        fields = {f: schema.sampled([1.2 * us for us in r[f]["samples"]]) for f in ("device_us", "short_us")}
        later.append(r | fields | {"telemetry": r["telemetry"] | {"sm_mhz": 1400.0}})
    early = [r | {"telemetry": r["telemetry"] | {"sm_mhz": 1755.0}} for r in listed]
    found = compare.compare(side("a", *early), side("b", *later))
    assert len(found.pairs) == 30 and {pair.verdict for pair in found.pairs} <= {"clocks", "noise"} and not found.regressions
    assert any(pair.verdict == "clocks" for pair in found.pairs)


def test_what_the_records_do_not_know_is_said():
    a = clocked("a", 1.0, 1755)
    assert compare.compare(a, clocked("b", 1.01, 1755)).notes == ()
    (note,) = compare.compare(a, clocked("b", 1.0, 1755, runs=1)).notes
    assert note.startswith("one run on a side of 1 pairs") and "--repeats" in note
    bare = side("b", *[r | {"telemetry": {}} for r in clocked("b", 1.2, 1400).records])
    found = compare.compare(a, bare)
    assert found.notes == ("clocks are not recorded for 1 pairs, whose verdict knows nothing of them",)
    assert found.pairs[0].mhz == (1755, None) and found.pairs[0].verdict == "slower"


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """results/{one,two}.jsonl, of two commits that begin alike"""
    (tmp_path / "results").mkdir()
    for name, commit in (("one", "0123456789" * 4), ("two", "0123456" + "f" * 33)):
        of = record([100.0] * 9, run=name, environment={"commit": commit})
        (tmp_path / "results" / f"{name}.jsonl").write_text(json.dumps(of) + "\n")
    return tmp_path / "results"


def test_a_side_is_a_file_a_folder_or_a_commit(files):
    paths = sorted(files.glob("*"))
    runs = {name: [r["run"] for r in compare.load(str(name), paths).records] for name in (files, paths[0], "01234567")}
    assert runs == {files: ["one", "two"], paths[0]: ["one"], "01234567": ["one"]}
    assert compare.load("0123456F", paths).name == "0123456F"


@pytest.mark.parametrize(
    "name, message",
    [
        ("0123456", "'0123456' begins several commits: 0123456789.., 0123456fffff"),
        ("0123499", "'0123499' is no record file, no folder of them and no commit .*; commits with records: .*0123456789"),
        ("nothing/here.jsonl", "is no record file"),
        ("--help", "is no record file"),
    ],
)
def test_unknown_names(files, name, message):
    with pytest.raises(ValueError, match=message):
        compare.load(name, files.glob("*"))


def test_a_commit_of_git_without_records(files, monkeypatch):
    monkeypatch.setattr(compare.environment, "_output", lambda *command: "a" * 40)
    with pytest.raises(ValueError, match="commit aaaaaaaaaaaa has no timing records; commits that have: .*0123456789"):
        compare.load("HEAD", files.glob("*"))
    monkeypatch.setattr(compare.environment, "_output", lambda *command: "0123456789" * 4)
    assert [r["run"] for r in compare.load("v1.0", files.glob("*")).records] == ["one"]


def test_damage_is_said_and_loses_nothing(files):
    path = files / "one.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    found = compare.load(str(path), [])
    assert len(found.records) == 1 and f"{path}:2: " in found.problems[0]
    assert f"1 lines are no records, the first: {path}:2" in "\n".join(compare.compare(found, replace(found, name="b")).notes)
    path.write_text("{broken\n")
    with pytest.raises(ValueError, match=r"no timing records in .*one.jsonl; 1 lines are no records, the first: .*:1:"):
        compare.load(str(path), [])
    (files / "empty").mkdir()
    with pytest.raises(ValueError, match="no record files .* in the folder"):
        compare.load(str(files / "empty"), [])
