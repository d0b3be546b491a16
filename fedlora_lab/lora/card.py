"""The README that lies beside an adapter: how it is loaded, its classes, and what is promised."""

import json
import time
from pathlib import Path, PurePath
from typing import Any

from fedlora_lab._utils.environment import __version__
from fedlora_lab._utils.validation import printable
from fedlora_lab.lora.peft_folder import base_name
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
    shipped = shipped_name(model)
    base = shipped or base_name(model) or type(model).__name__
    source = "a model of your own: make it again and call it `base`"
    if getattr(model, "name_or_path", ""):
        source = f"`{printable(base)}`, " + (
            "which lies in the package fedlora_lab" if shipped else "a folder or a name on the Hub"
        )
    place = Path(folder).name if Path(folder).is_absolute() else str(folder)
    caveats = "" if ledger is None else "\nPRIVACY.md says what this does not cover.\n"
    return (
        # JSON's texts are YAML's: no name of a folder may end the head, or add a line to it.
        f"---\nlibrary_name: peft\nbase_model: {json.dumps(base)}\n---\n"
        f"# Adapter for {printable(base)}\n\n"
        f"Trained by {method} in {rounds} rounds with {len(task.sizes)} clients. "
        f"The base is {source}.\n\n"
        f"```python\n{_loading_code(task, base, place)}\n```\n\n{_in_one_call(task, place)}"
        f"{NO_PRIVACY if ledger is None else statement(ledger)}\n{caveats}"
    )


def _in_one_call(task: Task, place: str) -> str:
    """Writes PEFT's own call for a classifier, with the classes of the code above."""
    kind = "AutoPeftModelForSequenceClassification"
    if not task.origin.classes or not type(task.model).__name__.endswith(
        "ForSequenceClassification"
    ):
        return ""
    call = f"{kind}.from_pretrained({place!r}, dtype='float32', **classes)"
    return (
        "Where the base still lies in the same place, one call loads both, with these `classes`:"
        f"\n\n```python\nfrom peft import {kind}\n\nmodel = {call}.eval()\n```\n\n"
    )


def _loading_code(task: Task, base: str, place: str) -> str:
    """Writes the code that loads the adapter, and its base where that has a name."""
    model: Any = task.model
    imports = ["from peft import PeftModel"]
    classes_used = []  # of Transformers
    code = []
    if getattr(model, "name_or_path", ""):
        kind = type(model).__name__
        classes_used.append(kind)
        options = ", dtype='float32'"  # in which it was trained
        if classes := task.origin.classes:
            # PEFT has no place for the names of classes.
            names = dict(enumerate(classes))
            numbers = {name: number for number, name in names.items()}
            code.append(f"classes = {{'id2label': {names!r}, 'label2id': {numbers!r}}}")
            options += ", **classes"
        source = repr(base)
        if shipped_name(model):
            imports.insert(0, "import fedlora_lab as fl")
            source = f"fl.tasks.shipped({base!r})"
        code.append(f"base = {kind}.from_pretrained({source}{options})")
        if classes and getattr(model.config, "pad_token_id", None) is not None:
            # A classifier on a decoder finds a text's end by it; the base's own may be another.
            code.append(f"base.config.pad_token_id = {model.config.pad_token_id}")
    code.append(f"model = PeftModel.from_pretrained(base, {place!r}).eval()  # this folder")
    if (processor := task.origin.processing_class) is not None:
        is_tokenizer = hasattr(processor, "pad_token_id")
        kind = "AutoTokenizer" if is_tokenizer else type(processor).__name__
        classes_used.append(kind)
        name = "tokenizer" if is_tokenizer else "processor"
        code.append(f"{name} = {kind}.from_pretrained({place!r})")
    if classes_used:
        imports.append(f"from transformers import {', '.join(sorted(classes_used))}")
    return "\n".join([*imports, "", *code])
