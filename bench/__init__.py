"""Benchmarks of rnn_triton: correctness gate, timing against cuDNN, latency model, compiled resources, figures.

It imports as `bench` from a checkout and as `rnn_triton.bench` where the wheel is installed, so modules here import each other relatively.
docs/architecture.md says what each folder is for; show/ reads records and never measures. """
