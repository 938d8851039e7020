"""Suites: lists of cases, each with a name; a case by its name."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from .case import CELLS, DTYPES, LENGTHS, USUAL, Case, case, nearest


def _each(shapes: Iterable[tuple[int, ...]], dtypes: Iterable[str] = DTYPES, **options: object) -> Iterator[Case]:
    """Shapes (H, B, T) or (H, B, T, I) in every dtype"""
    for H, B, T, *I in shapes:
        for dtype in dtypes:
            yield case(H, B, T, dtype, *I, **options)  # type: ignore[arg-type]


# One point a regime and corner, every dtype among them.
_QUICK = (
    (128, 16, 1024, "bf16"), (1024, 16, 512, "bf16"), (128, 16, 1024, "fp32"), (512, 16, 512, "fp16"),
    (384, 16, 512, "bf16"), (2048, 16, 256, "bf16"), (32, 1024, 256, "bf16"), (1024, 16, 512, "fp32"),
    (256, 1, 1024, "fp16"), (4096, 8, 128, "bf16"), (2048, 128, 64, "bf16"), (1024, 64, 256, "fp16"),
)  # fmt: skip

# Cells with gates: (cell, H, B, T).  What issue trackers and papers time, and where cuDNN keeps the weights on chip, and where not.
_GATES = (
    ("lstm", 768, 16, 1024), ("lstm", 1024, 8, 512), ("lstm", 128, 8, 1024), ("lstm", 512, 8, 512), ("lstm", 1024, 32, 512),
    ("lstm", 2048, 8, 256), ("gru", 1024, 8, 512), ("gru", 128, 8, 1024), ("gru", 256, 8, 512), ("gru", 512, 8, 512),
    ("gru", 768, 16, 512), ("gru", 1024, 32, 512), ("gru", 2048, 8, 256),
)  # fmt: skip
_QUICK_GATES = (("lstm", (768, 16, 1024, "fp16")), ("gru", (1024, 8, 512, "bf16")), ("lstm", (128, 8, 1024, "bf16")))

_BLOCKS = case(64, 16, 512, "bf16", cell="gru", models=8)  # TorchRL's block-diagonal GRU

# Small enough for the interpreter (about 2 ms per program and step), odd enough to touch every mask.
_CHECK = ((16, 3, 5, 16), (32, 2, 4, 20), (13, 5, 4, 7), (64, 1, 3, 64))

# Beyond one CTA first: what the first run on a GPU times.
_FIRST = (
    (1024, 16, 512, "bf16"), (1024, 16, 512, "fp32"), (1024, 16, 512, "fp16"), (384, 16, 512, "bf16"),
    (2048, 16, 256, "bf16"), (512, 16, 512, "bf16"), (128, 16, 1024, "bf16"), (4096, 16, 256, "bf16"),
    (1024, 64, 512, "bf16"), (512, 16, 512, "fp32"), (512, 8, 512, "fp16"), (256, 16, 1024, "bf16"),
    (1536, 32, 256, "bf16"), (64, 16, 1024, "fp32"), (1760, 16, 50, "fp16"), (1024, 1, 512, "bf16"),
    (2048, 16, 256, "fp32"), (3072, 32, 128, "bf16"),
)  # fmt: skip


def _small_h() -> Iterator[Case]:
    yield from _each((H, B, 1024) for H in (32, 64, 128, 192, 256) for B in (1, 16, 256))
    yield from _each((H, 4096, 128) for H in (32, 128, 256))
    yield from _each((128, 16, T) for T in (64, 256, 2048))


def _odd() -> Iterator[Case]:
    yield from _each((H, B, 256, I) for H, I in ((13, 7), (50, 50), (100, 1), (250, 30), (333, 100), (1000, 1000), (1023, 513)) for B in (1, 3, 17))


def _scaling() -> Iterator[Case]:
    shapes = [(128, 16, T) for T in (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)]
    shapes += [(1024, 16, T) for T in (64, 256, 1024, 4096)]
    shapes += [(512, B, 256) for B in (1, 4, 16, 32, 64, 128, 256, 512, 1024)]
    shapes += [(H, 16, 128) for H in (64, 128, 256, 512, 1024, 2048, 4096, 8192)]
    yield from _each(shapes, ("bf16",))
    for layers in (1, 2, 4, 8, 16):
        yield case(256, 16, 256, "bf16", layers=layers)


def _varlen() -> Iterator[Case]:
    for lengths in LENGTHS:
        yield from _each(((H, B, 512) for H in (128, 512, 1024) for B in (16, 64)), ("bf16", "fp32"), lengths=lengths)


def _gates() -> Iterator[Case]:
    for cell, H, B, T in _GATES:
        yield from _each([(H, B, T)], ("bf16", "fp16"), cell=cell)
    for cell in ("lstm", "gru"):
        yield from _each([(128, 8, 1024), (512, 8, 512)], ("fp32",), cell=cell)
        yield case(1024, 8, 512, "bf16", cell=cell, layers=2)
        yield case(512, 8, 512, "bf16", cell=cell, bidirectional=True)


def _flashrnn() -> Iterator[Case]:
    """A head is a model of its own"""
    for cell in (USUAL, "gru", "lstm"):
        for H in (768, 384, 256, 192, 128, 64, 32, 16):
            yield from _each([(H, 16, 1024)], ("bf16", "fp16"), cell=cell, models=768 // H)


def _blocks() -> Iterator[Case]:
    """A layer of 768 units in the heads of FlashRNN's points, and a model like Dreamer's"""
    for cell in (USUAL, "gru", "lstm"):
        for heads in (2, 3, 4, 6, 12, 24, 48):
            yield case(768, 16, 1024, "bf16", cell=cell, heads=heads)
    yield from _each([(512, 16, 64)], ("bf16", "fp32"), cell="gru", heads=8)


def _streaming() -> Iterator[Case]:
    """One sequence, a few steps a call, of every cell that torch has"""
    for cell in (USUAL, "gru", "lstm"):
        yield from _each(((H, 1, T) for H in (64, 128, 256, 512, 1024) for T in (1, 4, 20)), ("bf16", "fp32"), cell=cell)


def _published() -> Iterator[Case]:
    one_layer = (
        (160, 44, 1125, 40), (360, 6, 4814, 160), (168, 62, 2058, 16), (288, 4, 4720, 352), (296, 6, 3047, 104),
        (120, 34, 1406), (264, 16, 4600, 24),
    )  # fmt: skip
    yield from _each(one_layer, ("fp16", "fp32"))
    yield from _each(((320, 5, 5654, 232), (152, 1, 5895, 288)), ("fp16", "fp32"), layers=4)
    yield from _each([(1152, 4, 512)], ("fp32",))
    yield _BLOCKS


# suite: (what it is, its cases)
_SUITES: dict[str, tuple[str, Iterable[Case]]] = {
    "quick": (
        "15 points across the regimes and cells, about 2 minutes with ours and cuDNN",
        [*(case(*shape) for shape in _QUICK), *(case(*shape, cell=cell) for cell, shape in _QUICK_GATES)],
    ),
    "gates": ("LSTM and GRU, in one CTA, over groups, in stacks and directions", _gates()),
    "small-h": ("H up to 256: neuroscience, RL", _small_h()),
    "cliff": ("around the end of cuDNN's persistent kernels for small H", _each((H, B, 512) for H in (256, 264, 320, 384, 392) for B in (16, 64))),
    "medium": ("H 512 to 1024", _each((H, B, 512) for H in (512, 640, 768, 896, 1024) for B in (1, 8, 16, 32, 64, 128))),
    "large": ("H 1536 to 4096", _each((H, B, 256) for H in (1536, 2048, 3072, 4096) for B in (1, 8, 16, 32, 64))),
    "deepbench": (
        "vanilla RNNs of baidu-research/DeepBench, and the same over 500 steps",
        _each(((H, B, T) for T in (50, 500) for H in (1760, 2048, 2560) for B in (16, 32, 64, 128)), ("fp16", "fp32")),
    ),
    "flashrnn-paper": ("arXiv 2412.07752: heads x head dimension = 768", _flashrnn()),
    "heads": (
        "block-diagonal W_hh: heads of a layer that all read x; a head as a model of its own, FlashRNN's points, TorchRL's GRU",
        [*_blocks(), *(c for c in _flashrnn() if c.models > 1), _BLOCKS],
    ),
    "streaming": ("B = 1 and 1 to 20 steps a call: what counts is wall time, the host's included", _streaming()),
    "stack": ("1 to 8 layers", (c for layers in (1, 2, 4, 8) for c in _each(((H, 16, 512) for H in (128, 256, 512, 1024)), layers=layers))),
    "published": ("what others published times of, and no other suite has", _published()),
    "bidirectional": (
        "one direction and both",
        (c for both in (False, True) for c in _each(((H, 16, 512) for H in (128, 256, 512, 1024)), bidirectional=both)),
    ),
    "varlen": ("sequences of different lengths: packed for torch.nn, by their lengths for ours", _varlen()),
    "odd": ("sizes that are no multiples of anything", _odd()),
    "scaling": ("cost against T, B, H and L, one at a time", _scaling()),
    "ensemble": ("many independent networks at once", (c for models in (1, 4, 16, 64, 256) for c in _each([(128, 8, 512)], models=models))),
    "first": ("what the first run on a GPU times", [*(case(*shape) for shape in _FIRST), *(case(*shape, cell=cell) for cell, shape in _QUICK_GATES)]),
    "check": (
        "tiny: right or wrong, for the interpreter too",
        [
            *(case(H, B, T, dtype, I) for H, B, T, I in _CHECK for dtype in DTYPES), case(16, 3, 5, "fp32", ieee=True),
            case(16, 3, 5, "bf16", cell="elman_relu"), case(16, 3, 5, "bf16", cell="leaky_tanh"),
            *(case(16, 3, 5, dtype, 12, cell=cell) for cell in ("lstm", "gru") for dtype in DTYPES),
            case(13, 5, 4, "bf16", 7, cell="lstm", layers=2), case(13, 5, 4, "fp32", 7, cell="gru", bidirectional=True),
        ],
    ),
}  # fmt: skip
SUITES: dict[str, tuple[Case, ...]] = {name: tuple(dict.fromkeys(cases)) for name, (_, cases) in _SUITES.items()}
ABOUT = {name: about for name, (about, _) in _SUITES.items()}

LEAST_ACCURACY = 0.96  # of training on handwritten digits: the mean test accuracy over the seeds
MOST_BYTES = 2**40  # of a case's tensors: no GPU has as much memory
FORM = "[CELL-]h128[-i64]-b16-t256[-l4][-bi][-m8|-n8][-uniform|-heavy]-bf16[-ieee]"  # CELL: lstm, gru, elman_relu, ...
_NAME = re.compile(
    r"(?:(?P<cell>[a-z_]\w*)-)?h(?P<H>\d+)(?:-i(?P<I>\d+))?-b(?P<B>\d+)-t(?P<T>\d+)(?:-l(?P<layers>\d+))?(?P<bi>-bi)?"
    r"(?:-m(?P<models>\d+)|-n(?P<heads>\d+))?(?:-(?P<lengths>uniform|heavy))?-(?P<dtype>bf16|fp16|fp32)(?P<ieee>-ieee)?"
)


def suite(name: str) -> tuple[Case, ...]:
    """The cases of a suite; ValueError with the nearest names."""
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}; {nearest(name, SUITES)}")
    return SUITES[name]


def suites(names: str) -> tuple[Case, ...]:
    """The cases of suites whose names are separated by commas, each case once; "all" is every suite but check, NAME.txt a file with
    a case's name in every line, and remarks behind #."""
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    if chosen == ["all"]:
        chosen = [name for name in SUITES if name != "check"]
    if not chosen:
        raise ValueError(f"no suite given; known: {', '.join(SUITES)}")
    return tuple(dict.fromkeys(c for name in chosen for c in (_listed(name) if name.endswith(".txt") else suite(name))))


