"""Launches with lengths, resets and states to begin anew from, in each regime, against a loop over rows and steps (support/sequences.py)."""

import networkx
import pytest
import torch
from cooperative import CooperativeError, cooperate
from support.mutants import Change, launched_with
from support.problems import like, problem
from support.sequences import Rows

import rnn_triton
from bench.compiled import machine_code, resources
from rnn_triton import overriding
from rnn_triton.cells import named, reference
from rnn_triton.cells.sequences import Sequences
from rnn_triton.launch import dispatch
from rnn_triton.plan import choose, hardware
from rnn_triton.plan.problem import Problem

CELLS = ["elman_tanh", "gru", "lstm", "leaky_tanh"]
all_cells = pytest.mark.parametrize("name", CELLS)
GIVEN = [("lengths",), ("reset",), ("lengths", "reset", "restart")]
given = pytest.mark.parametrize("given", GIVEN, ids="-".join)
ways = pytest.mark.parametrize("reverse", [False, True], ids=["up", "down"])


@pytest.mark.interpret
@pytest.mark.thin(17)
@all_cells
@given
@ways
@pytest.mark.parametrize("kind, T, B, I, H, how", [
    ("bf16", 5, 9, 24, 30, {}),
    ("tf32", 4, 3, 7, 16, dict(w_ih_home="gemm")),
    ("fp64", 4, 4, 5, 13, {}),
])  # fmt: skip
def test_one_cta(name, given, reverse, kind, T, B, I, H, how):
    with overriding(regime="one_cta", **how):
        Rows(name, kind, T, B, I, H, given, reverse=reverse, first=kind != "tf32").check()


@pytest.mark.interpret
@pytest.mark.thin(19)
@all_cells
@given
@ways
@pytest.mark.parametrize("kind, T, B, I, H", [("bf16", 4, 3, 24, 29), ("fp64", 3, 4, 5, 13)])
def test_a_launch_a_step(name, given, reverse, kind, T, B, I, H):
    with overriding(regime="per_step"):
        Rows(name, kind, T, B, I, H, given, reverse=reverse, first=kind == "bf16").check()


def grouped(passes):
    """Runs a launch's CTAs side by side, in memory where they see each other's words late."""
    return lambda: cooperate(channels=("out_ptr",), poisoned=("last_ptr",) if passes == "forward" else (), schedule="rr")


GROUPS = dict(regime="cta_group", warps=4, units=16, block_b=8)


@pytest.mark.interpret
@pytest.mark.thin(22)
@all_cells
@given
@ways
@pytest.mark.parametrize("kind, T, B, I, H, how", [
    ("bf16", 4, 17, 24, 30, dict(protocol="sentinel", groups=2)),  # the first group has two tiles, the second one
    ("tf32", 3, 3, 7, 29, dict(protocol="counter")),
])  # fmt: skip
def test_groups(name, given, reverse, kind, T, B, I, H, how):
    with overriding(**GROUPS, **how):
        Rows(name, kind, T, B, I, H, given, reverse=reverse, first=kind == "bf16").check(grouped("forward"), grouped("backward"))


def by_function(name, tensors, **options):
    """[y, *last states] by the function that callers have, of what `problem` returns"""
    x, w_ih, w_hh, b_ih, b_hh, *others = tensors
    if name == "leaky_tanh":
        h0, leak = others
        y, last = rnn_triton.leaky(x, w_ih, w_hh, leak, b_ih, b_hh, h0, **options)
    elif name == "lstm":
        y, last = rnn_triton.lstm(x, w_ih, w_hh, b_ih, b_hh, tuple(others), **options)
    else:
        y, last = (rnn_triton.gru if name == "gru" else rnn_triton.rnn)(x, w_ih, w_hh, b_ih, b_hh, *others, **options)
    return [y, *(last if name == "lstm" else [last])]


