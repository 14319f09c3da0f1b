"""Helpers that the tests of the chart share."""
