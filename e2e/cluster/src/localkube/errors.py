"""Errors that users see, each with the action to take."""


class LocalkubeError(Exception):
    """The command cannot continue. The message gives the problem and the change to make."""


class CommandFailed(LocalkubeError):
    """A program exited with an error. The message contains the last lines of its output."""
