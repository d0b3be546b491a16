"""Checks of arguments, files that are written whole, and seeded random streams."""
