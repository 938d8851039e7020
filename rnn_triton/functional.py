"""A layer, or a network of L layers in D directions, as a function: checks the arguments and calls an operator.

Layers and directions of a network go together, as one operator that shares launches where it pays (op/network.py).  One after the
other go layers with a projection, and those with dropout by torch's own masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import cells, checks, projection
from . import heads as of_heads
from .cells import Cell
from .cells.elman import ELMAN
from .cells.leaky import LEAKY
from .cells.sequences import Sequences
from .checks import settled, settled_network
from .launch.launcher import has_kernels
from .launch.sequences import ALL
from .op import autograd
from .op import dropout as masks
from .op.layers import in_turn
from .op.layers import settings as settings_of

_GRU, _LSTM = cells.named("gru"), cells.named("lstm")
Results = tuple[Tensor, tuple[Tensor, ...]]  # y, and the last states


def rnn(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    reverse: bool = False,
    precision: str | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    validate: bool = False,
) -> tuple[Tensor, Tensor]:
    """Runs an Elman layer, h_t = f(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh); returns all h_t as y[T,B,H] and the last as hn[B,H].

    x[T,B,I], w_ih[H,I], w_hh[H,H], b_ih[H], b_hh[H] and h0[B,H] (zeros if None) may have any strides, and must be on one device
    and of one dtype: fp32, bf16, fp16 or fp64. f is tanh or relu. `reverse` runs from t = T-1 to 0; y stays in the order of x, and
    hn is then the state at t = 0. Under autocast everything but fp64 is cast to autocast's dtype, and so are the results.

    `precision` says how fp32 is multiplied: "tf32", "tf32x3" (three TF32 products, close to fp32) or "ieee". None follows
    torch.backends.cudnn.rnn.fp32_precision. Other dtypes take None only.

    With `lengths`, integers [B] in any order, 0 among them, row b has the steps before lengths[b]: y is zero behind them, hn is the
    state at their end, and `reverse` begins there; what x holds behind them reaches nothing, no gradient either, be it NaN. A length
    counts as the nearest of 0 to T; with `validate` another one is refused, for which the host waits for the device.

    `reset`, bool [T,B], begins a row anew at the steps where it is True: no state, and no gradient, passes to them from the steps before,
    nor the other way with `reverse`, which runs the same segments backwards. A segment but for the first one that a row runs begins with
    `reset_state` [B,H], zeros if None; with a reset at step 0 so does the first, except with `reverse`. If it requires grad, the backward
    pass runs the layer again by plain torch operators, step by step.

    Raises ValueError or RuntimeError as torch.nn.RNN does, ValueError for lengths and resets that do not fit, and UnsupportedError if no
    plan runs the problem.
    """
    cell, states = checks.by_nonlinearity(ELMAN, nonlinearity), () if h0 is None else (h0,)
    if precision is not None:
        checks.check_precision(precision)
    sequences = ALL
    if lengths is not None or reset is not None or reset_state is not None:
        sequences = checks.sequences_of(x, lengths, reset, () if reset_state is None else (reset_state,), cell, validate)
    y, (hn,) = _layer(x, (w_ih, w_hh, b_ih, b_hh), states, cell, reverse, precision, False, sequences)
    return y, hn


def gru(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    reverse: bool = False,
    precision: str | None = None,
    recompute: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    validate: bool = False,
) -> tuple[Tensor, Tensor]:
    """Runs a layer of torch.nn.GRU; returns all h_t as y[T,B,H] and the last as hn[B,H].

    w_ih[3*H,I], w_hh[3*H,H], b_ih[3*H] and b_hh[3*H] are blocks of the gates r, z and n. With `recompute` the forward pass keeps
    less for the backward pass, which computes the gates again. Everything else is as in `rnn`, errors included.
    """
    states, anew = [() if state is None else (state,) for state in (h0, reset_state)]
    y, (hn,) = layer(
        x, (w_ih, w_hh, b_ih, b_hh), states, _GRU, reverse=reverse, precision=precision, recompute=recompute, lengths=lengths, reset=reset,
        reset_state=anew, validate=validate,
    )  # fmt: skip
    return y, hn


def lstm(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    states: tuple[Tensor, Tensor] | None = None,
    w_hr: Tensor | None = None,
    *,
    reverse: bool = False,
    precision: str | None = None,
    recompute: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: tuple[Tensor, Tensor] | None = None,
    validate: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Runs a layer of torch.nn.LSTM; returns all h_t as y[T,B,H] and the last states as (hn[B,H], cn[B,H]).

    w_ih[4*H,I], w_hh[4*H,H], b_ih[4*H] and b_hh[4*H] are blocks of the gates i, f, g and o. `states` are h0[B,H] and c0[B,H], zeros
    if None. With w_hr[P,H] the output of a step is h_t = W_hr (o_t tanh(c_t)): w_hh is then [4*H,P], and y, h0 and hn have P in place
    of H. With `recompute` the forward pass keeps less for the backward pass, which computes the gates again. `reset_state` has the
    shapes of `states`. Everything else is as in `rnn`, errors included.
    """
    weights, first = (w_ih, w_hh, b_ih, b_hh), () if states is None else tuple(states)
    options: dict[str, Any] = dict(reverse=reverse, precision=precision, recompute=recompute)
    sequences = _sequences(x, lengths, reset, () if reset_state is None else tuple(reset_state), _LSTM, validate)
    options |= _options(sequences)
    if w_hr is None:
        y, (hn, cn) = layer(x, weights, first, _LSTM, **options)
    else:
        y, (hn, cn) = projection.layer(x, (*weights, w_hr), first, _LSTM, one=layer, **options)
    return y, (hn, cn)


