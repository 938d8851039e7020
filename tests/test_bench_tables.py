"""Tables from synthetic records: their numbers, what is missing or wrong in its place, text that survives each format."""

import csv
import dataclasses
import io
import re
import shutil
import subprocess
import types

import pytest
from support.bench_records import ENVIRONMENT, suite, timing

from bench.cases import suites
from bench.cases.case import case
from bench.records import schema
from bench.records.rows import rows as rows_of
from bench.show import formats, rows_in_words, tables

WRONG, ABSENT, SLOW = "h1024-b16-t512-bf16", "h512-b16-t512-fp16", "h384-b16-t512-bf16"


@pytest.fixture(scope="module")
def rows():
    return rows_of(
        suite("quick", ("rnn_triton", "cudnn", "flashrnn"), wrong=(WRONG,), left_out=(ABSENT,), slow=(SLOW,))
    )


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """One published figure, whatever bench/cases/published.py lists"""
    figure = types.SimpleNamespace(us_per_step=4.76, what="FlashRNN fused", device="H100", source="arXiv 2412.07752")
    listed = {("h128-b16-t1024-bf16", "fwd"): [figure]}
    monkeypatch.setattr("bench.cases.published.of", lambda name, pass_: listed.get((name, pass_), []))


def by_case(table):
    return {(line[0], line[1]): dict(zip(table.headings, line)) for line in table.body}


# ---- what stands in them --------------------------------------------------------------------------------------------


def test_results_have_a_line_a_case_and_pass_with_its_numbers(rows):
    found = by_case(tables.results(rows))
    assert len(found) == 2 * 14
    line = found["h128-b16-t1024-bf16", "fwd"]
    us = 0.2 + 128 / 512 + 16 / 1024
    assert (line["us/step"], line["slope"]) == (f"{us + 5 / 1024:.3f}", f"{us:.3f}")
    assert (line["best cuDNN us/step"], line["by"]) == (f"{3 * us + 15 / 1024:.3f}", "cudnn")
    assert (line["speedup"], line["graph speedup"]) == ("3.00x", "3.00x")
    assert (line["floor*"], line["of floor*"]) == (f"{us / 4:.3f}", f"{us / 4 / (us + 5 / 1024):.0%}")
    assert (line["bound*"], line["regime"]) == ("exchange", "one CTA")


def test_what_is_wrong_or_was_not_measured_is_said_in_its_place(rows):
    line = by_case(tables.results(rows))[WRONG, "fwd"]
    assert (line["us/step"], line["speedup"], line["of floor*"]) == ("wrong", "-", "-")
    alone = tables.results([row for row in rows if row.provider != "cudnn"])
    assert by_case(alone)["h128-b16-t1024-bf16", "fwd"]["best cuDNN us/step"] == "not measured"
    theirs = tables.results([row for row in rows if row.provider == "cudnn"])
    assert by_case(theirs)["h128-b16-t1024-bf16", "fwd"]["us/step"] == "not measured"


def test_published_figures_stand_beside_ours_with_device_and_source(rows):
    table = tables.published(rows)
    ours = f"{0.2 + 128 / 512 + 16 / 1024 + 5 / 1024:.3f}"
    assert table.body == [("h128-b16-t1024-bf16", "fwd", ours, "4.76", "FlashRNN fused", "H100", "arXiv 2412.07752")]
    assert "Ours on Test GPU" in table.note
    assert "### Beside published figures\n" in tables.markdown_document(rows)
    assert "published" not in [t.name for t in tables.every([r for r in rows if r.pass_ == "train"])]


def test_wall_times_of_short_calls_are_a_table():
    stream, other = case(64, 1, 1, "bf16"), case(64, 1, 8, "bf16")
    samples = [float(us) for us in range(1, 102)]
    found = rows_of([timing(c, "fwd", "graph", 1.0, wall_us=schema.sampled(samples)) for c in (stream, other)])
    assert tables.streaming(found).body == [(stream.name, "fwd", "graph", "51.0", "100.0")]
    assert [row.tidy()["wall_us_p99"] for row in found] == [100.0, 100.0]