@pytest.mark.interpret
@pytest.mark.thin(2)
@all_cells
@ways
def test_functions_on_groups(name, reverse):
    """Results and all gradients, two CTAs, beside the reference in fp64"""
    T, B, cell = 3, 3, named(name)
    tensors = problem(T, B, 5, 20, dtype=torch.float32, cell=name)
    n = 5 + len(cell.states)
    anew = like(tensors[5:n], seed=2)
    sequences = Sequences(torch.tensor([3, 0, 2]), torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 0]]).bool(), tuple(t.double() for t in anew))
    options = dict(lengths=sequences.lengths, reset=sequences.reset, reset_state=tuple(anew) if name == "lstm" else anew[0])
    with overriding(**GROUPS):
        with grouped("forward")():
            results = by_function(name, tensors, reverse=reverse, precision="tf32x3", **options)
        cotangents = like(results)
        with grouped("backward")():
            results += torch.autograd.grad(results, tensors, cotangents)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    y, last = reference.recurrence(*wide[:5], tuple(wide[5:n]), cell, reverse, tuple(wide[n:]), sequences)
    exact = [y, *last, *torch.autograd.grad([y, *last], wide, [c.double() for c in cotangents])]
    # as Rows.check, and one product more
    limit = 4 * 2.0**-24 * ((1 + cell.kept) ** 0.5 + 2) * (2 * T + 2) ** 0.5
    for result, right in zip(results, exact, strict=True):
        assert (result.double() - right).norm() <= limit * right.norm()


@pytest.mark.interpret
@pytest.mark.thin(4)
@all_cells
@pytest.mark.parametrize("given", GIVEN[-1:], ids="-".join)
@pytest.mark.parametrize("lanes", ["both", "linked"])
@pytest.mark.parametrize("how", [GROUPS, dict(regime="one_cta")], ids=lambda how: how["regime"])
def test_lanes(name, given, lanes, how):
    alone = lanes == "both" and how["regime"] == "one_cta"  # nobody waits for anybody
    contexts = () if alone else (grouped("forward"), grouped("backward"))
    with overriding(**how):
        Rows(name, "bf16", 3, 3, 24, 29, given, lanes=lanes).check(*contexts)


@pytest.mark.interpret
@pytest.mark.thin(2)
@all_cells
@pytest.mark.parametrize("regime", ["one_cta", "per_step"])
def test_models_of_an_ensemble(name, regime):
    """They share lengths and resets, and each has states of its own: what each alone computes"""
    case = Rows(name, "bf16", 3, 9, 8, 13, ("lengths", "reset", "restart"))  # two tiles of each model
    settings = (name, True, None)
    w_ih, w_hh, *biases = case.weights[0]
    x, dy = torch.stack([case.x, case.x * 0.5]), torch.stack([case.dy, case.dy * 2])
    states, dstates, restart = ([torch.stack([s[0], -s[0]]) for s in of] for of in (case.states, case.dstates, case.restart))
    weights = [w.expand(2, *w.shape) for w in (w_ih, w_hh, *biases)]
    vectors = None if case.vectors is None else case.vectors[0].expand(2, -1, -1)
    together = case.sequences._replace(restart=tuple(restart))
    with overriding(regime=regime):
        y, last, kept = dispatch.forward(x, *weights, states, *settings, True, vectors, sequences=together)
        da, carried = dispatch.backward(weights[1], y, kept, dy, dstates, *settings, vectors, sequences=together)
        for m in range(2):
            one, alone = [s[m] for s in states], case.sequences._replace(restart=tuple(s[m] for s in restart))
            own = None if vectors is None else vectors[m]
            y_m, last_m, kept_m = dispatch.forward(x[m], *case.weights[0], one, *settings, True, own, sequences=alone)
            da_m, carried_m = dispatch.backward(w_hh, y_m, kept_m, dy[m], [s[m] for s in dstates], *settings, own, sequences=alone)
            pairs = zip([y, *last, da, *carried], [y_m, *last_m, da_m, *carried_m], strict=True)
            assert all(a is None if b is None else torch.equal(a[m], b) for a, b in pairs)


