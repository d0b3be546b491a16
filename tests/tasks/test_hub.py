"""Hugging Face models and data sets as tasks: any data, clear refusals, one meaning of each row."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import toy_hubs
from calls import Options, refused
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

import fedlora_lab as fl
from fedlora_lab.tasks.labels import read_labels
from fedlora_lab.tasks.tables import Rows, check_public_test, read_splits

pytestmark = pytest.mark.filterwarnings(toy_hubs.NO_PAD)
LABELLED: Options = {"text": "text", "label": "label"}
PICTURES: Options = {"image": "image", "label": "label"}


def bert(data, **options):
    """A sentence classifier of two clients on this data set."""
    clients: Options = {} if "by" in options else {"clients": 2}
    return fl.tasks.hub(toy_hubs.folder("bert"), data, **LABELLED | clients | options)


# ---- data sets


def test_files_and_folders_equal_the_frame(tmp_path):
    """A file, a mapping of splits and a folder of images say what the frame says."""
    frame = toy_hubs.texts()
    frame.to_csv(tmp_path / "texts.csv", index=False)
    from_frame = bert(frame, by="site")
    assert from_frame.client_names == ("site 0", "site 1", "site 2", "site 3")
    assert from_frame.labels == ("harsh", "kind")
    assert bert(tmp_path / "texts.csv", by="site").fingerprint == from_frame.fingerprint
    assert bert(frame, by="site", seed=1).fingerprint != from_frame.fingerprint
    split = bert({"train": frame[:30], "validation": frame[30:]}, by="site", test="validation")
    assert split.fingerprint == bert(frame[:30], by="site", test=frame[30:]).fingerprint
    animals = tmp_path / "animals"
    for i, pixels in enumerate(toy_hubs.images(8)["image"]):
        file = animals / ("cat" if i % 2 else "dog") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    (animals / "__MACOSX").mkdir()
    for name in ("9.png", "cat/._1.png", "__MACOSX/1.png"):
        (animals / name).touch()
    with pytest.warns(match=r"^1 files are no images of a class .*9\.png$"):
        table = read_splits(animals)["train"]
    assert table.index[0] == "cat/1.png", "messages name the file"
    task = fl.tasks.hub(toy_hubs.folder("vit"), table, **PICTURES, clients=2, test=0.25)
    assert task.labels == ("cat", "dog")
    assert sum(task.sizes) == 6 and task.test[0].shape == (2, 3, 8, 8)  # type: ignore[union-attr]
    (animals / "cow").mkdir()
    with refused("none may be empty$"):
        read_splits(animals)


def test_a_parquet_file_equals_the_frame_or_says_what_reads_it(tmp_path):
    path = tmp_path / "texts.parquet"
    try:
        toy_hubs.texts().to_parquet(path)
    except ImportError:
        path.touch()
        with refused(r"^dataset='.*: expected pyarrow, which reads Parquet: pip install"):
            read_splits(path)
    else:
        pd.testing.assert_frame_equal(read_splits(path)["train"], toy_hubs.texts())


def test_a_site_that_is_left_without_rows_is_named():
    """Its only row was held out: it would take part in nothing, and nobody would know."""
    frame = toy_hubs.texts()
    held_out = Rows.read(frame, 0.2, 0).held_out.index[0]
    frame.loc[held_out, "site"] = "alone"
    with pytest.warns(match="by='site': alone: no client, since test= held all rows"):
        task = bert(frame, by="site")
    assert task.client_names == ("site 0", "site 1", "site 2", "site 3")
    assert bert(frame, by="site", test=frame).client_names[0] == "alone"


# ---- texts


def test_texts_too_long_are_refused_or_cut():
    frame = toy_hubs.texts()
    frame.loc[5, "text"] = "good " * 70
    line = r"text='72 .* expected at most 64; max_length=64 cuts them, .*; predict has none: cut"
    with refused(line):
        bert(frame)
    cut = bert(frame, max_length=16)
    assert cut.info["texts cut"] == 1
    x: Any = cut.test[0]
    assert x["input_ids"].shape[1] == 16
    # RoBERTa's positions begin after the padding token's number, here 0; MPNet's after its own, 1.
    for kind, room in (("roberta", 65), ("mpnet", 64)):
        line = f"max_length=66: expected a whole number in .2, {room}."
        with refused(line):
            fl.tasks.hub(toy_hubs.folder(kind), frame, **LABELLED, max_length=66)


@pytest.mark.filterwarnings("ignore:pad_token_id was")
@pytest.mark.parametrize(("kind", "number"), [("gpt2", None), ("llama", 7)])
def test_a_classifier_on_a_decoder_reads_each_text_s_last_token(kind, number):
    """Whatever number the model's own configuration has for padding: with another one than the
    tokenizer's it would read padding, and an example's output depend on how long others are."""
    code = AutoTokenizer.from_pretrained(toy_hubs.folder(kind))
    with fl.tasks.quiet():
        model = AutoModelForSequenceClassification.from_pretrained(toy_hubs.folder(kind))
    model.config.pad_token_id = number
    task = fl.tasks.hub(model, toy_hubs.texts(), **LABELLED, clients=2, tokenizer=code)
    assert all(p.requires_grad for p in model.parameters()), "the model in hand is copied"
    x: Any = task.test[0]
    lengths = x["attention_mask"].sum(1)
    decoder: Any = task.model
    hidden = decoder.base_model(**x).last_hidden_state
    last = decoder.score(hidden[torch.arange(len(lengths)), lengths - 1])
    torch.testing.assert_close(task.forward(decoder, x), last, rtol=1e-5, atol=1e-6)


# ---- what is refused


FRAME = toy_hubs.texts()
WORDLESS = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel()), pad_token="<pad>"
)
BAD: dict[str, Options] = {
    "clients=3: expected none with by=": {"by": "site", "clients": 3},
    "text, image=.*: expected one of them": {"text": None},
    "label=None: expected a column's name; a decoder": {"label": None},
    r"image=\(\['a', 'b'\], .* join both in one": {"text": ["a", "b"]},
    "label='text': expected three different columns": {"label": "text"},
    "label 'label'='.. classes': expected at least two": {
        "dataset": FRAME.assign(label=FRAME["text"])
    },
    "labels='a,b': expected a list of two or more": {"labels": "a,b"},
    "clients=49: .* give fewer as clients=": {"clients": 49},
    "text='3 in row 0': expected text in every row; so also row 1": {
        "dataset": FRAME.assign(text=3)
    },
    "dataset='nowhere.csv': expected a file that exists": {"dataset": "nowhere.csv"},
    r"dataset=\['test'\]: expected a split called train": {"dataset": {"test": FRAME}},
    "tokenizer='special tokens alone': expected words too": {"tokenizer": WORDLESS},
    "test='0 rows': expected at least one row": {"test": FRAME[:0]},
    "head='no': .*; linear maps here: classifier, dense": {"head": "no"},
    "model='Linear': expected a Transformers model": {"model": torch.nn.Linear(2, 2)},
    "tokenizer=None: expected what AutoTokenizer": {"model": toy_hubs.task("bert").model},
}


@pytest.mark.parametrize("line", BAD)
def test_bad_calls_are_one_line(line):
    call: Options = {"model": toy_hubs.folder("bert"), "dataset": FRAME}
    call |= LABELLED | BAD[line]
    with refused(line):
        fl.tasks.hub(call.pop("model"), call.pop("dataset"), **call)


READABLE = {
    "TEXTS.CSV": b'text,label\n"a\nb",01\n\nc,1e3\n',
    "comma at each end.csv": b'text,label\n"a\nb",01,\n\nc,1e3,\n',
    "of a spreadsheet.csv": '\ufefftext;label;",,,"\r\n"a\nb";01;\r\n\r\nc;1e3;\r\n;;\r\n'.encode(),
    "wide.tsv": 'text\tlabel\n"a\nb"\t01\n\nc\t1e3'.encode("utf-16"),
    "texts.jsonl": b'{"text":"a\\nb","label":"01"}\n\n{"text":"c","label":"1e3"}\n',
}
"""With a comma at each line's end pandas made row names of the texts, and texts of the labels."""
UNREADABLE = {
    "text,label,label\na b,1,2": r"columns=\['text', 'label', 'label'\]: expected each name once",
    'text,label\na,1\n"b,2\nc,3\n': "line 3: ",
    "text,label\na,b,1\nc,2\n\nd": "cells='3 cells in line 2': .*; so also line 5",
}


