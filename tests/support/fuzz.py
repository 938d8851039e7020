"""Random calls of RNN and RNNCell beside torch.nn's: the same answer, gradients and warnings, or the same error.

A case is all a number says. Whatever fails prints the line that runs that case alone.
"""

import contextlib
import dataclasses
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
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@dataclasses.dataclass
class Case:
    name: str  # of the class, RNN or RNNCell
    arguments: tuple
    options: dict
    inputs: list  # what the module is called with: a tensor or PackedSequence, a tensor or None
    training: bool = True
    frozen: tuple = ()  # parameters that need no gradient, by the start of their names
    used: tuple = (True, True)  # outputs that the loss depends on
    autocast: bool = False
    grad: bool = True
    what: str = "fine"  # what is wrong with it


def case(number, kernels=False):
    """Case `number`. With `kernels`, of those that reach a kernel, and small enough for the interpreter."""
    rng = random.Random(number)
    made = (_cell if rng.random() < 0.25 else _rnn)(rng, kernels)
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


def _rnn(rng, small):
    dtype, common = _common(rng, small)
    I, H = rng.randint(1, 9), rng.randint(1, 20)
    L = rng.choices((1, 2, 3), (18, 3, 1) if small else (5, 3, 1))[0]
    T, B = rng.randint(1, 3 if small else 4), rng.randint(1, 3)
    batch_first, bidirectional = rng.random() < 0.4, rng.random() < (0.2 if small else 0.4)
    options = dict(
        num_layers=L,
        nonlinearity=rng.choice(["tanh", "relu"]),
        bias=rng.random() < 0.7,
        batch_first=batch_first,
        dropout=rng.choice([0.0, 0.0, 0.0 if small else 0.3, 1.0]),  # the kernels' masks are other ones than torch's
        bidirectional=bidirectional,
        dtype=dtype,
    )
    options = {name: value for name, value in options.items() if name == "dtype" or rng.random() < 0.9}
    states = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    kind = rng.choices(["batched", "unbatched", "packed"], (4, 2, 4))[0]
    if kind == "unbatched":
        x, state = _tensor(rng, (T, I), dtype), (states, H)
    elif kind == "batched":
        x = _tensor(rng, (B, T, I) if options.get("batch_first") else (T, B, I), dtype)
        state = (states, B, H)
    else:
        lengths = [rng.randint(1, T) for _ in range(B)]
        is_sorted = rng.random() < 0.5
        sequences = [_tensor(rng, (n, I), dtype) for n in (sorted(lengths)[::-1] if is_sorted else lengths)]
        x, state = pack_sequence(sequences, enforce_sorted=is_sorted), (states, B, H)
    hx = _tensor(rng, state, dtype) if rng.random() < 0.6 else None
    used = rng.choice([(True, True), (True, True), (True, False), (False, True)])
    return Case("RNN", (I, H), options, [x, hx], used=used, **common)


def _cell(rng, small):
    dtype, common = _common(rng, small)
    I, H, B = rng.randint(1, 9), rng.randint(1, 20), rng.randint(1, 3)
    options = dict(bias=rng.random() < 0.7, nonlinearity=rng.choice(["tanh", "relu"]))
    options = {name: value for name, value in options.items() if rng.random() < 0.9} | dict(dtype=dtype)
    lead = (B,) if rng.random() < 0.7 else ()
    hx = _tensor(rng, (*lead, H), dtype) if rng.random() < 0.7 else None
    return Case("RNNCell", (I, H), options, [_tensor(rng, (*lead, I), dtype), hx], used=(True,), **common)


def _spoil(rng, case):
    """Makes one thing wrong, or odd, with the case; sometimes two."""
    cell = case.name == "RNNCell"
    case.autocast = False  # what does not fit then fails deep inside torch's CPU operators, in words of their own
    kinds = [_input_size, _input_dim, _input_dtype, _state_size, _state_dim, _state_batch, _state_dtype]
    kinds += [_empty_batch]
    kinds += [_nonlinearity] if cell else [_constructor, _constructor, _constructor, _no_steps]
    spoilers = rng.sample(kinds, rng.choice([1, 1, 1, 2]))
    for spoiler in spoilers:
        with contextlib.suppress(IndexError, RuntimeError, TypeError):  # not after what the other one did
            spoiler(rng, case)
    case.what = ", ".join(spoiler.__name__.strip("_") for spoiler in spoilers)


def _change_input(case, change):
    x = case.inputs[0]
    if isinstance(x, PackedSequence):
        case.inputs[0] = PackedSequence(change(x.data), *x[1:])
    else:
        case.inputs[0] = change(x)


