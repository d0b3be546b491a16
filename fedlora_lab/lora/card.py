"""The README that lies beside an adapter: how it is loaded, its classes, and what is promised."""

from pathlib import Path, PurePath
from typing import Any

from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.privacy.statement import NO_PRIVACY, statement
from fedlora_lab.tasks.architectures import AUTO
from fedlora_lab.tasks.task import Task

SHOWN = ("classes", "prompt", "answer")
"""Of `Task.info`, which may hold more: nothing else about private rows may stand in the card."""
NOT_COVERED = " The classes were read from private rows, which no epsilon covers."


def adapter_card(
    task: Task, method: str, rounds: int, ledger: Ledger | None, folder: str | PurePath
) -> str:
    """Writes the README of an adapter, whose code loads it without this package.

    Args: task, method, rounds, ledger: of the run. folder: of the adapter.
    Guarantees: test_finetune.py::test_predictions_are_those_of_the_saved_adapter.
    """
    model: Any = task.model
    base = getattr(model, "name_or_path", "") or type(model).__name__
    code = ["from peft import PeftModel"]
    if "kind" in task.info:
        auto = AUTO[task.info["kind"]]
        names = ", id2label=dict(enumerate(classes))" if "classes" in task.info else ""
        code.append(f"from transformers import {auto}\n")
        code += [f"{name} = {task.info[name]!r}" for name in SHOWN if name in task.info]
        code.append(f"base = {auto}.from_pretrained({base!r}{names})")
        if task.info["kind"] == "text":
            # A classifier on a decoder finds a text's end by it; the base's own may be another one.
            code.append(f"base.config.pad_token_id = {model.config.pad_token_id}")
    # Of an absolute path the name alone: readers need not learn where its maker keeps files.
    place = Path(folder).name if Path(folder).is_absolute() else str(folder)
    load = f"model = PeftModel.from_pretrained(base, {place!r}).eval()"
    code.append(f"{load}  # this folder")
    source = "\n".join(code)
    covered = "" if task.info.get("labels", "declared") == "declared" else NOT_COVERED
    caveats = "" if ledger is None else "\nPRIVACY.md says what this does not cover.\n"
    return (
        f"---\nlibrary_name: peft\nbase_model: {base}\n---\n# Adapter for {base}\n\n"
        f"Trained by {method} in {rounds} rounds with {len(task.sizes)} clients.\n\n"
        f"```python\n{source}\n```\n\n{NO_PRIVACY if ledger is None else statement(ledger)}"
        f"{covered}\n{caveats}"
    )
