"""Does a change of source change what is compiled?  Compares the PTX of every planned kernel between two checkouts.

    PYTHONPATH=.:tests python -m support.same_ptx OUT.jsonl [--arch sm_80,sm_90] [--only TEXT] [--against OTHER.jsonl]

writes a line for each kernel, its PTX without what only names things (`normalised`), and with --against says which kernels differ
from those of another such file, with the first lines that do.  Exit status 1 where one differs or does not compile, or where
OUT.jsonl lacks a kernel of the other file.  Nothing is taken from Triton's cache, and ptxas does not run.
"""

from __future__ import annotations

import argparse
import base64
import difflib
import hashlib
import itertools
import json
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

from bench.instruments.worker import in_parallel
from rnn_triton.launch import dispatch
from rnn_triton.plan import hardware

from .counts import Job, jobs

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
SHOWN = 12  # lines of a difference


def normalised(ptx: str) -> str:
    """PTX without what only names things: the kernel's name, and so its parameters', debug information, comments, white space"""
    ptx = re.sub(r"\.section\s+\.debug\w*\s*\{[^}]*\}", "", ptx)
    ptx = re.sub(r"//[^\n]*", "", ptx)
    ptx = re.sub(r"^\s*(\.(file|loc)\b.*|\$L__(tmp|func_begin|func_end)\d+:\s*)$", "", ptx, flags=re.MULTILINE)
    for name in re.findall(r"\.entry\s+([\w$]+)", ptx):
        ptx = re.sub(rf"(?<![\w$]){re.escape(name)}(?=_param_\d+(?![\w$])|(?![\w$]))", "kernel", ptx)
    return "".join(f"{' '.join(line.split())}\n" for line in ptx.splitlines() if line.strip())


def compiled(job: Job) -> str:
    """The PTX of a job, normalised"""
    from triton.backends.nvidia.compiler import CUDABackend

    with mock.patch.object(CUDABackend, "make_cubin", lambda *_: b""):
        kernel = dispatch.compile_ahead(job.problem, job.plan, hardware.RECORDS[job.arch], job.bundle)
    return normalised(kernel.asm["ptx"])


def write(path: Path, chosen: list[Job]) -> list[str]:
    """Writes a line for each job, as it is compiled; returns what failed."""
    failed = []
    with tempfile.TemporaryDirectory() as cache, path.open("w", encoding="utf-8") as file:
        with mock.patch.dict(os.environ, TRITON_CACHE_DIR=cache):  # a cache of its own: of kernels that have no machine code
            for i, ptx in in_parallel(compiled, chosen, "compiling"):
                name = f"{chosen[i].arch} {chosen[i].name}"
                if isinstance(ptx, BaseException):
                    failed.append(f"{name}: {ptx}")
                    continue
                packed = base64.b64encode(zlib.compress(ptx.encode())).decode()
                row = {"kernel": name, "sha256": hashlib.sha256(ptx.encode()).hexdigest(), "ptx": packed}
                file.write(json.dumps(row) + "\n")
                file.flush()
    return failed


def read(path: Path) -> dict[str, str]:
    """PTX by kernel; ValueError where a kernel is there twice"""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        if row["kernel"] in found:
            raise ValueError(f"{path}: {row['kernel']} is there twice")
        found[row["kernel"]] = zlib.decompress(base64.b64decode(row["ptx"])).decode()
    return found


def compare(new: dict[str, str], old: dict[str, str]) -> tuple[list[str], int]:
    """(what is wrong with each kernel that differs or is missing, how many are equal)"""
    wrong = []
    for name in old.keys() | new.keys():
        if name not in new or name not in old:
            wrong.append(f"{name}: missing in the {'new' if name not in new else 'old'} file")
        elif new[name] != old[name]:
            lines = difflib.unified_diff(old[name].splitlines(), new[name].splitlines(), "old", "new", n=1, lineterm="")
            shown = "\n    ".join(itertools.islice(lines, SHOWN))
            wrong.append(f"{name}: differs\n    {shown}")
    return sorted(wrong), len(old.keys() & new.keys()) - sum("\n" in text for text in wrong)


def main(words: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="same_ptx", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arch", default=",".join(ARCHITECTURES))
    parser.add_argument("--only", default="", metavar="TEXT", help="only kernels with it in their names")
    parser.add_argument("--against", type=Path, metavar="OTHER.jsonl")
    given = parser.parse_args(None if words is None else list(words))
    architectures = given.arch.split(",")
    wrong = write(given.out, [job for arch in architectures for job in jobs(arch, distinct=False) if given.only in job.name])
    if given.against is not None:
        others = {tuple(name.split(" ", 1)): ptx for name, ptx in read(given.against).items()}
        old = {f"{arch} {name}": ptx for (arch, name), ptx in others.items() if arch in architectures and given.only in name}
        different, equal = compare(read(given.out), old)
        wrong += different
        print(f"{equal} equal, {len(different)} not")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
