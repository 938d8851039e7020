"""The kernels' own source with a change in it, as modules of their own; and changes that tests must notice.

A change names the text it replaces.  Where the source moves on, NoLongerAppliesError says so; the change moves along.
"""

import contextlib
import importlib
import itertools
import pkgutil
import shutil
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rnn_triton import kernels, launch
from rnn_triton.interpret import assembly
from rnn_triton.launch import dispatch, faults, per_step, recurrence  # noqa: F401  (the last two, which a call imports, are put in place of)

from .gated_groups import Gated
from .grids import Case
from .stacks import Stack

SOURCE = Path(kernels.__file__).parent
_numbers = itertools.count()


@dataclass(frozen=True)
class Change:
    """`old`, which must be in `file` of kernels/, or in a file of LAUNCHING by its path in the project, exactly once, becomes `new`."""

    file: str
    old: str
    new: str


class NoLongerAppliesError(Exception):
    """The source has changed: the text to replace is not there, or not once."""


def changed(source, change):
    found = source.count(change.old)
    if found != 1:
        raise NoLongerAppliesError(f"{change.file}: found {found} times, expected once:\n{change.old}")
    return source.replace(change.old, change.new)


# What launches those kernels, in this order: each may import the ones before it.
LAUNCHING = ("operands", "cta_group", "one_cta", "per_step", "recurrence")
REGIMES = ("cta_group", "one_cta", "per_step")  # kernels, and what launches them


@contextlib.contextmanager
def patched(*changes):
    """Namespace of modules made of the changed source: exchange, slices, cta_group, one_cta and per_step of kernels/; operands,
    recurrence and, as `steps`, per_step of rnn_triton/launch/, with those kernels.  What everybody else imports is as it was, and what
    else they import, too.

    In a temporary folder: Triton reads a kernel's source from its file."""
    number = next(_numbers)
    name, launching = f"kernels_with_changes_{number}", f"{launch.__name__}_with_changes_{number}"
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, name)
        shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("__pycache__"))
        paths = {}
        for module in LAUNCHING:
            paths[f"rnn_triton/launch/{module}.py"] = Path(folder, f"{module}.py")
            shutil.copy(Path(launch.__file__).with_name(f"{module}.py"), folder)
        for change in changes:
            path = paths.get(change.file, package / change.file)
            path.write_text(changed(path.read_text(), change))
        sys.path.insert(0, folder)
        try:
            modules = {m: importlib.import_module(f"{name}.{m}") for m in ("exchange", "slices", *REGIMES)}
            assembly.register(modules["exchange"], modules["slices"])
            sys.modules[launching] = parent = types.ModuleType(launching)
            parent.__path__ = [folder]
            for module in pkgutil.iter_modules(launch.__path__):
                if module.name not in LAUNCHING:
                    sys.modules[f"{launching}.{module.name}"] = importlib.import_module(f"{launch.__name__}.{module.name}")
            launched = {module: importlib.import_module(f"{launching}.{module}") for module in LAUNCHING}
            for regime in REGIMES:
                setattr(launched[regime], regime, getattr(modules[regime], regime))
            yield SimpleNamespace(**{**launched, **modules}, steps=launched["per_step"])
        finally:
            sys.path.remove(folder)
            for module in [m for m in sys.modules if m in (name, launching) or m.startswith((f"{name}.", f"{launching}."))]:
                del sys.modules[module]


@contextlib.contextmanager
def launched_with(*changes):
    """Launches are of the changed source."""
    with patched(*changes) as kernels, pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "recurrence", kernels.recurrence)
        patch.setattr(launch, "per_step", kernels.steps)
        dispatch._launch_for.cache_clear()
        try:
            yield kernels
        finally:
            dispatch._launch_for.cache_clear()
            faults.word(torch.device("cpu")).zero_()


@dataclass(frozen=True)
class Mutant:
    """A defect, where it shows, and the modes of test_mutants.py that must each notice it."""

    name: str
    changes: tuple[Change, ...]
    direction: str
    case: Case
    killed_by: tuple[str, ...]
    data: str = "plain"


def _mutant(name, file, old, new, direction, case, *killed_by, data="plain"):
    return Mutant(name, (Change(file, old, new),), direction, case, killed_by, data)


