"""Triton's interpreter with a GPU's arithmetic, and what it runs in place of inline assembly."""