REGIMES = [GROUPS, dict(regime="one_cta"), dict(regime="per_step")]
COMPILED = [pytest.param("lstm", False, GIVEN[-1], "one", how, id=how["regime"]) for how in REGIMES]
COMPILED += [
    pytest.param(*of, how, marks=pytest.mark.long)
    for of in [
        ("elman_tanh", False, ("reset",), "one"), ("elman_tanh", True, ("lengths",), "one"), ("gru", True, GIVEN[-1], "one"),
        ("leaky_tanh", False, GIVEN[-1], "one"), ("lstm", False, GIVEN[-1], "both"), ("gru", False, GIVEN[-1], "linked"),
    ]
    for how in (REGIMES if of[-1] == "one" else REGIMES[:2])  # a launch a step has one lane
]  # fmt: skip


@pytest.mark.ptx
@pytest.mark.parametrize("name, reverse, given, lanes, how", COMPILED)
def test_compiled(name, reverse, given, lanes, how):
    """By the executor, in two tiles of rows"""
    with overriding(**how):
        Rows(name, "bf16", 5, 9, 16, 24, given, lanes=lanes, reverse=reverse).check()


# What is changed in a kernel, and the cell, direction and what is given of the case that notices it.
EVERYTHING = ("lengths", "reset", "restart")
CHANGES = {
    "one_cta.py": {
        "a step too many is stored": ("rounded, tl.where(t < lengths_of, rows, 0)", "rounded, tl.where(t <= lengths_of, rows, 0)",
                                      "elman_tanh", False, ("lengths",)),
        "an event a step early": ("if step + 1 == next_link:", "if step + 2 == next_link:", "elman_tanh", False, ("reset",)),
        "no event but the first one": ("                next_link = next_event(event)\n", "", "elman_tanh", False, ("reset",)),
        "an event is that of the link before": ("                event = tl.load(events_ptr + next_link)\n", "", "elman_tanh", False, ("reset",)),
        "no reset before the first step": ("        _, s, carried = _begin_anew(s, carried, event,", "        _begin_anew(s, carried, event,",
                                           "elman_tanh", False, ("reset",)),
        "h_n a step late": ("tl.where(t == last_t_of, rows, 0)\n                if HAS.last", "tl.where(t_1 == last_t_of, rows, 0)\n                if HAS.last",
                            "elman_tanh", False, ("lengths",)),
        "h_n of rows that ended before": ("        ended = tl.where(t == last_t_of, rows, 0)\n    if HAS.last", "        ended = rows\n    if HAS.last",
                                          "elman_tanh", False, ("lengths",)),
        "h_n of a row without steps": ("tl.where(lengths_of == 0, rows, 0)", "tl.where(lengths_of < 0, rows, 0)", "elman_tanh", False, ("lengths",)),
        "c_n of the last step of all": ("carried[n], ended, False, OWN, TILE, ())\n                alone", "carried[n], ended * 0, False, OWN, TILE, ())\n                alone",
                                        "lstm", False, ("lengths",)),
        "h0 enters at the last step of all": ("s = _put(s, begins,", "s = _put(s, begins & (t < 0),", "elman_tanh", True, ("lengths",)),
        "c0 enters at the last step of all": ("carried = _put(carried, begins,", "carried = _put(carried, begins & (t < 0),", "lstm", True, ("lengths",)),
        "dhn enters at the last step of all": ("load_state(first_ptr, ROW, rows, begins_of,", "load_state(first_ptr, ROW, rows, begins_of & (t < 0),",
                                               "elman_tanh", False, ("lengths",)),
        "c passes a reset": ("carried = _put(carried, anew,", "carried = _put(carried, anew & (step_own < 0),", "lstm", False, ("reset",)),
        "dh passes a reset": ("alone, s, carried = _begin_anew(\n                    s, carried, event,", "alone, s, carried = _begin_anew(\n                    s, carried, event & 0,", "elman_tanh", False, ("reset",)),
        "dh of what is not live": ("                begins = t_1 == first_t\n", "                begins = t_1 == first_t\n                alone &= begins == 0\n", "elman_tanh", False, ("lengths",)),
        "gradients of vectors are cut": ("OF_VECTORS: tl.constexpr = 0 if CELL.forward else ROUTES.vectors", "OF_VECTORS: tl.constexpr = 0",
                                         "leaky_tanh", False, ("reset",)),
        "gradients of vectors of what is not live": ("tl.where(t < lengths, after[n], carried[n])", "after[n]", "leaky_tanh", False, ("lengths",)),
        "what begins anew begins with zeros": ("tl.where(rows_to, given, tiles[n])", "tl.where(rows_to, 0.0, tiles[n])", "elman_tanh", False, EVERYTHING),
        "both directions begin anew at the same steps": ("events_ptr += lane * (T *", "events_ptr += 0 * (T *", "elman_tanh", "both", ("reset",)),
        "layers begin anew with the same states": ("restart_ptr += layer * step_out if LINKED else lane * H", "restart_ptr += lane * 0",
                                                   "elman_tanh", "both", EVERYTHING),
    },
    "cta_group.py": {
        "a length one too short": ("live = live_rows(word,", "live = live_rows(next_word,", "elman_tanh", False, ("lengths",)),
        "a reset a step late": ("            events_ptr += 1\n            next_word = tl.load(events_ptr)\n", "            next_word = tl.load(events_ptr)\n            events_ptr += 1\n",
                                "elman_tanh", False, ("reset",)),
        "h_n of the last step of all": ("(1 - reverse) * tl.maximum(steps - 1, 0) * step_words", "(1 - reverse) * (T - 1) * step_words",
                                        "elman_tanh", False, ("lengths",)),
        "h_n of a row without steps": ("last = tl.where(steps > 0, last, first", "last = tl.where(steps >= 0, last, first",
                                       "elman_tanh", False, ("lengths",)),
        "h0 is not read in reverse": ("before = tl.where(begins, first", "before = tl.where(begins & (step < 0), first", "elman_tanh", True, ("lengths",)),
        "c is not held": ("stored = tl.where(live, rows, 0)", "stored = tl.where(live, rows, rows)", "lstm", False, ("lengths",)),
        "dh passes a reset": ("alone = rows_of_word(word, own_rows)", "alone = rows_of_word(word, own_rows) & (step < 0)", "elman_tanh", False, ("reset",)),
        "dc passes a reset": ("follows = alone == 0", "follows = own_rows >= 0", "lstm", False, ("reset",)),
        "c passes a reset": ("tl.where(own_anew, restart", "tl.where(own_anew & (step < 0), restart",
                             "lstm", False, ("reset",)),
        "dhn enters at the last step of all": ("begins = at == reverse * of_rows(lengths_ptr + row0, own", "begins = at == (T + reverse) * of_rows(lengths_ptr + row0, own", "elman_tanh", False, ("lengths",)),
        "what begins anew goes on": ("before = tl.where(anew, restart", "before = tl.where(anew & (step < 0), restart", "elman_tanh", False, EVERYTHING),
        "both directions begin anew at the same steps": ("events_ptr += lane * (T *", "events_ptr += 0 * (T *", "elman_tanh", "both", ("reset",)),
    },
    "per_step.py": {
        "a length one too long": ("tl.where(t < lengths, new, 0.0)", "tl.where(t <= lengths, new, 0.0)", "elman_tanh", False, ("lengths",)),
        "a reset a step late": ("(t + 1).to(tl.int64) * B", "t.to(tl.int64) * B", "elman_tanh", False, ("reset",)),
        "c is not held": ("+ offsets, carried[n], mask=every)", "+ offsets, carried[n], mask=mask)", "lstm", False, ("lengths",)),
        "h0 is not read in reverse": ("tl.where(starts, first_ptr", "tl.where(starts & (K < 0), first_ptr", "elman_tanh", True, ("lengths",)),
        "dhn enters at the last step of all": ("begins = begins | starts", "begins = begins | (starts & (K < 0))",
                                               "elman_tanh", False, ("lengths",)),
        "dh passes a reset": ("alone = alone | anew", "alone = alone | (anew & (K < 0))", "elman_tanh", False, ("reset",)),
        "c and dc pass a reset": ("follows = mask & (anew == 0)", "follows = mask & (anew >= 0)", "lstm", False, ("reset",)),
        "c passes a reset": ("c = tl.where(anew, restart_carried_ptr", "c = tl.where(anew & (K < 0), restart_carried_ptr",
                             "lstm", False, EVERYTHING),
        "gradients of vectors are cut": ("ROUTES.carried - (0 if CELL.forward else ROUTES.vectors)", "ROUTES.carried",
                                         "leaky_tanh", False, ("reset",)),
        "what begins anew goes on": ("s_tile = tl.where(anew, restart_ptr", "s_tile = tl.where(anew & (K < 0), restart_ptr",
                                     "elman_tanh", False, EVERYTHING),
    },
}  # fmt: skip
SOURCES = [(file, what) for file, changes in CHANGES.items() for what in changes]