def leaky(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    leak: float | Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    reverse: bool = False,
    precision: str | None = None,
    recompute: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    validate: bool = False,
) -> tuple[Tensor, Tensor]:
    """Runs a leaky layer, h_t = (1 - leak) h_{t-1} + leak f(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh).

    leak is a number in (0, 1], or a tensor, [H] or without dimensions, whose values should be: to look at them would wait for the
    device. It gets a gradient. Everything else is as in `rnn` and `gru`, errors included; ValueError if the number is out of its range.
    """
    cell, states = checks.by_nonlinearity(LEAKY, nonlinearity), () if h0 is None else (h0,)
    if not isinstance(leak, Tensor):
        checks.check_leaks([leak])
        leak = w_hh.new_full(w_hh.shape[:1], leak)
    elif leak.dim() == 0:
        leak = leak.expand(w_hh.shape[:1])
    y, (hn,) = layer(
        x, (w_ih, w_hh, b_ih, b_hh, leak), states, cell, reverse=reverse, precision=precision, recompute=recompute, lengths=lengths,
        reset=reset, reset_state=() if reset_state is None else (reset_state,), validate=validate,
    )  # fmt: skip
    return y, hn


def layer(
    x: Tensor,
    weights: Sequence[Tensor | None],
    states: Sequence[Tensor],
    cell: Cell,
    *,
    reverse: bool = False,
    precision: str | None = None,
    recompute: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: Sequence[Tensor] = (),
    validate: bool = False,
    heads: int = 1,
) -> Results:
    """Returns y[T,B,H] and the last states, each [B,H], of x[T,B,I] and the first states (none stands for zeros) of a layer of `cell`.

    `weights` are w_ih[G*H,I], w_hh[G*H,H], b_ih[G*H] or None, b_hh[G*H] or None, and the cell's vectors, each [H].  Options are those
    of `rnn` and `gru`; `reset_state` has a tensor for each of the cell's states, or none.  With `heads` = N w_hh is [N,G*H/N,H/N], as in
    heads.py."""
    if precision is not None:
        checks.check_precision(precision)
    if states:
        checks.check_states(states, cell.states)
    sequences = _sequences(x, lengths, reset, reset_state, cell, validate)
    return _layer(x, weights, states, cell, reverse, precision, recompute, sequences, heads)


def _sequences(
    x: Tensor, lengths: Tensor | None, reset: Tensor | None, restart: Sequence[Tensor], cell: Cell, validate: bool
) -> Sequences:
    """Returns what a call says of its sequences; ALL if that is nothing."""
    if lengths is None and reset is None and not restart:
        return ALL
    return checks.sequences_of(x, lengths, reset, restart, cell, validate)


def _layer(
    x: Tensor, weights: Sequence[Any], states: Sequence[Tensor], cell: Cell, reverse: bool, precision: str | None, recompute: bool,
    sequences: Sequences, heads: int = 1,
) -> Results:  # fmt: skip
    """Returns what `layer` does, which has checked the precision and the number of states."""
    x, weights, states, precision = settled(x, weights, states, cell, precision, heads)
    if sequences.restart:
        sequences = checks.settled_restart(sequences, x, (x.shape[1], heads * weights[1].shape[-1]))
    b_ih, b_hh = weights[2] is not None, weights[3] is not None
    net = settings_of(b_ih, b_hh, cell.name, "reverse" if reverse else "forward", precision, 0, bool(recompute))
    if not (b_ih and b_hh):
        weights = [t for t in weights if t is not None]
    if heads > 1:
        return of_heads.layer(x, weights, tuple(states), net, sequences, heads)
    return autograd.network(x, tuple(weights), tuple(states), None, net, sequences)


