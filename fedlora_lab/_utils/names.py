"""The names of methods: frames hold slugs, and figures show names."""

NAMES: dict[str, str] = {}
"""Slug -> name, of every row that was made in this process. Nothing but words depends on it."""

_FORMER = {
    "dplora": "clip_groups=fl.methods.filters.by_side",
    "dpfedlora": "clip_groups=fl.methods.filters.by_tensor, "
    "clip_reference=fl.methods.filters.origin",
    "splitranks": "own_ranks=0.5",
}
"""Names of rows that are FedLoRA but for these fields, and have no row of their own."""


def letters(name: str) -> str:
    """Letters and digits alone: names differ by hyphens, blanks and capitals from text to text."""
    return "".join(filter(str.isalnum, name)).lower()


def now_written(name: str) -> str:
    """What to write for the name of a former row; "" for any other name."""
    fields = _FORMER.get(letters(name))
    return f"fl.methods.FedLoRA.replace(name={name!r}, {fields})" if fields else ""