def check_changed(file, name, how, given):
    """how: does time run down?  Or "both" directions in a launch"""
    regime = file.removesuffix(".py")
    lanes = dict(lanes="both") if how == "both" else dict(reverse=how)
    contexts = (grouped("forward"), grouped("backward")) if regime == "cta_group" else ()
    with overriding(**GROUPS if regime == "cta_group" else dict(regime=regime)):
        Rows(name, "tf32", 4, 5, 7, 16, given, **lanes).check(*contexts)


@pytest.mark.interpret
@pytest.mark.thin(8)
@pytest.mark.parametrize("file, what", SOURCES)
def test_defects_are_noticed(file, what):
    old, new, *by = CHANGES[file][what]
    with launched_with(Change(file, old, new)):
        with pytest.raises((AssertionError, CooperativeError)):
            check_changed(file, *by)


@pytest.mark.interpret
@pytest.mark.thin(8)
@pytest.mark.parametrize("file, by", sorted({(file, by) for file, changes in CHANGES.items() for _, _, *by in changes.values() for by in [tuple(by)]}, key=str), ids=str)
def test_the_source_as_it_is_passes(file, by):
    with launched_with():
        check_changed(file, *by)


# By which part a step has more instructions with lengths and resets than without, at most, if nothing happens to its rows: bf16, 8 rows,
# sm_90, H = 128 on one CTA and 512 in a group.
LIMITS = {
    ("elman_tanh", 128, "forward"): 0.08, ("elman_tanh", 128, "backward"): 0.08, ("elman_tanh", 512, "forward"): 0.08,
    ("elman_tanh", 512, "backward"): 0.08, ("lstm", 128, "forward"): 0.04, ("lstm", 128, "backward"): 0.05, ("lstm", 512, "forward"): 0.09,
    ("lstm", 512, "backward"): 0.10, ("gru", 128, "forward"): 0.04, ("gru", 128, "backward"): 0.04, ("gru", 512, "forward"): 0.10,
    ("gru", 512, "backward"): 0.11,
}  # fmt: skip