def network(
    x: Tensor,
    weights: Sequence[Tensor],
    states: Sequence[Tensor],
    cell: Cell,
    *,
    bias: bool = True,
    bidirectional: bool = False,
    dropout: float = 0.0,
    precision: str | None = None,
    recompute: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: Sequence[Tensor] = (),
    validate: bool = False,
    one: Callable[..., Results] | None = None,
    more: int = 0,
    drop: Callable[[Tensor, float], Tensor] = nn.functional.dropout,
) -> Results:
    """Returns y[T,B,D*H] and the last states, each [L*D,B,H], of x[T,B,I] and the first states (none stands for zeros): L layers of
    `cell` in D directions.

    `weights` are w_ih, w_hh and, with `bias`, b_ih, b_hh, and the cell's vectors, of every layer and direction in the order of h_n:
    layer by layer, in each first forwards, then, if `bidirectional`, backwards in time. A layer takes the outputs of both
    directions of the one below, each element zeroed with probability `dropout` and else scaled by 1 / (1 - dropout).

    The options of sequences are those of `layer`; the tensors of `reset_state` have the shapes of `states`.

    `one` runs each layer in place of `layer`, with its arguments, and may take `more` tensors behind the vectors of each layer and
    direction.  `drop`(y, dropout) drops elements between layers where torch's masks are taken.
    """
    directions = 2 if bidirectional else 1
    count = (4 if bias else 2) + len(cell.vectors) + more  # tensors of a layer in one direction
    checks.check_layers(weights, count, directions, len(cell.gates))
    number = len(weights) // count  # of layers and directions
    if states:
        checks.check_states(states, cell.states)
        for n, state in enumerate(states):
            if state.shape[0] != number:
                raise RuntimeError(f"Expected {number} initial states, got {cell.states[n]}0 of shape {list(state.shape)}")
    sequences = ALL
    if lengths is not None or reset is not None or reset_state:
        sequences = checks.sequences_of(x, lengths, reset, reset_state, cell, validate)
        for state in sequences.restart:
            if state.dim() != 3 or state.shape[0] != number:
                raise ValueError(f"reset_state must have shape [L*D, B, H] with L*D = {number}, got {list(state.shape)}")
    if number == 1:
        of_one = weights if bias else (*weights[:2], None, None, *weights[2:])
        firsts = [t.squeeze(0) for t in states] if states else ()
        sequences = sequences._replace(restart=tuple([t.squeeze(0) for t in sequences.restart])) if sequences.restart else sequences
        if one is None:
            if precision is not None:
                checks.check_precision(precision)
            y, last = _layer(x, of_one, firsts, cell, False, precision, recompute, sequences)
        else:
            y, last = one(x, of_one, firsts, cell, precision=precision, recompute=recompute, **_options(sequences))
        return y, (last[0].unsqueeze(0),) if len(last) == 1 else tuple([t.unsqueeze(0) for t in last])

    layers: list[Any] = [tuple(weights[n : n + count]) for n in range(0, len(weights), count)]
    if not bias:
        layers = [(w_ih, w_hh, None, None, *others) for w_ih, w_hh, *others in layers]

    dropout = dropout if number > directions else 0.0
    if one is None and not (dropout and _drops_as_torch(x)):
        checks.check_precision(precision)
        dropped = masks.count(dropout)
        x, flat, states, precision = settled_network(x, layers, states, cell, directions, precision)
        seed = masks.new_seed(x.device) if dropped else None
        net = settings_of(bool(bias), bool(bias), cell.name, "both" if bidirectional else "forward", precision, dropped, bool(recompute))
        if sequences.restart:
            sequences = checks.settled_restart(sequences, x, (number, x.shape[1], flat[1].shape[1]))
        return autograd.network(x, flat, tuple(states), seed, net, sequences)
    run = layer if one is None else one

    def in_one_direction(x: Tensor, weights: tuple[Any, ...], states: Sequence[Tensor], n: int) -> Results:
        reverse = bidirectional and n % 2 == 1
        of_one = sequences._replace(restart=tuple([t[n] for t in sequences.restart])) if sequences.restart else sequences
        return run(x, weights, states, cell, reverse=reverse, precision=precision, recompute=recompute, **_options(of_one))

    between = lambda y, _: drop(y, dropout) if dropout else y  # noqa: E731
    return in_turn(x, layers, tuple(states), directions, one=in_one_direction, between=between)


def _options(sequences: Sequences) -> dict[str, Any]:
    """Returns what `layer` takes as options for sequences."""
    lengths, reset, restart = sequences
    return {} if sequences is ALL else dict(lengths=lengths, reset=reset, reset_state=restart)


def _drops_as_torch(x: Tensor) -> bool:
    """True if dropout between layers takes torch's masks, layer by layer: on CPU tensors, so that they are those of torch.nn.RNN; and
    where the kernels' masks do not reach, in fp64, under torch.func's transforms, traced, and exported to ONNX."""
    return (
        not has_kernels(x)
        or x.dtype is torch.float64
        or torch._C._are_functorch_transforms_active()
        or torch.onnx.is_in_onnx_export()
        or torch.jit.is_tracing()
    )
