"""Random calls of the modules beside torch.nn's: the same answer, gradients and warnings, or the same error.

A case is all a number says. Whatever fails prints the line that runs that case alone.
"""

import contextlib
import copy
import dataclasses
import functools
import math
import random
import re
import warnings

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnn_triton

from .problems import gradients, like

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@dataclasses.dataclass
class Case:
    name: str  # of the class
    arguments: tuple
    options: dict
    input: torch.Tensor | PackedSequence
    states: list  # none, or one for each state of the cell
    training: bool = True
    frozen: tuple = ()  # parameters that need no gradient, by the start of their names
    used: tuple = ()  # outputs that the loss depends on
    autocast: bool = False
    grad: bool = True
    what: str = "fine"  # what is wrong with it

    @property
    def is_cell(self):
        return self.name.endswith("Cell")

    @property
    def size(self):
        """Of the output and the first state."""
        return self.options.get("proj_size") or self.arguments[1]

    def called(self, module, x, states):
        return module(x, *[] if not states else states if len(states) == 1 else [tuple(states)])


def case(number, kernels=False):
    """Case `number`. With `kernels`, of those that reach a kernel, and small enough for the interpreter."""
    rng = random.Random(number)
    made = (_cell if rng.random() < 0.25 else _layers)(rng, kernels)
    if not kernels and rng.random() < 0.35:
        _spoil(rng, made)
    return made


# ---- what a case is made of ----------------------------------------------------------------------------------


def _tensor(rng, shape, dtype):
    """Normal numbers in one of the memory layouts that callers come with."""
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    t = torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)
    layout = rng.choice(["contiguous", "contiguous", "reversed dimensions", "sliced", "expanded"])
    if layout == "reversed dimensions":
        order = tuple(range(t.dim()))[::-1]
        return t.permute(order).contiguous().permute(order)
    if layout == "sliced":  # every other element of a larger tensor, from an odd offset
        larger = torch.zeros(*shape[:-1], 2 * shape[-1] + 1, dtype=dtype)
        larger[..., 1::2] = t
        return larger[..., 1::2]
    if layout == "expanded" and 0 not in shape:
        dim = rng.randrange(t.dim())
        return t.narrow(dim, 0, 1).expand(shape)
    return t


def _common(rng, small):
    dtype = rng.choices(DTYPES, (5, 3, 2, 1))[0]
    frozen = tuple(name for name in WEIGHTS if rng.random() < 0.1)
    autocast = dtype is torch.float32 and rng.random() < 0.15
    grad = rng.random() < (0.4 if small else 0.85)
    return dtype, dict(frozen=frozen, autocast=autocast, grad=grad, training=rng.random() < 0.8)


def _layers(rng, small):
    dtype, common = _common(rng, small)
    name = rng.choice(["RNN", "GRU", "LSTM"])
    I, H = rng.randint(1, 9), rng.randint(1, 20)
    L = rng.choices((1, 2, 3), (18, 3, 1) if small else (5, 3, 1))[0]
    T, B = rng.randint(1, 3 if small else 4), rng.randint(1, 3)
    batch_first, bidirectional = rng.random() < 0.4, rng.random() < (0.2 if small else 0.4)
    options = dict(
        num_layers=L,
        bias=rng.random() < 0.7,
        batch_first=batch_first,
        dropout=rng.choice([0.0, 0.0, 0.0 if small else 0.3, 1.0]),  # the kernels' masks are other ones than torch's
        bidirectional=bidirectional,
        dtype=dtype,
    )
    if name == "RNN":
        options["nonlinearity"] = rng.choice(["tanh", "relu"])
    if name == "LSTM" and H > 1:
        options["proj_size"] = rng.choice([0, 0, rng.randint(1, H - 1)])
    options = {name: value for name, value in options.items() if name == "dtype" or rng.random() < 0.9}
    made = Case(name, (I, H), options, torch.empty(0), [], **common)
    number = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    kind = rng.choices(["batched", "unbatched", "packed"], (4, 2, 4))[0]
    batch = (B,)
    if kind == "unbatched":
        made.input, batch = _tensor(rng, (T, I), dtype), ()
    elif kind == "batched":
        made.input = _tensor(rng, (B, T, I) if options.get("batch_first") else (T, B, I), dtype)
    else:
        lengths = [rng.randint(1, T) for _ in range(B)]
        is_sorted = rng.random() < 0.5
        sequences = [_tensor(rng, (n, I), dtype) for n in (sorted(lengths)[::-1] if is_sorted else lengths)]
        made.input = pack_sequence(sequences, enforce_sorted=is_sorted)
    if rng.random() < 0.6:
        made.states = [_tensor(rng, (number, *batch, size), dtype) for size in [made.size] + [H] * (name == "LSTM")]
    made.used = _used(rng, 3 if name == "LSTM" else 2)
    return made


