"""The jobs behind the commands: each writes records, returns what to show and what failed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import cases, check, digits, environment, figures, host, model, report, resources
from .compiling import Call, compile_calls, in_parallel
from .progress import Progress
from .providers import PROVIDERS
from .records import Row, Writer, read, rows
from .run import model_estimate, run
from .worker import Worker, WorkerError

PACKAGE = __package__ or "bench"
RESULTS = Path(__file__).resolve().parent / "results"
CHECK_TIMEOUT = 120.0  # seconds a case
FEW_H = 1024  # what `make bench` compiles of the plans over a group of CTAs
AFTER_TIMING = 60.0  # seconds of a budget kept for training, host cost, figures


class NeedsGPU(RuntimeError):
    """The job measures a GPU and there is none."""


def recorded() -> list[Path]:
    """The record files that came with the source."""
    return sorted(RESULTS.glob("*.jsonl"))


def load(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The records of the files; what is damaged is said on standard error and left out."""
    found, problems = read(paths)
    for problem in problems:
        print(f"skipped {problem}", file=sys.stderr)
    return found


# ---- correctness gate -----------------------------------------------------------------------------------------------


def check_case(case: cases.Case) -> dict[str, Any]:
    """The fields of one check record of rnn_triton; runs in a worker."""
    from rnn_triton import interpreter

    device = environment.best_device()
    plan = PROVIDERS["rnn_triton"].plan(case, device)
    verdict = check.gate(case, PROVIDERS["rnn_triton"], device)
    if device.type == "cuda":
        implementation = f"Triton kernels on {torch.cuda.get_device_name(device)}"
    else:
        implementation = "Triton kernels by the interpreter" if interpreter.active() else "torch on the CPU"
    status = "ok" if verdict.ok else "wrong"
    return {
        "status": status, "message": verdict.message, "errors": verdict.errors, "implementation": implementation, "plan": plan,
    }  # fmt: skip


def run_check(chosen: Sequence[cases.Case], out: Path) -> tuple[str, list[str]]:
    """(table, failures) of rnn_triton's kernels against the fp64 reference: on the GPU, or else by the interpreter."""
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return _check_interpreted(chosen, out)
    device = environment.best_device()
    with Writer(out / "check.jsonl", environment.new_run(), environment.describe(device)) as writer:
        with Worker(check_case) as worker, Progress("checking", len(chosen)) as progress:
            for case in chosen:
                progress.now(case.name)
                try:
                    found = worker.call(case, CHECK_TIMEOUT)
                except WorkerError as error:
                    found = {"status": error.status, "message": str(error), "errors": {}, "implementation": "none"}
                    found |= {"plan": None}
                shape = dataclasses.asdict(case)
                writer.write("check", case=case.name, shape=shape, provider="rnn_triton", choices={}, **found)
                progress.step(failed=found["status"] != "ok")
    return _check_table(out)


def _check_interpreted(chosen: Sequence[cases.Case], out: Path) -> tuple[str, list[str]]:
    """run_check() in a process of its own: TRITON_INTERPRET must be set before triton is imported."""
    command = [sys.executable, "-m", PACKAGE, "check", "--case", ",".join(c.name for c in chosen), "--out", str(out)]
    search = os.pathsep.join(p or os.getcwd() for p in sys.path)
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": search}, stdout=subprocess.DEVNULL
    )
    if done.returncode not in (0, 1):
        return "", [f"check: the interpreter's process ended with exit code {done.returncode}"]
    return _check_table(out)


def _check_table(out: Path) -> tuple[str, list[str]]:
    found = load([out / "check.jsonl"])
    failures = [f"check: {r['case']}: {r['status']}: {r['message']}" for r in found if r["status"] != "ok"]
    verdicts = [(r["case"], check.Verdict(r["errors"], r["message"])) for r in found]
    table = report.text(("case", "worst", "error", "tolerance", "verdict"), check.summary(verdicts))
    ran = ", ".join(sorted({r["implementation"] for r in found}))
    return f"y, hn and all gradients against fp64, {ran}:\n{table}", failures


# ---- compiled resources and the model -------------------------------------------------------------------------------