def test_faster_of_the_cudnn_paths_is_the_one_compared_with():
    c = case(128, 16, 256, "bf16")
    times = {"rnn_triton": 1.0, "cudnn": 3.0, "cudnn-layers": 2.0}
    found = by_case(
        tables.results(rows_of([timing(c, "fwd", name, us, launch_us=1e-9) for name, us in times.items()]))
    )
    assert (found[c.name, "fwd"]["by"], found[c.name, "fwd"]["speedup"]) == ("cudnn-layers", "2.00x")


def test_all_providers_stand_side_by_side(rows):
    table = tables.providers(rows)
    assert table.headings == ("case", "pass", "rnn_triton", "cudnn", "flashrnn", "fastest")
    found = by_case(table)
    assert found[WRONG, "fwd"]["rnn_triton"] == "wrong" and found[WRONG, "fwd"]["fastest"] == "cudnn"
    assert table.body[0][-1] == "rnn_triton"
    some = [r for r in rows if r.provider != "flashrnn" or r.case != WRONG]
    assert by_case(tables.providers(some))[WRONG, "fwd"]["flashrnn"] == "not measured"


def test_summary_has_range_geometric_mean_and_counts(rows):
    table = tables.summary(rows)
    found = by_case(table)
    assert list(found) == [(p, d) for p in ("forward", "forward + backward") for d in ("bf16", "fp16", "fp32 (TF32)")]
    line = found["forward", "bf16"]
    assert (line["cases"], line["compared"], line["below 1x"]) == ("9", "8", "1")
    mean = (3**7 * 0.5) ** (1 / 8)
    assert (line["lowest"], line["geometric mean"], line["highest"]) == ("0.50x", f"{mean:.2f}x", "3.00x")
    assert found["forward", "fp32 (TF32)"]["below 1x"] == "2"
    nothing = tables.summary([dataclasses.replace(row, speedup=None) for row in rows]).body[0]
    assert nothing[3:8] == ("0", "-", "-", "-", "-")


def test_losses_are_every_case_below_1x_and_wins_all_others(rows):
    losses, wins = tables.losses(rows), tables.wins(rows)
    assert losses.headings == wins.headings
    names = {(line[0], line[1]) for line in losses.body}
    assert names == {(n, p) for n in (SLOW, "h128-b16-t1024-fp32", "h1024-b16-t512-fp32") for p in ("fwd", "train")}
    assert losses.body[0][:3] == (SLOW, "fwd", "0.50x")  # the worst first
    assert len(wins.body) == 2 * 10 and wins.body[0][2] == "3.00x" and wins.body[-1][2] == "2.00x"
    even = [dataclasses.replace(row, speedup=1.0) for row in rows if row.case == SLOW]
    assert tables.losses(even).body == [] and len(tables.wins(even).body) == 2


def test_far_from_the_floor_is_every_case_below_the_mark(rows):
    assert len(tables.far_from_floor(rows).body) == 2 * 13  # all reach about a quarter
    mark = tables.FLOOR_MARK * (1 + 1e-12)  # rounding aside
    floors = [{"floor_us_per_step": mark * (row.us_per_step or 1.0)} for row in rows]
    near = [dataclasses.replace(row, record=row.record | floor) for row, floor in zip(rows, floors)]
    assert tables.far_from_floor(near).body == []


def test_memory_of_a_training_step_stands_beside_torchs():
    c, other = case(128, 16, 256, "bf16", cell="lstm"), case(16, 3, 4, "bf16")
    sizes = {"rnn_triton": 3 * 2**20, "cudnn": 2 * 2**20, "rnn_triton-recompute": 2**19}
    made = [timing(c, pass_, name, 1.0, peak_bytes=size) for name, size in sizes.items() for pass_ in ("fwd", "train")]
    made += [timing(other, "train", "rnn_triton", 1.0), timing(c, "fwd", "cudnn-layers", 1.0, peak_bytes=7)]
    table = tables.memory(rows_of(made))
    assert table.body == [(c.name, "3.0", "0.5", "2.0", "-", "1.50x")]
    assert "Peak memory of a training step" in tables.markdown_document(rows_of(made))