def _input_size(rng, case):
    _change_input(case, lambda x: torch.cat([x, x[..., :1]], -1))


def _input_dim(rng, case):
    _change_input(case, rng.choice([lambda x: x[0], lambda x: x[None], lambda x: x[None, None]]))


def _input_dtype(rng, case):
    other = rng.choice([t for t in (*DTYPES, torch.int64) if t is not case.options["dtype"]])
    _change_input(case, lambda x: x.to(other))


def _unsorted(case):
    """Torch then sorts hx before it looks at its shape, and takes or misses rows; see test_modules for what we do."""
    x = case.inputs[0]
    return isinstance(x, PackedSequence) and x.sorted_indices is not None


def _state(case):
    x, hx = case.inputs
    if hx is None:
        I, H = case.arguments[:2]
        batch = [x.batch_sizes[0]] if isinstance(x, PackedSequence) else list(x.shape[-2:-1])
        hx = torch.zeros(*([] if case.name == "RNNCell" else [1]), *batch, H)
    return hx.to(case.options["dtype"])


def _state_size(rng, case):
    hx = _state(case)
    case.inputs[1] = torch.cat([hx, hx[..., :1]], -1)


def _state_dim(rng, case):
    if not _unsorted(case):
        hx = _state(case)
        case.inputs[1] = rng.choice([hx[0], hx[None], hx[None, None]])


def _state_batch(rng, case):
    hx = _state(case)
    dim = 0 if _unsorted(case) else rng.randrange(hx.dim())
    case.inputs[1] = torch.cat([hx, hx.narrow(dim, 0, 1)], dim)


def _state_dtype(rng, case):
    case.inputs[1] = _state(case).to(rng.choice([t for t in DTYPES if t is not case.options["dtype"]]))


def _empty_batch(rng, case):
    """Nothing wrong with that."""
    x, hx = case.inputs
    if case.name == "RNNCell":
        case.inputs = [x[:0], hx if hx is None else hx[:0]] if x.dim() == 2 else case.inputs
    elif not isinstance(x, PackedSequence) and x.dim() == 3:
        dim = 0 if case.options.get("batch_first") else 1
        case.inputs = [x.narrow(dim, 0, 0), hx if hx is None else hx[:, :0]]


def _no_steps(rng, case):
    x = case.inputs[0]
    if not isinstance(x, PackedSequence) and x.dim() in (2, 3):
        case.inputs[0] = x.narrow(1 if x.dim() == 3 and case.options.get("batch_first") else 0, 0, 0)


def _nonlinearity(rng, case):
    case.options["nonlinearity"] = "gelu"