def _listed(file: str) -> Iterator[Case]:
    for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), 1):
        for name in line.partition("#")[0].split():
            try:
                yield parse(name)
            except ValueError as error:
                raise ValueError(f"{file}:{number}: {error}") from None


def parse(name: str) -> Case:
    """The case of a name, listed in a suite or not; ValueError with the nearest names."""
    found = _NAME.fullmatch(name)
    if not found or (found["ieee"] and found["dtype"] != "fp32") or found["cell"] == USUAL:  # a case has one name
        raise ValueError(f"unknown case {name!r}; nearest: {', '.join(_nearest_cases(name))} (form: {FORM})")
    cell = found["cell"] or USUAL
    if cell not in CELLS:
        raise ValueError(f"case {name!r}: unknown cell {cell!r}; {nearest(cell, CELLS)}")
    sizes = {key: int(found[key] or 1) for key in ("H", "B", "T", "layers", "models", "heads")}
    I = sizes["H"] if found["I"] is None else int(found["I"])
    if min(*sizes.values(), I) < 1:
        raise ValueError(f"case {name!r}: sizes must be at least 1")
    if sizes["H"] % sizes["heads"]:
        raise ValueError(f"case {name!r}: {sizes['heads']} heads do not divide H = {sizes['H']}")
    made = case(
        sizes["H"], sizes["B"], sizes["T"], found["dtype"], I, ieee=bool(found["ieee"]), cell=cell, layers=sizes["layers"],
        bidirectional=bool(found["bi"]), models=sizes["models"], heads=sizes["heads"], lengths=found["lengths"] or "full",
    )  # fmt: skip
    if _bytes(made) > MOST_BYTES:
        raise ValueError(f"case {name!r}: its tensors take {_bytes(made) / 2**40:.3g} TiB, more than any GPU has")
    return made


