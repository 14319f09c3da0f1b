"""What the tests of the model server share."""
