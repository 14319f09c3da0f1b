"""Helpers that the tests of the local cluster, its images and its hub share."""
