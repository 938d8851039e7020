"""What a step of each planned kernel does on the executor of PTX (tests/ptx_executor): CTA barriers, shared memory, bytes.

    PYTHONPATH=.:tests python -m support.counts [TEXT]     writes the second table of docs/resources.md anew, in some minutes;
                                                           where TEXT is given only rows of kernels with it in their names

One CTA is run, the first one's counts are those of any other with a whole tile, and nobody is waited for: what other CTAs
would publish is there before.  A step is what two runs of different length differ in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.compiled.job import distinct_plans
from bench.compiled.planned import planned
from bench.instruments.worker import in_parallel
from bench.show import formats
from rnn_triton.kernels.exchange import LINE
from rnn_triton.launch import dispatch
from rnn_triton.plan import choose, hardware
from rnn_triton.plan.problem import DTYPES, ONE, Bundle, CtaGroup, Plan, Problem
from support.planned import planned_otherwise

ARCH = "sm_90"
STEPS = (4, 6)  # of the two runs; loops take one or two steps a trip
KERNELS = ("one_cta", "cta_group", "per_step")
PAGE = Path(__file__).parents[2] / "docs" / "resources.md"
KEY = ("direction", "H", "I", "B", "dtype", "plan")
COUNTS = ("CTA barriers/step", "shared wavefronts/step", "of them conflicts", "bytes/step from")


# ---- what is counted ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A planned kernel; choices: as of rnn_triton.overriding"""

    problem: Problem
    choices: tuple[tuple[str, Any], ...] = ()
    bundle: Bundle = ONE
    arch: str = ARCH

    @property
    def plan(self) -> Plan:
        device = hardware.RECORDS[self.arch]
        if self.bundle.count > 1:
            return choose.shared_plan(self.problem, self.bundle, device, ())
        return choose.plan(self.problem, device, self.choices)

    @property
    def key(self) -> tuple[str, ...]:
        """The cells of KEY, which tell it apart"""
        of, p = self.problem, self.plan
        dtype = of.dtype + (f" {of.precision}" if of.precision else "")
        shape = f"{p.regime} {p.warps} warps, {p.block_b} rows"
        if self.bundle.count > 1:
            shape += f", {self.bundle.count} {'layers' if self.bundle.linked else 'directions'}"
            shape += ", dropout" if self.bundle.dropout else ""
        shape += "".join(f", {name}={value}" for name, value in self.choices if name != "regime")
        return of.direction, str(of.H), str(of.I), str(of.B), dtype, shape

    @property
    def name(self) -> str:
        direction, H, I, B, dtype, shape = self.key
        regime = "" if ("regime", self.plan.regime) not in self.choices else f"-{self.plan.regime}"
        more = shape.partition(" rows")[2]
        return f"{direction}-{dtype}-B{B}-I{I}-H{H}{regime}{more}".replace(", ", "-").replace(" ", "-")


def jobs(arch: str = ARCH, distinct: bool = True) -> Iterator[Job]:
    """Every planned kernel of an architecture, those of several recurrences and of single steps among them.  `distinct`: one for each
    different plan"""
    every = ((problem, device) for problem, device in planned() if f"sm_{device.capability}" == arch)
    for problem, _ in distinct_plans(arch) if distinct else every:
        yield Job(problem, arch=arch)
    for problem, device, choices in planned_otherwise():
        if f"sm_{device.capability}" == arch:
            yield Job(problem, tuple(choices.items()), arch=arch)
    for direction in ("forward", "backward"):
        for dtype, precision in (("bf16", None), ("fp32", "tf32")):
            problem = Problem(direction, 8, 256 if direction == "forward" else 1, 256, dtype, precision, "elman_tanh")
            yield Job(problem, (("regime", "per_step"),), arch=arch)
        for H, bundle in (
            (128, Bundle(2)), (128, Bundle(2, True)), (128, Bundle(2, True, True)), (512, Bundle(2)), (512, Bundle(4, True)),
            (512, Bundle(4, True, True)),
        ):  # fmt: skip
            yield Job(Problem(direction, 8, H if direction == "forward" else 1, H, "bf16", None, "elman_tanh"), (), bundle, arch)


# ---- counting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Of one CTA.  `fetched`: bytes of the 32-byte sectors that global loads touch, each load of a warp by itself, by argument"""

    barriers: float
    wavefronts: float
    conflicts: float
    fetched: dict[str, float] = field(default_factory=dict)

    def cells(self) -> tuple[str, ...]:
        fetched = ", ".join(f"{name} {n:.10g}" for name, n in sorted(self.fetched.items())) or "none"
        return f"{self.barriers:g}", f"{self.wavefronts:.10g}", f"{self.conflicts:.10g}", fetched

    @staticmethod
    def of(cells: tuple[str, ...]) -> Step:
        *numbers, fetched = cells
        parts = [] if fetched == "none" else [part.split() for part in fetched.split(", ")]
        return Step(*map(float, numbers), {name: float(n) for name, n in parts})

    def beyond(self, limit: Step) -> list[str]:
        """What is more than `limit` has"""
        pairs = {name: (getattr(self, name), getattr(limit, name)) for name in ("barriers", "wavefronts", "conflicts")}
        pairs |= {f"bytes from {name}": (n, limit.fetched.get(name, 0.0)) for name, n in self.fetched.items()}
        return [f"{name}: {n:.10g} a step, {most:.10g} expected at most" for name, (n, most) in pairs.items() if n > most]


