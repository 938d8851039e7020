"""Figures from synthetic records: the numbers in them, gaps shown as gaps, equal files for equal records, nothing that
overlaps or is cut off."""

import itertools
import math

import pytest
from support.bench_records import ENVIRONMENT, SPEEDUP, timing, us_of

from bench.cases import estimate, suites
from bench.cases.case import case
from bench.cases.inputs import lengths_of
from bench.cases.suites import SUITES
from bench.records.rows import rows as rows_of
from bench.show import figures, over_sizes, roofline, style, sweeps
from rnn_triton.plan.hardware import RECORDS

pytest.importorskip("matplotlib")

SHAPES = [(H, B, 256, 1) for H in (128, 512, 1024) for B in (1, 64)]
SHAPES += [(128, 64, T, 1) for T in (64, 1024)] + [(128, 64, 256, L) for L in (2, 4)]
CASES = [case(H, B, T, dtype, layers=L) for H, B, T, L in SHAPES for dtype in ("bf16", "fp32")]
WRONG, ABSENT, REFUSED, ALONE = (
    f"h{H}-b{B}-t256-{dtype}"
    for H, B, dtype in ((512, 1, "bf16"), (512, 64, "fp32"), (1024, 1, "fp32"), (1024, 64, "bf16"))
)
PROVIDERS = {"rnn_triton": None, "cudnn": 1.0, "flashrnn": 1.5}  # times over cuDNN's


def record(c, pass_, provider, **fields):
    times = 1.0 if provider == "rnn_triton" else PROVIDERS[provider] * SPEEDUP[c.dtype]
    regime = {128: "one_cta", 512: "cta_group", 1024: "per_step"}[c.H] if provider == "rnn_triton" else None
    peak = c.T * c.B * c.H * (2 if provider == "rnn_triton" else 3)
    if c.name == WRONG and provider == "rnn_triton":
        fields["status"] = "wrong"
    if c.name == REFUSED and provider == "rnn_triton":
        fields |= {"status": "unsupported", "message": "no plan"}
    found = timing(
        c, pass_, provider, times * us_of(c, pass_), launch_us=5 * times, regime=regime, peak_bytes=peak, **fields
    )
    if pass_ == "train":
        found["errors"] |= {"dx": {"rel": 3e-3, "rel_tol": 8e-3, "max": 0.01, "max_tol": 0.1}}
    return found


@pytest.fixture(scope="module")
def rows():
    return rows_of(
        record(c, pass_, provider) for c in CASES if c.name != ABSENT for pass_ in ("fwd", "train") for provider in PROVIDERS
        if not (c.name == ALONE and provider == "cudnn")
    )  # fmt: skip


@pytest.fixture(scope="module")
def pages(rows):
    with style.context():
        yield {page.name: page for page in figures.pages(rows)}


