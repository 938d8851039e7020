"""Says which algorithm of cuDNN PyTorch chooses to run torch.nn.RNN on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .candidates import gates
from .problem import Problem


class Algorithm(NamedTuple):
    """An algorithm of cuDNN, and why PyTorch chooses it."""

    name: str  # in cudnnRNNAlgo_t, without its prefix
    rule: str  # the condition that decided


def cudnn_algorithm(problem: Problem, *, layers: int = 1, bidirectional: bool = False, packed: bool = False) -> Algorithm:
    """Returns the algorithm that PyTorch chooses for this pass of torch.nn.RNN, LSTM or GRU, by the rules of ATen's RNN.cpp, in their order.

    `problem.I` is the input size in the backward pass, too.  The algorithms of the two passes are chosen separately."""
    if packed:
        return Algorithm("STANDARD", "the input is packed")
    if problem.dtype != "fp64":
        forward, gated = problem.direction == "forward", gates(problem) > 1
        small = (192 if forward else 128) if gated else (384 if forward else 256)
        if problem.H <= small:
            return Algorithm("PERSIST_STATIC_SMALL_H", f"H <= {small} in the {problem.direction} pass")
    against = next(_against_persist_static(problem, layers, bidirectional), None)
    if against is None:
        return Algorithm("PERSIST_STATIC", "the layer is one in fp16, of sizes that cuDNN holds on chip")
    return Algorithm("STANDARD", f"PERSIST_STATIC {against}")


def _against_persist_static(problem: Problem, layers: int, bidirectional: bool) -> Iterator[str]:
    """Yields each reason why cuDNN's PERSIST_STATIC does not run the problem."""
    if problem.cell == "gru":
        yield "runs no GRU"
    if problem.dtype != "fp16":
        yield f"is for fp16, not {problem.dtype}"
    if layers != 1:
        yield f"is for one layer, not {layers}"
    if bidirectional:
        yield "is for one direction"
    if problem.H > 1024:
        yield f"is for H <= 1024, not {problem.H}"
    for name, size, unit in (("H", problem.H, 128), ("I", problem.I, 128), ("B", problem.B, 8)):
        if size % unit:
            yield f"is for {name} a multiple of {unit}, not {size}"
    if problem.B > 128:
        yield f"is for B <= 128, not {problem.B}"
    if problem.B >= 96 and problem.H >= 896:
        yield f"is for B < 96 or H < 896, not B={problem.B} with H={problem.H}"
