"""The jobs behind the commands: each writes records, returns what to show and what failed."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from .cases import case as cases
from .cases import estimate as model
from .compiled import resources
from .first_run import run as first_run
from .instruments.progress import Progress
from .instruments.worker import Worker, WorkerError
from .measure import check, digits, host, schedule
from .measure.compiling import calls_of, compile_calls, in_parallel
from .measure.run import fault, model_estimate, run
from .providers.registry import PROVIDERS
from .records import environment
from .records.schema import OURS, Row, Writer, read, rows
from .show import figures, report, tables

PACKAGE = __package__ or "bench"
RESULTS = Path(__file__).resolve().parent / "results"
CHECK_TIMEOUT = 120.0  # seconds a case
MOST_PROBLEMS = 5  # lines of a record file that are named one by one
COMPILING = 0.35  # of a budget, at most, for compiling
ASKING = 60.0  # seconds for a provider to say whether it is here
FEW_H, FEW_ONE_CTA = 1024, 128  # what `make bench` compiles of the plans over a group of CTAs, and of one
AFTER_TIMING = 60.0  # seconds of a budget kept for training, host cost, figures
QUICK_PROVIDERS = ("rnn_triton", "cudnn", "cudnn-layers")  # of `make bench`


def needs(error: ModuleNotFoundError) -> str:
    """What to install, of a package that is none of ours; the error itself otherwise"""
    name = (error.name or "").partition(".")[0]
    if name in ("", "bench", "rnn_triton", PACKAGE.partition(".")[0]):
        raise error
    return f"this needs {name}, which is not installed: pip install {name}"


class NeedsGPU(RuntimeError):
    """The job measures a GPU and there is none."""


def recorded() -> list[Path]:
    """The record files that came with the source."""
    return sorted(RESULTS.rglob("*.jsonl"))


def known(out: Path) -> list[Path]:
    """The record files that came with the source, and those of runs in `out`; a dry run's times are nobody's."""
    return [*recorded(), *(path for path in sorted(out.glob("*.jsonl")) if path.name != first_run.DRY_FILE)]


def load(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The records of the files; what is damaged or foreign is said on standard error, line by line, and left out."""
    found, problems = read(paths)
    by_path: dict[str, list[Any]] = {}
    for problem in problems:
        by_path.setdefault(problem.path, []).append(problem)
    for path, those in by_path.items():
        for problem in those[:MOST_PROBLEMS]:
            print(f"skipped {problem}", file=sys.stderr)
        if len(those) > MOST_PROBLEMS:
            rest = len(those) - MOST_PROBLEMS
            print(f"skipped {path}: {rest} more lines, the last {those[-1].line}; nothing was changed", file=sys.stderr)
    return found


# ---- correctness gate -----------------------------------------------------------------------------------------------


def check_case(case: cases.Case) -> dict[str, Any]:
    """The fields of one check record of rnn_triton; runs in a worker."""
    from rnn_triton.interpret import interpreter

    device = environment.best_device()
    plan = PROVIDERS["rnn_triton"].plan(case, device)
    verdict = check.gate_of_sizes(case, PROVIDERS["rnn_triton"], device)
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
    device = environment.best_device()
    settings = {} if device.type == "cuda" else {"TRITON_INTERPRET": "1"}
    with Writer(out / "check.jsonl", environment.new_run(), environment.describe(device)) as writer:
        with Worker(check_case, settings) as worker, Progress("checking", len(chosen)) as progress:
            for case in chosen:
                progress.now(case.name)
                try:
                    found = worker.call(case, CHECK_TIMEOUT)
                except WorkerError as error:
                    found = {"status": error.status, "message": str(error), "errors": {}, "implementation": "none"}
                    found |= {"plan": None}
                shape = dataclasses.asdict(case)
                record = writer.write("check", case=case.name, shape=shape, provider="rnn_triton", choices={}, **found)
                progress.step(failed=record["status"] != "ok")
    return _check_table(out)


