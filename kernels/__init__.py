"""Device code of rnn_triton: Triton functions only, no torch.  Imported as `rnn_triton.kernels`."""

if __name__ == "kernels":
    raise ImportError("the kernels folder of rnn_triton is imported as rnn_triton.kernels")
