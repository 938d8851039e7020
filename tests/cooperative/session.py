"""The context manager, and what it patches in Triton's interpreter while it is open."""

import contextlib
import functools
import inspect
import math
from dataclasses import dataclass
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import triton.language as tl

from rnn_triton.interpret import interpreter

from . import ptx
from .engine import Access, Engine
from .errors import ContractError, CooperativeError, NotModelledError
from .memory import WORD, MemoryMap
from .schedules import SCHEDULES, Schedule

_PLAIN = Access()


@dataclass
class Options:
    schedule: Schedule
    switch: str = "sync"
    memory: str = "sc"
    races: str = "raise"
    cta_strict: bool = True
    resident: int | None = None
    drain: float = 0.1
    max_idle: int = 200
    seed: int = 0
    poisoned: tuple = ()
    channels: tuple = ()
    rings: tuple = ()
    continued: bool = False

    def __post_init__(self):
        for name, values in (
            ("switch", ("sync", "mem")),
            ("memory", ("sc", "weak")),
            ("races", ("raise", "collect", "off")),
        ):
            if getattr(self, name) not in values:
                raise ValueError(f"{name}: one of {values}, not {getattr(self, name)!r}")

    def __str__(self):
        schedule = f"{type(self.schedule).__name__.lower()}, seed={self.schedule.seed}"
        return f"schedule={schedule}, switch={self.switch}, memory={self.memory}, resident={self.resident}"


class Session:
    """Declares what tensors mean to the launches of the block, and holds what was found.

    stats: of the last launch, programs, switches, operations, polls, changes (of memory).
    problems: with races="collect", the errors of all launches, each place once.
    """

    def __init__(self, options):
        self.options, self.problems, self.stats = options, [], None
        self._roles = []  # (tensor, role)

    def poison(self, tensor):
        """Fill with 0xFF bytes, which count as unwritten: NaN in any format (as an integer -1, which may be meant)."""
        self._roles.append((_fill(tensor), "poison"))
        return tensor

    def channel(self, tensor, rearmed=False, fill=True):
        """Declare that its 32-bit words, whatever the dtype, are polled until they are not 0xFFFFFFFF.

        rearmed: programs may store that value, to use a word again. fill=False: the caller fills.
        Contiguous and of whole, aligned words, otherwise ValueError.
        """
        if not tensor.is_contiguous() or tensor.data_ptr() % WORD or tensor.nbytes % WORD:
            raise ValueError(f"a channel is contiguous and made of whole {8 * WORD}-bit words")
        self._roles.append((_fill(tensor) if fill else tensor, "ring" if rearmed else "channel"))
        return tensor

    def _marks(self, named):
        """(base, end, role) of what was declared, directly or by a kernel argument's name."""
        for name, tensor in named:
            if name in self.options.poisoned:
                self.poison(tensor)
            if name in (*self.options.channels, *self.options.rings):
                self.channel(tensor, rearmed=name in self.options.rings, fill=False)
        marks = []
        for tensor, role in self._roles:
            if tensor.numel():
                last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
                end = tensor.data_ptr() + (1 + last) * tensor.element_size()
                marks.append((tensor.data_ptr(), end, role))
        return marks