def _check_table(out: Path) -> tuple[str, list[str]]:
    found = load([out / "check.jsonl"])
    failures = [f"check: {r['case']}: {r['status']}: {r['message']}" for r in found if r["status"] != "ok"]
    verdicts = [(r["case"], check.Verdict(r["errors"], r["message"])) for r in found]
    table = tables.text(("case", "worst", "error", "tolerance", "verdict"), check.summary(verdicts))
    ran = ", ".join(sorted({r["implementation"] for r in found}))
    return f"y, hn and all gradients against fp64, {ran}:\n{table}", failures


# ---- compiled resources and the model -------------------------------------------------------------------------------


def compiled(item: tuple[Any, Any]) -> dict[str, Any]:
    """The fields of one resources record of a planned (Problem, Device)."""
    from rnn_triton.launch.dispatch import compile_ahead
    from rnn_triton.plan import problem as plans
    from rnn_triton.plan.choose import plan

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

    `few`: one for each direction and sort of product, over a group of CTAs of H = FEW_H and in one CTA of H = FEW_ONE_CTA."""
    from rnn_triton.plan.choose import plan

    from .compiled.planned import planned

    architectures = sorted({f"sm_{device.capability}" for _, device in planned()})
    if arch not in architectures:
        raise ValueError(f"no plan is listed for {arch!r}; known: {', '.join(architectures)}")
    chosen: dict[Any, tuple[Any, Any]] = {}
    for problem, device in planned():
        if f"sm_{device.capability}" == arch:
            found: Any = plan(problem, device)
            key: tuple[Any, ...] = (problem.direction, dataclasses.replace(found, reason="", accuracy=""))
            if few and found.regime == "one_cta":
                if problem.H != FEW_ONE_CTA or problem.I in (8, 1000):
                    continue
                key = found.regime, problem.direction, found.formulation, found.precision
            if found.regime == "cta_group":
                if few and problem.H != FEW_H:
                    continue
                key = problem.direction, dataclasses.replace(found, reason="", accuracy="", groups=0), problem.H
                key += (problem.I if found.w_ih_home not in ("gemm", "none") else 0,)
                if few:
                    key = found.regime, problem.direction, found.formulation, found.precision
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
            found[i] = record = writer.write("resources", **fields)
            spilled = sum(record["resources"].get(name, 0) for name in ("spill_stores", "spill_loads"))
            if record["status"] != "ok" or spilled:
                failures.append(f"resources: {items[i][0]}: {record['message'] or f'{spilled} spill instructions'}")
    table = tables.text(tables.RESOURCE_HEADINGS, tables.resource_rows(found[i] for i in sorted(found)))
    return (
        f"compiled for {arch}, counts of one warp and one step (*: estimates, nothing was timed):\n{table}",
        failures,
    )


def model_table(device: Any, chosen: Sequence[cases.Case]) -> str:
    """Floor and practical us/step of cases on a device, by the latency model, and what limits the practical one."""
    body = []
    for case in chosen:
        line = [case.name]
        for pass_ in cases.PASSES:
            try:
                found = model.of_case(case, pass_, device)
                line += [f"{found.floor_us:.2f}", f"{found.practical_us:.2f}", found.bound]
            except NotImplementedError:
                line += ["no plan", "-", "-"]
        body.append(line)
    headings = ["case", *(f"{pass_} {what}" for pass_ in cases.PASSES for what in ("floor", "practical", "bound"))]
    title = f"latency model, {device.name}, us per step, launch cost excluded. ESTIMATES, not measured:"
    return f"{title}\n{tables.text(headings, body)}"


def fit_table(records: Sequence[dict[str, Any]]) -> str:
    """The latency model fitted to the records of each device, and the bottleneck of every measured case; what is missing where
    that is numpy, which only this and `compare` need."""
    try:
        from .model import fit
    except ModuleNotFoundError as error:
        return f"the latency model was not fitted: {needs(error)}"

    names = sorted({r["environment"]["device"] for r in records if r["kind"] in ("timing", "exchange")})
    parts = []
    for name in names:
        found = fit.fit([r for r in records if r["environment"]["device"] == name])
        parts += [
            *fit.summary(found), tables.text(fit.HEADINGS, fit.constants_body(found)), "",
            tables.text(fit.ERROR_HEADINGS, fit.errors_body(found)), "",
        ]  # fmt: skip
    bottlenecks = fit.bottlenecks(records)
    if bottlenecks:
        parts += ["what was measured, the farthest from its floor first:", tables.text(fit.BOTTLENECK_HEADINGS, bottlenecks)]
    return "\n".join(parts) or "no timing records: the latency model was fitted to nothing"


def architecture(name: str) -> Any:
    """The hardware record of sm_80, sm_90, ...; ValueError with the known ones."""
    from rnn_triton.plan import hardware

    if name not in hardware.RECORDS:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(hardware.RECORDS)}")
    return hardware.RECORDS[name]


# ---- what there is --------------------------------------------------------------------------------------------------


def suites_table() -> str:
    body = [(name, str(len(members)), cases.ABOUT[name]) for name, members in cases.SUITES.items()]
    return tables.text(("suite", "cases", "what"), body)


def providers_table() -> str:
    body = []
    for name, here in providers_here(PROVIDERS).items():
        provider = PROVIDERS[name]
        version = here.version or ("-" if provider.package else "torch's")
        body.append((name, provider.label, version, here.missing or "found"))
    return tables.text(("provider", "what", "version", "here"), body)


def results_table(out: Path) -> str:
    """The record files that are known, and where new ones of the GPU at hand belong."""
    body = []
    for path in known(out):
        found, problems = read([path])
        devices = ", ".join(sorted({r["environment"]["device"] for r in found}))
        kinds = ", ".join(sorted({r["kind"] for r in found}))
        body.append((str(path), str(len(found)), str(len(problems)), kinds, devices))
    lines = tables.text(("file", "records", "damaged lines", "kinds", "devices"), body) if body else "no record files"
    if torch.cuda.is_available():
        name = environment.describe(environment.best_device())["device"]
        lines += f"\nrecords of this device belong into {RESULTS / slug(name)}"
    return lines


def slug(device: str) -> str:
    """The folder of a device's records: nvidia-h200"""
    return "-".join("".join(c if c.isalnum() else " " for c in device.lower()).split())