@pytest.fixture(scope="module")
def drawn(rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("figures")
    return out, figures.draw(few(rows), out, DRAWN)


DRAWN = ["speedup", "speedup-over", "accuracy"]


def few(rows):
    """Enough for a small page of each of DRAWN"""
    usual = {"T": 256, "layers": 1, "dtype": "bf16"}
    return [row for row in rows if row.pass_ == "fwd" and usual.items() <= row.shape.items()]


NAMES = [
    "speedup", "speedup-over-H", "speedup-over-B", "speedup-over-T", "speedup-over-L", "step-over-H", "step-over-B",
    "step-over-T", "step-over-L", "roofline", "memory-over-T", "memory-over-H", "accuracy",
]  # fmt: skip


def lines(axis, colour=None, marker=None):
    """The (x, y) lists of an axis' lines of data, in drawing order; a line that is broken is several"""
    found = []
    for line in axis.lines:
        if colour in (None, line.get_color()) and marker in (None, line.get_marker()) and line.get_transform() == axis.transData:
            points = list(zip(map(float, line.get_xdata()), map(float, line.get_ydata())))
            for broken, part in itertools.groupby(points, lambda point: math.isnan(point[1])):
                if not broken:
                    found.append([list(values) for values in zip(*part)])
    return found


# ---- the files ------------------------------------------------------------------------------------------------------


def test_every_figure_the_records_allow_is_there(pages):
    assert list(pages) == NAMES


def test_each_is_written_three_times_and_not_empty(drawn):
    _, files = drawn
    stems = ("speedup", "speedup-over-H", "speedup-over-B", "accuracy")
    assert [f.name for f in files] == [f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg", "pdf")]
    assert all(f.stat().st_size > 8_000 for f in files)


@pytest.mark.long
def test_equal_records_give_equal_files(drawn, rows, tmp_path):
    import matplotlib

    out, _ = drawn
    matplotlib.rcParams["font.size"] = 14  # a user's own settings change nothing, and stay
    try:
        again = figures.draw(few(rows), tmp_path, DRAWN)
        assert matplotlib.rcParams["font.size"] == 14
    finally:
        matplotlib.rcdefaults()
    assert len(again) == 12
    for file in again:
        assert file.read_bytes() == (out / file.name).read_bytes(), file.name
        assert b"CreationDate" not in file.read_bytes() and b"dc:date" not in file.read_bytes()


@pytest.mark.long
def test_text_stays_inside_and_apart(pages):
    """No text leaves its figure, no two texts overlap, none lies on another panel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for name, page in pages.items():
        canvas = FigureCanvasAgg(page.figure)
        page.figure.draw_without_rendering()  # places labels and ticks
        width, height = canvas.get_width_height()
        shown = list(page.figure.texts)
        for axis in page.figure.axes:
            shown += [*axis.texts, axis.title, axis.xaxis.label, axis.yaxis.label]
            for which in (axis.xaxis, axis.yaxis):
                low, high = sorted(which.get_view_interval())  # ticks beyond it are not drawn
                shown += [tick.label1 for tick in which.get_major_ticks() if low <= tick.get_loc() <= high]
        for legend in page.figure.legends:
            shown += legend.get_texts()
        boxes = [
            (t.get_text(), t.get_window_extent().padded(-0.5)) for t in shown if t.get_text() and t.get_visible()
        ]
        for i, (text, box) in enumerate(boxes):
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, f"{name}: {text!r} leaves it"
            for other, its in boxes[i + 1 :]:
                assert not box.overlaps(its), f"{name}: {text!r} and {other!r} overlap"


def test_no_number_is_none_or_nan(pages):
    for name, page in pages.items():
        for axis in page.figure.axes:
            for x, y in lines(axis):
                assert all(map(math.isfinite, x + y)), name
        texts = [t.get_text() for axis in page.figure.axes for t in axis.texts] + [
            t.get_text() for t in page.figure.texts
        ]
        assert not any("nan" in text.split() or "None" in text for text in texts), name


def test_each_says_what_it_was_measured_on_and_how(pages):
    for name, page in pages.items():
        text = " ".join(page.figure.texts[1].get_text().split())
        for part in ("Test GPU", "torch 2.11", "triton 3.6.0", "2026-01-02", page.note, "cuDNN 91000", "commit 0123456789"):
            assert part in text, name
        assert "Median device time" in text


def test_unknown_names_are_refused(rows, tmp_path):
    with pytest.raises(ValueError, match="unknown figure 'rofline'; nearest: roofline"):
        figures.draw(rows, tmp_path, ["rofline"])
    assert list(tmp_path.iterdir()) == []


def test_nothing_measured_draws_nothing(tmp_path):
    refused = rows_of([timing(CASES[0], "fwd", "rnn_triton", 1.0, status="error")])
    refused[0].errors.clear()
    for nothing in ([], refused):
        assert figures.draw(nothing, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_devices_have_figures_of_their_own(rows):
    other = ENVIRONMENT | {"device": "Other GPU", "hardware": None}
    mixed = rows + rows_of([record(CASES[0], "fwd", p, environment=other) for p in PROVIDERS])
    with style.context():
        found = {page.name: page for page in figures.pages(mixed, ["speedup", "roofline"])}
    assert list(found) == ["other-gpu-speedup", "test-gpu-speedup", "other-gpu-roofline", "test-gpu-roofline"]
    assert "Test GPU" not in found["other-gpu-speedup"].source
    axis = found["other-gpu-roofline"].figure.axes[0]
    assert [t.get_text() for t in axis.texts] == ["no ceilings: hardware not recorded"]


def test_two_runs_that_cannot_be_compared_are_marked():
    made = [record(CASES[0], "fwd", "rnn_triton"), record(CASES[0], "fwd", "cudnn", run="run-2")]
    more = [record(c, "fwd", name) for c in CASES[2:6] for name in ("rnn_triton", "cudnn")]
    with style.context():
        found = {page.name: page for page in figures.pages(rows_of(made + more), ["speedup", "speedup-over"])}
    assert "not in one run" in [t.get_text() for t in found["speedup"].figure.axes[0].texts]


def test_one_row_draws_what_it_can():
    with style.context():
        found = {page.name: page for page in figures.pages(rows_of([record(CASES[0], "fwd", "rnn_triton")]))}
    assert list(found) == ["speedup", "roofline", "accuracy"]
    assert [t.get_text() for t in found["speedup"].figure.axes[0].texts] == ["no cuDNN time"]


# ---- the numbers ----------------------------------------------------------------------------------------------------


def test_sweeps_are_found_in_the_rows(rows):
    ours = [row for row in rows if row.provider == "rnn_triton"]
    found = {axis: sweeps.sweeps(ours, axis) for axis in sweeps.AXES}
    assert [(s.title, s.values) for s in found["H"]] == [("B 64, T 256", (128, 512, 1024))]  # B 1 has fewer
    assert [s.title for s in found["T"]] == ["H 128, B 64"] and found["T"][0].values == (64, 256, 1024)
    assert [s.title for s in found["L"]] == ["H 128, B 64, T 256"] and found["L"][0].values == (1, 2, 4)
    assert found["models"] == found["head"] == []
    assert found["H"][0].names["bf16", 512] == "h512-b64-t256-bf16"


def test_sweep_over_heads_holds_their_product():
    heads = [case(H, 16, 64, "bf16", models=768 // H) for H in (64, 128, 384, 768)]
    found = rows_of([timing(c, "fwd", "rnn_triton", 1.0) for c in heads])
    (sweep,) = sweeps.sweeps(found, "head")
    assert (sweep.values, sweep.title) == ((64, 128, 384, 768), "B 16, T 64, heads x dimension 768")
    assert sweeps.sweeps(found, "H") == [] == sweeps.sweeps(found, "models")


def test_many_equal_sweeps_are_thinned_and_small_ones_left_out():
    many = [case(H, B, 64, "bf16") for H in (32, 64, 128) for B in (1, 2, 4, 8, 16)] + [case(8, 3, 64, "bf16")]
    found = sweeps.sweeps(rows_of([timing(c, "fwd", "rnn_triton", 1.0) for c in many]), "H")
    assert [sweep.held["B"] for sweep in found] == [1, 4, 16]


def test_bars_show_the_speedups_and_say_what_is_missing(pages):
    for axis in pages["speedup"].figure.axes:
        lengths = sorted(round(bar.get_width(), 2) for container in axis.containers for bar in container)
        assert lengths == [0.8] * 8 + [3.0] * 8
        reasons = [text.get_text() for text in axis.texts if not text.get_text()[0].isdigit()]
        assert sorted(reasons) == ["no cuDNN time", "unsupported", "wrong"]


def test_more_cases_than_bars_are_thinned_to_the_extremes(monkeypatch):
    monkeypatch.setattr(figures, "BARS", 5)
    in_suite = list(suites.suite("quick"))
    others = [case(H, 1, 64, "bf16") for H in range(1, 9)]
    of = {c.name: 1.0 + i for i, c in enumerate([*in_suite, *others])}  # times over cuDNN's
    of[in_suite[4].name], of[others[3].name], of[others[5].name] = 0.2, 0.1, 0.3
    made = [timing(c, "fwd", "rnn_triton", 1.0, launch_us=1e-6) for c in [*in_suite, *others]]
    made += [timing(c, "fwd", "cudnn", of[c.name], launch_us=1e-6) for c in [*in_suite, *others]]
    found = rows_of(made)
    with style.context():
        (page,) = figures.pages(found, ["speedup"])
    shown = [label.get_text() for label in page.figure.axes[0].get_yticklabels()]
    assert {in_suite[4].name, in_suite[14].name, others[3].name, others[7].name, others[5].name} == set(shown)
    assert page.title == "Speedup of 5 of 23 cases" and "the other 18 are in the tables alone" in page.note
    assert [name for name in of if name in shown] == shown  # in the order of the suites


def test_a_figure_is_drawn_once_for_each_of_its_files(rows, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    draw = Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, renderer: drawn.append(draw(self, renderer)))
    assert len(figures.draw(few(rows), tmp_path, ["accuracy"])) == len(drawn) == 3


def test_speedup_over_H_has_a_line_an_arithmetic_broken_at_its_gaps(pages):
    axis = pages["speedup-over-H"].figure.axes[0]
    bf16, fp32 = (style.ARITHMETIC[kind]["color"] for kind in ("bf16", "fp32 (TF32)"))
    ((x, y),) = lines(axis, bf16)
    assert x == [128, 512] and y == pytest.approx([3, 3])
    assert [line[0] for line in lines(axis, fp32)] == [[128], [1024]]  # broken where there is none
    assert axis.get_xscale() == axis.get_yscale() == "log"
    assert "1x: as fast as cuDNN" in pages["speedup-over-H"].legend


def test_step_over_T_shows_times_whiskers_floor_and_its_fraction(pages):
    figure = pages["step-over-T"].figure
    times, fraction = figure.axes[0], figure.axes[2]
    us = 0.2 + 128 / 512 + 64 / 1024
    expected = [us + 5 / T for T in (64, 256, 1024)]
    ours, theirs, whiskers = style.PROVIDERS["rnn_triton"]["color"], style.PROVIDERS["cudnn"]["color"], "_"
    assert lines(times, ours, "o")[0] == [[64, 256, 1024], pytest.approx(expected)]
    assert lines(times, theirs, "s")[0][1] == pytest.approx([3 * e for e in expected])
    assert lines(times, ours, whiskers)[0][1] == pytest.approx([f * e for f in (0.94, 1.06) for e in expected])
    assert lines(times, style.FLOOR["color"])[0][1] == pytest.approx([us / 4] * 3)
    assert lines(fraction, ours, "o")[0][1] == pytest.approx([us / 4 / e for e in expected])
    assert len(lines(times, style._OTHERS[0]["color"], "^")) == 1  # flashrnn
    assert {"floor (estimate)", "45% of the floor", "flashrnn"} < set(pages["step-over-T"].legend)


def test_roofline_places_a_step_by_its_flop_and_bytes(pages):
    shape = case(512, 64, 256, "bf16", 100).__dict__
    forward = 2 * 64 * 512 * (512 + 100)
    assert roofline.flop(shape, "fwd") == forward and roofline.flop(shape, "train") == 3 * forward
    assert roofline.moved(shape, "fwd", True) == 2 * 64 * (512 + 100)
    assert roofline.moved(shape, "fwd", False) == 2 * (64 * (512 + 100) + 512 * 512)
    assert roofline.moved(shape, "train", False) == 2 * (3 * 64 * (512 + 100) + 2 * 512 * 512)
    stacked = case(512, 64, 256, "fp32", 100, layers=2, bidirectional=True, cell="lstm").__dict__
    assert roofline.flop(stacked, "fwd") == 2 * 64 * 512 * 4 * 2 * ((100 + 512) + (1024 + 512))
    gated, kept = case(512, 64, 256, "bf16", 100, cell="lstm").__dict__, 6 * 512
    assert roofline.moved(gated, "fwd", True) == roofline.moved(shape, "fwd", True)
    assert roofline.moved(gated, "train", True) == 2 * 64 * (3 * (512 + 100) + 2 * kept)
    axis = pages["roofline"].figure.axes[0]
    us = 0.2 + 512 / 512 + 64 / 1024 + 5 / 256
    ((x, y),) = lines(axis, style.PROVIDERS["rnn_triton"]["color"], "s")  # the one that is grid and right
    assert x == [512] and y == pytest.approx([2 * 64 * 512 * 1024 / us * 1e-6])
    ((per_step, _),) = lines(axis, style.PROVIDERS["rnn_triton"]["color"], "^")
    assert per_step == pytest.approx([2 * B * 1024 * 2048 / (2 * (2048 * B + 1024**2)) for B in (1, 64)])
    peak = max(y for line in lines(axis, "black") for y in line[1])
    assert peak == pytest.approx(132 * 1.98e-3 * 4096)  # TFLOP/s: SMs, GHz, FLOP a cycle
    assert {"DRAM bandwidth", "L2 bandwidth", "peak of the products"} < set(pages["roofline"].legend)


def test_the_work_of_packed_sequences_is_that_of_real_steps():
    for lengths in ("uniform", "heavy"):
        packed, padded = (case(128, 16, 512, "bf16", 100, lengths=how) for how in (lengths, "full"))
        real = int(lengths_of(packed).sum()) / (16 * 512)
        assert real < 0.8
        for pass_ in ("fwd", "train"):
            assert roofline.flop(packed.__dict__, pass_) == pytest.approx(real * roofline.flop(padded.__dict__, pass_))
            weights = 2 * 128 * 128 * (1 if pass_ == "fwd" else 2)
            for resident, bytes_ in ((True, 0), (False, weights)):
                moved = real * roofline.moved(padded.__dict__, pass_, True) + bytes_
                assert roofline.moved(packed.__dict__, pass_, resident) == pytest.approx(moved)


def test_no_floor_of_packed_cases_lies_above_the_peak():
    H200 = RECORDS["sm_90"]
    found = 0
    for c in SUITES["varlen"]:
        hardware = {"environment": ENVIRONMENT | {"hardware": H200.__dict__}}
        (row,) = rows_of([timing(c, "fwd", "rnn_triton", 1.0, **hardware)])
        peak = roofline._ceilings(figures.arithmetic(row), [row])["peak"]
        for pass_ in ("fwd", "train"):
            assert roofline.flop(c.__dict__, pass_) * 1e-6 / estimate.of_case(c, pass_, H200).floor_us <= 1.001 * peak, c.name
            found += c.lengths != "full"
    assert found == 48


def test_memory_is_in_mebibytes(pages):
    axis = pages["memory-over-T"].figure.axes[0]
    expected = [T * 64 * 128 * 2 / 2**20 for T in (64, 256, 1024)]
    assert lines(axis, style.PROVIDERS["rnn_triton"]["color"])[0] == [[64, 256, 1024], pytest.approx(expected)]
    assert lines(axis, style.PROVIDERS["cudnn"]["color"])[0][1] == pytest.approx([1.5 * e for e in expected])


def test_accuracy_marks_the_quantity_that_is_wrong_alone():
    color = style.PROVIDERS["rnn_triton"]["color"]
    good, bad = {"rel": 1e-3, "rel_tol": 0.01, "max": 0.01, "max_tol": 0.1}, {"rel": 1e-3, "rel_tol": 0.01, "max": 1.0, "max_tol": 0.1}
    for errors, marked in (({"y": good, "dx": bad}, (False, True)), ({"y": bad, "dx": good}, (True, False))):
        found = rows_of([timing(CASES[0], "train", "rnn_triton", 1.0, status="wrong", errors=errors)])
        with style.context():
            (page,) = figures.pages(found, ["accuracy"])
        assert tuple(bool(lines(axis, color, "x")) for axis in page.figure.axes[:2]) == marked


def test_accuracy_shows_errors_and_the_tolerance(pages):
    figure = pages["accuracy"].figure
    y, gradient = figure.axes[0], figure.axes[2]
    ours = style.PROVIDERS["rnn_triton"]["color"]
    assert lines(y, ours, "o")[0] == [[64, 256, 1024], [1e-3] * 3]
    assert lines(y, style.TOLERANCE["color"], "_")[0][1] == [4e-3] * 3
    assert (
        lines(gradient, ours, "o")[0][1] == [3e-3] * 3
        and lines(gradient, style.TOLERANCE["color"], "_")[0][1] == [8e-3] * 3
    )


def test_a_wrong_result_keeps_its_error():
    color = style.PROVIDERS["rnn_triton"]["color"]
    for rel in (0.5, math.nan):
        errors = {"y": {"rel": rel, "rel_tol": 0.01, "max": 1.0, "max_tol": 0.1}}
        found = rows_of([timing(CASES[0], "fwd", "rnn_triton", 1.0, status="wrong", errors=errors)])
        with style.context():
            (page,) = figures.pages(found, ["accuracy"])
        axis = page.figure.axes[0]
        if rel == 0.5:
            assert lines(axis, color) == [[[256], [0.5]]] * 2 and lines(axis, color, "x") == [[[256], [0.5]]]
            assert "wrong" in page.legend
        else:  # NaN has no place on an axis
            assert lines(axis, color) == []
        assert lines(axis, style.TOLERANCE["color"], "_") == [[[256], [0.01]]]


def test_an_exact_result_is_drawn_at_the_least_error_and_is_not_wrong():
    errors = {"y": {"rel": 0.0, "rel_tol": 0.01, "max": 0.0, "max_tol": 0.1}}
    with style.context():
        (page,) = figures.pages(rows_of([timing(CASES[0], "fwd", "rnn_triton", 1.0, errors=errors)]), ["accuracy"])
    ours = style.PROVIDERS["rnn_triton"]["color"]
    assert lines(page.figure.axes[0], ours) == [[[256], [over_sizes.LEAST_ERROR]]]


# ---- how it looks ---------------------------------------------------------------------------------------------------


def test_series_differ_by_more_than_colour():
    many = style.providers(["rnn_triton", "cudnn", "cudnn-layers", "a", "b", "c", "d", "e", "f"])
    for looks in (many, style.ARITHMETIC):
        for field in ("color", "marker", "linestyle"):
            assert len({str(look[field]) for look in looks.values()}) == len(looks), field
    assert len(set(style.HATCHES.values())) == len(style.HATCHES) == len(style.ARITHMETIC)
    assert style.providers(["z", "cudnn"])["cudnn"] == many["cudnn"]


def test_arithmetics_differ_in_grey():
    def lightness(colour):
        """CIE L* of #rrggbb"""
        linear = [
            v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
            for v in (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        ]
        Y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        return 116 * (Y ** (1 / 3) if Y > 0.008856 else 7.787 * Y + 16 / 116) - 16

    found = sorted(lightness(look["color"]) for look in style.ARITHMETIC.values())
    assert min(b - a for a, b in zip(found, found[1:])) > 10