def _constructor(rng, case):
    name, values = rng.choice(
        [
            ("hidden_size", (0, -1, 4.0, "4")),
            ("input_size", (0, -3, 4.0, None)),
            ("num_layers", (0, -1)),
            ("nonlinearity", ("gelu", None, "TANH")),
            ("bias", (0, 1, "True", None)),
            ("batch_first", (0, 1, "False")),
            ("dropout", (-0.1, 1.5, True, "half")),
            ("proj_size", (0, 2)),
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
    return found, [str(w.message) for w in seen]


def _run(case, module):
    leaves = [t.data if isinstance(t, PackedSequence) else t for t in case.inputs if t is not None]
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in leaves]
    x, *hx = leaves
    if isinstance(case.inputs[0], PackedSequence):
        x = PackedSequence(x, *case.inputs[0][1:])
    torch.manual_seed(1)
    with torch.set_grad_enabled(case.grad), torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
        outputs = module(x, *hx)
    outputs = list(outputs) if case.name == "RNN" else [outputs]
    if isinstance(outputs[0], PackedSequence):
        data, *order = outputs[0]
        assert isinstance(x, PackedSequence) and torch.equal(order[0], x.batch_sizes)
        assert order[1] is x.sorted_indices and order[2] is x.unsorted_indices
        outputs[0] = data
    if not case.grad:
        return outputs, ()
    cotangents = [c if use else None for c, use in zip(like(outputs), case.used, strict=True)]
    return outputs, gradients(outputs, cotangents, [*leaves, *module.parameters()], allow_unused=True)


def _dtype(case):
    """In which it is computed."""
    return torch.bfloat16 if case.autocast else case.options["dtype"]


def _gates_may_differ(case, mine, its):
    """relu's slope jumps at 0, and in two bytes a pre-activation is often enough within rounding of it.  Which units are above 0
    the outputs of one layer show; those of layers below are not seen."""
    if case.options.get("nonlinearity") != "relu" or _dtype(case).itemsize > 2:
        return False
    return case.options.get("num_layers", 1) > 1 or any(not torch.equal(a > 0, b > 0) for a, b in zip(mine, its, strict=True))


def _tolerance(case, expected):
    """Largest difference between two right answers, absolute, for one tensor."""
    dtype = _dtype(case)
    unit = torch.finfo(dtype).eps / 2
    scale = max([1.0, *expected.detach().double().abs().flatten().tolist()])
    L, D = case.options.get("num_layers", 1), 2 if case.options.get("bidirectional") else 1
    I, H = case.arguments
    steps = L * 4  # T <= 4
    if dtype.itemsize == 2:
        # torch rounds both products, their sum and the state at each step, on the way back too, and adds up weight
        # gradients step by step: independent errors of 1 / sqrt(3) units and less, here to six standard deviations
        return 6 * math.sqrt(12 * steps / 3) * unit * scale
    # every product and sum in the longest chain, there and back, rounded the same way, on values up to 10 * scale
    return 2 * steps * (max(I, D * H) + H + 4) * unit * 10 * scale


# The two errors that torch's CPU operators word by which operator comes first: what is compared, and with what.
MIXED = re.compile(r"(?:mat1 and mat2 must|expected m1 and m2 to) have the same dtype, but got:? (long int|\S+) (?:and|!=) (\S+)")


def _in_our_words(case, theirs):
    """Torch's outcome, with the answers and words in which we differ from it on purpose put into ours."""
    found = isinstance(theirs[0], type) and MIXED.fullmatch(theirs[1])
    if found:
        given, weight = (name.removeprefix("c10::").removesuffix(" int").title().replace("Bfloat", "BFloat") for name in found.groups())
        if case.name == "RNN":  # as on cuDNN, which says which tensor it is
            return RuntimeError, (
                "Input and hidden tensors are not the same dtype, found input tensor with "
                f"{weight} and hidden tensor with {given}"
            )
        return RuntimeError, f"mat1 and mat2 must have the same dtype, but got {given} and {weight}"
    if not isinstance(theirs[0], type) or theirs[1].startswith("mat1 and mat2 shapes cannot be multiplied"):
        (x, hx), H = case.inputs, case.arguments[1]
        if case.name == "RNNCell" and x.dim() == 1 and hx is not None and hx.dim() == 2:
            # where hx is [H,...], torch takes it for a batch: it fails in the product, or returns H states
            return ValueError, f"hx must have shape [H] = [{H}] for an input [I], got {list(hx.shape)}"
    return theirs


def _compare(case):
    """The share of its tolerance that the worst tensor needed; AssertionError if that is above 1."""
    (ours, our_warnings), (theirs, their_warnings) = _outcome(case, rnn_triton), _outcome(case, nn)
    assert our_warnings == their_warnings, f"warnings: {our_warnings}, torch: {their_warnings}"
    if isinstance(theirs[0], type) or isinstance(ours[0], type):
        theirs = _in_our_words(case, theirs)
        assert ours == theirs, f"{ours if isinstance(ours[0], type) else 'no error'}, torch: {theirs}"
        return 0.0
    for (name, mine), (_, its) in zip(ours[0].named_parameters(), theirs[0].named_parameters(), strict=True):
        assert torch.equal(mine, its), f"initial {name} differs"
    worst = 0.0
    for kind, mine, its in (("output", ours[1], theirs[1]), ("gradient", ours[2], theirs[2])):
        for i, (a, b) in enumerate(zip(mine, its, strict=True)):
            assert (a is None) == (b is None), f"{kind} {i}: {a}, torch: {b}"
            if a is None:
                continue
            assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{kind} {i}: {a.shape} {a.dtype}, {b.shape} {b.dtype}"
            if kind == "gradient" and _gates_may_differ(case, ours[1], theirs[1]):
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
        x, hx = ((t.data.shape, t.data.dtype, t.data.stride()) if t is not None else None for t in made.inputs)
        interpret = "TRITON_INTERPRET=1 " if kernels else ""
        raise AssertionError(
            f"{error}\n{made.name}{made.arguments} {made.options} ({made.what}), input {type(made.inputs[0]).__name__} "
            f"{x}, hx {hx}, training {made.training}, grad {made.grad}, autocast {made.autocast}\n"
            f"{interpret}PYTHONPATH=.:tests python -c 'from support import fuzz; fuzz.check({number}, {kernels})'"
        ) from None
