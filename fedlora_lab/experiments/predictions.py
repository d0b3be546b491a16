"""Predictions of a finished run of `finetune`, by Transformers and PEFT, from its folder alone."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedlora_lab._utils.environment import ignore_warnings
from fedlora_lab._utils.torch_state import in_usual_torch
from fedlora_lab._utils.validation import check, in_one_line
from fedlora_lab.report.run_folder import Folder, read_json
from fedlora_lab.tasks import architectures
from fedlora_lab.tasks.generation import Generation, fill
from fedlora_lab.tasks.labels import check_filled, column_of, row_names
from fedlora_lab.tasks.tables import read_table
from fedlora_lab.tasks.task import base_digest, forward

if TYPE_CHECKING:
    import pandas as pd

AT_ONCE = 16
"""Rows that go through the model together."""


@in_usual_torch
def predict_rows(folder: Path, data: object) -> "pd.DataFrame":
    """Adds to each row of a table what a run's adapter predicts: the class, or the answer.

    Args:
        folder: of the run; the base is read from where it was.
        data: a table as `finetune` takes it, with the columns that were read then.
    Raises: ``ValueError`` where the run's model is not known by name, or a column is missing.
    Guarantees: test_finetune.py::test_predictions_are_those_of_the_saved_adapter,
        ::test_a_decoder_answers_prompts.
    """
    from peft import PeftModel

    info = Folder(folder).settings["task"]["info"]
    expected = "a run of this version, on a model that was given by its name or folder"
    config = folder / "adapter" / "adapter_config.json"
    check(config.is_file(), "run", str(folder), "a finished run, with its adapter/")
    damaged = f"run={str(folder)!r}: expected an undamaged adapter/"
    with in_one_line(damaged):
        base: Any = read_json(config)["base_model_name_or_path"]
    # A folder is named as seen from where the training ran: mostly above the run's own.
    places = (place / str(base) for place in (*Path(folder).resolve().parents, Path()))
    base = next((str(place) for place in places if (place / "config.json").is_file()), base)
    # Earlier versions did not note which weights they trained on.
    check(bool(base) and "base" in info, "run", str(folder), expected)
    classes = info.get("classes", ())
    table = read_table(data, "data")
    check("predicted" not in table, "column", "predicted", "none of this name: rename it")
    argument = "column" if "column" in info else "prompt"
    check_filled(table, {argument: info[argument]})
    # What there is to warn of was told before the training.
    with ignore_warnings(), architectures.quiet(), torch.inference_mode():
        model, _ = architectures.load(base, info["kind"], len(classes), 0)
        expected = "the weights that the run was trained on; these are others"
        check(info["base"] == base_digest(model), "model", base, expected)
        with in_one_line(damaged):
            PeftModel.from_pretrained(model, config.parent)  # its layers are put into the model
        if info["kind"] == "causal":
            code = architectures.prepare_tokenizer(base, None, model)
            writer = Generation(code, info["prompt"], info["answer"], info["max_new_tokens"])
            asked = writer.encode(fill(table, "prompt", writer.prompt))
            return table.assign(predicted=writer.write(model.eval(), asked))
        encode = architectures.input_reader(info["kind"], base, None, model, info["max_length"])
        if side := info.get("truncation_side"):  # of the tokenizer that was given
            encode.args[0].truncation_side = side
        values = column_of(table, "column", info["column"])
        logits = in_parts(partial(forward, model.eval()), encode, values, row_names(table))
    return table.assign(predicted=[classes[number] for number in logits.argmax(1).tolist()])


def in_parts(
    model: Callable[..., Tensor], encode: Callable[..., Any], values: list[Any], names: list[str]
) -> Tensor:
    """The outputs of a model for texts or images, a part at a time: all may not fit into memory.

    Args:
        model: inputs -> (n, classes).
        encode: texts or images and what messages call them -> inputs.
        values, names: of all rows.
    Returns: (n, classes).
    """
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(values), AT_ONCE)]
    return torch.cat([model(encode(values[part], names[part])) for part in parts])