# Two CTAs, two tiles of unequal size taking turns; two groups of as many; two K tiles; rows with padding.
_SENTINEL = Case(3, 11, 8, 24)
_COUNTER = _SENTINEL.having(protocol="counter")
_GROUPS = Case(2, 27, 8, 24, groups=2, protocol="counter")
_WIDE = Case(3, 3, 8, 72, kind="tf32", units=64)
_RAGGED = Case(3, 3, 8, 21, kind="tf32", nonlinearity="relu", first=False, bias=(False, False))
_STUCK = Case(5, 29, 8, 24, groups=2)
_STUCK_COUNTER = Case(5, 29, 8, 21, groups=2, protocol="counter", nonlinearity="relu")

_STACK = Stack(3, 3, 8, 24, layers=3)
_BOTH = Stack(3, 3, 8, 24, both=True)
_ALONE = _STACK.having(depth=2)
_ALONE_1 = _STACK.having(depth=1)

_GRU = Gated(3, 11, 9, 21, kind="tf32x3", cell="gru")
_LSTM = _GRU.having(cell="lstm")
_GRUS = _GRU.having(B=3, layers=2)

_WAIT_BARRIER = "        dtype=tl.int32, is_pure=False, pack=1,\n    )  # fmt: skip\n"
_PUBLISH = '    tl.store(ptrs, published(words), mask=mask, cache_modifier=".cg")\n'
_COUNT = '        tl.debug_barrier()\n        tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")\n'

