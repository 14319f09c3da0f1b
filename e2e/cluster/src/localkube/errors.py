"""Errors that users see, each with the action to take."""


class LocalkubeError(Exception):
    """The command cannot continue; the text says why and what to change."""


class CommandFailed(LocalkubeError):
    """A program exited with an error; the text contains its last lines."""
