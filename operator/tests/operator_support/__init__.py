"""What the tests of the operator share."""