MUTANTS = (
    # ---- the counter protocol
    _mutant("wait removed", "exchange.py",
            "        wait(counter_ptr, tl.where(failed, SENTINEL, target), error_ptr, step, limit)\n", "        pass\n", "forward", _COUNTER, "numbers", "detector", "weak"),
    _mutant("waits for the step before", "cta_group.py", "CTAS * step - 1, step", "CTAS * (step - 1) - 1, step",
            "backward", _COUNTER, "numbers", "detector", "weak"),
    _mutant("waits for one CTA too few", "cta_group.py", "CTAS * step - 1, step", "CTAS * step - 2, step",
            "forward", _COUNTER, "numbers", "detector", "weak"),
    _mutant("waits for one CTA too many", "cta_group.py", "CTAS * step - 1, step", "CTAS * step, step",
            "backward", _COUNTER, "deadlock"),
    _mutant("no CTA barrier before the release", "exchange.py", _COUNT,
            _COUNT.replace("        tl.debug_barrier()\n", ""), "forward", _COUNTER, "detector", "weak"),
    _mutant("relaxed in place of release", "exchange.py", 'sem="release"', 'sem="relaxed"',
            "backward", _COUNTER, "detector", "weak"),
    _mutant("release among the CTA's threads only", "exchange.py", 'sem="release", scope="gpu"',
            'sem="release", scope="cta"', "forward", _COUNTER, "detector", "weak"),
    _mutant("relaxed in place of acquire", "exchange.py", "ld.acquire.gpu", "ld.relaxed.gpu",
            "forward", _COUNTER, "detector"),
    _mutant("acquire among the CTA's threads only", "exchange.py", "ld.acquire.gpu", "ld.acquire.cta",
            "backward", _COUNTER, "detector"),
    _mutant("no CTA barrier behind the wait", "exchange.py", _WAIT_BARRIER + "    tl.debug_barrier()\n", _WAIT_BARRIER,
            "forward", _COUNTER, "detector"),
    _mutant("waits at the group's first counter", "cta_group.py", "error_ptr, counters + tile * LINE",
            "error_ptr, counters + group * LINE", "forward", _COUNTER, "numbers", "detector"),
    _mutant("counts at another group's counter", "cta_group.py", "arrive(counters + tile * LINE",
            "arrive(counters + (tile ^ 1) * LINE", "backward", _GROUPS, "numbers", "detector"),
    Mutant("counts before it stores", (
               Change("cta_group.py", "        arrive(counters + tile * LINE, TILE)\n", ""),
               Change("cta_group.py", "        out_t = out_ptr + (t",
                      "        arrive(counters + tile * LINE, TILE)\n        out_t = out_ptr + (t"),
           ), "forward", _COUNTER, ("detector", "weak")),
    _mutant("counters start at 0", "rnn_triton/launch/operands.py", ".fill_(fill)", ".fill_(0)",
            "forward", _COUNTER, "numbers", "detector"),
    # ---- the sentinel protocol
    _mutant("what is read again is not used", "exchange.py", "words = verify(", "unused = verify(",
            "forward", _SENTINEL, "numbers"),
    _mutant("the look is always skipped", "exchange.py", "words, (given | failed).to(tl.int32), (error_ptr", "words, 1, (error_ptr",
            "backward", _SENTINEL, "numbers"),
    _mutant("the sentinel is published", "exchange.py",
            "tl.minimum(words.to(tl.uint32, bitcast=True), 0xFFFFFFFE).to(tl.int32, bitcast=True)", "words",
            "backward", _WIDE, "contract", data="sentinels"),
    _mutant("published half a word at a time", "exchange.py", _PUBLISH, (
            "    halves = ptrs.to(tl.pointer_type(tl.int16), bitcast=True)\n"
            "    tl.store(halves, published(words).to(tl.int16), mask=mask)\n"
            "    tl.store(halves + 1, (published(words) >> 16).to(tl.int16), mask=mask)\n"),
            "forward", _SENTINEL, "contract"),
    _mutant("no fill before the launch", "rnn_triton/launch/operands.py", ".fill_(fill)", ".fill_(0)",
            "forward", _SENTINEL, "contract"),
    _mutant("reads another chunk again", "exchange.py", "pointers.to(tl.int64), words, (given",
            "pointers.to(tl.int64) ^ 16, words, (given", "forward", _SENTINEL, "numbers"),
    _mutant("reads again in another K tile", "exchange.py", "limit), 4 * K_TILE, TILE", "limit), 2 * K_TILE, TILE",
            "backward", _WIDE, "numbers"),
    _mutant("h0 is looked at", "cta_group.py", "given = step == 0", "given = step < 0",
            "forward", _WIDE, "deadlock", data="sentinels"),
    _mutant("padding is not published", "cta_group.py", "out_words[i], mask)",
            "out_words[i], mask & (units[0] < H))", "forward", Case(3, 3, 8, 21), "deadlock"),
    # ---- what is exchanged
    _mutant("gathers the next tile", "cta_group.py", "before = out_ptr + ((t - dt) * step_words + row0 * ROW_WORDS)",
            "before = out_ptr + ((t - dt) * step_words + row0_1 * WORDS)",
            "forward", _SENTINEL.having(B=16), "numbers"),
    _mutant("publishes to the next tile", "cta_group.py", "out_t = out_ptr + (t * step_words + row0 * ROW_WORDS)",
            "out_t = out_ptr + (t * step_words + row0_1 * WORDS)", "backward", _COUNTER, "contract"),
    _mutant("gathers from the wrong end of time", "cta_group.py", "((t - dt) * step_words", "((t + dt) * step_words",
            "forward", _SENTINEL, "deadlock"),
    _mutant("loads this step's x again", "cta_group.py", "(x_words + t_1 * step_x", "(x_words + t * step_x",
            "forward", _SENTINEL, "numbers"),
    _mutant("loads this tile's dy again", "cta_group.py", "u_t = u_ptr + t_1 * step_u + row0_1 * row_u",
            "u_t = u_ptr + t_1 * step_u + row0 * row_u", "backward", _SENTINEL, "numbers"),
    _mutant("a product in the first backward step", "cta_group.py", "v = tl.where(alone, 0.0, v)", "v = v + 0.0",
            "backward", _SENTINEL.having(T=1), "numbers", data="infinite weight"),
    _mutant("no product in the second backward step", "cta_group.py", "v = tl.where(alone, 0.0, v)",
            "v = tl.where(step <= 1, 0.0, v)", "backward", _COUNTER, "numbers"),
    _mutant("padding is not zero", "cta_group.py", "if H != CTAS * UNITS:", "if False:",
            "forward", _RAGGED, "numbers", data="infinite x"),
    _mutant("reads beyond a row's words", "exchange.py", "(start // 4 + 4 * w + q < WORDS // 4) & enable",
            "(w + q >= 0) & enable", "backward", _SENTINEL, "contract"),
    # ---- a stuck group
    _mutant("the error word is a counter", "cta_group.py", "error_ptr = sync_ptr + group * LINE",
            "error_ptr = sync_ptr + (group + 1) * LINE", "forward", _STUCK_COUNTER, "stuck"),
    _mutant("another group is reported", "cta_group.py", "(number.to(tl.int64) << 32)", "(groups.to(tl.int64) << 32)",
            "backward", _STUCK, "stuck"),
    _mutant("the failing step is kept", "cta_group.py", "range(at * own_tiles, T", "range((at + 1) * own_tiles, T",
            "backward", _STUCK_COUNTER, "stuck"),
    _mutant("nobody looks for a failure", "exchange.py", "    at = tl.load(error_ptr, volatile=True)",
            "    at = 0 * tl.load(error_ptr, volatile=True) + SENTINEL", "backward", _STUCK, "stuck"),
    _mutant("another launch is reported", "cta_group.py", "tl.store(report_ptr, (launch", "tl.store(report_ptr, 0 * (launch",
            "forward", _STUCK, "stuck"),
    _mutant("one group's outputs only", "cta_group.py", "k % own_tiles * groups", "k % own_tiles",
            "forward", _STUCK_COUNTER, "stuck"),
    _mutant("the limit of the wait is ignored", "exchange.py", "setp.lt.u32 q, n, {limit};", "setp.ge.u32 q, n, 0;",
            "backward", _STUCK_COUNTER, "stuck"),
    # ---- lanes
    _mutant("x is taken as it is found", "cta_group.py", "                x_raw = verify(",
            "                unused = verify(", "forward", _STACK, "numbers"),
    _mutant("x counts as given", "cta_group.py", "(first_lane | (error != SENTINEL))", "((step >= 0) | (error != SENTINEL))",
            "backward", _STACK, "numbers"),
    _mutant("waits for the x of the first step", "cta_group.py", "word_pointers(x_words + t * step_x + row0 * row_x",
            "word_pointers(x_words + t_first * step_x + row0 * row_x", "forward", _STACK, "numbers"),
    _mutant("waits for the x of the next step", "cta_group.py", "word_pointers(x_words + t * step_x + row0 * row_x",
            "word_pointers(x_words + t_1 * step_x + row0 * row_x", "backward", _STACK, "numbers"),
    _mutant("x of another layer", "cta_group.py", "out_ptr - apart if", "out_ptr - lane * apart if", "forward", _STACK, "numbers"),
    _mutant("its own state for x", "cta_group.py", "else out_ptr + apart +", "else out_ptr +", "backward", _STACK, "deadlock"),
    _mutant("backward in the order of forward", "cta_group.py", "layer = LANES - 1 - lane", "layer = lane + 0",
            "backward", _STACK, "deadlock"),
    _mutant("dy for every layer", "cta_group.py", "_load_tiles(u_t, row_u, (rows_1, first_lane,", "_load_tiles(u_t, row_u, (rows_1, True,",
            "backward", _STACK, "numbers"),
    _mutant("nothing from above in the first step", "cta_group.py", "tl.where(alone_column, projected[n], parts[n])",
            "tl.where(step == 0, 0.0, parts[n])", "backward", _STACK, "numbers"),
    _mutant("a product in the first step of a stack", "cta_group.py", "tl.where(alone_column, projected[n], parts[n])",
            "parts[n] + 0.0 * projected[n]", "backward", _STACK.having(T=1), "numbers", data="infinite weight"),
    _mutant("both directions the same way", "cta_group.py", "reverse = reverse ^ lane", "reverse = reverse + 0",
            "forward", _BOTH, "numbers"),
    _mutant("both directions from the same h0", "cta_group.py", "            first_ptr += lane * ROW\n", "",
            "forward", _BOTH, "numbers"),
    _mutant("both directions with the same bias", "cta_group.py", "        bias1_ptr += layer * (GATES * ROW)\n", "",
            "forward", _BOTH, "numbers"),
    # ---- cells of several gates
    _mutant("the fourth part of GRU is added early", "cta_group.py", "k * E, INTO, TILE)", "k * E, (0, 1, 2), TILE)",
            "forward", _GRU, "numbers"),
    _mutant("a gate's product in the wrong part", "cta_group.py", "k * E, REC_INTO, TILE)", "k * E, (1, 0, 2, 3), TILE)",
            "forward", _LSTM, "numbers"),
    _mutant("b_hn with the bias of x", "cta_group.py", "add_halves(bias, REC_INTO[n],", "add_halves(bias, INTO[n],",
            "forward", _GRU, "numbers"),
    _mutant("what a GEMM made of x in the wrong part", "cta_group.py", "u = add_halves(u, INTO[n], own", "u = add_halves(u, n, own",
            "forward", _GRU.having(home="gemm"), "numbers"),
    _mutant("what is carried is rounded", "cta_group.py", "store_own(c, (after[0][n], after[1][n])",
            "store_own(c, (after[0][n].to(tl.bfloat16).to(tl.float32), after[1][n])", "forward", _LSTM, "numbers"),
    _mutant("what is carried is the next tile's", "cta_group.py",
            "carried_t = carried_ptr + row0 * ROW", "carried_t = carried_ptr + row0_1 * ROW", "forward", _GRU.having(B=16), "numbers"),
    _mutant("dc of the last step is dropped", "cta_group.py", "ROW, (rows, enable, unit0)", "ROW, (rows, step > 0, unit0)",
            "backward", _LSTM, "numbers"),
    _mutant("dc of the first step is dropped", "cta_group.py", "ROW, (stored, unit0), SHAPE, TILE)\n        own = own_1",
            "ROW, (tl.where(step + 1 < T, rows, 0), unit0), SHAPE, TILE)\n        own = own_1", "backward", _LSTM, "numbers"),
    _mutant("loads this step's kept tiles again", "cta_group.py", "kept_t = kept_ptr + t_1 * step_k", "kept_t = kept_ptr + t * step_k",
            "backward", _LSTM, "numbers"),
    _mutant("keeps tiles at the next step's place", "cta_group.py", "+ (t * step_k + row0 * (KEPT", "+ (t_1 * step_k + row0 * (KEPT",
            "backward", _GRU, "numbers"),
    _mutant("the gradients of the wrong gates from above", "cta_group.py", "out_ptr + apart + (ROW_WORDS - K_LINK // E)", "out_ptr + apart",
            "backward", _GRUS, "numbers"),
    _mutant("layers carry the same", "cta_group.py", "        carried_ptr += layer * (CARRIED * tile_c)\n", "",
            "forward", _GRUS, "numbers", "detector"),
    # ---- lanes of one CTA each
    _mutant("x is taken as it is found, on one CTA", "one_cta.py", "source_ptr.to(tl.int64)), 64, TILE)\n",
            "source_ptr.to(tl.int64)), 64, TILE) if step < 0 else x_raw\n", "forward", _ALONE, "numbers"),
    _mutant("x counts as given, on one CTA", "one_cta.py", "link = (first_lane.to(tl.int32),", "link = (1 + 0 * lane,",
            "backward", _ALONE_1, "numbers"),
    _mutant("waits for the x of this step, not the next", "one_cta.py", "x_raw, input_addresses(x_1,",
            "x_raw, input_addresses(x_ptr + t * step_x,", "forward", _ALONE, "numbers"),
    _mutant("projects the x of the next step", "one_cta.py", "            x = _received(x_raw",
            "            unused = _received(x_raw", "backward", _ALONE, "numbers"),
    _mutant("its own state for x, on one CTA", "one_cta.py", "else out_ptr + apart", "else out_ptr", "backward", _ALONE,
            "deadlock"),
    _mutant("backward in the order of forward, on one CTA", "one_cta.py", "layer = LANES - 1 - lane", "layer = lane + 0",
            "backward", _ALONE_1, "deadlock"),
    _mutant("dy for every layer, on one CTA", "one_cta.py", "rows_u = tl.where(first_lane, rows, 0)", "rows_u = rows + 0",
            "backward", _ALONE, "numbers"),
    _mutant("nothing from above in the first step, on one CTA", "one_cta.py", "                p = _with_products(p, p_t, INTO)\n", "",
            "backward", _ALONE, "numbers"),
    _mutant("a product in the first step, on one CTA", "one_cta.py", "tl.where(alone, p[n] + u[n], a[n])", "a[n] + 0.0",
            "backward", _ALONE_1.having(T=1), "numbers", data="infinite weight"),
    _mutant("half words are published", "one_cta.py", "new if LINKED else rounded, rows, LINKED, OUT", "rounded, rows, False, OUT",
            "forward", _ALONE, "contract"),
    _mutant("the wrong pairs are published", "fragments.py", "low, high = tl.split(tl.reshape(v, (4, 8, TILE.warps, 2,",
            "high, low = tl.split(tl.reshape(v, (4, 8, TILE.warps, 2,", "forward", _ALONE, "numbers"),
    _mutant("both directions the same way, on one CTA", "one_cta.py", "reverse = reverse ^ lane", "reverse = reverse + 0",
            "forward", _BOTH.having(depth=2), "numbers"),
)  # fmt: skip