def test_missing_are_the_cases_of_the_suites_touched_and_the_passes_left_out(rows):
    table = tables.missing(rows)
    assert table.body == [("Test GPU", "quick", ABSENT, rows_in_words.EVERYTHING)]
    some = [r for r in rows if not (r.case == SLOW and r.provider == "cudnn" and r.pass_ == "train")]
    assert ("Test GPU", "quick", SLOW, "cudnn train") in tables.missing(some).body


def test_cases_show_the_suites_that_explain_most():
    everything = {c.name for c in suites.SUITES["medium"]}
    found = rows_in_words.suites_of([*everything, "h7-b3-t11-bf16"])
    assert found == {"medium": everything, rows_in_words.OTHER: {"h7-b3-t11-bf16"}}
    assert list(rows_in_words.suites_of([c.name for c in suites.SUITES["quick"]])) == ["quick"]
    assert rows_in_words.suites_of([]) == {}


def test_a_case_counts_for_every_suite_that_lists_it():
    """All suites but check are recorded: each is shown, and whole"""
    every = suites.suites("all")
    found = rows_in_words.suites_of(c.name for c in every)
    assert found == {suite: {c.name for c in suites.SUITES[suite]} for suite in suites.SUITES if suite != "check"}
    quick = rows_in_words.by_suite(rows_of(suite("quick") + suite("medium") + suite("small-h")))["quick"]
    assert len({(row.case, row.pass_) for row in quick}) == 30


def test_a_suite_that_others_explain_is_shown_where_it_is_whole(monkeypatch):
    x, y, z = (case(H, 1, 2, "bf16") for H in (1, 2, 3))
    monkeypatch.setattr(rows_in_words, "SUITES", {"some": (x, y), "all": (x, y, z), "others": (z, x.at(7))})
    assert rows_in_words.suites_of([x.name, y.name, z.name]) == {"some": {x.name, y.name}, "all": {x.name, y.name, z.name}}
    assert rows_in_words.suites_of([x.name, z.name]) == {"all": {x.name, z.name}}


def test_late_samples_are_said():
    c = case(128, 16, 256, "bf16")
    found = rows_of([timing(c, "fwd", "rnn_triton", 1.0, late=0), timing(c, "fwd", "loop", 1.0, late=7)])
    assert "In 1 records (loop) the clock of some samples started before" in rows_in_words.caption(found)
    assert "started before" not in rows_in_words.caption(found[:1])


def test_suites_come_in_their_own_order():
    mixed = suite("cliff") + suite("quick")
    found = rows_in_words.by_suite(rows_of(reversed(mixed)))
    assert list(found) == ["quick", "cliff"]
    assert list(dict.fromkeys(r.case for r in found["cliff"])) == [c.name for c in suites.SUITES["cliff"]]


def test_reasons_stand_beside_what_was_not_timed():
    c = case(128, 16, 256, "bf16")
    statuses = ("wrong", "error", "timeout", "unsupported", "missing")
    found = rows_of([timing(c, "fwd", f"p-{s}", 1.0, status=s) for s in statuses])
    listed = {t.name: [line[1:] for line in t.body] for t in tables.not_timed(found)}
    assert listed["wrong"] == [("p-wrong", "fwd", "wrong", "1", c.name, "it is wrong")]
    assert [(line[0], line[-1]) for line in listed["failed"]] == [("p-error", "it is error"), ("p-timeout", "it is timeout")]
    assert [line[0] for line in listed["unsupported"]] == ["p-unsupported", "p-missing"]


def test_a_reason_that_many_cases_have_is_one_line():
    cases = [case(H, 1, 4, "bf16") for H in (8, 16, 32)]
    made = [timing(c, "fwd", "xma", 1.0, status="unsupported", message="no GRU" if c.H < 32 else "H") for c in cases]
    body = tables.not_timed(rows_of(made))[2].body
    assert [line[4:] for line in body] == [("2", cases[0].name, "no GRU"), ("1", cases[2].name, "H")]