def _used(rng, outputs):
    """Which outputs the loss depends on: all, or all but one, or one."""
    n = rng.randrange(outputs)
    return rng.choice([(True,) * outputs, (True,) * outputs, tuple(i != n for i in range(outputs)), tuple(i == n for i in range(outputs))])


def _cell(rng, small):
    dtype, common = _common(rng, small)
    name = rng.choice(["RNNCell", "GRUCell", "LSTMCell"])
    I, H, B = rng.randint(1, 9), rng.randint(1, 20), rng.randint(1, 3)
    options = dict(bias=rng.random() < 0.7)
    if name == "RNNCell":
        options["nonlinearity"] = rng.choice(["tanh", "relu"])
    options = {name: value for name, value in options.items() if rng.random() < 0.9} | dict(dtype=dtype)
    lead = (B,) if rng.random() < 0.7 else ()
    number = 2 if name == "LSTMCell" else 1
    states = [_tensor(rng, (*lead, H), dtype) for _ in range(number)] if rng.random() < 0.7 else []
    used = _used(rng, 2) if number == 2 else (True,)
    return Case(name, (I, H), options, _tensor(rng, (*lead, I), dtype), states, used=used, **common)


def _spoil(rng, case):
    """Makes one thing wrong, or odd, with the case; sometimes two."""
    case.autocast = False  # what does not fit then fails deep inside torch's CPU operators, in words of their own
    kinds = [_input_size, _input_dim, _input_dtype, _state_size, _state_dim, _state_batch, _state_dtype]
    kinds += [_empty_batch]
    kinds += [_nonlinearity] * (case.name == "RNNCell")
    kinds += [] if case.is_cell else [_constructor, _constructor, _constructor, _no_steps]
    spoilers = rng.sample(kinds, rng.choice([1, 1, 1, 2]))
    for spoiler in spoilers:
        with contextlib.suppress(IndexError, RuntimeError, TypeError):  # not after what the other one did
            spoiler(rng, case)
    case.what = ", ".join(spoiler.__name__.strip("_") for spoiler in spoilers)


def _change_input(case, change):
    x = case.input
    case.input = PackedSequence(change(x.data), *x[1:]) if isinstance(x, PackedSequence) else change(x)


def _input_size(rng, case):
    _change_input(case, lambda x: torch.cat([x, x[..., :1]], -1))


def _input_dim(rng, case):
    _change_input(case, rng.choice([lambda x: x[0], lambda x: x[None], lambda x: x[None, None]]))


def _input_dtype(rng, case):
    other = rng.choice([t for t in (*DTYPES, torch.int64) if t is not case.options["dtype"]])
    _change_input(case, lambda x: x.to(other))


def _unsorted(case):
    """Torch then sorts hx before it looks at its shape, and takes or misses rows; see test_packed for what we do."""
    x = case.input
    return isinstance(x, PackedSequence) and x.sorted_indices is not None


def _change_state(rng, case, change):
    """Changes one of the states; makes them of zeros first if there are none."""
    if not case.states:
        x, H = case.input, case.arguments[1]
        batch = [x.batch_sizes[0]] if isinstance(x, PackedSequence) else list(x.shape[-2:-1])
        sizes = [case.size] + [H] * case.name.startswith("LSTM")
        case.states = [torch.zeros(*[] if case.is_cell else [1], *batch, size) for size in sizes]
    case.states = [t.to(case.options["dtype"]) for t in case.states]
    n = rng.randrange(len(case.states))
    case.states[n] = change(case.states[n])


