"""The tests on the executor of PTX can fail: defects that no other test sees are each noticed (support/ptx_mutants.py)."""

import pytest
import torch
from ptx_executor import PtxError
from support import executed
from support.grids import assert_close
from support.mutants import patched
from support.ptx_mutants import PTX_MUTANTS, VERIFY_MUTANTS, verify_change

from rnn_triton.launch import faults

pytestmark = pytest.mark.ptx
SCHEDULES = range(6)  # each gang size twice
BY_DEFAULT = (
    "no barrier before other warps' parts are read", "a reduction takes another warp's part", "fragments of A in another order",
    "nothing for what is masked", "one word of a chunk is not looked at",
)  # fmt: skip


def look(case, direction, rewrite=None, change=None):
    """What one of the schedules brings to light, None for nothing"""
    driver, tensors = executed.driver, case.inputs(direction)
    expected = case.expected(direction, tensors)
    with patched(*[change] if change else []) as kernels:
        driver.rewrite, before = rewrite or driver.rewrite, driver.rewrite
        try:
            for driver.launches in SCHEDULES:
                assert_close(case.run(direction, tensors, module=kernels.recurrence), expected, case.tolerance)
                faults.check(torch.device("cpu"))
        except (AssertionError, PtxError) as error:
            return error
        finally:
            driver.rewrite = before
            faults.word(torch.device("cpu")).zero_()
    return None


def table(names):
    return [pytest.param(name, marks=() if name in BY_DEFAULT else pytest.mark.long) for name in names]


MUTANTS = {m.name: m for m in PTX_MUTANTS}


@pytest.mark.parametrize("name", table(MUTANTS))
def test_a_fault_of_the_compiled_text_is_noticed(name):
    mutant = MUTANTS[name]
    assert look(mutant.case, mutant.direction, rewrite=mutant) is not None


@pytest.mark.parametrize("name", table(VERIFY_MUTANTS))
def test_a_fault_of_the_wait_is_noticed(name):
    assert look(VERIFY_MUTANTS[name], "forward", change=verify_change(name)) is not None


@pytest.mark.long
@pytest.mark.parametrize("case, direction", sorted({(m.case, m.direction) for m in PTX_MUTANTS}, key=str), ids=str)
def test_the_text_as_it_is_passes(case, direction):
    assert look(case, direction) is None


def test_the_table():
    assert len(MUTANTS) == len(PTX_MUTANTS) and len(MUTANTS) + len(VERIFY_MUTANTS) >= 12
    assert set(BY_DEFAULT) <= {*MUTANTS, *VERIFY_MUTANTS}
