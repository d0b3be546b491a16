"""The names of methods: frames hold slugs, and figures show names."""

NAMES: dict[str, str] = {}
"""Slug -> name, of every row that was made in this process. Nothing but words depends on it."""


def letters(name: str) -> str:
    """Letters and digits alone: names differ by hyphens, blanks and capitals from text to text."""
    return "".join(filter(str.isalnum, name)).lower()
