"""Checks of arguments, files that are written whole, seeded random streams, and the environment."""