def _state_size(rng, case):
    _change_state(rng, case, lambda t: torch.cat([t, t[..., :1]], -1))


def _state_dim(rng, case):
    if not _unsorted(case):
        _change_state(rng, case, rng.choice([lambda t: t[0], lambda t: t[None], lambda t: t[None, None]]))


def _state_batch(rng, case):
    def change(t):
        dim = 0 if _unsorted(case) else rng.randrange(t.dim())
        return torch.cat([t, t.narrow(dim, 0, 1)], dim)

    _change_state(rng, case, change)


def _state_dtype(rng, case):
    other = rng.choice([t for t in DTYPES if t is not case.options["dtype"]])
    _change_state(rng, case, lambda t: t.to(other))


def _empty_batch(rng, case):
    """Nothing wrong with that."""
    x = case.input
    if case.is_cell:
        if x.dim() == 2:
            case.input, case.states = x[:0], [t[:0] for t in case.states]
    elif not isinstance(x, PackedSequence) and x.dim() == 3:
        dim = 0 if case.options.get("batch_first") else 1
        case.input, case.states = x.narrow(dim, 0, 0), [t[:, :0] for t in case.states]


def _no_steps(rng, case):
    x = case.input
    if not isinstance(x, PackedSequence) and x.dim() in (2, 3):
        case.input = x.narrow(1 if x.dim() == 3 and case.options.get("batch_first") else 0, 0, 0)


def _nonlinearity(rng, case):
    case.options["nonlinearity"] = "gelu"


def _constructor(rng, case):
    name, values = rng.choice(
        [
            ("hidden_size", (0, -1, 4.0, "4")),
            ("input_size", (0, -3, 4.0, None)),
            ("num_layers", (0, -1)),
            ("nonlinearity", ("gelu", None, "TANH")) if case.name == "RNN" else ("num_layers", (0, -2)),
            ("bias", (0, 1, "True", None)),
            ("batch_first", (0, 1, "False")),
            ("dropout", (-0.1, 1.5, True, "half")),
            ("proj_size", (0, 2) if case.name != "LSTM" else (-1, case.arguments[1], 100)),
        ]
    )
    value = rng.choice(values)
    if name in ("input_size", "hidden_size"):
        I, H = case.arguments
        case.arguments = (value, H) if name == "input_size" else (I, value)
    else:
        case.options[name] = value


# ---- both modules, run and compared --------------------------------------------------------------------------


def _outcome(case, package):
    """(module, outputs, gradients) or the error as (class, message); and the warnings, as text."""
    module_class = getattr(package, case.name)
    options = dict(case.options)
    if package is rnn_triton and options.get("dtype") is torch.float32:
        options["precision"] = "ieee"  # as torch does on a CPU
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            torch.manual_seed(0)
            module = module_class(*case.arguments, **options).train(case.training)
            for name, p in module.named_parameters():
                p.requires_grad_(not name.startswith(case.frozen))
            found = module, *_run(case, module)
        except Exception as error:
            found = type(error), str(error)
    return found, [str(w.message) for w in seen if "not supported with oneDNN" not in str(w.message)]


