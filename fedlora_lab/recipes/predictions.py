"""Predictions of a finished run of `finetune`, by Transformers and PEFT, from its folder alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedlora_lab._utils.environment import ignore_warnings
from fedlora_lab._utils.files import private_folder, write_atomically
from fedlora_lab._utils.torch_state import with_default_modes
from fedlora_lab._utils.validation import check, error_text, in_one_line
from fedlora_lab.report.run_folder import Folder, read_json
from fedlora_lab.tasks import architectures
from fedlora_lab.tasks.generation import Generation, fill
from fedlora_lab.tasks.labels import check_filled, column_of, row_names, template_fields
from fedlora_lab.tasks.tables import read_table, values_of
from fedlora_lab.tasks.task import base_digest, forward

if TYPE_CHECKING:
    import pandas as pd

AT_ONCE = 16
"""Rows that go through the model together."""
PREDICTED = "predicted"
REFUSED = "refused"
"""Columns that are added: the prediction, and why a row has none."""
BASE = "base"
"""File in a run's private/ with the place of the base: it stays on this machine."""


@with_default_modes
def predict_rows(
    folder: Path,
    data: object,
    *,
    probabilities: bool = False,
    max_length: int | None = None,
) -> "pd.DataFrame":
    """Adds to each row of a table what a run's adapter predicts: the class, or the answer.

    A row that cannot be read, such as one that is empty or too long, gets the reason in a column
    "refused" and no prediction; all others go on. Without such a row there is no such column.

    Args:
        folder: of the run.
        data: a table as `finetune` takes it, with the columns that were read then; or a folder of
            images, in folders or none.
        probabilities: a classifier's, in a column "p(class)" for each class.
        max_length: tokens kept of a text; ``None``: as in the run.

    Raises: ``ValueError`` where the run's model is not known by name, or a column is missing.
    Guarantees: test_finetune.py::test_predictions_are_those_of_the_saved_adapter,
        ::test_a_decoder_answers_prompts.
    """
    import pandas as pd
    from peft import PeftModel

    info = Folder(folder).settings["task"]["info"]
    config = folder / "adapter" / "adapter_config.json"
    check(config.is_file(), "run", str(folder), "a finished run, with its adapter/")
    damaged = f"run={str(folder)!r}: expected an undamaged adapter/"
    with in_one_line(damaged):
        named: Any = read_json(config)["base_model_name_or_path"]
    base: Any = _find_base(folder, named)
    # Earlier versions did not note which weights they trained on.
    expected = "a run of this version, on a model that was given by its name or folder"
    check(bool(base) and "base" in info, "run", str(folder), expected)
    kind = info["kind"]
    expected = "none: of a run on texts with classes it cuts the texts"
    check(kind == "text" or max_length is None, "max_length", max_length, expected)
    classes = info.get("classes", ())
    expected = "False for a decoder, which writes texts"
    check(bool(classes) or not probabilities, "probabilities", probabilities, expected)
    argument = "prompt" if kind == "causal" else kind
    source = info["prompt" if kind == "causal" else "column"]
    added = [PREDICTED, *(f"p({name})" for name in classes if probabilities)]
    table = _table_to_predict(data, argument, source, [*added, REFUSED])
    # What there is to warn of was told before the training.
    with ignore_warnings(), architectures.quiet(), torch.inference_mode():
        loaded, _ = architectures.load(base, kind, len(classes), 0)
        expected = "the weights that the run was trained on; these are others"
        check(info["base"] == base_digest(loaded), "model", base, expected)
        with in_one_line(damaged):
            PeftModel.from_pretrained(loaded, config.parent)  # its layers are put into the model
        loaded.eval()
        writer = None
        encode: Any = None
        if kind == "causal":
            code = architectures.prepare_tokenizer(base, None, loaded)
            architectures.use_tokenizer_of(info, code, base)
            writer = Generation(code, info["prompt"], info["answer"], info["max_new_tokens"])
        else:
            length = info["max_length"] if max_length is None else max_length
            encode = architectures.input_reader(kind, base, None, loaded, length)
            if kind == "text":
                architectures.use_tokenizer_of(info, encode.args[0], base)

        def read(part: "pd.DataFrame") -> Any:
            check_filled(part, {argument: source})
            if writer is None:
                return encode(values_of(part, argument, source), row_names(part))
            asked = writer.encode(fill(part, argument, source))
            writer.check_room(loaded, asked, row_names(part))
            return asked

        def answer(inputs: Any) -> "pd.DataFrame":
            if writer is not None:
                return pd.DataFrame({PREDICTED: writer.write(loaded, inputs)})
            shares = forward(loaded, inputs).double().softmax(1)
            columns = pd.Index([f"p({name})" for name in classes])
            cells = pd.DataFrame(shares.numpy().round(6), columns=columns)
            cells[PREDICTED] = [classes[number] for number in shares.argmax(1).tolist()]
            return cells[added]

        # Prompts all at once: those of one length are answered together, wherever they stand.
        at_once = AT_ONCE if writer is None else len(table)
        answers, refused = _answer_rows(table, read, answer, at_once)
    if refused:
        # As objects: beside a gap whole numbers would become floating ones.
        answers = answers.astype(object).reindex(range(len(table)), columns=added)
    for column in added:
        table[column] = answers[column].to_numpy()
    if refused:
        table[REFUSED] = [refused.get(place, "") for place in range(len(table))]
    return table


