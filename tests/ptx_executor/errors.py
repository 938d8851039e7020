"""What the executor reports."""


class PtxError(Exception):
    """What a correct kernel never does: an access out of bounds, a race, a read of what was never written, a deadlock."""


class PtxSyntaxError(Exception):
    """Text that is no PTX as the parser knows it."""


class UnknownOpcode(Exception):  # noqa: N818
    """An opcode, modifier or form of an instruction that the executor does not have; no statement about the kernel."""
