"""Turns a plan into a launch: operands, the regimes, the GEMMs around them, and what a launch reports when it fails."""
