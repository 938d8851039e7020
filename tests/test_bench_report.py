"""The HTML page: valid, self-contained, complete; says what is missing and what was lost as plainly as what was won."""

import base64
import dataclasses
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from support.bench_records import DATE, ENVIRONMENT, everything, suite, timing

from bench.cases.case import case
from bench.records.rows import rows as rows_of
from bench.show import report, tables

pytest.importorskip("matplotlib")

WRONG, ABSENT = "h1024-b16-t512-bf16", "h512-b16-t512-fp16"
NASTY = '<script>alert("x")</script> & co'
TRAINING = [
    {
        "kind": "training", "example": "digits", "implementation": name, "seed": 0, "accuracy": 0.97, "loss": [2.0, 1.0],
        "seconds": 1.0, "environment": ENVIRONMENT, "date": DATE,
    }
    for name in ("rnn_triton", "torch")
]  # fmt: skip
RESOURCES = [
    {
        "problem": {"direction": "forward", "H": 128, "I": 128, "B": 16, "dtype": "bf16", "precision": None},
        "plan": {"regime": "one_cta", "warps": 8, "block_b": 16}, "status": "error", "message": NASTY, "resources": {},
        "floor_us_per_step": 0.1, "practical_us_per_step": 0.2,
    }
]  # fmt: skip
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Fails where tags do not nest; keeps what the tests ask for."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.headings, self.tables = [], [], [], [], []
        self._text = None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module", autouse=True)