def _run(case, module):
    leaves = [t.data if isinstance(t, PackedSequence) else t for t in (case.input, *case.states)]
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in leaves]
    x, *states = leaves
    if isinstance(case.input, PackedSequence):
        x = PackedSequence(x, *case.input[1:])
    call = functools.partial(_called_and_checked, case) if isinstance(module, nn.LSTM | nn.LSTMCell) else case.called
    torch.manual_seed(1)
    # oneDNN has no LSTM of bf16 on some CPUs, and torch then raises an error
    one_dnn = torch.backends.mkldnn.flags(enabled=not case.autocast)
    with torch.set_grad_enabled(case.grad), torch.autocast("cpu", torch.bfloat16, enabled=case.autocast), one_dnn:
        outputs = call(module, x, states)
    if case.is_cell:
        outputs = list(outputs) if case.name == "LSTMCell" else [outputs]
    else:
        y, last = outputs
        outputs = [y, *(last if case.name == "LSTM" else [last])]
    if isinstance(outputs[0], PackedSequence):
        data, *order = outputs[0]
        assert isinstance(x, PackedSequence) and torch.equal(order[0], x.batch_sizes)
        assert order[1] is x.sorted_indices and order[2] is x.unsorted_indices
        outputs[0] = data
    if not case.grad:
        return outputs, ()
    cotangents = [c if use else None for c, use in zip(like(outputs), case.used, strict=True)]
    return outputs, gradients(outputs, cotangents, [*leaves, *module.parameters()], allow_unused=True)


def _called_and_checked(case, module, x, states):
    """Calls torch's LSTM or LSTMCell and raises what its other classes raise where these two do not look: with packed input they go on
    with whatever there is, beyond the end of tensors, and on a CPU a state of another dtype only makes results of that dtype."""
    if isinstance(x, PackedSequence):
        if states:
            module.check_forward_args(x.data, states, x.batch_sizes)
        else:
            module.check_input(x.data, x.batch_sizes)
    first, dtype = (1 if case.is_cell else 0), case.options["dtype"]
    others = [t.dtype for t in states[first:] if t.dtype is not dtype]
    outputs = case.called(module, x, [*states[:first], *[t.to(dtype) for t in states[first:]]])
    if others:
        names = [torch.empty(0, dtype=t).type().split(".")[-1].removesuffix("Tensor") for t in (dtype, others[0])]
        words = "Input and hidden tensors are not the same dtype, found input tensor with {} and hidden tensor with {}"
        raise RuntimeError(words.format(*names))
    return outputs


def _dtype(case):
    """In which it is computed."""
    return torch.bfloat16 if case.autocast else case.options["dtype"]


def _gates_may_differ(case, module, mine, its):
    """relu's slope jumps at 0, and in two bytes a pre-activation is often enough within rounding of it.  Which units are above 0
    the outputs of one layer show; those of layers below are not seen.  On a CPU our backward pass computes them again in fp32."""
    if case.options.get("nonlinearity") != "relu" or _dtype(case).itemsize > 2:
        return False
    if case.options.get("num_layers", 1) > 1:
        return True
    x, states = case.input, [t.float() for t in case.states]
    x = PackedSequence(x.data.float(), *x[1:]) if isinstance(x, PackedSequence) else x.float()
    wide = dataclasses.replace(case, input=x, states=states, autocast=False, grad=False)
    exact = _run(wide, copy.deepcopy(module).float())[0]
    return any(not (torch.equal(a > 0, c > 0) and torch.equal(b > 0, c > 0)) for a, b, c in zip(mine, its, exact, strict=True))


def _tolerance(case, expected):
    """Largest difference between two right answers, absolute, for one tensor."""
    dtype = _dtype(case)
    unit = torch.finfo(dtype).eps / 2
    scale = max([1.0, *expected.detach().double().abs().flatten().tolist()])
    L, D = case.options.get("num_layers", 1), 2 if case.options.get("bidirectional") else 1
    I, H = case.arguments
    steps, gates = L * 4, GATES[case.name.removesuffix("Cell")]  # T <= 4
    if dtype.itemsize == 2:
        # torch rounds both products of a gate, their sum, what the gate makes of it and the state at each step, on the way back too,
        # and adds up weight gradients step by step: independent errors of 1 / sqrt(3) units and less, here to six standard deviations
        return 6 * math.sqrt(12 * gates * steps / 3) * unit * scale
    # every product and sum in the longest chain, there and back, rounded the same way, on values up to 10 * scale
    return 2 * steps * (max(I, D * H) + gates * (H + 4)) * unit * 10 * scale


# The two errors that torch's CPU operators word by which operator comes first: what is compared, and with what.
MIXED = re.compile(r"(?:mat1 and mat2 must|expected m1 and m2 to) have the same dtype, but got:? (long int|\S+) (?:and|!=) (\S+)")


