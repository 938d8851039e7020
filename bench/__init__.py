"""Benchmarks of rnn_triton: correctness gate, timing against cuDNN, latency model, compiled resources, figures.

Imports as `bench` from a checkout and as `rnn_triton.bench` where the wheel is installed; modules here import each
other relatively. Only run.py and timing.py touch a GPU; figures.py and report.py read records and never measure.
"""
