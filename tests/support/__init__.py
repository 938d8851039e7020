"""Test machinery: worker processes, kernel warm-up."""