def _in_our_words(case, theirs):
    """Torch's outcome, with the answers and words in which we differ from it on purpose put into ours."""
    x, states, H = case.input, case.states, case.arguments[1]
    found = isinstance(theirs[0], type) and MIXED.fullmatch(theirs[1])
    if found:
        given, weight = (name.removeprefix("c10::").removesuffix(" int").title().replace("Bfloat", "BFloat") for name in found.groups())
        if not case.is_cell:  # as on cuDNN, which says which tensor it is
            return RuntimeError, (
                "Input and hidden tensors are not the same dtype, found input tensor with "
                f"{weight} and hidden tensor with {given}"
            )
        return RuntimeError, f"mat1 and mat2 must have the same dtype, but got {given} and {weight}"
    if not isinstance(theirs[0], type) or theirs[1].startswith("mat1 and mat2 shapes cannot be multiplied"):
        if case.is_cell and x.dim() == 1 and states and states[0].dim() == 2:
            # where hx is [H,...], torch takes it for a batch: it fails in the product, or returns H states
            return ValueError, f"hx must have shape [H] = [{H}] for an input [I], got {list(states[0].shape)}"
    return theirs


def _compare(case):
    """The share of its tolerance that the worst tensor needed; AssertionError if that is above 1."""
    (ours, our_warnings), (theirs, their_warnings) = _outcome(case, rnn_triton), _outcome(case, nn)
    assert our_warnings == their_warnings, f"warnings: {our_warnings}, torch: {their_warnings}"
    if isinstance(theirs[0], type) or isinstance(ours[0], type):
        ours, theirs = (found if isinstance(found[0], type) else "no error" for found in (ours, _in_our_words(case, theirs)))
        assert ours == theirs, f"{ours}, torch: {theirs}"
        return 0.0
    for (name, mine), (_, its) in zip(ours[0].named_parameters(), theirs[0].named_parameters(), strict=True):
        assert torch.equal(mine, its), f"initial {name} differs"
    worst = 0.0
    for kind, mine, its in (("output", ours[1], theirs[1]), ("gradient", ours[2], theirs[2])):
        for i, (a, b) in enumerate(zip(mine, its, strict=True)):
            if case.options.get("proj_size") and b is None:
                b = None if a is None else torch.zeros_like(a)  # c after one step does not depend on weight_hr, whose product has it
            assert (a is None) == (b is None), f"{kind} {i}: {a}, torch: {b}"
            if a is None:
                continue
            # on a CPU torch promotes what gates multiply to the dtype of a state, which autocast leaves alone
            dtype = torch.bfloat16 if case.autocast and kind == "output" else b.dtype
            assert (a.shape, a.dtype) == (b.shape, dtype), f"{kind} {i}: {a.shape} {a.dtype}, {b.shape} {dtype}"
            if kind == "gradient" and _gates_may_differ(case, theirs[0], ours[1], theirs[1]):
                continue
            if a.numel():
                difference = (a.double() - b.double()).abs().max().item()
                share = difference / _tolerance(case, b)
                assert share <= 1, f"{kind} {i} differs by {difference}, {share} times what it may"  # NaN fails too
                worst = max(worst, share)
    return worst


def check(number, kernels=False):
    """Runs a case, see `case`, and says what differed and how to run it again."""
    made = case(number, kernels)
    try:
        return _compare(made)
    except AssertionError as error:
        x, *states = ((t.data.shape, t.data.dtype, t.data.stride()) for t in (made.input, *made.states))
        interpret = "TRITON_INTERPRET=1 " if kernels else ""
        raise AssertionError(
            f"{error}\n{made.name}{made.arguments} {made.options} ({made.what}), input {type(made.input).__name__} "
            f"{x}, states {states}, training {made.training}, grad {made.grad}, autocast {made.autocast}\n"
            f"{interpret}PYTHONPATH=.:tests python -c 'from support import fuzz; fuzz.check({number}, {kernels})'"
        ) from None