def test_caption_names_every_version_and_says_that_they_differ(rows):
    text = rows_in_words.caption(rows)
    for part in (
        "Test GPU, driver 1.2",
        "torch 2.11",
        "triton 3.6.0",
        "cuDNN 9.10.0",
        "commit 0123456789;",
        "2026-01-02",
    ):
        assert part in text
    assert "DIFFER" not in text and "fp32 is TF32" in text
    c = case(128, 16, 256, "bf16")
    newer = ENVIRONMENT | {"torch": "2.13", "dirty": True}
    mixed = rows_of(
        [
            timing(c, "fwd", "rnn_triton", 1.0),
            timing(c, "fwd", "cudnn", 1.0),
            timing(c, "fwd", "xma", 1.0, version="0.3"),
        ]
        + [timing(c, "train", "rnn_triton", 1.0, environment=newer, date="2026-03-04T00:00:00Z")]
    )
    text = rows_in_words.caption(mixed)
    assert text.startswith("VERSIONS DIFFER. ") and "torch 2.11 (3 records) and 2.13 (1 records)" in text
    assert "xma 0.3" in text and "2026-01-02 to 2026-03-04" in text and "0123456789 with changes (1 records)" in text
    assert rows_in_words.caption([]) == "nothing was measured"


def test_a_speedup_that_no_run_gives_says_so():
    c = case(128, 16, 256, "bf16")
    found = rows_of([timing(c, "fwd", "rnn_triton", 1.0), timing(c, "fwd", "cudnn", 2.0, run="run-2")])
    line = by_case(tables.results(found))[c.name, "fwd"]
    assert (line["speedup"], line["graph speedup"]) == ("not in one run", "-") and line["by"] == "cudnn"
    assert "not in one run" in tables.results(found).note
    assert tables.far_from_floor(found).body[0][2] == "not in one run"


def test_kernels_that_ran_are_named_the_longest_first():
    c = case(128, 16, 256, "bf16")
    ran = [
        {"name": "void at::native::copy<float, std::array<int, 2> >(int, void (*)(int))", "count": 1, "us": 1.0},
        {"name": "void cudnn::(anonymous namespace)::RNN_blockPersist_fp<float, (bool)1>(Parameters)", "count": 1, "us": 90.0},
        {"name": "_recurrence", "count": 2, "us": 6.0}, {"name": "x" * 200, "count": 4, "us": 3.0},
    ]  # fmt: skip
    same = timing(c.at(7), "fwd", "cudnn", 2.0, kernels=[kernel | {"us": 2 * kernel["us"]} for kernel in ran])
    found = rows_of([timing(c, "fwd", "cudnn", 2.0, kernels=ran), timing(c, "train", "cudnn", 2.0), same])
    table = tables.kernels(found)
    named = f"90% 1 x RNN_blockPersist_fp; 6% 2 x _recurrence; 3% 4 x {'x' * 80}"
    assert table.body == [("fwd", "cudnn", "2", c.name, "8", named)]
    assert "### Kernels that ran\n" in tables.markdown_document(found) and "Kernels that ran" in tables.latex_tables(found)["ran"]
    assert tables.short_name(ran[0]["name"]) == "copy" and tables.short_name("<odd>") == "<odd>"


def test_clocks_and_power_while_measuring_are_in_the_caption(rows):
    assert "While measured: SM clock 1980 MHz, memory clock 3201 MHz, power 400 W, temperature 45 C." in rows_in_words.caption(rows)
    cooler = [dataclasses.replace(rows[0], record=rows[0].record | {"telemetry": {"sm_mhz": 1200.0}}), *rows[1:]]
    assert "SM clock 1200 to 1980 MHz, memory clock 3201 MHz" in rows_in_words.caption(cooler)
    assert rows_in_words.clocks([dataclasses.replace(rows[0], record=rows[0].record | {"telemetry": {}})]) == ""


def test_loops_that_miss_the_gate_in_training_are_explained(rows):
    c = case(128, 16, 256, "bf16")
    loop = timing(c, "train", "loop", 2.0, status="wrong")
    ours = timing(c, "train", "rnn_triton", 1.0)
    found = rows_of([ours, loop])
    for text in (rows_in_words.caption(found), tables.not_timed(found)[0].note):
        assert "Wrong in training (loop): autograd sums the weight gradients" in text and "T = 240" in text
    f32 = case(128, 16, 256, "fp32")
    others = [loop | {"pass": "fwd"}, loop | {"status": "ok"}, timing(f32, "train", "loop", 2.0, status="wrong"),
              loop | {"provider": "flashrnn"}]  # fmt: skip
    for other in others:
        assert "autograd" not in rows_in_words.caption(rows_of([ours, other]))