@pytest.mark.filterwarnings("ignore:.*the rows after line 5 have no value")
@pytest.mark.parametrize("name", READABLE)
def test_every_bad_row_of_a_file_is_named_by_its_line(name, tmp_path):
    """Whatever separates its cells, and however it is encoded; a quoted cell has two lines."""
    file = tmp_path / name
    file.write_bytes(READABLE[name])
    table = read_splits(file)["train"]
    assert table.iloc[:, :2].to_dict("list") == {"text": ["a\nb", "c"], "label": ["01", "1e3"]}
    lines = (1, 3) if file.suffix == ".jsonl" else (2, 5)
    assert tuple(table.index) == lines
    line = f"^label 'text'='a\nb in line {lines[0]}': expected .*; so also line {lines[1]}$"
    with refused(line.replace("\n", r"..")):
        read_labels((table, table), "text", ["good", "bad"])


def test_letters_of_an_older_windows_are_told(tmp_path):
    """Read as something else they would train a model on wrong letters without a word."""
    (tmp_path / "texts.csv").write_bytes("text\ntrès\n".encode("cp1252"))
    with pytest.warns(match="line 2 is not UTF-8: the file is read as Windows-1252"):
        assert read_splits(tmp_path / "texts.csv")["train"]["text"].tolist() == ["très"]


