"""The package's own exception."""


class UnsupportedError(NotImplementedError):
    """No plan runs this problem on this device; the message says what was needed and what there was."""
