"""What the caller is told of bad usage."""


class UsageError(Exception):
    """What the caller asked for does not exist or makes no sense; the message is one line and says how to mend it."""