def test_codes_of_a_file_are_compared_as_written(tmp_path):
    """01 and 1 became one class, or one owner, without a word."""
    (tmp_path / "codes.csv").write_text("y,who\n01,007\n1,7.0\n2,8\n")
    table = read_splits(tmp_path / "codes.csv")["train"]
    with refused(r"^label 'y'=\['01', 1\]: expected each written in one"):
        read_labels((table, table), "y")
    people: Any = Rows.read(table, table, 0, person="who", clients=1).people
    assert people.tolist() == [0, 0, 1]


@pytest.mark.parametrize("text", UNREADABLE)
def test_a_file_whose_cells_cannot_be_told_apart_is_refused(text, tmp_path):
    (tmp_path / "texts.csv").write_text(text)
    with refused(rf"dataset=.*csv': expected a table \({UNREADABLE[text]}"):
        read_splits(tmp_path / "texts.csv")


# ---- persons and owners


@pytest.mark.parametrize("row", [7, 29, 42])
def test_rows_of_one_person_move_nobody_else(row):
    """Into training or test, or to another client: else the others' places would tell of them. All
    rows of a person stay together, in numbers of persons that the rows do not change."""
    frame = toy_hubs.texts(60).assign(who=np.arange(60) // 2)
    parts = []
    for table in (frame, frame.loc[sorted([*frame.index, *[row] * 50])]):
        rows = Rows.read(table, 0.2, row, person="who", clients=3)
        who = rows.private["who"].to_numpy()
        parts.append([set(rows.held_out["who"]), *(set(who[part]) for part in rows.places)])
    assert parts[0] == parts[1] and [len(part) for part in parts[0]] == [6, 8, 8, 8]


@pytest.mark.parametrize("kind", ["float64", "Int64"])
def test_persons_of_both_tables_are_found(kind):
    """Where a cell is missing elsewhere pandas makes floats of numbers: 7 and 7.0 are one person,
    whose private rows a score of public ones would be about."""
    frame = pd.DataFrame({"who": pd.Series([0, 1.0, 2, 3.0, 4, 5.0], dtype=object)})
    public: Options = {"person": "who", "clients": 1, "public_test": True}
    numbers: Any = Rows.read(frame, pd.DataFrame({"who": [100]}), 0, **public).people
    assert numbers.tolist() == [0, 1, 2, 3, 4, 5]
    other = pd.DataFrame({"who": pd.Series([100, 5]).astype(kind)})
    with refused(r"^person 'who'='1 persons of the public"):
        Rows.read(frame, other, 0, **public)


def test_owners_are_compared_by_value():
    """A blank behind a name, or a number read as a float, made a second client."""
    frame = toy_hubs.texts().assign(site=[[7, 7.0, "7 ", "B"][i % 4] for i in range(48)])
    task = bert(frame, by="site", test=frame)
    assert task.client_names == ("7", "B") and task.sizes == (36, 12)
    with refused(r"^by 'site'='.* in row 3'"):
        bert(frame.assign(site=pd.Series(["B", 7, "B 0", 0.5] * 12, dtype=object)), by="site")
    for pair in (["B", "b"], ["1", "01"], ["é", "e\u0301"], ["A", "A\u200b"]):
        with refused(r"^by 'site'=\[.*\]: expected each written in one"):
            bert(frame.assign(site=pair * 24), by="site")
    assert bert(frame.assign(site=["x²", "x2"] * 24), by="site").client_names == ("x2", "x²")


def test_empty_cells_of_all_columns_are_named_at_once(tmp_path):
    """One column at a time was told, each after the model had been loaded."""
    frame = toy_hubs.texts()
    frame.loc[3, "text"], frame.loc[[5, 7], "label"] = None, ["", " "]
    frame.loc[9] = None
    frame.to_csv(tmp_path / "gaps.csv", index=False)
    line = r"^cells='nothing in line 5 \(text\)': .* line 11 \(text\), line 7 \(label\), line 9 \(l"
    with refused(line):
        bert(tmp_path / "gaps.csv")


# ---- labels


def labelled(labels):
    return pd.DataFrame({"y": labels})


def test_declared_labels_are_the_classes():
    """In their order, whatever labels the rows have; a row with another one is named."""
    frame = toy_hubs.texts()
    task = bert(frame, labels=["kind", "mixed", "harsh"])
    assert task.labels == ("kind", "mixed", "harsh")
    y = torch.cat([y for _, y in task.clients] + [task.test[1]])
    assert y.bincount().tolist() == [
        (frame["label"] == x).sum() for x in ("kind", "mixed", "harsh")
    ]
    ratings = labelled([True, "1.0", "3 ", 4])
    (codes, _), classes = read_labels((ratings, ratings), "y", ["1", "2", "3", "4", "True"])
    assert codes.tolist() == [4, 0, 2, 3] and classes == (1, 2, 3, 4, "True")
    line = "^label 'y'='6 in row 1 of the test data': expected one of the classes that labels= has"
    with refused(line):
        read_labels((ratings, labelled([1, 6])), "y", [1, 2, 3, 4, True])


def test_classes_stand_in_the_order_of_the_model_s_classifier():
    """Else its outputs would stand under each other's names."""
    frame = toy_hubs.texts()
    code = AutoTokenizer.from_pretrained(toy_hubs.folder("bert"))
    config = AutoConfig.from_pretrained(toy_hubs.folder("bert"), id2label={0: "kind", 1: "harsh"})
    model = AutoModelForSequenceClassification.from_config(config)
    options: Options = {"tokenizer": code, "clients": 2, **LABELLED}
    task = fl.tasks.hub(model, frame, labels=["kind", "harsh"], **options)
    assert task.labels == ("kind", "harsh")
    line = "^labels=.*: expected the order of the model's own classes: kind, harsh"
    with refused(line):
        fl.tasks.hub(model, frame, **options)
    with refused(line):
        fl.tasks.hub(model, frame.assign(label=frame["label"].str.upper()), **options)
    with pytest.warns(
        UserWarning, match="^labels: a, b stand for the outputs that were kind, harsh"
    ):
        fl.tasks.hub(model, frame.assign(label=["a", "b"] * 24), **options)


def test_labels_of_two_tables_are_one_set_of_classes_or_refused():
    """Written otherwise they became classes of their own: epsilon was spent for no right answer."""
    (_, codes), classes = read_labels((labelled([10, 2.0, -1]), labelled(["2 ", "-1"])), "y")
    assert classes == (-1, 2, 10) and codes.tolist() == [1, 0]
    line = "^label 'y' of the test data='neg, pos': expected labels that private rows have: 0, 1"
    with refused(line):
        read_labels((labelled([0, 1]), labelled(["neg", "pos"])), "y")
    line = "^label 'y': no private row has maybe, which test rows have and which becomes a class"
    with pytest.warns(match=line):
        (_, codes), classes = read_labels((labelled(["no", "yes"]), labelled(["no", "maybe"])), "y")
    assert classes == ("maybe", "no", "yes") and codes.tolist() == [1, 0]


def test_class_numbers_stand_for_the_names_of_their_own_table():
    """Class 0 of one table may be class 1 of the other; -1 stands for no class."""
    private, test, unlabelled = (
        read_splits(
            SimpleNamespace(
                features={"y": SimpleNamespace(names=names)},
                to_pandas=partial(labelled, numbers),
            )
        )["train"]
        for numbers, names in (
            ([0, 1], ["no", "yes"]),
            ([0, 1], ["yes", "no"]),
            ([0, -1], ["yes", "no"]),
        )
    )
    (one, two), classes = read_labels((private, test), "y", private.attrs["y"])
    assert classes == ("no", "yes") and (one.tolist(), two.tolist()) == ([0, 1], [1, 0])
    with refused(r"^label 'y'='nan in row 1 of the test data'"):
        read_labels((private, unlabelled), "y")


@pytest.mark.parametrize("cell", [None, " ", np.nan, "nan", 0.5, pd.NA, b"a"])
def test_what_is_no_label_is_refused(cell):
    frame = labelled(pd.Series([0, 1, cell], dtype=object))
    with refused(r"^label 'y'=.* in row 2.: expected a text or"):
        read_labels((frame, frame), "y")


# ---- public test rows


def rows_of_numbers(private, test):
    """A task of these private and public rows, all of one class."""
    (x, y), public = (
        (torch.from_numpy(rows).float(), torch.zeros(len(rows), dtype=torch.long))
        for rows in (private, test)
    )
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    return fl.tasks.classification(model, [(x[:5], y[:5]), (x[5:], y[5:])], public, ["0"])


def test_private_rows_are_no_public_test():
    """The table itself, in any order, parts of it, and tables that hold it."""
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(40, 2))
    others = draw.normal(size=(40, 2))
    for private, test, count in (
        (rows, rows[7:9], "2 of 2"),
        (rows, np.concatenate([rows[:21], others[:19]]), "21 of 40"),
        (rows[:20], np.concatenate([rows[:20], others]), "20 of 60"),
        (np.tile(rows, (2, 1)), draw.permutation(rows), "40 of 40"),
    ):
        line = f"^test='{count} rows equal private rows': expected public rows of their own, with"
        with refused(line):
            check_public_test(rows_of_numbers(private, test))
    check_public_test(rows_of_numbers(rows, others))
    with pytest.warns(match=r"^test: some rows equal private rows[^0-9]*$"):
        check_public_test(rows_of_numbers(rows, np.concatenate([rows[37:], others])))


@pytest.mark.slow
def test_the_private_table_is_known_from_any_place(tmp_path, monkeypatch):
    """It was known by the object alone: a file, a copy or a link to it was scored after every
    round, exactly. Held out rows, and test rows that are not declared public, are not compared."""
    monkeypatch.chdir(tmp_path)
    frame = toy_hubs.texts()
    frame.to_csv("data.csv", index=False)
    with refused(r"^test='.* rows equal private rows': expected public rows of their own"):
        bert("data.csv", test=frame, public_test=True)
    assert bert(frame, public_test=True).public_test
    assert not bert(frame, test=frame).public_test
