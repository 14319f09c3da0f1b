"""Shared support for the tests of the model server."""