def compiled(item: tuple[Any, Any]) -> dict[str, Any]:
    """The fields of one resources record of a planned (Problem, Device)."""
    from rnn_triton import plans
    from rnn_triton.launch import compile_ahead
    from rnn_triton.plan import plan

    problem, device = item
    chosen = plan(problem, device)
    estimate = model.step(problem, chosen, device)
    out = {
        "problem": dataclasses.asdict(problem), "plan": plans.fields(chosen), "resources": {}, "status": "ok",
        "message": "", "floor_us_per_step": estimate.floor_us, "practical_us_per_step": estimate.practical_us,
    }  # fmt: skip
    try:
        out["resources"] = resources.analyze(compile_ahead(problem, chosen, device)).as_dict()
    except Exception as error:  # ptxas, LLVM and MLIR each raise their own
        out |= {"status": "error", "message": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    return out


def distinct_plans(arch: str, few: bool = False) -> list[tuple[Any, Any]]:
    """One planned (Problem, Device) for each different kernel of an architecture; fp16's are bf16's.

    `few`: of plans over a group of CTAs, whose kernels are different for every size, one for each direction and sort of
    product, of H = FEW_H; of one CTA's the largest sizes."""
    from rnn_triton.plan import PLANNED, plan

    architectures = sorted({f"sm_{device.capability}" for _, device in PLANNED})
    if arch not in architectures:
        raise ValueError(f"no plan is listed for {arch!r}; known: {', '.join(architectures)}")
    chosen: dict[Any, tuple[Any, Any]] = {}
    for problem, device in PLANNED:
        if f"sm_{device.capability}" == arch:
            found: Any = plan(problem, device)
            key: tuple[Any, ...] = (problem.direction, dataclasses.replace(found, reason="", accuracy=""))
            if few and found.regime == "single_cta" and (problem.H not in (128, 256) or problem.I in (8, 1000)):
                continue
            if found.regime == "grid":
                if few and problem.H != FEW_H:
                    continue
                key = problem.direction, dataclasses.replace(found, reason="", accuracy="", groups=0), problem.H
                key += (problem.I if found.w_ih_home not in ("gemm", "none") else 0,)
                if few:
                    key = problem.direction, found.formulation, found.precision
            chosen.setdefault(key, (problem, device))
    return list(chosen.values())


def run_resources(arch: str, out: Path, few: bool = False) -> tuple[str, list[str]]:
    """(table, failures) of every plan's kernel on an architecture, compiled here; needs no GPU. `few`: distinct_plans."""
    items = distinct_plans(arch, few)
    found, failures = {}, []
    with Writer(out / "resources.jsonl", environment.new_run(), environment.describe(torch.device("cpu"))) as writer:
        for i, fields in in_parallel(compiled, items, f"compiling for {arch}"):
            if isinstance(fields, BaseException):
                failures.append(f"resources: {items[i][0]}: {type(fields).__name__}: {fields}")
                continue
            found[i] = writer.write("resources", **fields)
            spilled = fields["resources"].get("spill_stores", 0) + fields["resources"].get("spill_loads", 0)
            if fields["status"] != "ok" or spilled:
                failures.append(f"resources: {items[i][0]}: {fields['message'] or f'{spilled} spill instructions'}")
    table = report.text(report.RESOURCE_HEADINGS, report.resource_rows(found[i] for i in sorted(found)))
    return (
        f"compiled for {arch}, counts of one warp and one step (*: estimates, nothing was timed):\n{table}",
        failures,
    )


def model_table(device: Any) -> str:
    """Floor and practical us/step of the quick suite, and of sizes beyond one CTA, on a device, by the latency model."""
    body = []
    for shape in (*cases.QUICK_SHAPES, *cases.LARGE_SHAPES):
        line = ["H {} B {} T {}".format(*shape)]
        for dtype in cases.DTYPES:
            for pass_ in cases.PASSES:
                try:
                    found = model.of_case(cases.case(*shape, dtype), pass_, device)
                    line.append(f"{found.floor_us:.2f} / {found.practical_us:.2f}")
                except NotImplementedError:
                    line.append("no plan")
        body.append(line)
    headings = ["shape", *(f"{dtype} {pass_}" for dtype in cases.DTYPES for pass_ in cases.PASSES)]
    title = f"latency model, {device.name}: floor / practical us per step, launch cost excluded. ESTIMATES, not measured:"
    return f"{title}\n{report.text(headings, body)}"


# ---- timing on a GPU ------------------------------------------------------------------------------------------------


def run_timing(
    chosen: Sequence[cases.Case], passes: Sequence[str], providers: Sequence[str], out: Path, deadline: float
) -> tuple[list[Row], list[str]]:
    """(rows, failures) of the cases on the GPU, with as many as `deadline` on time.monotonic() allows."""
    if not torch.cuda.is_available():
        raise NeedsGPU(
            "timing needs a CUDA GPU and there is none; what works without: "
            f"python -m {PACKAGE} check | resources | model | host | figures | report"
        )
    from rnn_triton import hardware

    device = hardware.of(environment.best_device())
    compile_calls(Call(case) for case in chosen)
    with Writer(out / "timing.jsonl", environment.new_run(), environment.describe(environment.best_device())) as writer:
        found, left = run(
            chosen, passes, writer, deadline, providers=providers, estimate=model_estimate(device)
        )
    if left:
        print(f"the budget ended before {len(left)} of {len(chosen)} cases: {', '.join(c.name for c in left)}")
    failures = [
        f"{r['case']} {r['pass']}: {r['status']}: {r['message']}"
        for r in found
        if r["provider"] == "rnn_triton" and r["status"] not in ("ok", "unsupported")  # no plan yet: shown, no fault
    ]
    return list(rows(found)), failures


def run_host() -> str:
    """A line on own host cost per call, measured here."""
    found = host.measure()
    parts = [
        f"{name} {found[name][1]:.0f} us (target {target:.0f}; an autograd.Function that does nothing: "
        f"{found[f'empty {name}'][1]:.0f})"
        for name, target in host.TARGETS_US.items()
    ]
    return f"host cost per call on this CPU, launches and GEMMs replaced by torch.empty, medians: {'; '.join(parts)}"


def make_figures(timing: Sequence[Row], training: Sequence[dict[str, Any]], out: Path) -> str:
    """Draw what there is; a line on what was written."""
    try:
        files = figures.draw(timing, training, out)
    except figures.MissingMatplotlib as error:
        return f"no figures: {error}"
    return f"figures: {', '.join(sorted({f.stem for f in files}))} (PNG and SVG) in {out}" if files else "no figures"


# ---- make bench -----------------------------------------------------------------------------------------------------


def quick(out: Path, budget: float) -> list[str]:
    """The job of `make bench`, within about `budget` seconds; prints as it goes and returns the failures."""
    deadline = time.monotonic() + budget
    out.mkdir(parents=True, exist_ok=True)
    sections, failures = [], []
    gpu = torch.cuda.is_available()

    def show(text: str) -> None:
        sections.append(text)
        print(f"\n{text}", flush=True)

    table, failed = run_check(cases.suite("check"), out)
    show(table)
    failures += failed

    timing: list[Row] = []
    if gpu:
        timing, failed = run_timing(
            cases.suite("quick"), cases.PASSES, tuple(PROVIDERS), out, deadline - AFTER_TIMING
        )
        failures += failed
    else:
        from rnn_triton import hardware

        table, failed = run_resources("sm_90", out, few=True)
        show(table)
        failures += failed
        show(model_table(hardware.RECORDS["sm_90"]))
        timing = list(rows(load(recorded())))
        if not timing:
            show(f"no recorded GPU results in bench/{RESULTS.name}/*.jsonl: no speed is shown, and no figures of speed")

    outcome, training = _train(out)
    if outcome is None:
        show("examples/digits.py is not here (an installed wheel has no examples): nothing was trained")
    else:
        show(_training_text(outcome))
        failures += outcome.failures
    show(run_host())
    show(make_figures(timing, training, out))
    if timing:
        source = "measured by this run" if gpu else "recorded earlier, not measured by this run"
        show(f"rnn_triton against torch.nn.RNN on cuDNN, {source}:\n" + "\n".join(report.summary(timing)))
        print(report.text(report.HEADINGS, report.timing_rows(timing)))
    _write_report(out, sections, timing)
    return failures


def _train(out: Path) -> tuple[digits.Outcome | None, list[dict[str, Any]]]:
    path = digits.example()
    if path is None:
        return None, []
    device = environment.best_device()
    with Writer(out / "training.jsonl", environment.new_run(), environment.describe(device)) as writer:
        outcome = digits.train(digits.load(path), device, writer)
    return outcome, load([out / "training.jsonl"])


def _training_text(outcome: digits.Outcome) -> str:
    body = [(name, f"{accuracy:.2%}", f"{outcome.seconds[name]:.1f} s") for name, accuracy in outcome.accuracy.items()]
    ran = "".join(f"\n{name} ran: {what}" for name, what in outcome.ran.items())
    steps = outcome.steps
    return (
        "handwritten digits, mean over three seeds, same initial weights, batches and recipe:\n"
        + report.text(("net", "test accuracy", "training"), body)
        + ran
        + f"\ndifference {100 * outcome.difference:+.2f} points; three steps, {steps['ran']}: losses within "
        f"{steps['loss_difference']:.1e}, weights within {steps['weight_difference']:.1e} of fp64 torch.nn.RNN "
        f"(tolerance {steps['tolerance']:.1e})"
    )


def _write_report(out: Path, sections: Sequence[str], timing: Sequence[Row]) -> None:
    parts = ["# rnn_triton benchmark\n"]
    for section in sections:
        title, _, table = section.partition("\n")
        parts.append(f"{title}\n" + (f"\n```\n{table}\n```\n" if table else ""))
    if timing:
        parts.append("## Against cuDNN\n\n" + report.timing_markdown(timing))
    (out / "report.md").write_text("\n".join(parts), encoding="utf-8")
