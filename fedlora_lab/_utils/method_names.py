"""The names of methods: frames hold slugs, and figures show names."""

NAMES: dict[str, str] = {}
"""Slug -> name, of every row that was made in this process. Nothing but words depends on it."""
