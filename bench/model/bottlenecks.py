"""What bounds each measured case, by the latency model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ..cases import estimate
from ..records.rows import rows
from ..records.schema import OURS

BOTTLENECK_HEADINGS = ("case", "pass", "device", "us/step", "model", "floor", "of floor", "largest parts of the model")


def bottlenecks(records: Iterable[dict[str, Any]], parts: int = 3) -> list[tuple[str, ...]]:
    """A line per measured case of ours under BOTTLENECK_HEADINGS, the farthest from its floor first.

    `parts`: how many of the practical estimate's parts, the largest first, in microseconds per step; each is one limit, and
    they add up to nothing in particular. Model, floor and parts are estimates, of when it was measured."""
    found = [row for row in rows(records) if row.provider == OURS and row.us_per_step is not None]
    found.sort(key=lambda row: (math.inf if row.fraction_of_floor is None else row.fraction_of_floor, row.case, row.pass_))
    out: list[tuple[str, ...]] = []
    for row in found:
        out.append(
            (
                row.case, row.pass_, row.environment["device"], _number(row.us_per_step), _number(row.practical_us_per_step),
                _number(row.floor_us_per_step),
                "-" if row.fraction_of_floor is None else f"{row.fraction_of_floor:.0%}",
                estimate.largest(row.parts_us_per_step, parts),
            )
        )  # fmt: skip
    return out


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