def _fill(tensor):
    """With poison; any strides."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    tensor.view(integers).fill_(-1)
    return tensor


def _named(name, value):
    """(name, tensor) pairs of a kernel argument."""
    if isinstance(value, torch.Tensor):
        return [(name, value)]
    if isinstance(value, tuple):
        return [pair for i, item in enumerate(value) for pair in _named(f"{name}.{i}", item)]
    base = getattr(value, "base", None)  # tensor descriptors, reinterpreted tensors
    return [] if base is None else _named(name, base)


def _lower(enum):
    return str(enum).rpartition(".")[2].lower()


def _access(kind, sem, scope):
    sem, scope = _lower(sem), _lower(scope)
    return Access(kind, "acq_rel" if sem == "acquire_release" else sem, scope)


_RMW = {
    "add": lambda old, value: old + value,
    "and": lambda old, value: old & value,
    "or": lambda old, value: old | value,
    "xor": lambda old, value: old ^ value,
    "max": max,
    "min": min,
    "umax": max,
    "umin": min,
    "xchg": lambda old, value: value,
}


class _Patches:
    """Methods for Triton's interpreter; outside a launch, and for the launch's own set-up, the stock ones."""

    def __init__(self, session, stock):
        self.session, self.stock = session, stock
        self.engine = None

    def install(self, stack):
        builder = self.stock.InterpreterBuilder
        for name in (
            "create_masked_load",
            "create_masked_store",
            "create_atomic_rmw",
            "create_atomic_cas",
            "create_atomic_load",
            "create_atomic_store",
            "create_atomic_poll",
            "create_barrier",
        ):
            if hasattr(builder, name):  # atomic loads, stores and polls are new in Triton 3.9
                new = self._method(getattr(self, name), getattr(builder, name))
                stack.enter_context(mock.patch.object(builder, name, new))
        if hasattr(builder, "get_cache_policy"):  # 3.9 builds IR of it; a load wants the modifier itself
            new = lambda builder, cache_modifier, eviction_policy: cache_modifier  # noqa: E731
            stack.enter_context(mock.patch.object(builder, "get_cache_policy", new))
        new = self._asm_method(builder.create_inline_asm)
        stack.enter_context(mock.patch.object(builder, "create_inline_asm", new))
        launch = self.launch
        executor = self.stock.GridExecutor
        new = lambda executor, *args, **kwargs: launch(executor, args, kwargs)  # noqa: E731
        stack.enter_context(mock.patch.object(executor, "__call__", new))

    def _method(self, ours, stock):
        def method(builder, *args, **kwargs):
            if self.engine is None or self.engine.current is None:
                return stock(builder, *args, **kwargs)
            return ours(*args, **kwargs)

        return method

    # -- the launch ----------------------------------------------------------------------------------------------

    def launch(self, executor, args, kwargs):
        if self.engine is not None:
            raise NotModelledError("a launch inside a launch")
        known = inspect.getfullargspec(executor.fn).args
        kwargs = {name: value for name, value in kwargs.items() if name in known}
        for hook in executor.pre_run_hooks:
            hook(*args, **kwargs)
        bound = inspect.getcallargs(executor.fn, *args, **kwargs)
        named = [pair for name, value in bound.items() for pair in _named(name, value)]
        options = self.session.options
        declared = {*options.poisoned, *options.channels, *options.rings}
        named.sort(key=lambda pair: pair[0] not in declared)  # of names of the same memory, reports use the first
        if any(tensor.device.type != "cpu" for _, tensor in named):
            raise NotModelledError("a tensor that is not on the CPU")
        converted = {
            name: value if name in executor.constexprs else self.stock._implicit_cvt(value)
            for name, value in bound.items()
        }
        grid = executor.grid(converted) if callable(executor.grid) else executor.grid
        grid = (*grid, 1, 1)[:3]
        builder = self.stock.interpreter_builder
        builder.set_grid_dim(*grid)
        indices = ((x, y, z) for z, y, x in np.ndindex(*grid[::-1]))  # in the order a GPU starts them
        functions = dict.fromkeys(indices, functools.partial(executor.fn, **converted))
        if not functions:
            return
        memory_map = MemoryMap(named, self.session._marks(named))
        for region in memory_map.regions:
            if not region.channel:
                continue
            fresh = ~region.unwritten(region.bytes.reshape(-1, WORD))[:, 0]
            if options.continued:
                region.final = fresh
            elif fresh.any():
                first = region.describe(region.address(np.argmax(fresh)))
                raise ContractError(
                    f"channel '{region.name}' is not pre-filled: {int(fresh.sum())} of {region.n} words do not hold "
                    f"the sentinel, first {first}: consumers would take old data for new"
                )
        rng = np.random.default_rng(options.seed)
        self.engine = engine = Engine(options, builder, functions, memory_map, self.session.problems, rng)
        try:
            engine.run()
        except Exception as error:
            cause = error  # Triton wraps what a device function raises
            while cause is not None and not isinstance(cause, (CooperativeError, NotModelledError)):
                cause = cause.__cause__
            if cause is None:
                raise
            raise cause.with_traceback(None) from None
        finally:
            self.engine = None
            self.session.stats = {
                "programs": len(engine.programs),
                "switches": engine.switches,
                "operations": sum(program.operations for program in engine.programs),
                "polls": sum(program.polls for program in engine.programs),
                "changes": engine.version,
            }

    # -- tl operations -------------------------------------------------------------------------------------------

    def _handle(self, values, dtype):
        return self.stock.TensorHandle(values, dtype)

    def _load(self, ptrs, mask, other, access):
        dtype = ptrs.get_element_ty()
        numpy_dtype = np.dtype(self.stock._get_np_dtype(dtype))
        mask = np.broadcast_to(True if mask is None else mask.data, ptrs.data.shape)
        values = np.zeros(ptrs.data.shape, numpy_dtype)
        if other is not None:
            values[...] = other.data
        addresses = ptrs.data[mask].reshape(-1)
        if addresses.size:
            raw = self.engine.load(addresses, numpy_dtype.itemsize, access)
            values[mask] = raw.reshape(-1).view(numpy_dtype)
        return self._handle(values, dtype)

    def _store(self, ptrs, value, mask, access):
        mask = np.broadcast_to(True if mask is None else mask.data, ptrs.data.shape)
        addresses = ptrs.data[mask].reshape(-1)
        if addresses.size:
            values = np.ascontiguousarray(np.broadcast_to(value.data, ptrs.data.shape)[mask]).reshape(-1, 1)
            # a scalar is stored by one thread, and Triton picks thread 0
            self.engine.store(addresses, values.view(np.uint8), access, by_thread0=ptrs.data.size == 1)

    def create_masked_load(self, ptrs, mask, other, cache_modifier=None, *rest, is_volatile=False, **named):
        if rest:
            is_volatile = rest[-1]
        cache = _lower(named.get("cache_policy", cache_modifier))
        # .cv is not taken for volatile: Triton 3.6 drops it
        access = Access("volatile load", "relaxed") if is_volatile else Access(bypass=cache == "cg")
        return self._load(ptrs, mask, other, access)

    def create_masked_store(self, ptrs, value, mask, *_, **__):
        self._store(ptrs, value, mask, _PLAIN)

    def create_atomic_load(self, ptr, mask, sem, scope):
        return self._load(ptr, mask, None, _access("atomic load", sem, scope))

    def create_atomic_store(self, ptr, value, mask, sem, scope):
        self._store(ptr, value, mask, _access("atomic store", sem, scope))

    def create_atomic_poll(self, ptr, expected, timeout_ns, sem, scope):
        if hasattr(timeout_ns, "data"):  # a tensor; without a time-out, None or an empty IR value
            raise NotModelledError("tl.atomic_poll with a time-out: there is no time here")
        access = _access("atomic poll", sem, scope)
        found = np.zeros(ptr.data.shape, bool)
        while not found.all():
            mask = self._handle(~found, tl.int1)
            found |= self._load(ptr, mask, None, access).data == expected.data
        return self._handle(found, tl.int1)

    def create_atomic_rmw(self, op, ptr, value, mask, sem, scope):
        name = _lower(op)
        if name not in _RMW:
            raise NotModelledError(f"atomic {name}: float atomics have no fixed order")
        mask = np.broadcast_to(True if mask is None else mask.data, ptr.data.shape)
        values = np.broadcast_to(value.data, ptr.data.shape)[mask].reshape(-1)
        if name[0] == "u":
            values = values.view(f"u{values.dtype.itemsize}")
        old = np.zeros(ptr.data.shape, value.data.dtype)
        if values.size:
            operation = lambda before, lane: (_RMW[name](before, values[lane]), False)  # noqa: E731
            access = _access(f"atomic {name}", sem, scope)
            addresses = ptr.data[mask].reshape(-1)
            result = self.engine.atomic(addresses, values.dtype, operation, access, always_writes=True)
            old[mask] = result.view(old.dtype)
        return self._handle(old, value.dtype.scalar)

    def create_atomic_cas(self, ptr, compare, value, sem, scope):
        shape = ptr.data.shape
        compare_to = np.broadcast_to(compare.data, shape).reshape(-1)
        values = np.broadcast_to(value.data, shape).reshape(-1)

        def operation(before, lane):
            same = before == compare_to[lane]
            return (values[lane] if same else before), bool(same)

        addresses = ptr.data.reshape(-1)
        old = self.engine.atomic(addresses, values.dtype, operation, _access("atomic cas", sem, scope))
        return self._handle(old.reshape(shape), compare.dtype.scalar)

    def create_barrier(self):
        self.engine.cta_barrier()

    # -- inline assembly -----------------------------------------------------------------------------------------

    def _asm_method(self, registered):
        def create_inline_asm(builder, text, constraints, operands, types, pure, pack):
            try:
                return registered(builder, text, constraints, operands, types, pure, pack)
            except NotImplementedError:
                if self.engine is None or self.engine.current is None:
                    raise
            return self.create_inline_asm(text, constraints, operands, types, pack)

        return create_inline_asm

    def create_inline_asm(self, text, constraints, operands, types, pack):
        if pack != 1:
            raise NotModelledError(
                f"inline assembly with pack = {pack}: which elements share an invocation depends on the layout; "
                "register an implementation of its helper (rnn_triton.interpreter.interpreter_impl) or of the text "
                f"(register_asm):\n{text}"
            )
        results = sum(c.strip().startswith("=") for c in constraints.split(","))
        arrays = np.broadcast_arrays(*(operand.data for operand in operands)) or [np.zeros(1)]
        shape = arrays[0].shape
        flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays][: len(operands)]
        if not operands and math.prod(shape) != 1:
            raise NotModelledError("inline assembly without operands is a scalar")
        program = self.engine.current

        def watch(registers):
            program.registers = registers

        values = ptx.run(self, text, flat, results, watch)
        handles = []
        for array, dtype in zip(values, types, strict=True):
            wanted = np.dtype(self.stock._get_np_dtype(dtype))
            same = array.dtype.itemsize == wanted.itemsize
            array = array.view(wanted) if same else array.astype(wanted)
            handles.append(self._handle(array.reshape(shape), dtype.scalar))
        return SimpleNamespace(get_result=handles.__getitem__)

    # what ptx.Machine needs

    def load(self, addresses, lanes, dtype, sem, scope, cache, alone):
        access = Access(f"ld.{sem}" if sem else "plain", sem, scope, cache == "cg", alone)
        values = np.zeros(addresses.size, dtype)
        values[lanes] = self.engine.load(addresses[lanes], dtype.itemsize, access).reshape(-1).view(dtype)
        return values

    def store(self, addresses, values, lanes, sem, scope, cache, alone):
        access = Access(f"st.{sem}" if sem else "plain", sem, scope, alone=alone)
        raw = np.ascontiguousarray(values[lanes]).reshape(-1, 1).view(np.uint8)
        self.engine.store(addresses[lanes], raw, access, by_thread0=alone)

    def atomic(self, kind, addresses, values, lanes, function, sem, scope, alone):
        chosen = [value[lanes] for value in values]
        access = Access(kind, sem, scope, alone=alone)
        swap = kind.endswith("cas")

        def operation(before, lane):
            arguments = [value[lane] for value in chosen]
            return function(before, arguments), swap and bool(before == arguments[0])

        old = np.zeros(addresses.size, values[0].dtype)
        old[lanes] = self.engine.atomic(
            addresses[lanes], old.dtype, operation, access, always_writes=not swap
        )
        return old

    def fence(self, acquire, release, alone):
        self.engine.fence(acquire, release, alone)

    def cta_barrier(self):
        self.engine.cta_barrier()


_open = False


@contextlib.contextmanager
def cooperate(schedule="rr", seed=0, **options):
    """Run every `kernel[grid](...)` of the block with all its programs alive. Yields a Session.

    schedule    "rr", "random", "ahead", "starve", "pct", or a Schedule (seed then drives weak memory only)
    switch      "sync": at atomics, volatile loads, assembly with a semantic; "mem": at every load and store
    memory      "sc": sequentially consistent; "weak": see `memory.WeakMemory`
    drain       weak: probability, per switch, that a random program's buffer drains in part
    races       "raise", "collect" in Session.problems, "off": the detector and reads of unwritten memory
    cta_strict  the threads of a CTA meet at tl.debug_barrier() only: needed before a scalar release on
                Triton < 3.9, which emits none, and after a wait by one thread
    resident    so many programs are alive at a time; None: all
    max_idle    polls per program without a change of memory that make a livelock
    poisoned, channels, rings
                names of kernel arguments: like Session.poison and Session.channel(fill=False), for tensors that
                only the launch code under test gets to see
    continued   a launch may go on in channels that an earlier one has filled in part: words that are there are final,
                and a store to one is an error.  Otherwise channels must be filled with the sentinel before each launch
    """
    global _open
    if not interpreter.active():
        raise NotModelledError("needs TRITON_INTERPRET=1, set before Triton is imported")
    if _open:
        raise NotModelledError("cooperate() does not nest")
    if not isinstance(schedule, Schedule):
        schedule = SCHEDULES[schedule](seed=seed)
    session = Session(Options(schedule, seed=seed, **options))
    import triton.runtime.interpreter as stock  # only where kernels are interpreted

    with interpreter.accurate(), contextlib.ExitStack() as stack:
        _Patches(session, stock).install(stack)
        _open = True
        try:
            yield session
        finally:
            _open = False
