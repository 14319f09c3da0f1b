"""Code that the tests of the operator share."""
