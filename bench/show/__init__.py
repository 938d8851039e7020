"""Figures, tables and the page, from records alone."""