# Changes of how later layers learn of a failure, each with one of `stuck` that shows it: (change, what happens, direction)
STUCK_LAYERS = {
    "results of a failed layer are used": (
        Change("exchange.py", "earliest = tl.minimum(earliest, source)", "earliest = earliest + 0"), "gives_up", "backward",
    ),
    "later layers look at the wrong word": (
        Change("exchange.py", "source = tl.load(error_ptr - k * apart", "source = tl.load(error_ptr + k * apart"),
        "gives_up", "forward",
    ),
    "every layer reports": (
        Change("exchange.py", "found = found & (at.to(tl.uint32, bitcast=True) + 1 < source)", "found = found | True"),
        "gives_up", "forward",
    ),
    "the report names another layer": (
        Change("cta_group.py", "number += lane * groups", "number += (lane + 1) * groups"), "dead", "backward",
    ),
}  # fmt: skip

# The text of exchange.verify, which the interpreter does not run: executed by itself (test_mutants.py).
TEXT_MUTANTS = {
    "one chunk is not looked at": ('tops.append(f"c{c}")', 'tops += [f"c{c}"] if c or chunks == 1 else []'),
    "one word of a chunk is not looked at": ("max.u32 d, {four[2]}, {four[3]};", "max.u32 d, {four[2]}, {four[2]};"),
    "never content": ('text += check("DONE")\n    return', 'text += check("SPIN")\n    return'),
    "reads the first chunk's address": ("[{address[c]}]", "[{address[0]}]"),
    "tiles lie further apart": ("+{apart * tile}", "+{apart * (tile + 1)}"),
    "reads what is there, not what is missing": ("setp.eq.u32 p{c}", "setp.ne.u32 p{c}"),
    "takes the words in another order": ("{result[i]}, {word[i]}", "{result[i]}, {word[i ^ 1]}"),
    "given data are looked at": ("setp.ne.u32 q, {skip}, 0;", "setp.ne.u32 q, 0, 0;"),
    "a load that a cache may answer": ("ld.relaxed.gpu.global.v4.b32", "ld.global.v4.b32"),
    "the limit is ignored": ("setp.lt.u32 q, n, {limit};", "setp.ge.u32 q, n, 0;"),
    "half the limit": ("setp.lt.u32 q, n, {limit};", "setp.lt.u32 q, t, {limit};"),
    "who goes on without words says nothing": ('("FAIL:\\nLOST:", "") if lowers', '("FAIL:", "LOST:\\n") if lowers'),
    "nobody is told": ("red.relaxed.gpu.global.min.u32 [{error}], {step};\n", ""),
    "no fence behind the error word": ("{lost}fence.acq_rel.gpu;", "{lost}"),
    "no fence behind an error word found lowered": ("@q bra LOST;\"\n", "@q bra DONE;\"\n"),
    "others' failure is not seen": (
        'failed = "setp.ne.u32 q, t, 0xFFFFFFFF;', 'failed = "setp.ne.u32 q, 0, 0;',
    ),
    "the error word is not looked at": ("@q bra SPIN;\nld.relaxed", "@q bra SPIN;\n@!q bra SPIN;\nld.relaxed"),
}  # fmt: skip
