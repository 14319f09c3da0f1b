"""Errors that a person sees, each with what to do about it."""


class LocalkubeError(Exception):
    """The command cannot go on; the text says why and what to change."""


class CommandFailed(LocalkubeError):
    """A program that we ran exited with an error; the text holds its last lines."""