def note_base(folder: Path, model: object) -> None:
    """Notes where the base of a run lies, for `predict_rows`; what is handed on need not say it.

    Args: folder: of the run. model: the base.
    """
    name = str(getattr(model, "name_or_path", "") or "")
    if name:
        is_folder = (Path(name) / "config.json").is_file()
        place = str(Path(name).resolve()) if is_folder else name
        content = (place + "\n").encode("utf-8", "surrogateescape")
        write_atomically(private_folder(folder) / BASE, content)


def _find_base(folder: Path, named: str | None) -> str | None:
    """The name or folder of a run's base, as it was given or as it lies now.

    Args: folder: of the run. named: what its adapter says.
    Raises: ``ValueError`` for a folder that is gone: its name may be that of a stranger's model.
    """
    noted = private_folder(folder) / BASE
    given = noted.read_text("utf-8", "surrogateescape").rstrip("\n") if noted.is_file() else named
    # A folder is named as seen from where the training ran: mostly above the run's own.
    places = (*Path(folder).resolve().parents, Path())
    names = [name for name in (given, named) if name]
    for base in (place / name for name in names for place in places):
        if (base / "config.json").is_file():
            return str(base)
    gone = given is not None and Path(given).is_absolute()
    check(not gone, "base", given, f"that folder, or {named} in a folder above the run")
    return given


def _table_to_predict(
    data: object, argument: str, source: str, added: Sequence[str]
) -> "pd.DataFrame":
    """Reads the rows to predict.

    Args:
        data: the table, or a folder.
        argument, source: what is read of it, such as "image", and the column or template.
        added: columns that it must not have.
    """
    table = read_table(data, "data").copy()
    taken = next((name for name in added if name in table), "")
    check(not taken, "column", taken, "none of this name: rename it")
    # The images of a folder have no other name for their column.
    if argument == "image" and table.index.name == "file" and source not in table:
        table = table.rename(columns={"image": source})
    for column in template_fields(table, argument, source) or [source]:
        column_of(table, argument, column)
    return table


def _answer_rows(
    table: "pd.DataFrame",
    read: "Callable[[pd.DataFrame], Any]",
    answer: "Callable[[Any], pd.DataFrame]",
    at_once: int,
) -> "tuple[pd.DataFrame, dict[int, str]]":
    """What a model answers to each row that can be read, and why the others cannot.

    Args:
        table: of the rows.
        read: rows -> inputs; refuses them all where one does not fit.
        answer: inputs -> the answers, a row each.
        at_once: rows that are read together.
    Returns: answers by place, place -> reason.
    """
    import pandas as pd

    answers = [pd.DataFrame()]
    refused: dict[int, str] = {}
    for start in range(0, len(table), at_once):
        places = [*range(start, min(start + at_once, len(table)))]
        try:
            inputs = read(table.iloc[places])
        except ValueError:
            for place in places:
                try:
                    read(table.iloc[[place]])
                except ValueError as error:
                    refused[place] = error_text(error)
            places = [place for place in places if place not in refused]
            if not places:
                continue
            inputs = read(table.iloc[places])
        answers.append(answer(inputs).set_axis(places))
    return pd.concat(answers), refused


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