def shortest(kernel):
    """Instructions of a step on the shortest way through the time loop, on which nothing happens to rows"""
    loops = resources.time_loops(kernel)
    inside = {id(instruction) for instruction in loops.body}
    ways = networkx.DiGraph(
        (i, after) for i, out in enumerate(machine_code.sass_flow(loops.machine.code)) for after in out
    )  # fmt: skip
    body = [i for i, instruction in enumerate(loops.machine.code) if id(instruction) in inside]
    (head,) = {i for i in body if any(before not in body for before in ways.predecessors(i))}
    trip = ways.subgraph(body)
    return (1 + min(networkx.shortest_path_length(trip, head, last) for last in trip.predecessors(head))) / loops.unroll


@pytest.mark.compiled
@pytest.mark.long
@pytest.mark.parametrize("name, H, direction", LIMITS)
def test_what_it_costs(name, H, direction):
    """No barrier, no shuffle, no spill and no trip through shared memory more"""
    device, counts, ways = hardware.RECORDS["sm_90"], [], []
    for sequences in ((), ("lengths", "reset")):
        problem = Problem(direction, 8, H if direction == "forward" else 1, H, "bf16", None, name, sequences=sequences)
        kernel = dispatch.compile_ahead(problem, choose.plan(problem, device), device)
        counts.append(resources.analyze(kernel))
        ways.append(shortest(kernel))
    without, with_both = counts
    assert with_both.spill_stores == with_both.spill_loads == 0
    for count in ("barriers", "shuffles", "shared_loads", "shared_stores"):
        assert getattr(with_both, count) == getattr(without, count), count
    assert ways[1] <= (1 + LIMITS[name, H, direction]) * ways[0], ways
