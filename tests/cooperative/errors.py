"""What the cooperative interpreter reports."""


class CooperativeError(Exception):
    """Base of what is found wrong with a kernel or its launch."""


class DeadlockError(CooperativeError):
    """Every unfinished program waits for memory that nobody will write."""


class LivelockError(DeadlockError):
    """Programs keep polling and counting, but memory no longer changes."""


class RaceError(CooperativeError):
    """Two conflicting accesses without an order."""


class UninitializedReadError(CooperativeError):
    """A plain read of poison, or of a sentinel."""


class OutOfBoundsError(CooperativeError):
    """An access outside every tensor of the launch."""


class ContractError(CooperativeError):
    """A rule of the channel or of inline assembly is broken, whatever the schedule."""


class NotModelledError(NotImplementedError):
    """This tool cannot tell; no statement about the kernel."""
