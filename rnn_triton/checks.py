"""Refuses arguments that do not fit, in torch's words where it has any, and settles dtype and precision."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.backends.cudnn.rnn
from torch import Tensor

from . import autocast
from .cells import Cell
from .cells.elman import ELMAN
from .cells.sequences import Sequences

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PRECISIONS = (None, "tf32", "tf32x3", "ieee")
States = Tensor | tuple[Tensor, ...]  # one tensor of a cell with one state, else a tuple
_cudnn_rnn: Any = torch.backends.cudnn.rnn  # held: `torch.backends.cudnn` resolves its attributes slowly


def quiet_tracer() -> None:
    """Silences torch.jit.trace about sizes that only decide whether to raise; it warns of every size that decides something."""
    modules = r"rnn_triton\.(checks|functional|heads|projection|modules\.\w+)$"
    warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean", torch.jit.TracerWarning, modules)


quiet_tracer()


def elman(nonlinearity: str) -> Cell:
    """Returns the Elman cell with this nonlinearity.  Raises torch.nn.RNN's ValueError where there is none."""
    return by_nonlinearity(ELMAN, nonlinearity)


def by_nonlinearity(cells: Mapping[str, Cell], nonlinearity: str) -> Cell:
    """Returns the cell of `cells` with this nonlinearity.  Raises torch.nn.RNN's ValueError where there is none."""
    if not (isinstance(nonlinearity, str) and nonlinearity in cells):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return cells[nonlinearity]


def check_leaks(leaks: Sequence[float], learned: bool = False) -> None:
    """Raises ValueError unless all are leaks of a leaky cell: in (0, 1], and below 1 if `learned`, as sigmoids."""
    for leak in leaks:
        if not (isinstance(leak, (int, float)) and (0 < leak < 1 or leak == 1 and not learned)):  # NaN is nothing of that
            raise ValueError(f"leak must be in {'(0, 1), as it is learned' if learned else '(0, 1]'}, got {leak!r}")


def states_of(hx: States, names: Sequence[str], argument: str = "hx") -> tuple[Tensor, ...]:
    """Returns the states in a module's argument hx as a tuple.  Raises ValueError unless there is one for each of `names`: a tensor for
    a single one, else a tuple."""
    several = isinstance(hx, (tuple, list))
    if several and len(hx) == len(names) > 1:
        return tuple(hx)
    if not several and len(names) == 1:  # a tensor, or what torch.fx traces with in its place
        return (hx,)  # type: ignore[return-value]
    raise ValueError(f"{argument} must be {_described(names)}, got a {type(hx).__name__}" + (f" of {len(hx)}" if several else ""))


