"""What stands in for a GPU in `check --dry`: Triton's interpreter, and a clock with the functions of timing.py.

Groups of CTAs need an interpreter that keeps all programs of a launch alive.  It is a tool of the tests, in a checkout
alone (tests/cooperative).
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ..instruments.timing import Timed
from ..records.environment import root

Calls = Mapping[str, Callable[[], Any]]


def has_cooperative_interpreter() -> bool:
    return (root() / "tests" / "cooperative" / "__init__.py").exists()


@contextlib.contextmanager
def all_programs_alive(**options: Any) -> Iterator[None]:
    """While open, the programs of a launch run side by side; ModuleNotFoundError in an installed wheel."""
    if not has_cooperative_interpreter():
        raise ModuleNotFoundError("tests/cooperative is part of a checkout alone")
    tests = str(root() / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    cooperate = importlib.import_module("cooperative").cooperate
    # The tests look for races; here the numbers do.
    with cooperate(races="off", **options):
        yield


# ---- the functions of timing.py: every call is made once and said to take 10 us, and 1 us a thousand values it returns --


def Flush(device: torch.device) -> Callable[..., None]:
    return lambda spin_us=0.0: None


def device_us(calls: Calls, flush: Any, budget_s: float, announce: Any = None) -> dict[str, Timed]:
    return {name: Timed(us, 0.0, 0) for name, us in wall_us(calls).items()}


def wall_us(calls: Calls, budget_s: float = 0.0, announce: Any = None) -> dict[str, list[float]]:
    return {name: [10.0 + 1e-3 * _values(call())] for name, call in calls.items()}


@contextlib.contextmanager
def telemetry(device: torch.device) -> Iterator[dict[str, float]]:
    yield {}


def capture(call: Callable[[], Any]) -> tuple[Any, Any]:
    raise RuntimeError("a CUDA graph needs a GPU")


def synchronize() -> None:
    pass


def peak_bytes(call: Callable[[], object]) -> int | None:
    return None


def kernels(call: Callable[[], object]) -> list[dict[str, object]]:
    return []


def _values(result: Any) -> int:
    if isinstance(result, torch.Tensor):
        return result.numel()
    if isinstance(result, dict):
        result = result.values()
    return 0 if result is None else sum(_values(part) for part in result)