def test_training_runs_have_a_line_each():
    run = {"example": "digits", "implementation": "torch", "seed": 1, "accuracy": 0.9712, "seconds": 2.0, "environment": ENVIRONMENT}
    assert tables.training([run]).body == [("digits", "torch", "1", "97.12%", "2.0 s", "Test GPU")]


# ---- formats --------------------------------------------------------------------------------------------------------


def test_markdown_has_a_line_a_row_and_escapes_what_would_end_a_cell(rows):
    table = formats.markdown(formats.Table("t", "T", ("a", "b"), [("1|2", "x\ny"), ("<b>", "c\\")]))
    assert table.splitlines() == ["| a | b |", "|---|---|", "| 1\\|2 | x y |", "| &lt;b> | c\\\\ |"]
    document = tables.markdown_document(rows)
    for heading in (
        "## Test GPU",
        "### Where ours loses: below 1x",
        "### Suite quick",
        "### Not measured",
        "### Wrong or inaccurate results",
    ):
        assert f"{heading}\n" in document
    for block in re.findall(r"(?:^\|.*\n)+", document, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert tables.markdown_document([]) == "No timing records.\n"


def test_losses_are_named_even_where_there_are_none(rows):
    faster = [dataclasses.replace(row, speedup=row.speedup and 2.0) for row in rows]
    assert "### Where ours loses: below 1x\n\nnone\n" in tables.markdown_document(faster)


def test_latex_is_escaped_balanced_and_as_wide_as_it_says(rows):
    nasty = r"50%_a&b#$ {x} ~^\ <>|" + "\u00b5\u00e9\n" + '"[1]'
    table = formats.Table("Odd name!", nasty, ("a_b", "c"), [(nasty, "1"), ("[2]", "3")], "Note.")
    _latex_is_sound(formats.latex(table, "Test GPU"))
    text = formats.latex(table)
    assert r"50\%\_a\&b\#\$ \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{}" in text
    assert r"\label{tab:odd-name}" in text and r"\textmu{}? ''{[}1{]}" in text and "\n{[}2{]} & 3 \\\\\n" in text
    found = tables.latex_tables(rows)
    assert list(found) == [table.name for table in tables.every(rows)]
    for text in found.values():
        _latex_is_sound(text)
    assert "h128-b16-t1024-bf16 & fwd & " in found["suite-quick"] and r"45\% of the floor" in found["floor"]


def test_numbers_are_flush_right_in_latex_and_markdown(rows):
    table = tables.results(rows)
    right = dict(zip(table.headings, table.right))
    assert [name for name in right if not right[name]] == ["case", "pass", "by", "bound*", "regime"]
    assert r"\begin{tabular}{llrrrlrrrrll}" in formats.latex(table)
    assert formats.markdown(table).splitlines()[1] == "|---|---|---:|---:|---:|---|---:|---:|---:|---:|---|---|"
    assert formats.Table("t", "T", ("a", "b"), [("h1", "-"), ("h2", "wrong")]).right == [False, False]


def test_latex_breaks_the_lines_of_long_columns():
    text = formats.latex(formats.Table("t", "T", ("a", "b"), [("x" * 40, "x" * 41)]))
    assert r"\begin{tabular}{l>{\raggedright\arraybackslash}p{15em}}" in text
    assert formats.latex_escape("x" * 24 + "_y", True) == (("x" * 12 + r"\allowbreak{}") * 2) + r"\_\allowbreak{}y"


def test_a_long_latex_table_is_several_floats_with_one_caption():
    text = formats.latex(formats.Table("long", "Long", ("n",), [(str(n),) for n in range(99)], "Note."), "Test GPU")
    _latex_is_sound(text)
    assert r"\caption{Long. Note. Test GPU.}" in text and text.count(r" \\") == 99 + 3
    assert text.count(r"\begin{table}") == 3 and text.count(r"Table~\ref{tab:long}, continued") == 2


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX here")
@pytest.mark.parametrize("option", ["onecolumn", "twocolumn"])
def test_latex_compiles_without_a_line_that_is_too_long(rows, option, tmp_path):
    """Every table, and what stands beside the figures, in an article of one and of two columns"""
    ran = [{"name": "void a::kernel_with_a_long_name_<int>(x)" + "x" * 60, "count": 3, "us": 2.0}]
    kernels = [dataclasses.replace(row, record=row.record | {"kernels": ran}) for row in rows]
    others = [timing(case(H, 3, 5, "bf16"), "fwd", "rnn_triton", 1.0, status="error", message=f"{H} $_&\\ " * 30) for H in range(1, 60)]
    found = tables.latex_tables(kernels + rows_of(others))
    parts = [f"\\documentclass[{option}]{{article}}\n{formats.NEEDS}\n\\begin{{document}}\n"]
    (tmp_path / "all.tex").write_text("\\clearpage\n".join([*parts, *found.values()]) + "\\end{document}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    for _ in range(2):  # the second knows the numbers of tables
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    faults = re.findall(r"Overfull.*|Float too large.*|.*undefined.*|LaTeX Warning.*", done.stdout)
    assert not faults and len(found) > 5, faults


def _latex_is_sound(text):
    """Environments nest, braces close, every line of a tabular has as many cells as it has columns, one label and one caption."""
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+\*?)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []
    bare = re.sub(r"\\[\\{}%&#$_]", "", text)
    assert bare.count("{") == bare.count("}") and not re.search(r"[#$^]", bare) and "~" not in bare.replace(r"Table~\ref", "")
    assert all(line.startswith("%") or "%" not in line.removesuffix("{%") for line in bare.splitlines()) and bare.isascii()
    tabulars = re.findall(r"\\begin\{tabular\}\{((?:[lr]|>\{[^}]*\}p\{15em\})+)\}\n\\toprule\n(.*?)\n\\bottomrule", text, re.S)
    assert len(tabulars) == text.count(r"\begin{tabular}") >= 1
    assert len(re.findall(r"\\label\{(tab:[a-z0-9-]+)\}", text)) == text.count(r"\caption{") == 1
    for columns, body in tabulars:
        columns = re.sub(r">\{[^}]*\}p\{15em\}", "p", columns)
        lines = [line for line in body.splitlines() if line != r"\midrule"]
        assert len(lines) >= 2
        for line in lines:
            assert line.endswith(r" \\") and len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1


def test_csv_holds_every_row_and_reads_back(rows):
    read = list(csv.DictReader(io.StringIO(formats.csv_text(rows))))
    assert len(read) == len(rows)
    for line, row in zip(read, rows):
        expected = row.tidy()
        assert list(line) == list(expected)
        assert line == {name: "" if value is None else str(value) for name, value in expected.items()}
    odd = dataclasses.replace(rows[0], record=rows[0].record | {"message": 'a,"b"\nc'})
    assert list(csv.DictReader(io.StringIO(formats.csv_text([odd]))))[0]["message"] == 'a,"b"\nc'


def test_files_are_written_and_equal_for_equal_records(rows, tmp_path):
    first, second = (tables.write(rows, tmp_path / name) for name in "ab")
    names = [f.relative_to(tmp_path / "a").as_posix() for f in first]
    assert names == ["results.md", "results.csv", *(f"tables/{table.name}.tex" for table in tables.every(rows))]
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in second]
    assert tables.write([], tmp_path / "c") == [] and not (tmp_path / "c").exists()


def test_devices_are_kept_apart(rows):
    other = [dataclasses.replace(r, record=r.record | {"environment": ENVIRONMENT | {"device": "Other GPU"}}) for r in rows]
    document = tables.markdown_document(rows + other)
    assert document.index("## Other GPU") < document.index("## Test GPU")
    assert len(tables.timing_rows(rows + other)) == 2 * len(tables.timing_rows(rows))
    found = tables.latex_tables(rows + other)
    assert len(found) == 2 * len(tables.every(rows)) and {"other-gpu-summary", "test-gpu-summary"} < set(found)


def test_text_is_aligned():
    assert formats.text(("a", "bb"), [("long", "1"), ("x", "2")]) == "a     bb\nlong  1\nx     2"
