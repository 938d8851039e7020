"""The package's own exceptions."""


class UnsupportedError(NotImplementedError):
    """Raised if no plan runs a problem on a device; the message says what was needed and what there was."""


class ExchangeError(RuntimeError):
    """Raised if CTAs of an earlier launch on this device waited for each other in vain and gave up.

    The message names the launch, the group of CTAs and the time step. From that step on the outputs of that launch are NaN. The
    error comes with the next call on the device, from rnn_triton.synchronize, or at once with RNN_TRITON_SYNC=1 in the environment."""
