"""A small app of three linear maps, for tests."""
