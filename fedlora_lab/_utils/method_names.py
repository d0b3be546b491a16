"""The names of methods: frames hold slugs, and figures show names."""

NAMES: dict[str, str] = {}
"""Slug -> name, of every row that was made in this process. Nothing but words depends on it."""

_APART = "'fedlora', or fl.methods.FedLoRA.replace(name=..., clip_groups=fl.methods.filters."
_FORMER = {
    "dplora": f"{_APART}by_factor)",
    "dpfedlora": f"{_APART}by_tensor)",
    "splitranks": "'fedlora', or 'fedsa-lora', of which a part stays with its client",
}
"""Names of former rows -> the rows that they were found to equal."""


def letters(name: str) -> str:
    """Letters and digits alone: names differ by hyphens, blanks and capitals from text to text."""
    return "".join(filter(str.isalnum, name)).lower()


def now_written(name: str) -> str:
    """What to write for the name of a former row; "" for any other name."""
    return _FORMER.get(letters(name), "")
