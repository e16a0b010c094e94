"""What can go wrong with a machine that has been started, each one line that says what failed."""


class MachineError(Exception):
    """The machine could not start or go on; one line that says what failed."""


class GuestFailed(MachineError):
    """A guest died, or could not do what it was asked: the machine goes on without it."""
