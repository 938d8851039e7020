"""Measuring cases: the gate before the clock, compiling before both, what fits into a budget."""
