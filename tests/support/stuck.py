"""A launch in which a program leaves early, by a change of the kernel's source, and what must come of it.

The last program of group 1 leaves after two steps.  The rest of its group completes step 2, the last for which it has
all the states, and waits in step 3.
"""

import torch

from rnn_triton.errors import ExchangeError
from rnn_triton.launch import faults
from rnn_triton.plan import problem

from .grids import Case, assert_close
from .mutants import Change

DEAD = Change(
    "cta_group.py",
    "for turn in range(T * own_tiles):",
    "for turn in range(tl.where(tl.program_id(0) == 2 * CTAS - 1, 2, T) * own_tiles):",
)
STEP = 3
TILES = 4  # of 8 rows, dealt to two groups: 1 and 3 are lost

CASES = [
    ("forward", Case(5, 29, 8, 24, groups=2)),
    ("forward", Case(5, 29, 8, 21, groups=2, kind="tf32", protocol="counter", nonlinearity="relu", reverse=True)),
    ("backward", Case(5, 29, 8, 21, groups=2, protocol="counter", nonlinearity="relu")),
    ("backward", Case(5, 29, 8, 24, groups=2, kind="fp16", nonlinearity="relu", reverse=True)),
    # the error word is looked at in every turn, in every other one; x is loaded ahead of the gather
    ("forward", Case(5, 29, 8, 24, groups=2, nonlinearity="relu", look_every=1, x_loads="before", probe_delay=0)),
    ("backward", Case(5, 29, 8, 21, groups=2, kind="tf32", nonlinearity="relu", look_every=2)),
]


def check(case, direction, kernels, limit=64, device="cpu"):
    """Run, and assert that it ends; that the host hears of launch, group and step; that the group's outputs are NaN
    from that step on, also where relu makes zeros of NaN; that the rest is right.  kernels: `patched` with DEAD."""
    kernels.operands.SPIN_LIMIT = limit
    tensors = case.inputs(direction)
    # what the dead program leaves unwritten is read: no detector
    mode = dict(schedule="random", seed=5, races="off", max_idle=20 * limit, poisoned=(), continued=True)
    results = case.run(direction, tensors, device, module=kernels.recurrence, mode=mode)
    try:
        faults.synchronize(device)
    except ExchangeError as error:
        text = str(error)
    else:
        raise AssertionError("nothing was reported")
    name = problem.DTYPES[case.dtype]
    for expected in (f"{direction} of {name} ", f"B={case.B} ", f"H={case.H} ", "group 1 ", f"time step {STEP} "):
        assert expected in text, text
    check_results(case, direction, tensors, [r.cpu() for r in results])


def steps_lost(case, direction):
    """(which steps and rows are no result, [T, B]; the steps in the order of the launch)"""
    backwards = (direction == "backward") != case.reverse
    order = list(range(case.T))[:: -1 if backwards else 1]
    lost = torch.zeros(case.T, case.B, dtype=torch.bool)
    for t in order[STEP:]:
        for tile in range(1, TILES, 2):
            lost[t, 8 * tile : 8 * tile + 8] = True
    return lost, order


def check_results(case, direction, tensors, results):
    lost, order = steps_lost(case, direction)
    expected = case.expected(direction, tensors)
    assert results[0][lost].isnan().all()
    if direction == "forward":
        hn_lost = lost[order[-1]]
        assert results[1][hn_lost].isnan().all()
        assert_close([results[1][~hn_lost]], [expected[1][~hn_lost]], case.tolerance)
    # the dead program's own units are there up to its last step
    dead = torch.zeros(case.H, dtype=torch.bool)
    dead[(-(-case.H // case.units) - 1) * case.units :] = True
    right = ~lost[..., None] & ~(dead & lost.any(0)[:, None])
    assert_close([results[0][right]], [expected[0][right]], case.tolerance)


# ---- layers of a stack ----------------------------------------------------------------------------------------------


def dead(lane):
    """The last CTA of a lane's only group leaves after two steps: the others wait for it in step 3."""
    return Change(
        "cta_group.py",
        "for turn in range(T * own_tiles):",
        f"for turn in range(tl.where((lane == {lane}) & (tl.program_id(0) == CTAS - 1), 2, T) * own_tiles):",
    )


def gives_up(lane):
    """A lane's group has failed in step 3 for no reason: all its words are there, but nobody has waited for their parts."""
    again = "        own = own_1\n"
    return Change("cta_group.py", again, f"        if (lane == {lane}) & (step == 2):\n            tl.store(error_ptr, 3)\n{again}")


def dead_alone(lane):
    """The same where a lane is one CTA: the next lane waits for step 2 of it."""
    return Change("one_cta.py", "tl.range(0, T, loop", f"tl.range(0, tl.where(lane == {lane}, 2, T), loop")


def gives_up_alone(lane):
    again = "        p = p_next\n"
    return Change(
        "one_cta.py", again, f"        if (lane == {lane}) & (step == 2):\n            tl.store(error_ptr, 3)\n{again}"
    )


def check_layers(case, direction, kernels, lane, missing, limit=64):
    """Run, and assert that it ends; that the host hears of the layer of this lane and of the step; that it and all layers
    after it are NaN from there on, also where relu makes zeros of NaN; that the rest is right.  kernels: `patched` with
    one of the changes above; missing: what is published in the step before the failure is incomplete, and lost above.  Where a
    lane is one CTA, one that is dead says nothing itself: the next one does, of that step."""
    kernels.operands.SPIN_LIMIT = limit
    tensors = case.inputs(direction)
    mode = dict(schedule="random", seed=5, races="off", max_idle=20 * limit, poisoned=(), continued=True)
    results = case.run(direction, tensors, module=kernels.recurrence, mode=mode)
    forward = direction == "forward"
    silent = missing and case.depth is not None
    names, step = (lane + 1, STEP - 1) if silent else (lane, STEP)
    layer = names if forward else case.layers - 1 - names
    try:
        faults.synchronize("cpu")
    except ExchangeError as error:
        text = str(error)
    else:
        raise AssertionError("nothing was reported")
    assert f"group 0 of layer {layer} waited" in text and f"time step {step} " in text, text
    expected = case.expected(direction, tensors)
    steps = list(range(case.T))[:: 1 if forward else -1]
    for n, at in enumerate(list(range(case.layers))[:: 1 if forward else -1]):
        y, e = results[0][at], expected[0][at]
        if n < lane:
            assert_close([y], [e], case.tolerance)
            continue
        lost = step if silent else STEP - (missing and n > lane)
        assert y[steps[lost:]].isnan().all()
        # who waits for a layer that has failed at the next step gives up, too: it need not have published this one yet
        right = steps[: STEP - missing - (silent and n > lane + 1)]
        assert_close([y[right]], [e[right]], case.tolerance)
        if forward and not (silent and n == lane):
            assert results[1][at].isnan().all()
