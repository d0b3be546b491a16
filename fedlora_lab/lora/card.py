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
from fedlora_lab.tasks.sentences import shipped_name
from fedlora_lab.tasks.task import Task


def privacy_card(task: Task, method: str, rounds: int, ledger: Ledger | None) -> str:
    """Writes PRIVACY.md: what the ledger promises, and of which run that is.

    Args: task, method, rounds, ledger: of the run.
    """
    facts = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "fedlora_lab": __version__,
        "model": printable(base_name(task.model) or type(task.model).__name__),
        "data": task.name,
        "training": f"{method}, {rounds} rounds, {len(task.sizes)} clients",
    }
    lines = [f"- {name}: {' '.join(str(value).split())}\n" for name, value in facts.items()]
    return f"{privacy_page(ledger)}\n## The run\n\n{''.join(lines)}"


def adapter_card(
    task: Task, method: str, rounds: int, ledger: Ledger | None, folder: str | PurePath
) -> str:
    """Writes the README of an adapter, whose code loads it without this package.

    Args: task, method, rounds, ledger: of the run. folder: of the adapter.
    Guarantees: test_finetune.py::test_a_csv_becomes_a_served_model_offline.
    """
    model: Any = task.model
    base = base_name(model) or type(model).__name__
    place = Path(folder).name if Path(folder).is_absolute() else str(folder)
    caveats = "" if ledger is None else "\nPRIVACY.md says what this does not cover.\n"
    return (
        # JSON's texts are YAML's: no name of a folder may end the head, or add a line to it.
        f"---\nlibrary_name: peft\nbase_model: {json.dumps(base)}\n---\n"
        f"# Adapter for {printable(shipped_name(model) or base)}\n\n"
        f"Trained by {method} in {rounds} rounds with {len(task.sizes)} clients.\n\n"
        f"```python\n{_loading_code(task, base, place)}\n```\n\n"
        f"{NO_PRIVACY if ledger is None else statement(ledger)}\n{caveats}"
    )


def _loading_code(task: Task, base: str, place: str) -> str:
    """Writes the code that loads the adapter where its base can be loaded by a name."""
    model: Any = task.model
    code = ["from peft import PeftModel"]
    if getattr(model, "name_or_path", ""):
        kind = type(model).__name__
        code.append(f"from transformers import {kind}\n")
        options = ""
        if classes := getattr(task.origin.reader, "classes", ()):
            # PEFT has no place for the names of classes.
            names = dict(enumerate(classes))
            numbers = {name: number for number, name in names.items()}
            code.append(f"classes = {{'id2label': {names!r}, 'label2id': {numbers!r}}}")
            options = ", **classes"
        source = repr(base)
        if name := shipped_name(model):
            code.insert(0, "import fedlora_lab as fl")
            source = f"fl.tasks.shipped({name!r})"
        code.append(f"base = {kind}.from_pretrained({source}{options})")
        if classes and getattr(model.config, "pad_token_id", None) is not None:
            # A classifier on a decoder finds a text's end by it; the base's own may be another.
            code.append(f"base.config.pad_token_id = {model.config.pad_token_id}")
    code.append(f"model = PeftModel.from_pretrained(base, {place!r}).eval()  # this folder")
    return "\n".join(code)
