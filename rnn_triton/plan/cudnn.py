"""Says which algorithm of cuDNN PyTorch chooses to run torch.nn.RNN on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..cells import named
from .problem import Problem

_MODULES = {  # Cell.aten -> torch.nn's module, and its arguments that choose the cell
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
}


def torch_module(cell: str) -> tuple[str, dict[str, str]]:
    """Returns the name of torch.nn's module that runs the cell of this name, and the arguments that choose the cell; ("", {}) if
    torch has none."""
    return _MODULES.get(named(cell).aten, ("", {}))


_SMALL_H = {"RNN": (384, 256), "GRU": (192, 128), "LSTM": (192, 128)}  # the largest H of PERSIST_STATIC_SMALL_H forward, backward


class Algorithm(NamedTuple):
    """An algorithm of cuDNN, and why PyTorch chooses it."""

    name: str  # in cudnnRNNAlgo_t, without its prefix
    rule: str  # the condition that decided


def cudnn_algorithm(problem: Problem, *, layers: int = 1, bidirectional: bool = False, packed: bool = False) -> Algorithm:
    """Returns the algorithm that PyTorch chooses for this pass of torch.nn.RNN, LSTM or GRU, by the rules of ATen's RNN.cpp, in their
    order.

    `problem.I` is the input size in the backward pass, too.  The algorithms of the two passes are chosen separately."""
    if packed:
        return Algorithm("STANDARD", "the input is packed")
    if problem.dtype != "fp64":
        small = _SMALL_H[torch_module(problem.cell)[0]][problem.direction == "backward"]
        if problem.H <= small:
            return Algorithm("PERSIST_STATIC_SMALL_H", f"H <= {small} in the {problem.direction} pass")
    against = next(_against_persist_static(problem, layers, bidirectional), None)
    if against is None:
        return Algorithm("PERSIST_STATIC", "the layer is one in fp16, of sizes that cuDNN holds on chip")
    return Algorithm("STANDARD", f"PERSIST_STATIC {against}")


def _against_persist_static(problem: Problem, layers: int, bidirectional: bool) -> Iterator[str]:
    """Yields each reason why cuDNN's PERSIST_STATIC does not run the problem."""
    module = torch_module(problem.cell)[0]
    if module == "GRU":
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
    if module == "RNN" and problem.B >= 96 and problem.H >= 896:
        yield f"is for B < 96 or H < 896, not B={problem.B} with H={problem.H}"
