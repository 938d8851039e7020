"""Defects inside a CTA that tests on the executor must notice: in the compiled text itself, as a compiler's fault would be, and
in inline assembly, in whose place the interpreter runs another program.  No test by interpreter can see any of them."""

import re
from dataclasses import dataclass

from .grids import Case
from .mutants import TEXT_MUTANTS, Change, NoLongerAppliesError
from .stacks import Stack


@dataclass(frozen=True)
class PtxMutant:
    """In the PTX of the case's kernel the matches of `pattern`, or only the n-th, become `replacement`."""

    name: str
    pattern: str
    replacement: str
    direction: str
    case: Case
    n: int | None = None

    def __call__(self, text):
        matches = list(re.finditer(self.pattern, text))
        chosen = matches if self.n is None else matches[self.n : self.n + 1]
        if not chosen:
            raise NoLongerAppliesError(f"{self.name}: {self.pattern} has {len(matches)} matches")
        for match in reversed(chosen):
            text = text[: match.start()] + match.expand(self.replacement) + text[match.end() :]
        return text


GROUP = Case(3, 11, 8, 24)
WIDE = Case(2, 3, 8, 128)  # every warp has a part of every sum
TF32 = Case(3, 5, 13, 37, kind="tf32")
ALONE = Stack(3, 9, 9, 40, both=True, depth=1)
ALONE_ODD = Stack(2, 3, 9, 37, both=True, depth=1)

_BARRIER = r"bar\.sync\s+0;"
_LINES = r"(?:\s*\.loc[^\n]*|\s*//[^\n]*|\s*\$L__tmp\d+:)*\s*"  # that are no instructions

PTX_MUTANTS = (
    PtxMutant("no barrier before other warps' parts are read", rf"{_BARRIER}(?={_LINES}ld\.shared)", "", "forward", GROUP),
    PtxMutant("no barrier before other warps' parts are read, backward", rf"{_BARRIER}(?={_LINES}ld\.shared)", "", "backward", TF32),
    PtxMutant("no barrier before the parts are overwritten", rf"{_BARRIER}(?!{_LINES}ld\.shared)", "", "forward", GROUP),
    PtxMutant("no barrier between the steps of one CTA", _BARRIER, "", "forward", ALONE),
    PtxMutant("a reduction takes another warp's part", r"(ld\.shared\.b32\s+%r\d+, \[%r\d+)\+256\]", r"\1+128]", "forward", WIDE, 0),
    PtxMutant("fragments of A in another order", r"(mma\.sync\S* \{[^}]*\}, \{ )(%r\d+), (%r\d+)", r"\1\3, \2", "forward", GROUP, 0),
    PtxMutant("fragments of B in another order", r"(mma\.sync\S* \{[^}]*\}, \{[^}]*\}, \{ )(%r\d+), (%r\d+)", r"\1\3, \2",
              "backward", TF32, 0),
    PtxMutant("a matrix is not transposed", r"(ldmatrix\.\S*)\.trans", r"\1", "forward", ALONE),
    PtxMutant("nothing for what is masked", r"mov\.u(?:16|32) (%\w+), [^;]+;\s*(?=@%p\d+ ld\.global\S* \{ \1 \})", "", "forward", ALONE_ODD),
    PtxMutant("loads without their masks", r"@%p\d+ (ld\.global)", r"\1", "forward", ALONE_ODD),
    PtxMutant("stores without their masks", r"@!?%p\d+ (st\.global)", r"\1", "forward", ALONE_ODD),
    PtxMutant("prefetches without their masks", r"@p (prefetch\.global)", r"\1", "forward", ALONE_ODD),
    PtxMutant("a lane's part is stored beside its place", r"(st\.shared\.b32 \[ %r\d+) \+ 0 \]", r"\1 + 4 ]", "forward", GROUP, 0),
    PtxMutant("only a part of a warp multiplies", r"(?<=\n)\s*(mma\.sync)", r"\n@%p3 \1", "forward", GROUP, 0),
)  # fmt: skip

_CHUNK = Stack(4, 11, 8, 40)
_CHUNKS = Stack(3, 19, 8, 40, block_b=16)  # two of a thread

# Of exchange.verify, by their names in TEXT_MUTANTS, of which test_mutants.py executes one thread by itself: where each shows
VERIFY_MUTANTS = {
    "one word of a chunk is not looked at": _CHUNK,
    "takes the words in another order": _CHUNK,
    "a load that a cache may answer": _CHUNK,
    "reads what is there, not what is missing": _CHUNK,
    "one chunk is not looked at": _CHUNKS,
    "reads the first chunk's address": _CHUNKS,
}


def verify_change(name):
    return Change("exchange.py", *TEXT_MUTANTS[name])
