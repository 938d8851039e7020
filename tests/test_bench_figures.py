"""Figures from synthetic records: the numbers in them, gaps shown as gaps, equal files for equal records, nothing that
overlaps or is cut off."""

import functools
import itertools
import math
import re
import shutil
import subprocess

import pytest
from support.bench_records import ENVIRONMENT, EVERYONE, SPEEDUP, everything, timing, us_of

from bench import __main__ as bench
from bench import command
from bench.cases import estimate
from bench.cases.case import case
from bench.cases.inputs import lengths_of
from bench.cases.suites import SUITES
from bench.instruments.progress import Progress
from bench.providers.registry import PROVIDERS as PROVIDERS_HERE
from bench.records import schema
from bench.records.rows import rows as rows_of
from bench.show import figures, job, over_sizes, roofline, style, sweeps
from bench.show.rows_in_words import by_suite, caption
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
    return [row for row in rows if row.pass_ == "fwd" and row.shape["dtype"] == "bf16" and (row.shape["H"], row.shape["B"]) == (128, 64)]


NAMES = [
    "profile", "speedup-scaling", "speedup-other-cases", "speedup-over-T", "speedup-over-L", "step-over-H", "step-over-T", "step-over-L", "roofline",
    "memory-over-H", "memory-over-T", "accuracy-over-T",
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
    out, found = drawn
    stems = ["speedup-other-cases", "speedup-over-T", "speedup-over-L", "accuracy-over-T"]
    assert [page.name for page, _ in found] == stems
    assert [f.name for _, files in found for f in files] == [f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg", "pdf")]
    assert all(f.stat().st_size > 5_000 for _, files in found for f in files)
    assert {f.name for f in out.iterdir()} - {f.name for _, files in found for f in files} == {"captions.md", "captions.tex"}


def test_captions_stand_beside_the_files_and_not_in_them(drawn):
    out, found = drawn
    markdown, latex = ((out / f"captions.{suffix}").read_text("utf-8") for suffix in ("md", "tex"))
    for page, files in found:
        assert f"**{page.name}**: {page.title}. {page.note} {page.source}\n" in markdown
        assert f"\\includegraphics{{{page.name}.pdf}}\n\\caption{{" in latex and f"\\label{{fig:{page.name}}}" in latex
        assert page.figure.texts == [] and page.figure.get_suptitle() == "" and "torch 2.11" not in files[1].read_text("utf-8")
    assert latex.count("\\begin{figure*}") == latex.count("\\end{figure*}") == len(found)


NASTY = r"50%_a&b#$ {x} ~^\ <>|" + "\u00b5\u00d7\u00e9" + '"[1]'


@pytest.fixture(scope="module")
def captions(rows, tmp_path_factory):
    """captions.tex of a device and a provider with every character that LaTeX reads as something else"""
    out = tmp_path_factory.mktemp("captions")
    made = [dict(row.record, environment=row.environment | {"device": NASTY}) for row in few(rows)]
    made += [dict(record, provider=NASTY, version=NASTY) for record in made if record["provider"] == "flashrnn"]
    for record in made:
        schema.validate(record)
    return out, figures.draw(rows_of(made), out, ["speedup", "accuracy"])


def test_captions_for_latex_are_escaped_and_have_a_label_each(captions):
    out, found = captions
    text = (out / "captions.tex").read_text("utf-8")
    names = [page.name for page, _ in found]
    assert re.findall(r"\\label\{fig:([^}]*)\}", text) == re.findall(r"\\includegraphics\{([^}]*)\.pdf\}", text) == names == list(dict.fromkeys(names))
    assert all((out / f"{name}.pdf").exists() and re.fullmatch("[a-z0-9-]+", name, re.IGNORECASE) for name in names)
    first, *floats = text.split("\\begin{figure*}")
    assert first.startswith("%") and len(floats) == len(names)
    for (page, _), part in zip(found, floats):
        (said,) = re.findall(r"\\caption\{(.*)\}\n\\label", part)
        assert r"50\%\_a\&b\#\$ \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{}" in said and page.title.split()[0] in said
        known = r"\\[%&#$_{}]|\\text(asciitilde|asciicircum|backslash|less|greater|bar|mu)\{\}|\$\\times\$|\{[][]\}"
        assert said.isascii() and not re.search(r"[%&#$_{}~^\\<>|]", re.sub(known, "", said)), said


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX here")
@pytest.mark.parametrize("option", ["onecolumn", "twocolumn"])
def test_captions_compile(captions, option):
    out, found = captions
    used = "\\usepackage{graphicx,textcomp,rotating}"
    whole = f"\\documentclass[{option}]{{article}}\n{used}\n\\begin{{document}}\n\\input{{captions}}\n\\ref{{fig:{found[-1][0].name}}}\\end{{document}}\n"
    (out / "all.tex").write_text(whole)
    for _ in range(2):  # the second knows the numbers of figures
        done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=out, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0 and not re.findall(r"Float too large.*|.*undefined.*", done.stdout), done.stdout[-2000:]


def test_letters_of_a_pdf_are_type_42(drawn):
    for _, files in drawn[1]:
        content = files[2].read_bytes()
        assert b"/CIDFontType2" in content and b"/Type3" not in content  # what PDF calls type 42, and what it draws otherwise


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
    assert len(again) == 4
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (out / file.name).read_bytes(), file.name
        assert b"CreationDate" not in file.read_bytes() and b"dc:date" not in file.read_bytes()


FEW = ["profile", "step", "roofline", "accuracy"]
SOME = [("column", ("gates", "varlen"), FEW + ["speedup"], "HL"), ("text", ("gates",), ["step", "speedup-over"], "H"), ("page", ("varlen", "heads"), [*FEW, "speedup"], "H")]


@pytest.mark.parametrize("paper,names,only,axes", SOME, ids=lambda value: value if isinstance(value, str) else "")
def test_nothing_overlaps_or_is_too_small_in_print(paper, names, only, axes):
    judged = print_size(everything(names), paper, only, axes)
    assert len(judged) >= 3


@pytest.mark.long
@pytest.mark.parametrize("paper", style.PAPERS)
def test_nothing_of_all_suites_overlaps_or_is_too_small_in_print(paper):
    judged = print_size(everything(), paper)
    assert len(judged) > 40 and {"step-over-H-lstm", "step-over-H-gru", "step-over-H-leaky-tanh", "speedup-gates"} < set(judged)


def print_size(records, paper, only=None, axes=tuple(sweeps.AXES)):
    """Names of the figures of `records`, once no text of theirs is below 6 points, leaves its figure, overlaps another or lies on
    another panel, and each is as wide as its paper, no higher than a page, and true to its caption."""
    judged, rows = [], rows_of(records)
    with style.context():
        for page in figures.pages(rows, only, paper, axes):
            page.figure.draw_without_rendering()  # places labels and ticks
            width, height = page.figure.get_size_inches()
            assert width == style.PAPERS[paper] and height <= (6.2 if paper == "page" else 9), (page.name, height)  # with room for a caption
            boxes = [(text, text.get_window_extent().padded(-0.5)) for text in texts(page)]
            # a label may touch the frame of its own panel alone
            frames = [(axis, axis.get_window_extent().padded(-1)) for axis in page.figure.axes]
            for i, (text, box) in enumerate(boxes):
                said = f"{page.name}: {text.get_text()!r}"
                assert text.get_fontsize() >= 6, f"{said} is of {text.get_fontsize()} points"
                assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width * style.DPI and box.y1 <= height * style.DPI, f"{said} is cut off"
                for other, its in boxes[i + 1 :]:
                    assert not box.overlaps(its), f"{said} and {other.get_text()!r} overlap"
                assert not any(box.overlaps(frame) for axis, frame in frames), f"{said} lies on a panel"
            true_caption(page, rows)
            judged.append(page.name)
    return judged


def texts(page):
    """All texts of a page that are seen"""
    shown = list(page.figure.texts) + [text for legend in page.figure.legends for text in legend.get_texts()]
    for axis in page.figure.axes:
        shown += [*axis.texts, axis.title, axis.xaxis.label, axis.yaxis.label]
        for which in (axis.xaxis, axis.yaxis):
            low, high = sorted(which.get_view_interval())  # ticks beyond it are not drawn
            shown += [tick.label1 for tick in which.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in shown if text.get_text() and text.get_visible()]


def true_caption(page, rows):
    """What a page says in words is what is drawn: series, entries of the legend, numbers of cases, sizes, marks."""
    axes, text = page.figure.axes, page.caption
    assert axes and all(axis.lines for axis in axes), f"{page.name}: an empty panel"
    assert [t.get_text() for legend in page.figure.legends for t in legend.get_texts()] == list(page.legend)
    assert ("Shaded" in text) == ("below floor (estimate)" in page.legend) == any(
        axis.collections and "step" in page.name and len(axis.collections[-1].get_paths()[0].vertices) > 2 for axis in axes
    ), page.name  # fmt: skip
    assert ("A cross" in text) == ("wrong" in page.legend) == any(lines(axis, marker="x") for axis in axes), page.name
    assert ("fp32 is TF32" in text) == any("fp32" in word for word in [*page.legend, *(axis.get_title() for axis in axes)]) or (
        page.name == "profile"
    ), page.name
    known = {label: name for name, (label, _) in style.providers(EVERYONE).items()}
    series = {known[label] for label in page.legend if label in known}
    if page.name.startswith(("step", "memory", "accuracy", "profile")):
        assert ("flashrnn 1.2" in text) == ("flashrnn" in series), page.name
        for axis in axes:  # no series of two points
            assert all(sum(not math.isnan(y) for y in line.get_ydata()) >= 3 for line in axis.lines if len(line.get_xdata()) > 2)
    if found := re.search(r"Speedup of (\d+) cases, suite ([a-z -]+)\.", text):
        dots = [line for axis in axes for line in axis.lines if line.get_linestyle() == "None"]
        most = max(sum(len(line.get_xdata()) for line in axis.lines if line.get_linestyle() == "None") for axis in axes)
        assert int(found[1]) == most and len(dots) == len(axes) * (len(page.legend) - 1)
        low = min(x for line in dots for x in line.get_xdata())
        whole = {r.case: r.speedup for r in by_suite(rows)[found[2]] if r.provider == "rnn_triton" and r.speedup}
        values = [r.speedup for r in rows if r.case in whole and r.provider == "rnn_triton" and r.speedup]
        assert low == pytest.approx(min(values)) or (len(whole) > int(found[1]) and low > min(values))  # of several pages
    for axis, title in zip(axes, ("forward", "forward + backward")):
        if found := re.search(rf"{re.escape(title)} in (\d+) of (\d+) cases", text):
            (ours,) = (line for line in axis.lines if line.get_color() == style.PROVIDERS["rnn_triton"][1]["color"])
            at = sum(x <= 1 for x in ours.get_xdata()[1:-1])
            assert (at, len(ours.get_xdata()) - 2) == (int(found[1]), int(found[2]))


def test_no_number_is_none_or_nan(pages):
    for name, page in pages.items():
        for axis in page.figure.axes:
            for x, y in lines(axis):
                assert all(map(math.isfinite, x + y)), name
        assert not any("nan" in t.get_text().split() or "None" in t.get_text() for t in texts(page)) and "None" not in page.caption, name


def test_each_says_what_it_was_measured_on_and_how(pages):
    for name, page in pages.items():
        for part in ("Test GPU", "torch 2.11", "triton 3.6.0", "2026-01-02", page.note, "cuDNN 9.10.0", "commit 0123456789"):
            assert part in page.caption, name
        assert ("Median device time" in page.caption) == (not name.startswith(("memory", "accuracy"))), name


def test_a_caption_is_of_the_rows_that_are_drawn(rows):
    """A record that no point shows is not named"""
    other = ENVIRONMENT | {"torch": "9.9"}
    odd = rows + rows_of([timing(case(77, 3, 5, "bf16"), "fwd", p, 1.0, environment=other, version="8.8") for p in PROVIDERS])
    with style.context():
        found = {page.name: page for page in figures.pages(odd, ["step", "speedup", "profile"])}
    assert "and 9.9 (" in found["profile"].caption and "flashrnn 8.8" in found["profile"].caption
    assert "and 9.9 (" in found["speedup-other-cases"].caption and "flashrnn" not in found["speedup-other-cases"].caption
    for name in ("step-over-H", "step-over-T", "speedup-scaling"):
        assert "9.9" not in found[name].caption and "8.8" not in found[name].caption, name
    assert "cuDNN 8.9.7" in caption(rows_of([record(CASES[0], "fwd", "cudnn", environment=ENVIRONMENT | {"cudnn": 8907})]))


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
    assert [name for name in found if name.startswith("other")] == ["other-gpu-speedup-other-cases", "other-gpu-roofline"]
    assert {"test-gpu-speedup-other-cases", "test-gpu-roofline"} < set(found)
    assert "Test GPU" not in found["other-gpu-speedup-other-cases"].source
    assert "No ceilings: hardware not recorded." in found["other-gpu-roofline"].note
    assert "No ceilings" not in found["test-gpu-roofline"].note and "Ceilings:" in found["test-gpu-roofline"].note


def test_what_has_no_speedup_is_counted_and_not_drawn():
    made = [record(CASES[0], "fwd", "rnn_triton"), record(CASES[0], "fwd", "cudnn", run="run-2")]
    more = [record(c, "fwd", name) for c in CASES[2:6] for name in ("rnn_triton", "cudnn")]
    with style.context():
        (page,) = figures.pages(rows_of(made + more), ["speedup"])
    assert page.title == "Speedup of 3 cases, suite other cases" and "without a speedup, for which the tables say why: 1." in page.note
    assert sum(len(line.get_xdata()) for line in page.figure.axes[0].lines if line.get_linestyle() == "None") == 3


def test_one_row_draws_what_it_can():
    with style.context():
        found = [page.name for page in figures.pages(rows_of([record(CASES[0], "fwd", "rnn_triton")]))]
    assert found == ["roofline"]


def test_many_shapes_take_several_pages(monkeypatch):
    monkeypatch.setattr(figures, "SHAPES", 3)
    monkeypatch.setattr(figures, "TURNED", 2)
    made = [timing(case(H, 3, 7, "bf16"), "fwd", name, 1.0) for H in range(1, 8) for name in ("rnn_triton", "cudnn")]
    with style.context():
        found = {page.name: page for page in figures.pages(rows_of(made), ["speedup"])}
        assert len(list(figures.pages(rows_of(made), ["speedup"], "page"))) == 4  # which is not as high
    assert list(found) == ["speedup-other-cases", "speedup-other-cases-2", "speedup-other-cases-3"]
    labels = [label.get_text() for page in found.values() for label in page.figure.axes[0].get_yticklabels()]
    assert labels == [f"H {H}" for H in range(1, 7)] + [""] and "All have B 3, T 7." in found["speedup-other-cases"].note


def test_the_command_chooses_what_is_drawn(rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job, "records_of", lambda given, out: [row.record for row in rows])

    def drawn(words):
        code = bench.main(["figures", *words.split(), "--out", str(tmp_path)])
        files = sorted(file.stem for file in tmp_path.rglob("*.pdf"))
        captions = "".join(file.read_text("utf-8") for file in tmp_path.rglob("captions.md"))
        shutil.rmtree(tmp_path)
        return code, files, captions, capsys.readouterr()

    words = "--paper column --axis T --only step,accuracy --dtype bf16 --pass fwd --providers rnn_triton,cudnn"
    code, files, captions, said = drawn(words)
    assert (code, files) == (0, ["accuracy-over-T", "step-over-T"]) and "flashrnn" not in captions and "fp32" not in captions
    assert said.err.startswith("drawing 0/2  step\n") and "drawing: 2/2 in " in said.err and f"captions.tex in {tmp_path / 'figures' / 'column'}" in said.out
    code, files, captions, _ = drawn("--suite scaling --only speedup")
    assert (code, files) == (0, ["speedup-scaling"]) and "Speedup of 1 cases, suite scaling" in captions
    for bad, nearest in (("--axis Q", "unknown axis 'Q'"), ("--providers cudn", "nearest: cudnn"), ("--dtype bf61", "nearest: bf16")):
        tmp_path.mkdir()
        code, files, _, said = drawn(bad)
        assert (code, files) == (2, []) and nearest in said.err


def test_progress_goes_figure_by_figure_and_page_by_page(rows, tmp_path, monkeypatch, capsys):
    """A line for each on something that is no terminal, were they five seconds apart"""
    monkeypatch.setattr(figures, "Progress", functools.partial(Progress, clock=itertools.count(0.0, 10.0).__next__))
    figures.draw(few(rows), tmp_path, DRAWN)
    lines = capsys.readouterr().err.splitlines()
    said = [re.sub(r", \d+ s left", "", line) for line in lines]
    assert said[:6] == [
        "drawing 0/3  speedup", "drawing 0/3  speedup-other-cases", "drawing 1/3  speedup-over", "drawing 1/3  speedup-over-T",
        "drawing 1/3  speedup-over-L", "drawing 2/3  accuracy",
    ]  # fmt: skip
    assert re.fullmatch(r"drawing: 3/3 in \d+ s", said[-1]) and len(said) == 8
    left = [int(found[1]) for line in lines if (found := re.search(r"(\d+) s left", line))]
    assert len(left) == 5 and left[0] > left[-1]  # nothing is known of the first


@pytest.mark.parametrize("command", ["figures --only step,accuracy", "report"])
def test_ctrl_c_keeps_what_was_written(command, rows, tmp_path, monkeypatch, capsys):
    """and leaves no half of a file"""
    from matplotlib.figure import Figure

    monkeypatch.setattr(job, "records_of", lambda given, out: [row.record for row in few(rows)])
    whole, count = Figure.savefig, itertools.count()

    def interrupted(self, file, **how):
        if next(count) == 4:  # of the second page its second file
            file.write(b"half of it") if hasattr(file, "write") else file.write_bytes(b"half of it")
            raise KeyboardInterrupt
        whole(self, file, **how)

    monkeypatch.setattr(Figure, "savefig", interrupted)
    assert bench.main([*command.split(), "--out", str(tmp_path)]) == 130
    files = sorted(file.name for file in tmp_path.rglob("*") if file.is_file())
    drawn = [name for name in files if name.endswith((".png", ".svg", ".pdf"))]
    assert len(drawn) == 4 and len({name.partition(".")[0] for name in drawn}) == 2
    assert all(file.read_bytes() != b"half of it" for file in tmp_path.rglob("*") if file.is_file())
    (captions,) = [file.read_text("utf-8") for file in tmp_path.rglob("captions.md")]
    (finished,) = {name[:-4] for name in drawn if name.endswith(".pdf")}
    assert re.findall(r"\*\*(.*?)\*\*", captions) == [finished]
    said = capsys.readouterr().err
    assert "interrupted after" in said and f"what was done is kept in {tmp_path}" in said
    assert ("results.md" in files) == (command == "report")  # tables come before figures


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


def test_dots_show_the_speedups_a_line_a_shape(pages):
    """REFUSED and ALONE have none, ABSENT no record; two of bf16 are of the suite scaling"""
    page = pages["speedup-other-cases"]
    assert page.title.startswith("Speedup of 15 cases") and "tables say why: 2." in page.note
    for axis in page.figure.axes:
        x = sorted(round(float(x), 2) for line in axis.lines if line.get_linestyle() == "None" for x in line.get_xdata())
        assert x == [0.8] * 8 + [3.0] * 7
        assert axis.get_xscale() == "log" and axis.get_xlim()[0] < 0.8 and axis.get_ylim()[0] > axis.get_ylim()[1]
    labels = [label.get_text() for label in page.figure.axes[0].get_yticklabels()]
    assert labels[:2] == ["L 1, H 1024, B 1, T 256", "B 64, T 256"] and len(labels) == 9


def test_intervals_of_speedups_are_lines_of_their_colour(rows, pages):
    assert "Coloured lines: 95 % intervals." in pages["speedup-other-cases"].note
    mine = [r for r in rows if r.case == "h128-b64-t256-bf16" and r.provider == "rnn_triton" and r.pass_ == "fwd"]
    with style.context():
        (page,) = figures.pages(mine, ["speedup"])
    segments = [s for c in page.figure.axes[0].collections for s in c.get_segments() if c.get_linewidth()[0] == 0.7]
    ((low, high),) = [segment[:, 0] for segment in segments]
    assert (low, high) == pytest.approx(mine[0].speedup_interval) and low < mine[0].speedup < high


def test_inaccurate_peers_keep_their_times_and_are_hollow():
    cases = [case(16, 1, T, "bf16") for T in (8, 16, 32)]
    made = [timing(c, "train", name, 1.0, status=s) for c in cases for name, s in (("rnn_triton", "ok"), ("loop", "inaccurate"))]
    with style.context():
        (page,) = figures.pages(rows_of(made), ["step"])
        profile = [page.name for page in figures.pages(rows_of(made), ["profile"])]
    marks = [line for line in page.figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    (hollow,) = marks
    assert list(hollow.get_xdata()) == [8, 16, 32] and hollow.get_color() == style.PROVIDERS["loop"][1]["color"]
    assert "inaccurate" in page.legend and "Hollow" in page.note and profile == []


def test_words_that_a_line_shares_with_the_one_before_are_not_said_again():
    shapes = [case(H, 4, 5, "bf16", cell=cell, layers=L).__dict__ for H, cell, L in ((8, "lstm", 1), (16, "lstm", 1), (8, "lstm", 2), (8, "gru", 2))]
    assert sweeps.words_of(shapes) == ("B 4, T 5", ["LSTM, L 1, H 8", "H 16", "L 2, H 8", "GRU, L 2, H 8"], [True, False, False, True])
    both = [case(H, 4, 5, "bf16", 100, bidirectional=H == 8, lengths="uniform").__dict__ for H in (8, 16)]
    assert sweeps.words_of(both) == ("uniform lengths, I 100, B 4, T 5", ["both directions, H 8", "H 16"], [True, True])


def test_a_profile_counts_cases_within_a_factor_of_the_fastest():
    times = {"rnn_triton": (1.0, 4.0, 1.0), "cudnn": (2.0, 2.0, 8.0), "flashrnn": (4.0, None, None)}
    made = [
        timing(case(H, 1, 4, "bf16"), "fwd", name, us, launch_us=1e-9)
        for name, several in times.items() for H, us in zip((8, 16, 32), several) if us
    ]  # fmt: skip
    made += [timing(case(8, 1, 4, "bf16"), "fwd", "rnn_triton-recompute", 0.1), timing(case(16, 1, 4, "bf16"), "fwd", "xma", 0.1, status="wrong")]
    with style.context():
        (page,) = figures.pages(rows_of(made), ["profile"])
    (axis,) = page.figure.axes
    found = {tuple(line.get_xdata()[1:-1].round(6)): list(line.get_ydata()[1:]) for line in axis.lines}
    third = 100 / 3
    assert found[1, 1, 2] == pytest.approx([third, 2 * third, 100, 100]) and found[1, 2, 8] == pytest.approx([third, 2 * third, 100, 100])
    assert found[(4,)] == pytest.approx([third, third]) and list(page.legend) == ["rnn_triton", "cuDNN", "FlashRNN"]
    assert "rnn_triton is the fastest forward in 2 of 3 cases." in page.note


def test_a_figure_is_drawn_once_for_each_of_its_files(rows, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    draw = Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, renderer: drawn.append(draw(self, renderer)))
    assert len(figures.draw(few(rows), tmp_path, ["accuracy"])) == 1 and len(drawn) == 3


def test_speedup_over_T_has_a_line_an_arithmetic(pages):
    axis = pages["speedup-over-T"].figure.axes[0]
    bf16, fp32 = (style.ARITHMETIC[kind]["color"] for kind in ("bf16", "fp32 (TF32)"))
    for colour, expected in ((bf16, 3), (fp32, 0.8)):
        ((x, y),) = lines(axis, colour)
        assert x == [64, 256, 1024] and y == pytest.approx([expected] * 3)
    assert axis.get_xscale() == axis.get_yscale() == "log"
    assert "as fast as cuDNN" in pages["speedup-over-T"].legend


def test_a_line_is_broken_at_its_gaps_and_two_points_are_none(rows):
    made = [timing(case(H, 1, 64, "bf16"), "fwd", "rnn_triton", 1.0) for H in (16, 32, 64, 128, 256)]
    made[1]["status"] = "error"
    made += [timing(case(H, 1, 64, "bf16"), "fwd", "cudnn", 1.0) for H in (16, 32)]
    with style.context():
        (page,) = figures.pages(rows_of(made), ["step"])
    assert [x for x, _ in lines(page.figure.axes[0], marker="o")] == [[16], [64, 128, 256]]
    assert list(page.legend) == ["rnn_triton", "below floor (estimate)"] and "speedup-over-H" not in pages_of(rows)


def pages_of(rows):
    """Only two sizes of H have a speedup in each arithmetic: no line over them"""
    with style.context():
        return [page.name for page in figures.pages(rows, ["speedup-over"], axes=["H"])]


def test_axes_and_papers_are_chosen(rows):
    assert (command.AXES, command.PAPERS) == (tuple(sweeps.AXES), tuple(style.PAPERS))
    with style.context():
        for paper, width in style.PAPERS.items():
            found = list(figures.pages(rows, ["step", "accuracy"], paper, ["H"]))
            assert [page.name for page in found] == ["step-over-H"] and found[0].figure.get_size_inches()[0] == width
    assert [len(line) for line in style.side_by_side([[1, 2, 3], [4, None, 6]], 3.35)] == [2, 1, 2]
    assert style.side_by_side([[1], [2]], 3.35) == [[1, 2]] and style.side_by_side([[1, 2, 3]], 3.35) == [[1, 2], [3]]
    assert style.side_by_side([[None, 1, 2], [None, None, None]], 7.0) == [[1, 2]] and style.side_by_side([], 7.0) == []


def test_step_over_T_shows_times_whiskers_and_floor(pages):
    times = pages["step-over-T"].figure.axes[0]
    us = 0.2 + 128 / 512 + 64 / 1024
    expected = [us + 5 / T for T in (64, 256, 1024)]
    ours, theirs = style.PROVIDERS["rnn_triton"][1]["color"], style.PROVIDERS["cudnn"][1]["color"]
    assert lines(times, ours, "o")[0] == [[64, 256, 1024], pytest.approx(expected)]
    assert lines(times, theirs, "s")[0][1] == pytest.approx([3 * e for e in expected])
    whiskers = [segment[:, 1] for segment in times.collections[0].get_segments()]
    assert [list(ends) for ends in whiskers] == [pytest.approx([0.94 * e, 1.06 * e]) for e in expected]
    shade = times.collections[-1].get_paths()[0].vertices
    assert {x for x, _ in shade} == {64, 256, 1024} and times.get_ylim()[0] < max(y for _, y in shade) == pytest.approx(us / 4)
    assert len(lines(times, style.PROVIDERS["flashrnn"][1]["color"], "P")) == 1
    assert {"below floor (estimate)", "FlashRNN"} < set(pages["step-over-T"].legend)


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
    of_heads = case(512, 64, 256, "bf16", 100, heads=8).__dict__  # a head multiplies its own 64 units and all of x
    assert roofline.flop(of_heads, "fwd") == 2 * 64 * 512 * (100 + 64) and roofline.moved(of_heads, "fwd", True) == roofline.moved(shape, "fwd", True)
    assert roofline.moved(of_heads, "fwd", False) == 2 * (64 * (512 + 100) + 8 * 64 * 64)
    axis = pages["roofline"].figure.axes[0]
    us = 0.2 + 512 / 512 + 64 / 1024 + 5 / 256
    ((x, y),) = lines(axis, style.PROVIDERS["rnn_triton"][1]["color"], "s")  # the one that is grid and right
    assert x == [512] and y == pytest.approx([2 * 64 * 512 * 1024 / us * 1e-6])
    ((per_step, _),) = lines(axis, style.PROVIDERS["rnn_triton"][1]["color"], "^")
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
    assert lines(axis, style.PROVIDERS["rnn_triton"][1]["color"])[0] == [[64, 256, 1024], pytest.approx(expected)]
    assert lines(axis, style.PROVIDERS["cudnn"][1]["color"])[0][1] == pytest.approx([1.5 * e for e in expected])


def accuracies(errors, status="ok"):
    """The accuracy page of three numbers of steps with equal errors"""
    cases = [case(16, 1, T, "bf16") for T in (8, 16, 32)]
    made = [timing(c, "train", "rnn_triton", 1.0, status=status, errors=errors) for c in cases]
    made += [timing(c, "train", "cudnn", 1.0, errors={"y": GOOD, "dx": GOOD}) for c in cases]
    with style.context():
        (page,) = figures.pages(rows_of(made), ["accuracy"])
    return page


GOOD, BAD = {"rel": 1e-3, "rel_tol": 0.01, "max": 0.01, "max_tol": 0.1}, {"rel": 1e-3, "rel_tol": 0.01, "max": 1.0, "max_tol": 0.1}


def test_accuracy_marks_the_quantity_that_is_wrong_alone():
    color = style.PROVIDERS["rnn_triton"][1]["color"]
    for errors, marked in (({"y": GOOD, "dx": BAD}, (False, True)), ({"y": BAD, "dx": GOOD}, (True, False))):
        page = accuracies(errors, "wrong")
        assert tuple(bool(lines(axis, color, "x")) for axis in page.figure.axes[:2]) == marked and "A cross" in page.note


def test_accuracy_shows_errors_and_the_tolerance(pages):
    figure = pages["accuracy-over-T"].figure
    y, gradient = figure.axes[0], figure.axes[2]
    ours = style.PROVIDERS["rnn_triton"][1]["color"]
    assert lines(y, ours, "o")[0] == [[64, 256, 1024], [1e-3] * 3]
    assert lines(y, style.TOLERANCE["color"], "_")[0][1] == [4e-3] * 3
    assert lines(gradient, ours, "o")[0][1] == [3e-3] * 3 and lines(gradient, style.TOLERANCE["color"], "_")[0][1] == [8e-3] * 3
    assert "A cross" not in pages["accuracy-over-T"].note


def test_a_wrong_result_keeps_its_error():
    color = style.PROVIDERS["rnn_triton"][1]["color"]
    for rel in (0.5, math.nan):
        page = accuracies({"y": {"rel": rel, "rel_tol": 0.01, "max": 1.0, "max_tol": 0.1}}, "wrong")
        axis = page.figure.axes[0]
        if rel == 0.5:
            assert lines(axis, color) == [[[8, 16, 32], [0.5] * 3]] * 2 and lines(axis, color, "x") == [[[8, 16, 32], [0.5] * 3]]
            assert "wrong" in page.legend
        else:  # NaN has no place on an axis
            assert lines(axis, color) == []
        assert lines(axis, style.TOLERANCE["color"], "_") == [[[8, 16, 32], [0.01] * 3]]


def test_an_exact_result_is_drawn_at_the_least_error_and_is_not_wrong():
    page = accuracies({"y": GOOD | {"rel": 0.0, "max": 0.0}})
    ours = style.PROVIDERS["rnn_triton"][1]["color"]
    assert lines(page.figure.axes[0], ours) == [[[8, 16, 32], [over_sizes.LEAST_ERROR] * 3]]


# ---- how it looks ---------------------------------------------------------------------------------------------------


def test_a_provider_looks_the_same_whoever_else_is_there():
    many = style.providers([*EVERYONE, "a", "b", "c"])
    for name, look in many.items():
        assert style.providers([name]) == {name: look}
    assert list(many)[:2] == ["rnn_triton", "cudnn"] and set(PROVIDERS_HERE) <= set(style.PROVIDERS)
    looks = [(look["marker"], str(look["linestyle"]), look.get("markerfacecolor")) for _, look in many.values()]
    assert len(set(looks)) == len(looks)  # they differ in grey, too
    assert not any("markerfacecolor" in look for name, (_, look) in many.items() if not name.startswith("rnn_triton"))  # hollow: inaccurate


def test_series_of_an_arithmetic_differ_by_more_than_colour():
    for field in ("color", "marker", "linestyle"):
        assert len({str(look[field]) for look in style.ARITHMETIC.values()}) == len(style.ARITHMETIC), field


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
