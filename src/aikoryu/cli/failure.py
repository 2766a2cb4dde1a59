"""The error of a command that cannot go on."""


class Failed(Exception):
    """A command cannot go on; the message says who must act and what to do."""
