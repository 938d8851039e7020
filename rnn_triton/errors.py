"""The package's own exceptions."""


class UnsupportedError(NotImplementedError):
    """No plan runs this problem on this device; the message says what was needed and what there was."""


class ExchangeError(RuntimeError):
    """CTAs of an earlier launch on this device waited in vain for each other and gave up; its outputs end in NaN."""