def check_states(states: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raises ValueError unless `states` are none, or one for each of `names`."""
    if len(states) not in (0, len(names)):
        raise ValueError(f"states must be {_described(names)}, got {len(states)} tensors")


def _described(names: Sequence[str]) -> str:
    return "a tensor" if len(names) == 1 else f"{len(names)} tensors ({', '.join(names)})"


def check_precision(precision: str | None) -> None:
    """Raises ValueError unless fp32 can be multiplied in this precision; None stands for torch's setting."""
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be None, 'tf32', 'tf32x3' or 'ieee', got {precision!r}")


def precision_of(dtype: torch.dtype, precision: str | None) -> str | None:
    """Returns how values of `dtype` are multiplied: for fp32 the precision, by default torch's setting; for other dtypes None.

    Raises ValueError if another dtype than fp32 comes with a precision."""
    if dtype is torch.float32:
        return _default_precision() if precision is None else precision
    if precision is not None:
        raise ValueError(f"precision must be None unless the dtype is torch.float32, got {precision!r} and {dtype}")
    return None


def _default_precision() -> str:
    try:
        return "tf32" if _cudnn_rnn.fp32_precision == "tf32" else "ieee"
    except RuntimeError:  # torch refuses to answer if both its older and its newer TF32 switches were set
        return "ieee"


def settled(
    x: Tensor, weights: Sequence[Tensor | None], states: Sequence[Tensor], cell: Cell, precision: str | None, heads: int = 1
) -> tuple[Tensor, Sequence[Any], Sequence[Tensor], str | None]:
    """Returns (x, weights, states, precision) of one layer as the operator takes them: checked, cast if autocast is on, and with what
    None stands for in place of a precision of None.  Arguments and errors are those of functional.layer; the precision and the number
    of states have been checked."""
    if torch._C._is_any_autocast_enabled():
        device = "cuda" if x.is_cuda else "cpu"
        if torch.is_autocast_enabled(device):
            x, weights, states = autocast.cast(torch.get_autocast_dtype(device), x, weights, states)
            if x.dtype is not torch.float32:
                precision = None  # meant for the fp32 that autocast replaced
    _check(x, weights, states, cell, heads)
    if precision is None and x.dtype is not torch.float32:  # what precision_of says
        return x, weights, states, None
    return x, weights, states, precision_of(x.dtype, precision)


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def sequences_of(
    x: Tensor, lengths: Tensor | None, reset: Tensor | None, restart: Sequence[Tensor], cell: Cell, validate: bool
) -> Sequences:
    """Returns what a call of functional.layer or functional.network on x[T,B,I] says of its sequences, lengths clamped to 0 .. T on the
    device.  The tensors of `restart` are checked where their sizes are known, by `settled_restart`.

    Raises ValueError for what does not fit, with `validate` also for a length that is not 0 .. T, which waits for the device."""
    for name, t in (("lengths", lengths), ("reset", reset), *[("reset_state", state) for state in restart]):
        if t is not None and not isinstance(t, Tensor):
            raise ValueError(f"{name} must be {'of tensors' if name == 'reset_state' else 'a tensor'}, got a {type(t).__name__}")
    if x.dim() == 3:  # else x is refused elsewhere
        T, B, _ = x.shape
        if lengths is not None:
            _check_given("lengths", lengths, "[B]", (B,), _INTEGERS, x)
        if reset is not None:
            _check_given("reset", reset, "[T, B]", (T, B), (torch.bool,), x)
        if lengths is not None:
            wrong = [(row, n) for row, n in enumerate(lengths.tolist()) if not 0 <= n <= T] if validate else []
            if wrong:
                raise ValueError(f"lengths must be from 0 to T = {T}, got {wrong[0][1]} in row {wrong[0][0]}")
            lengths = lengths.to(torch.int64).clamp(0, T)
    if restart:
        if reset is None:
            raise ValueError(f"reset_state must be None without reset, got {len(restart)} tensors")
        if len(restart) != len(cell.states):
            raise ValueError(f"reset_state must be {_described(cell.states)}, got {len(restart)}")
    return Sequences(lengths, reset, tuple(restart))


def settled_restart(sequences: Sequences, x: Tensor, shape: tuple[int, ...]) -> Sequences:
    """Returns sequences whose restart states have this shape, [B,H] or [L*D,B,H], and x's dtype; cast to it if autocast is on.  Raises
    ValueError if they do not fit."""
    restart = sequences.restart
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(x.device.type):
        restart = tuple([state.to(x.dtype) for state in restart])
    for state in restart:
        _check_given("reset_state", state, "[B, H]" if len(shape) == 2 else "[L*D, B, H]", shape, (x.dtype,), x)
    return sequences._replace(restart=restart)


def _check_given(name: str, t: Tensor, sizes: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], x: Tensor) -> None:
    """Raises ValueError unless t has this shape, one of these dtypes, and x's device."""
    if t.dtype not in dtypes:
        raise ValueError(f"{name} must be of dtype {'int64, int32, ..' if dtypes is _INTEGERS else dtypes[0]}, got {t.dtype}")
    if t.shape != shape:
        raise ValueError(f"{name} must have shape {sizes} = {list(shape)}, got {list(t.shape)}")
    if t.device != x.device:
        raise ValueError(f"{name} must be on the device of the input, {x.device}, got {t.device}")


def check_layers(weights: Sequence[Tensor], count: int, directions: int, gates: int) -> None:
    """Raises unless `weights` are `count` tensors for each of some layers in so many directions, all of one hidden size, the first of
    which has a row for each hidden unit and gate."""
    if not weights or len(weights) % (count * directions):
        raise ValueError(
            f"weights must be {count} tensors for each layer and direction, a positive multiple of {count * directions}, got {len(weights)}"
        )
    for w in weights:
        if w is None:
            n = [w is None for w in weights].index(True)
            raise TypeError(f"expected Tensor as element {n} in argument 2, but got NoneType")
    if len(weights) == count:
        return
    for w_ih in weights[count::count]:
        if w_ih.shape[:1] != weights[0].shape[:1]:
            H = weights[0].shape[0] // gates
            raise ValueError(f"weights of all layers must have one hidden size H = {H}, got a w_ih of shape {list(w_ih.shape)}")


def settled_network(
    x: Tensor,
    layers: Sequence[Sequence[Tensor | None]],
    states: Sequence[Tensor],
    cell: Cell,
    directions: int,
    precision: str | None,
) -> tuple[Tensor, list[Tensor], Sequence[Tensor], str | None]:
    """Returns (x, weights, states, precision) of a network as the operator takes them, each layer and direction `settled`.

    `layers` has the weights of each, in the order of h_n.  Shapes and errors are those of functional.network."""
    by_layer: Iterable[Sequence[Tensor]] = zip(*states) if states else [()] * len(layers)
    settled_states: list[Sequence[Tensor]] = []
    flat: list[Tensor] = []
    below = x
    for n, (layer, first) in enumerate(zip(layers, by_layer)):
        below, weights, first, settled_precision = settled(below, layer, first, cell, precision)
        settled_states.append(first)
        flat += [w for w in weights if w is not None]
        if n == 0:
            x = below
        if n == directions - 1:  # y of the layer below, as far as a check looks at it
            below = x.new_empty(()).expand(*x.shape[:2], directions * flat[1].shape[-1])
    if any([t.dtype is not x.dtype for t in states]):  # autocast
        states = tuple([torch.stack(parts) for parts in zip(*settled_states)])
    return x, flat, states, settled_precision


