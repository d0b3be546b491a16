"""The README that lies beside an adapter: how it is loaded, its classes, and what is promised."""

import json
import time
from pathlib import Path, PurePath
from typing import Any

from fedlora_lab._utils.environment import __version__
from fedlora_lab._utils.validation import printable
from fedlora_lab.lora.adapters import base_name
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.privacy.statement import NO_PRIVACY, privacy_page, statement
from fedlora_lab.tasks.architectures import AUTO
from fedlora_lab.tasks.task import Task

SHOWN = ("classes", "prompt", "answer")
"""Of `Task.info`, which may hold more: nothing else about private rows may stand in the card."""
NOT_COVERED = " The classes were read from private rows, which no epsilon covers."


def privacy_card(task: Task, method: str, rounds: int, ledger: Ledger | None) -> str:
    """Writes PRIVACY.md: what the ledger promises, and of which run that is.

    Args: task, method, rounds, ledger: of the run.
    Guarantees: test_promise.py::test_a_privacy_page_says_of_which_run_it_is.
    """
    classes = {"declared": "declared, so they are public", "": "of the task itself"}.get(
        task.info.get("labels", ""), "read from private rows, which no epsilon covers"
    )
    facts = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "fedlora_lab": __version__,
        "model": printable(base_name(task.model) or type(task.model).__name__),
        "data": task.info.get("data", task.name),
        "training": f"{method}, {rounds} rounds, {len(task.sizes)} clients",
        "classes": classes,
    }
    lines = [f"- {name}: {' '.join(str(value).split())}\n" for name, value in facts.items()]
    return f"{privacy_page(ledger)}\n## The run\n\n{''.join(lines)}"


def adapter_card(
    task: Task, method: str, rounds: int, ledger: Ledger | None, folder: str | PurePath
) -> str:
    """Writes the README of an adapter, whose code loads it without this package.

    Args: task, method, rounds, ledger: of the run. folder: of the adapter.
    Guarantees: test_finetune.py::test_predictions_are_those_of_the_saved_adapter.
    """
    model: Any = task.model
    base = base_name(model) or type(model).__name__
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
        # JSON's texts are YAML's: no name of a folder may end the head, or add a line to it.
        f"---\nlibrary_name: peft\nbase_model: {json.dumps(base)}\n---\n"
        f"# Adapter for {printable(base)}\n\n"
        f"Trained by {method} in {rounds} rounds with {len(task.sizes)} clients.\n\n"
        f"```python\n{source}\n```\n\n{NO_PRIVACY if ledger is None else statement(ledger)}"
        f"{covered}\n{caveats}"
    )
