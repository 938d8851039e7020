"""Registers what Triton's interpreter runs in place of the kernels' inline assembly that takes more than one element at a time.

Assembly for single elements is registered in interpreter.py.  This module is imported where kernels are launched, and registers
nothing on a GPU."""

from __future__ import annotations

from typing import Any

from ..kernels import exchange, slices
from . import interpreter

if interpreter.active():
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle, interpreter_semantic

    _SENTINEL = np.uint32(0xFFFFFFFF)

    def _scalar(value: Any) -> int:
        value = getattr(value, "value", value)  # constexpr
        return int(value.handle.data.item()) if isinstance(value, tl.tensor) else int(value)

    def _tensor(data: np.ndarray, dtype: Any) -> Any:
        return tl.tensor(TensorHandle(data, dtype), tl.block_type(dtype, list(data.shape)))

    def _pointer(address: Any) -> Any:
        return address.to(tl.pointer_type(tl.int32), bitcast=True)


def register(exchange: Any, slices: Any) -> None:
    """Registers implementations for the helpers of these modules, or nothing where kernels are not interpreted."""
    if not interpreter.active():
        return

    @interpreter.interpreter_impl(exchange.verify)
    def verify(addresses: Any, words: tuple, skip: Any, group: tuple, APART: Any, TILE: Any, LOWERS: Any = False) -> tuple:
        error_address, step, limit = group[:3]

        def others_failed() -> bool:
            if len(group) == 3:
                return False
            return _scalar(tl.load(_pointer(group[3]), volatile=True)) % 2**32 <= _scalar(step) + 1

        a = addresses.handle.data.astype(np.int64)
        if (a[..., 0] % 16).any() or (np.diff(a, axis=-1) != 4).any():  # the assembly relies on it
            raise ValueError("exchange.verify: the last dimension is not an aligned 16-byte chunk")
        values = list(words)

        def chunks() -> list[Any]:
            return [(v.handle.data.view(np.uint32) == _SENTINEL).any(-1, keepdims=True) for v in values]

        def lower() -> None:
            word = _pointer(error_address).to(tl.pointer_type(tl.uint32), bitcast=True)
            tl.atomic_min(word, interpreter_semantic.to_tensor(step).to(tl.uint32, bitcast=True), sem="relaxed", scope="gpu")

        polls = 0
        while not _scalar(skip):
            missing = chunks()
            if not any(m.any() for m in missing):
                break
            for k, m in enumerate(missing):
                if m.any():
                    mask = _tensor(np.broadcast_to(m, values[k].handle.data.shape).copy(), tl.int1)
                    values[k] = tl.load(_pointer(addresses + k * _scalar(APART)), mask=mask, other=values[k], volatile=True)
            polls += 1
            if polls % exchange.POLLS_PER_LOOK.value == 0:
                if _scalar(tl.load(_pointer(error_address), volatile=True)) != -1:
                    break
                if others_failed() or polls >= _scalar(limit):
                    lower()
                    break
        if _scalar(LOWERS) and any(m.any() for m in chunks()):
            lower()
        return tuple(values)

    @interpreter.interpreter_impl(exchange.cycle)
    def cycle() -> Any:
        return interpreter_semantic.to_tensor(0)

    @interpreter.interpreter_impl(exchange.hold_back)
    def hold_back(since: Any, cycles: Any) -> None:
        """Does nothing, because no time passes here."""

    @interpreter.interpreter_impl(exchange.fence)
    def fence() -> None:
        """Does nothing: programs run in one thread, or under tests/cooperative, in the order of their accesses."""

    @interpreter.interpreter_impl(slices.chunk_halves)
    def chunk_halves(words: Any, DTYPE: Any) -> tuple:
        dtype = getattr(DTYPE, "value", DTYPE)
        bits = np.ascontiguousarray(words.handle.data).view(np.uint16)  # [.., 8]
        bits = bits if dtype == tl.bfloat16 else bits.view(np.float16)
        return _tensor(bits[..., :4].copy(), dtype), _tensor(bits[..., 4:].copy(), dtype)


register(exchange, slices)