def _bytes(of: Case) -> int:
    """Of x, y and the weights"""
    D = of.directions
    weights = D * of.H * (of.H + of.I) + (of.layers - 1) * D * of.H * (1 + D) * of.H
    return of.models * (of.T * of.B * (of.I + D * of.H) + CELLS[of.cell] * weights) * (4 if of.dtype == "fp32" else 2)


def _nearest_cases(name: str) -> list[str]:
    """Of all cases listed three: those with most of the words of `name`, with sizes closest to its sizes, then spelt most alike"""
    sizes, words = _parts(name)

    def distance(of: str) -> tuple[float, float, str]:
        its_sizes, its_words = _parts(of)
        apart = sum(abs(math.log2(max(value, 1) / its_sizes.get(key, 1))) for key, value in sizes.items())
        return apart + len(words - its_words), -difflib.SequenceMatcher(None, name, of).ratio(), of

    return sorted({c.name for cases in SUITES.values() for c in cases}, key=distance)[:3]


def _parts(name: str) -> tuple[dict[str, float], set[str]]:
    """(the sizes, the other words) of a name or of what is meant to be one: h1024-bf16"""
    parts = [(re.fullmatch(r"([hibtlmn])(\d{1,15})", part), part) for part in name.lower().split("-") if part]
    return {found[1]: float(found[2]) for found, _ in parts if found}, {part for found, part in parts if not found}