def published():
    """No published figures, whatever bench/cases/published.py lists"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.cases.published.of", lambda case, pass_: [])
        yield


@pytest.fixture(scope="module")
def rows():
    found = rows_of(suite("quick", wrong=(WRONG,), left_out=(ABSENT,)))
    c = case(96, 1, 64, "bf16")
    return found + rows_of([timing(c, "fwd", "rnn_triton", 1.0, status="error", message=NASTY)])


@pytest.fixture(scope="module")
def written(rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    path = report.html(
        rows,
        TRAINING,
        RESOURCES,
        out,
        [f"model, {NASTY}:\nESTIMATES <1>\nline 2", "one line alone"],
        ["profile", "speedup"],
    )
    text = path.read_text(encoding="utf-8")
    return path, text, Page(text)


def test_page_is_well_formed_and_accessible(written):
    _, text, page = written
    assert text.startswith("<!DOCTYPE html>\n") and page.tags[0] == ("html", {"lang": "en"})
    assert len(page.ids) == len(set(page.ids))
    for tag, attributes in page.tags:
        if tag == "img":
            assert len(attributes["alt"]) > 20
        if tag == "th":
            assert attributes["scope"] in ("col", "row")
        if tag == "a" and attributes["href"].startswith("#"):
            assert attributes["href"][1:] in page.ids
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in page.ids
    assert sum(tag == "caption" for tag, _ in page.tags) == sum(tag == "table" for tag, _ in page.tags)
    for table in page.tables:
        assert len({len(line) for line in table}) == 1


def test_page_loads_nothing_and_runs_nothing(written):
    path, text, page = written
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "@import" not in text and "url(" not in text and "http" not in re.sub(r'base64,[^"]*', "", text)
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        if "src" in attributes:
            assert attributes["src"].startswith("data:image/")
        if "href" in attributes and not attributes["href"].startswith("#"):
            assert (path.parent / attributes["href"]).exists(), attributes["href"]
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_figures_are_within_and_beside_the_page(written):
    path, _, page = written
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 2
    for source in sources:
        kind, data = re.fullmatch(r"data:image/(svg\+xml|png);base64,(.*)", source).groups()
        assert base64.b64decode(data).startswith(b"<?xml" if kind == "svg+xml" else b"\x89PNG")
    assert {f.suffix for f in (path.parent / report.FOLDER).iterdir()} == {".png", ".svg", ".pdf", ".md", ".tex"}
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert "figures/speedup-quick.pdf" in links


def test_large_figures_are_embedded_as_png(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LARGEST_SVG", 10)
    text = report.html(rows, [], [], tmp_path, names=["profile"]).read_text()
    assert "data:image/png;base64," in text and "svg+xml" not in text


def test_figures_that_would_make_the_page_large_are_read_from_beside_it(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "EMBEDDED", 0)
    page = Page(report.html(rows, [], [], tmp_path, names=["profile"]).read_text())
    (source,) = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert source == "figures/profile.png" and (tmp_path / source).exists()


def test_sections_come_in_order_with_losses_beside_wins(written):
    _, _, page = written
    assert [h for h in page.headings if h in _SECTIONS] == _SECTIONS
    summary = written[1].index('id="summary"')
    assert summary < written[1].index('id="figure-profile"') < written[1].index('id="measured"')  # the key figure is with the summary
    captions = [tag for tag, _ in page.tags if tag == "caption"]
    assert len(captions) == len(page.tables)


_SECTIONS = [
    "rnn_triton benchmark", "Summary", "What was measured, and where", "Where ours wins", "Where ours loses",
    "Far from the floor", "Not measured", "Wrong, failed, unsupported", "Figures", "All results", "Training", "Compiled kernels",
]  # fmt: skip


def test_every_number_of_the_tables_is_in_the_page(written, rows):
    _, _, page = written
    cells = [[tuple(line) for line in table] for table in page.tables]
    expected = [
        tables.summary(rows), tables.wins(rows), tables.losses(rows), tables.far_from_floor(rows), tables.missing(rows),
        *tables.not_timed(rows)[:2], *tables.per_suite(rows), tables.providers(rows), tables.training(TRAINING),
        tables.resources(RESOURCES),
    ]  # fmt: skip
    assert len(cells) == len(expected)
    for got, table in zip(cells, expected):
        assert got == [table.headings, *map(tuple, table.body)], table.name
    losses = cells[2]
    assert len(losses) == 1 + 4 and losses[1][2] == "0.80x"  # the two of fp32, both passes


def test_everything_is_escaped(written):
    _, text, _ = written
    assert (
        "<script>" not in text
        and text.count("&lt;script&gt;") >= 3
        and "<pre>ESTIMATES &lt;1&gt;\nline 2</pre>" in text
    )
    assert "one line alone" in text


def test_equal_arguments_give_equal_bytes(rows, tmp_path):
    some = [row for row in rows if row.case == "h128-b16-t1024-bf16"]
    first, second = (report.html(some, [], [], tmp_path / name, names=["profile"]) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_no_records_is_said_and_the_rest_is_shown(tmp_path):
    text = report.html([], [], [], tmp_path, ["latency model:\nH 128  0.20 / 0.50"]).read_text()
    page = Page(text)
    assert (
        "Nothing was timed: there are no timing records." in text and "No figures: there is nothing to draw." in text
    )
    assert "latency model" in page.headings and "<pre>H 128  0.20 / 0.50</pre>" in text
    assert page.tables == [] and not (tmp_path / report.FOLDER).exists()


def test_no_loss_and_no_comparison_are_said(rows, tmp_path):
    alone = [dataclasses.replace(row, speedup=None) for row in rows if row.provider == "rnn_triton"]
    text = report.html(alone, [], [], tmp_path, names=[]).read_text()
    assert "No case of ours could be compared with cuDNN" in text
    assert "<h3>Where ours loses: below 1x</h3>\n<p>None.</p>" in text


def test_devices_have_sections_of_their_own(rows, tmp_path):
    other = [dataclasses.replace(r, record=r.record | {"environment": ENVIRONMENT | {"device": "Other <GPU>"}}) for r in rows]
    text = report.html(rows + other, [], [], tmp_path, names=[]).read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert "Where ours loses on Other <GPU>" in page.headings and "Where ours loses on Test GPU" in page.headings


def test_without_matplotlib_the_tables_remain(rows, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = report.html(rows, [], [], tmp_path).read_text()
    assert "No figures: figures need matplotlib" in text and len(Page(text).tables) > 5


def test_numbers_are_flush_right(written):
    _, text, _ = written
    (summary,) = re.findall(r'<div class="scroll" id="table-summary".*?<table class="([^"]*)">', text, re.S)
    assert summary.split() == ["r3", "r4", "r5", "r6", "r7", "r8"] and ".r8 :is(td, th):nth-child(8)" in text


@pytest.mark.long
def test_the_page_of_all_suites_is_below_two_megabytes(tmp_path):
    path = report.html(rows_of(everything()), [], [], tmp_path)
    assert path.stat().st_size < 2_000_000
    for width in (1280, 390) if shutil.which("chromium") else ():
        fits(path, width)


@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_a_window(written, width):
    fits(written[0], width)


def fits(path, width):
    """In a window of `width`, nothing but what scrolls by itself is wider than the window."""
    outer = path.with_name(f"at-{width}.html")
    script = "const d = document.querySelector('iframe').contentDocument; const wide = [...d.querySelectorAll('body *')].filter("
    script += f"e => e.getBoundingClientRect().right > {width} && !e.closest('.scroll') && !e.closest('pre')).map(e => e.tagName);"
    script += "document.title = d.documentElement.scrollWidth + ' ' + d.querySelectorAll('table').length + ' ' + wide.join(' ');"
    frame = f'<iframe src="{path.name}" style="border: 0; height: 800px; width: {width}px"></iframe>'
    outer.write_text(f"<!DOCTYPE html><title>?</title>{frame}<script>onload = () => {{ {script} }}</script>")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", f"--user-data-dir={path.parent / 'profile'}"]
    done = subprocess.run(["chromium", *options, "--dump-dom", outer.as_uri()], capture_output=True, text=True)
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout)
    widest, count, *wide = title.split()
    assert int(widest) <= width and int(count) > 5 and wide == [], title
