"""The plans whose kernels are compiled ahead of time, and taken apart, without a GPU: problems that reach every kind of plan."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import replace

from rnn_triton.plan import hardware
from rnn_triton.plan.candidates import FORMS, kind
from rnn_triton.plan.choose import plan
from rnn_triton.plan.hardware import Device
from rnn_triton.plan.problem import CtaGroup, Problem


@functools.cache
def planned() -> tuple[tuple[Problem, Device], ...]:
    """Returns problems that reach every kind of plan, each with the device it is planned for.  The first call takes about a second."""
    return (*_one_cta(), *_cta_group())


def _one_cta() -> Iterator[tuple[Problem, Device]]:
    """Yields the largest I of each home of W_ih, the smallest, and ragged shapes."""
    small = hardware.RECORDS["sm_86"]  # 99 KB of shared memory, the least of all
    for problem in (
        Problem("forward", 8, 128, 128, "fp32", "ieee", "elman_tanh"), Problem("backward", 8, 128, 128, "fp32", "ieee", "elman_tanh"),
        Problem("forward", 8, 512, 128, "bf16", None, "elman_tanh"), Problem("forward", 8, 256, 256, "bf16", None, "elman_tanh"),
        Problem("forward", 8, 64, 128, "fp32", "tf32x3", "elman_tanh"), Problem("forward", 8, 1000, 64, "fp64", None, "elman_tanh"),
    ):  # fmt: skip
        yield problem, small
    for capability in (90, 80, 100):
        device = hardware.RECORDS[f"sm_{capability}"]
        kinds = [("bf16", None), ("fp32", "tf32"), ("fp32", "tf32x3"), ("fp32", "ieee"), ("fp64", None)]
        if capability == 90:
            kinds.append(("fp16", None))  # bf16's plans with another tanh
        for dtype, precision in kinds:
            form = FORMS[kind(Problem("forward", 8, 1, 16, dtype, precision, "elman_tanh"))]
            for h_pad in (16, 64, 128, 256):
                if h_pad > form.h_max:
                    continue
                wide = int(h_pad == 256)
                for B in (8, 4096) if dtype == "bf16" and not wide else (8,):
                    homes = set()
                    for I in (form.registers[wide] * form.chunk, form.shared[wide] * form.chunk, 1000, 8):
                        problem = Problem("forward", B, I, h_pad, dtype, precision, "elman_tanh")
                        if I and (I == 8 or plan(problem, device).w_ih_home not in homes):
                            homes.add(plan(problem, device).w_ih_home)
                            yield problem, device
                    yield Problem("backward", B, h_pad, h_pad, dtype, precision, "elman_tanh"), device
                    for direction in ("forward", "backward"):
                        if wide:  # padded, but in whole vectors
                            yield Problem(direction, B, 64, h_pad - 4, dtype, precision, "elman_tanh"), device
                        if h_pad >= 64:
                            yield Problem(direction, B, h_pad - 1, h_pad - 3, dtype, precision, "elman_relu"), device


_GROUP_SIZES = (320, 384, 512, 768, 1000, 1024, 1536, 1760, 2048, 2560, 3072, 4096)


def _cta_group() -> Iterator[tuple[Problem, Device]]:
    """Yields sizes beyond one CTA wherever the planner keeps W_hh on chip, each different kernel once."""
    seen = set()
    for device in hardware.RECORDS.values():
        kinds = [("bf16", None, _GROUP_SIZES, (8, 64)), ("fp32", "tf32", (384, 1000, 1024, 2048), (8,))]
        kinds += [("bf16", None, (1000, 1024), (256,)), ("bf16", None, (512,), (1024,))]  # batch tiles of 32 rows
        if device.capability == 90:
            kinds.append(("fp16", None, (384, 1000, 1024, 4096), (8,)))
            kinds.append(("fp32", "tf32x3", (384, 1000, 1024, 1536), (8,)))
        for dtype, precision, sizes, batches in kinds:
            for H, B in itertools.product(sizes, batches):
                for direction, I in (("forward", H), ("forward", 64), ("backward", H)):
                    problem = Problem(direction, B, I, H, dtype, precision, "elman_tanh")
                    p = plan(problem, device)
                    if not isinstance(p, CtaGroup):
                        continue
                    projected = p.w_ih_home not in ("gemm", "none")
                    kernel = replace(problem, B=0, I=I if projected else 0), replace(p, groups=0, reason=""), device
                    if kernel not in seen:
                        seen.add(kernel)
                        yield problem, device