# ---- timing on a GPU ------------------------------------------------------------------------------------------------


def needs_gpu() -> None:
    """NeedsGPU, with what works without, where there is none."""
    if not torch.cuda.is_available():
        raise NeedsGPU(
            "timing needs a CUDA GPU and there is none; what works without: "
            f"python -m {PACKAGE} check | resources | model | explain | host | figures | report | compare"
        )


def run_timing(
    chosen: Sequence[cases.Case],
    passes: Sequence[str],
    providers: Sequence[str],
    out: Path,
    deadline: float,
    again: bool = False,
    repeats: int = 1,
) -> tuple[list[Row], list[str]]:
    """(rows, failures) of the cases on the GPU: those without a record of this source and these versions, the most
    informative first, as many as `deadline` on time.monotonic() allows.  `again`: also those that are recorded.  `repeats`: each
    in so many runs, one run of all after the other."""
    needs_gpu()
    from rnn_triton.plan import hardware

    began = time.monotonic()
    described = environment.describe(environment.best_device())
    estimate = model_estimate(hardware.of(environment.best_device()))
    before = load(known(out))
    here = providers_here(providers)
    took = schedule.took(before)
    slower = 1.0  # than expected, as seen so far
    found: list[dict[str, Any]] = []
    todo: list[cases.Job] = []

    def seconds(job: cases.Job) -> float:
        return slower * schedule.seconds_of(job, took, runs)

    def runs(name: str, case: cases.Case) -> bool:
        return not here[name].missing and not PROVIDERS[name].unsupported(case)

    for number in range(1, repeats + 1):
        done = frozenset() if again else schedule.done([*before, *found], described, here, number)
        todo = schedule.jobs(chosen, passes, providers, done)
        waiting = {job.case for job in todo}
        todo = schedule.ordered(todo, [case for case in chosen if case not in waiting], regime)
        which = f"run {number} of {repeats}, " if repeats > 1 else ""
        print(f"{which}{len(chosen)} cases: {len(chosen) - len(todo)} recorded already", flush=True)
        with Writer(out / "timing.jsonl", environment.new_run(), described, fresh=False) as writer:
            while todo:  # wave after wave of what fits, each compiled before it is timed
                budget = deadline - time.monotonic()
                fit, rest = schedule.fitting(todo, (1 - COMPILING / 2) * budget, seconds)
                fit, rest = (fit, rest) if fit or found else (todo[:1], todo[1:])
                if not fit or budget <= 0:
                    break
                print(f"{len(fit)} by estimate fit into {budget:.0f} s, {len(rest)} do not", flush=True)
                _compile(fit, [name for name in here if not here[name].missing], COMPILING * budget)
                start, expected = time.monotonic(), {job: seconds(job) for job in fit}
                of_wave, late = run(fit, writer, deadline, seconds=seconds, estimate=estimate, eager=not found)
                found, todo = [*found, *of_wave], [*late, *rest]
                if not of_wave:
                    break
                slower *= max(1.0, (time.monotonic() - start) / sum(s for job, s in expected.items() if job not in late))
        if todo:
            print(
                f"the budget ended before {len(todo)} cases, and the same command goes on with them: "
                + ", ".join(job.case.name for job in todo)
            )
            if (longest := max(map(seconds, todo))) > deadline - began:
                print(f"one of them is expected to take {longest:.0f} s by itself: give it a larger --budget")
            break
    failures = [f"{r['case']} {r['pass']}: {why}" for r in found if r["provider"] == OURS and (why := fault(r))]
    names = {case.name for case in chosen}
    same = [r for r in load(known(out)) if r["kind"] == "timing" and r["environment"]["device"] == described["device"]]
    return [row for row in rows(same) if row.case in names and row.pass_ in passes], failures


