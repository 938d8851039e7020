"""Figures and tables from synthetic records: the numbers in them, gaps shown as gaps, equal files for equal records."""

import pytest
from support.bench_records import ENVIRONMENT, quick_suite

from bench import figures, records, report

pytest.importorskip("matplotlib")

TRAINING = [
    {
        "kind": "training", "example": "digits", "implementation": name, "seed": seed, "accuracy": 0.97 + 0.002 * seed,
        "loss": [2.0 / (1 + e) + 0.1 for e in range(20)], "seconds": 1.0, "environment": ENVIRONMENT,
    }
    for name in ("rnn_triton", "torch") for seed in range(3)
]  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return records.rows(quick_suite())


@pytest.fixture(scope="module")
def drawn(rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("figures")
    return out, figures.draw(rows, TRAINING, out)


def test_every_figure_is_written_and_not_empty(drawn):
    _, files = drawn
    assert sorted(f.name for f in files) == sorted(
        f"{stem}.{suffix}"
        for stem in ("speedup", "step-over-H", "step-over-B", "step-over-T", "digits")
        for suffix in ("png", "svg")
    )
    assert all(f.stat().st_size > 10_000 for f in files)


def test_equal_records_give_equal_files(drawn, rows, tmp_path):
    out, _ = drawn
    pyplot = figures._pyplot()
    for file in figures._save(figures.step_time(pyplot, rows, "T"), tmp_path / "step-over-T"):
        assert file.read_bytes() == (out / file.name).read_bytes(), file.name


def test_text_stays_inside_and_apart(rows):
    """No label leaves its figure, no two texts of a panel overlap."""
    pyplot = figures._pyplot()
    for figure in (figures.speedup(pyplot, rows), figures.step_time(pyplot, rows, "H")):
        figure.canvas.draw()
        width, height = figure.canvas.get_width_height()
        for axis in figure.axes:
            boxes = [t.get_window_extent() for t in axis.texts + [axis.title, axis.xaxis.label, axis.yaxis.label] if t.get_text()]
            for box in boxes:
                assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
            for i, box in enumerate(boxes):
                assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        pyplot.close(figure)


def test_bars_show_the_speedups_and_say_what_is_missing(rows):
    pyplot = figures._pyplot()
    figure = figures.speedup(pyplot, rows)
    for axis in figure.axes:
        lengths = sorted(round(bar.get_width(), 2) for container in axis.containers for bar in container)
        assert lengths == [0.8] * 12 + [2.0] * 11 + [3.0] * 11
        gaps = [text.get_text() for text in axis.texts if ":" in text.get_text()]
        assert sorted(gaps) == ["bf16: wrong", "fp16: not measured"]
    pyplot.close(figure)


def test_nothing_measured_draws_nothing(tmp_path):
    assert figures.draw([], [], tmp_path) == [] and list(tmp_path.iterdir()) == []


def test_caption_names_every_version(rows):
    text = figures.caption(rows)
    for part in ("Test GPU", "torch 2.11", "triton 3.6.0", "cuDNN 91000", "0123456789", "2026-01-02"):
        assert part in text


def test_table_has_a_row_a_case_and_pass_with_its_numbers(rows):
    table = {(row[0], row[1]): row for row in report.timing_rows(rows)}
    assert len(table) == 2 * (36 - 1)
    name, pass_, step, slope, theirs, speedup, graph, floor, fraction = table["h128-b16-t1024-bf16", "fwd"]
    us = 0.2 + 128 / 512 + 16 / 1024
    assert (step, slope) == (f"{us + 5 / 1024:.3f}", f"{us:.3f}")
    assert (theirs, speedup, graph) == (f"{3 * us + 15 / 1024:.3f}", "3.00x", "3.00x")
    assert (floor, fraction) == (f"{us / 4:.3f}", f"{us / 4 / (us + 5 / 1024):.0%}")
    assert table["h256-b1-t1024-bf16", "fwd"][2] == "wrong" and table["h256-b1-t1024-bf16", "fwd"][5] == "-"


def test_markdown_lists_what_is_wrong_and_summary_what_is_slow(rows):
    text = report.timing_markdown(rows)
    assert text.count("\n| h") == 70
    assert "- h256-b1-t1024-bf16 forward, rnn_triton: wrong, it is wrong" in text
    lines = report.summary(rows)
    assert lines[0] == "forward, bf16: 3.00x to 3.00x, middle 3.00x, 11 cases"
    assert lines[-1].startswith("slower than cuDNN: ") and lines[-1].count("fp32") == 24
