"""The tensors of a case: inputs, weights and cotangents by name, and the lengths of its sequences."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from rnn_triton.cells import named

from .case import Case

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# x, states and biases of so small a size, times what is usual: sums with 1 leave next to nothing of them.
SMALL = {"bf16": 1e-6, "fp16": 1e-4, "fp32": 1e-6}
KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
# Values of a tensor that are drawn on the CPU, about 10 ms at most; larger ones are drawn where they are used.
DRAWN_ON_CPU = 2**20


def kinds(case: Case) -> tuple[str, ...]:
    """What parameters of a recurrence are named by: KINDS, and behind them the cell's own vectors"""
    return (*KINDS, *named(case.cell).vectors)


def weight_names(case: Case) -> list[tuple[str, ...]]:
    """torch.nn's names of the parameters of each recurrence, layer by layer and in a layer forward before reverse."""
    suffixes = [f"_l{layer}{end}" for layer in range(case.layers) for end in ("", "_reverse")[: case.directions]]
    return [tuple(kind + suffix for kind in kinds(case)) for suffix in suffixes]


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Of one model: x, h0 (c0), dy, dhn (dcn) and the parameters."""
    states, D = case.layers * case.directions, case.directions
    state = (states, case.B, case.H)
    out: dict[str, tuple[int, ...]] = {"x": (case.T, case.B, case.I), "h0": state}
    out |= {"dy": (case.T, case.B, D * case.H), "dhn": state}
    cell = named(case.cell)
    if len(cell.states) > 1:
        out |= {"c0": state, "dcn": state}
    rows = len(cell.gates) * case.H
    for k, names in enumerate(weight_names(case)):
        I = case.I if k < D else D * case.H
        w_hh = (rows, case.H) if case.heads == 1 else (case.heads, rows // case.heads, case.H // case.heads)
        out |= dict(zip(names, ((rows, I), w_hh, (rows,), (rows,), *[(case.H,)] * len(cell.vectors))))
    return out


def tensors(case: Case, device: torch.device, seed: int = 0, signal: float = 1.0) -> dict[str, Tensor]:
    """x[T,B,I], h0[L*D,B,H] (c0), dy[T,B,D*H], dhn[L*D,B,H] (dcn) and every parameter by torch.nn's name.

    Weights and biases are U(-1/sqrt(H), 1/sqrt(H)), with heads those of W_hh U(-1/sqrt(H/heads), ..); a cell's own vectors U(1/2, 1), so that leaky states fade by half or more a step,
    the rest is normal; all but weights, vectors and cotangents times `signal`. Several
    models have a leading dimension, with inputs and weights of their own. A tensor of up to DRAWN_ON_CPU values has the same ones on
    any device; a larger one on devices of one type, since the CPU would take seconds for what a GPU draws in a millisecond."""
    models = (case.models,) if case.models > 1 else ()
    bound, vectors = case.H**-0.5, named(case.cell).vectors
    out = {}
    for index, (name, shape) in enumerate(shapes(case).items()):
        shape = (*models, *shape)
        where = drawn_on(math.prod(shape), device)
        generator = torch.Generator(where).manual_seed(4096 * seed + index)  # a stream of its own for every tensor
        value = torch.empty(shape, device=where)
        if name.startswith(KINDS):
            most = bound * (case.heads**0.5 if name.startswith("weight_hh") else 1)
            value.uniform_(-most, most, generator=generator)
        elif name.startswith(vectors):
            value.uniform_(0.5, 1.0, generator=generator)
        else:
            value.normal_(generator=generator)
        if signal != 1 and not name.startswith(("weight", "d", *vectors)):
            value *= signal
        out[name] = value.to(device, DTYPES[case.dtype])
    return out


def drawn_on(values: int, device: torch.device) -> torch.device:
    """Where a tensor of so many values that is used on `device` is drawn"""
    return torch.device("cpu") if values <= DRAWN_ON_CPU else device


def of_model(inputs: dict[str, Tensor], model: int) -> dict[str, Tensor]:
    """The tensors of one of several models"""
    return {name: value[model] for name, value in inputs.items()}


def lengths_of(case: Case) -> Tensor:
    """The lengths of a case's sequences, int64 [B] on the CPU, the same in every call; the longest is T.

    uniform  in [1, T]
    heavy    density 1/n over [1, T]: every octave of lengths is as likely as the next, which is what Pareto laws
             cut off at T tend to as their exponent goes to 0, their tail's heaviest. The mean is about T / ln T, so
             that padding to T wastes 1 - 1/ln T of the work, 84 % at T = 512."""
    if case.lengths == "full":
        return torch.full((case.B,), case.T, dtype=torch.int64)
    drawn = torch.rand(case.B, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lengths = 1 + (drawn * case.T).long() if case.lengths == "uniform" else (case.T**drawn).long()
    lengths.clamp_(1, case.T)
    lengths[lengths.argmax()] = case.T  # the padded size is the case's
    return lengths


def packed(case: Case, padded: Tensor) -> PackedSequence:
    """The valid steps of [T,B,...] as torch.nn's recurrent modules take them."""
    return pack_padded_sequence(padded, lengths_of(case), enforce_sorted=False)