@contextlib.contextmanager
def counting(lane: int) -> Iterator[list[Any]]:
    """The launches in here, in order; of each, one CTA is run, on lane number `lane`, and all that it waits for is there."""
    from . import executed

    driver = executed.driver

    def published(of: Any) -> None:
        if of.cooperative:
            of.extent("out_ptr").views[4][:] = 0
            of.extent("sync_ptr").views[4][LINE.value * of.grid[1] :] = 1 << 30  # the counters, behind a group's error word

    options, driver.options = driver.options, {
        **driver.options, "counting": True, "gang": 0, "watch_stores": False, "lane_checks": False, "tear": False,
        "only": {(0, lane, 0)},
    }  # fmt: skip
    driver.before.append(published)
    try:
        with executed.incomplete(), executed.observed() as launches:
            yield launches
    finally:
        driver.before.remove(published)
        driver.options = options


def counted(job: Job, module: Any = None) -> Step:
    """On the executor, by the planned kernel; `module`: what has Recurrence in place of rnn_triton.launch.recurrence"""
    import ptx_executor

    p = job.plan
    if isinstance(p, CtaGroup):
        p = dataclasses.replace(p, groups=1)
    problem = dataclasses.replace(job.problem, B=p.block_b)
    runs = []
    for T in STEPS:
        with counting(job.bundle.count - 1) as launches:
            _run(problem, p, job.bundle, T, module)
        runs.append(ptx_executor.total(run for run in launches if run.kernel_name in KERNELS))
    step = ptx_executor.per_step(*runs, STEPS[1] - STEPS[0])
    fetched = {name.removesuffix("_ptr"): 32 * n for name, n in step.load_sectors.items()}
    return Step(step.barriers, sum(step.wavefronts.values()), sum(step.conflicts.values()), fetched)


def _run(problem: Problem, p: Plan, bundle: Bundle, T: int, module: Any) -> None:
    dtype = next(dtype for dtype, name in DTYPES.items() if name == problem.dtype)
    forward = problem.direction == "forward"
    B, I, H, L = problem.B, problem.I, problem.H, bundle.count
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).mul_(0.05).to(dtype)

    launch = dispatch.prepared(problem, p, bundle) if module is None else module.Recurrence(problem, p, bundle)
    if L == 1:
        if forward:
            launch.forward(normal(T, B, I), normal(H, I), normal(H, H), normal(H), normal(H), (normal(B, H),), False)
        else:
            launch.backward(normal(H, H), normal(T, B, H), None, normal(T, B, H), (normal(B, H),), False)
        return
    w_hh = [normal(H, H) for _ in range(L)]
    w_ih = [normal(H, H if bundle.linked and n else I) for n in range(L)] if forward else [normal(H, H) for _ in range(L)]
    bias = [normal(H) for _ in range(L)]
    dropout: dict[str, Any] = dict(seed=torch.tensor([1]), dropped=6554) if bundle.dropout else {}
    if forward:
        launch.forward(normal(T, B, I), w_ih, w_hh, bias, bias, (normal(L, B, H),), **dropout)
    elif bundle.linked:
        launch.backward(w_hh, normal(L, T, B, H), None, normal(T, B, H), (normal(L, B, H),), w_ih=w_ih, **dropout)
    else:
        launch.backward(w_hh, normal(T, B, 2 * H), None, normal(T, B, 2 * H), (normal(2, B, H),))


# ---- the table of docs/resources.md ---------------------------------------------------------------------------------


def _parts(page: str) -> tuple[str, str, str]:
    """Text before the table, the table, text behind it"""
    start = page.index("```\n", page.index("\n## ")) + 4
    end = page.index("```", start)
    return page[:start], page[start:end], page[end:]


def limits() -> dict[tuple[str, ...], Step]:
    """By the key of a job"""
    table = _parts(PAGE.read_text(encoding="utf-8"))[1]
    rows = [tuple(re.split(r"  +", line)) for line in table.splitlines()[1:]]
    return {row[: len(KEY)]: Step.of(row[len(KEY) :]) for row in rows}


def _row(job: Job) -> tuple[str, ...]:
    from . import executed

    if executed.driver is None:
        executed.install()
    return (*job.key, *counted(job).cells())


def main(text: str = "") -> None:
    """Counts the kernels with `text` in their names.  Rows of kernels that are no more go."""
    every = list(jobs())
    rows = {key: (*key, *step.cells()) for key, step in limits().items()}
    chosen = [job for job in every if text in job.name]
    failed = []
    for i, row in in_parallel(_row, chosen, "counting"):
        if isinstance(row, BaseException):
            failed.append(f"{chosen[i].name}: {row}")
            continue
        rows[chosen[i].key] = row
        before, _, behind = _parts(PAGE.read_text(encoding="utf-8"))
        before = re.sub(r"(with Triton )\S+(?= by `PYTHONPATH)", rf"\g<1>{importlib.metadata.version('triton')}", before)
        table = formats.text(KEY + COUNTS, [rows[job.key] for job in every if job.key in rows])
        PAGE.write_text(f"{before}{table}\n{behind}", encoding="utf-8")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main(*sys.argv[1:])