def providers_here(names: Iterable[str]) -> dict[str, schedule.Here]:
    """Each provider as it is on this machine, asked in a process of its own: an import can hang, or end its process."""
    found = {}
    with Worker(_here) as worker:
        for name in names:
            try:
                missing = worker.call(name, ASKING)
            except WorkerError as error:
                missing = f"importing it failed: {error}"
            found[name] = schedule.Here(missing, PROVIDERS[name].version())
    return found


def _here(name: str) -> str:
    return PROVIDERS[name].missing(environment.best_device())


def _compile(wave: Sequence[cases.Job], here: Sequence[str], seconds: float) -> None:
    failed, cut = compile_calls(calls_of(wave, here), seconds)
    for call, message in failed.items():
        print(f"compiling {call.case.name} for {call.provider}: {message}", file=sys.stderr)
    if cut:
        print(f"compiling took its time: {cut} calls are left, and compile when they run", flush=True)


@functools.cache
def regime(case: cases.Case) -> str | None:
    """Of the forward plan of a case, here or on an H200; None where there is none"""
    from rnn_triton.plan import hardware
    from rnn_triton.plan.choose import plan

    device = hardware.of(environment.best_device())
    try:
        return plan(model.problems(case)[0], device).regime
    except NotImplementedError:
        return None


def run_host() -> str:
    """A line on own host cost per call, measured here."""
    found = host.measure()
    parts = [
        f"{name} {found[name][1]:.0f} us (target {target:.0f}; an autograd.Function that does nothing: "
        f"{found[f'empty {name}'][1]:.0f})"
        for name, target in host.TARGETS_US.items()
    ]
    return f"host cost per call on this CPU, launches and GEMMs replaced by torch.empty, medians: {'; '.join(parts)}"