def _check(x: Tensor, weights: Sequence[Any], states: Sequence[Tensor], cell: Cell, heads: int) -> None:
    """Raises the error of torch's modules, in their words where they have any, unless the tensors fit together."""
    dtype = x.dtype
    w_ih, w_hh, b_ih, b_hh = weights[:4]
    _check_input_dtype(x, w_ih)
    if dtype not in _DTYPES:
        raise ValueError(f"x must be of dtype float32, bfloat16, float16 or float64, got {dtype}")
    shape, matrix, G = x.shape, w_ih.shape, len(cell.gates)
    if len(shape) != 3:
        raise RuntimeError(f"input must have 3 dimensions, got {len(shape)}")
    if len(matrix) != 2 or matrix[0] % G:
        raise ValueError(f"w_ih must have shape [{_rows(G)}, I], got {list(matrix)}")
    T, B, I = shape
    size, input_size = matrix
    H = size // G
    if I != input_size:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {input_size}, got {I}")
    if H == 0:
        raise ValueError("hidden_size must be greater than zero")
    if I == 0:
        raise ValueError("input_size must be greater than zero")
    expected = (size, H) if heads == 1 else (heads, size // heads, H // heads)
    if w_hh.shape != expected:
        sizes = f"{_rows(G)}, H" if heads == 1 else f"N, {_rows(G)}/N, H/N"
        raise ValueError(f"w_hh must have shape [{sizes}] = {list(expected)}, got {list(w_hh.shape)}")
    if b_ih is not None and b_ih.shape != (size,):
        raise ValueError(f"b_ih must have shape [{_rows(G)}] = [{size}], got {list(b_ih.shape)}")
    if b_hh is not None and b_hh.shape != (size,):
        raise ValueError(f"b_hh must have shape [{_rows(G)}] = [{size}], got {list(b_hh.shape)}")
    for name, vector in zip(cell.vectors, weights[4:], strict=True):
        if vector.shape != (H,):
            raise ValueError(f"{name} must have shape [H] = [{H}], got {list(vector.shape)}")
    for n, state in enumerate(states):
        if state.shape != (B, H):
            which = "" if len(states) == 1 else f"[{n}]"
            raise RuntimeError(f"Expected hidden{which} size {(B, H)}, got {list(state.shape)}")
    _check_same(x, weights, "parameter")
    _check_same(x, states, "hidden")
    if T == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")


def check_parameters(x: Tensor, weights: Sequence[Tensor]) -> None:
    """Raises torch's error unless the weights, w_ih the first of them, have the dtype of x, or autocast casts them, and its device."""
    if not (torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(x.device.type)):
        _check_input_dtype(x, weights[0])
        _check_same(x, weights, "parameter")


def _check_input_dtype(x: Tensor, w_ih: Tensor) -> None:
    if w_ih.dtype is not x.dtype:
        raise ValueError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({w_ih.dtype}). "
            f"Convert input: input.to({w_ih.dtype}), or convert model: model.to({x.dtype})"
        )


def _check_same(x: Tensor, tensors: Sequence[Tensor | None], kind: str) -> None:
    """Raises torch's error unless all tensors that are there have the dtype and the device of x; `kind` is torch's word for them."""
    dtype, device = x.dtype, x.device
    for t in tensors:
        if t is None or t.dtype is dtype and t.device == device:
            continue
        if t.device != device:
            raise RuntimeError(
                f"Input and {kind} tensors are not at the same device, "
                f"found input tensor at {device} and {kind} tensor at {t.device}"
            )
        if x.shape[:1] != (0,):  # torch raises its error for T == 0 first
            raise RuntimeError(
                f"Input and {kind} tensors are not the same dtype, "
                f"found input tensor with {dtype_name(dtype)} and {kind} tensor with {dtype_name(t.dtype)}"
            )


def _rows(gates: int) -> str:
    """Returns how errors call the number of rows of a weight."""
    return "H" if gates == 1 else f"{gates}*H"


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name of a dtype in torch's C++ messages: Float, Double, Half, BFloat16, ..."""
    return torch.empty(0, dtype=dtype).type().split(".")[-1].removesuffix("Tensor")