def make_figures(records: Sequence[dict[str, Any]], out: Path, names: Sequence[str] | None = None) -> str:
    """Draw what there is; a line on what was written."""
    training = [r for r in records if r["kind"] == "training"]
    try:
        files = figures.draw(rows(records), training, out / report.FOLDER, names)
    except figures.MissingMatplotlib as error:
        return f"no figures: {error}"
    stems = ", ".join(sorted({f.stem for f in files}))
    return f"figures: {stems} (PNG, SVG and PDF) in {out / 'figures'}" if files else "no figures: there is nothing to draw"


def make_report(records: Sequence[dict[str, Any]], out: Path, sections: Sequence[str] = ()) -> str:
    """The HTML page with PDF figures and tables beside it; a line on what was written."""
    training = [r for r in records if r["kind"] == "training"]
    resources = [r for r in records if r["kind"] == "resources"]
    page = report.html(rows(records), training, resources, out, sections)
    beside = [f.name for f in tables.write(rows(records), out)]
    figures_ = sorted({f.stem for f in (out / report.FOLDER).glob("*.pdf")})
    if figures_:
        beside.append(f"{report.FOLDER}/ ({', '.join(figures_)}; PDF, SVG and PNG)")
    return f"report: {page}" + (f"; beside it: {', '.join(beside)}" if beside else "")


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

    if gpu:
        _, failed = run_timing(cases.suite("quick"), cases.PASSES, QUICK_PROVIDERS, out, deadline - AFTER_TIMING)
        failures += failed
    else:
        table, failed = run_resources("sm_90", out, few=True)
        show(table)
        failures += failed
        show(model_table(architecture("sm_90"), cases.suites("quick,stack")))

    outcome = _train(out)
    if outcome is None:
        show("examples/digits.py is not here (an installed wheel has no examples): nothing was trained")
    else:
        show(_training_text(outcome))
        failures += outcome.failures
    show(run_host())

    found = load(known(out))
    timing = rows(found)
    if timing:
        show(fit_table(found))
        source = "measured by this run or recorded earlier" if gpu else "recorded earlier, not measured by this run"
        print(f"\nrnn_triton against torch.nn.RNN on cuDNN, {source}:")
        print(tables.text(tables.HEADINGS, tables.timing_rows(timing)))
        for table_ in (tables.summary(timing), tables.losses(timing), tables.far_from_floor(timing)):
            print(f"\n{table_.title}:\n{tables.text(table_.headings, table_.body) if table_.body else 'none'}")
    else:
        show(f"no recorded GPU results in bench/{RESULTS.name}: no speed is shown, and no figures of speed")
    print(f"\n{make_report(found, out, sections)}")
    return failures


def _train(out: Path) -> digits.Outcome | None:
    path = digits.example()
    if path is None:
        return None
    device = environment.best_device()
    with Writer(out / "training.jsonl", environment.new_run(), environment.describe(device)) as writer:
        return digits.train(digits.load(path), device, writer)


def _training_text(outcome: digits.Outcome) -> str:
    body = [(name, f"{accuracy:.2%}", f"{outcome.seconds[name]:.1f} s") for name, accuracy in outcome.accuracy.items()]
    ran = "".join(f"\n{name} ran: {what}" for name, what in outcome.ran.items())
    steps = outcome.steps
    return (
        f"handwritten digits, mean over {outcome.seeds} seed(s), same initial weights, batches and recipe:\n"
        + tables.text(("net", "test accuracy", "training"), body)
        + ran
        + f"\ndifference {100 * outcome.difference:+.2f} points; three steps, {steps['ran']}: losses within "
        f"{steps['loss_difference']:.1e}, weights within {steps['weight_difference']:.1e} of fp64 torch.nn.RNN "
        f"(tolerance {steps['tolerance']:.1e})"
    )
