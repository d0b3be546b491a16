"""Hugging Face models and data sets as tasks: any data, clear refusals, one meaning of each row."""

import csv
import gzip
import json
import shutil
import uuid
from contextlib import nullcontext
from dataclasses import replace
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
    PreTrainedTokenizerFast,
)

import fedlora_lab as fl
from fedlora_lab.tasks.labels import read_labels
from fedlora_lab.tasks.tables import Rows, check_public_test, read_splits

pytestmark = pytest.mark.filterwarnings(toy_hubs.NO_PAD)
LABELLED: Options = {"text": "text", "label": "label"}
PICTURES: Options = {"image": "image", "label": "label"}


def bert(data, model=None, **options):
    """A sentence classifier of two clients on this data set; ``model``: another one than BERT."""
    clients: Options = {} if "by" in options else {"clients": 2}
    return fl.tasks.hub(model or toy_hubs.folder("bert"), data, **LABELLED | clients | options)


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
    with refused("cow': .* none may be empty$"):
        read_splits(animals)


def test_the_folders_of_images_are_classes_only_where_that_is_clear(tmp_path):
    """Of site/class/file the sites became the classes, and epsilon was spent."""
    for i, pixels in enumerate(toy_hubs.images(24)["image"]):
        for place in ("flat", f"tree/{('Bonn', 'Trier')[i % 2]}/{('break', 'whole')[i // 2 % 2]}"):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / place / f"{i}.png")
    vit: Options = {"image": "image", "clients": 2}
    line = (
        r"^label='label': expected a column: folder_1, folder_2, image; (Bonn|Trier)/.*png lies in "
    )
    line += (
        "2 folders: label='folder_2', by='folder_1' if the outer .*, and label='folder_1' if they"
    )
    with refused(line):
        fl.tasks.hub(toy_hubs.folder("vit"), tmp_path / "tree", label="label", **vit)
    sites: Options = {"image": "image", "label": "folder_2", "by": "folder_1"}
    task = fl.tasks.hub(toy_hubs.folder("vit"), tmp_path / "tree", **sites)
    assert task.labels == ("break", "whole") and task.client_names == ("Bonn", "Trier")
    assert list(read_splits(tmp_path / "flat")["train"]) == ["image"], "pictures to predict"
    (tmp_path / "flat" / "scan.dcm").write_bytes(b"DICM")
    assert len(read_splits(tmp_path / "flat")["train"]) == 25, "refused by name, and not left out"
    with refused("^label='label': expected a column: image; classes are folders here"):
        fl.tasks.hub(toy_hubs.folder("vit"), tmp_path / "flat", label="label", **vit)
    shutil.copy(tmp_path / "flat" / "0.png", tmp_path / "tree" / "Bonn")
    with refused(r"^dataset=\[.*\]: expected all images equally deep in folders"):
        read_splits(tmp_path / "tree")


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
    with pytest.warns(
        match="by='site': test= holds out all rows of alone, so there is no such client"
    ):
        task = bert(frame, by="site")
    assert task.client_names == ("site 0", "site 1", "site 2", "site 3")
    assert bert(frame, by="site", test=frame).client_names[0] == "alone"


# ---- texts


def test_texts_too_long_are_refused_or_cut():
    frame = toy_hubs.texts()
    frame.loc[5, "text"] = "good " * 70
    with refused(r"text='72 .* expected at most 64; max_length=64 \(--max-length 64\) cuts them"):
        bert(frame)
    cut = bert(frame, max_length=16)
    assert cut.info["texts cut"] == 1
    x: Any = cut.test[0]
    assert x["input_ids"].shape[1] == 16


@pytest.mark.parametrize(("kind", "number"), [("gpt2", None), ("llama", 7)])
def test_a_classifier_on_a_decoder_reads_each_text_s_last_token(kind, number):
    """Whatever number the model's own configuration has for padding: with another one than the
    tokenizer's it would read padding, and an example's output depend on how long others are. That
    another number stood there is told, for plain PEFT on the base alone would go by it."""
    told = pytest.warns(match=r"^pad_token_id was 7 and is now \d, which the tokenizer has")
    with fl.tasks.quiet():
        model = AutoModelForSequenceClassification.from_pretrained(toy_hubs.folder(kind))
    model.config.pad_token_id = number
    with told if number else nullcontext():
        task = bert(toy_hubs.texts(), model=model, tokenizer=toy_hubs.tokenizer(kind))
    assert all(p.requires_grad for p in model.parameters()), "the model in hand is copied"
    x: Any = task.test[0]
    lengths = x["attention_mask"].sum(1)
    decoder: Any = task.model
    hidden = decoder.base_model(**x).last_hidden_state
    last = decoder.score(hidden[torch.arange(len(lengths)), lengths - 1])
    torch.testing.assert_close(task.forward(decoder, x), last, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_tokenizer_cuts_where_it_was_set_to(side):
    """Every note lost its conclusion, which it was set to keep. Where it pads is no such choice: a
    text is read as if it were alone."""
    frame = toy_hubs.texts()
    frame["text"] = ["good film very not " + end for end in ("great", "awful")] * 24
    code = toy_hubs.tokenizer()
    code.truncation_side = side
    code.padding_side = "left"
    task = bert(frame, tokenizer=code, max_length=5)
    x: Any = task.test[0]
    assert task.encode is not None and task.info["truncation_side"] == side
    assert task.info["tokenizer"] == bert(frame).info["tokenizer"]
    assert task.info["tokenizer"] != toy_hubs.answers().info["tokenizer"], "of other words"
    cut = code(frame["text"].tolist(), truncation=True, max_length=5)["input_ids"]
    assert {tuple(ids) for ids in x["input_ids"].tolist()} == {tuple(ids) for ids in cut}
    assert len({tuple(ids) for ids in cut}) == (2 if side == "left" else 1)
    if side == "left":
        decoder = toy_hubs.tokenizer("llama")
        decoder.truncation_side = side
        with refused("^tokenizer.truncation_side='left': expected right with max_length="):
            toy_hubs.fresh_answers("llama", tokenizer=decoder, max_length=8)


# ---- what is refused


FRAME = toy_hubs.texts()
WORDLESS = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel()), pad_token="<pad>"
)
SURE = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "good": 1})), pad_token="<pad>"
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
    "text='3 in row 0': expected text in every row, in whole letters of .*; so also row 1": {
        "dataset": FRAME.assign(text=3)
    },
    "dataset='nowhere.csv': expected a file that exists": {"dataset": "nowhere.csv"},
    r"dataset=\['test'\]: expected a split called train": {"dataset": {"test": FRAME}},
    "tokenizer='special tokens alone': expected words too": {"tokenizer": WORDLESS},
    "test='0 rows': expected at least one row": {"test": FRAME[:0]},
    "head='no': .*; linear maps here: classifier, dense": {"head": "no"},
    "head=3: expected the end of a module's name, a list of them": {"head": 3},
    r"by=\['site'\]: expected a column: text": {"by": ["site"]},
    "max_length='8': expected a whole number": {"max_length": "8"},
    # An empty name was the folder that the process works in.
    "dataset='': expected a file that exists": {"dataset": ""},
    "dataset='what is good about it .*: expected a file that exists": {
        "dataset": "what is good about it " * 20
    },
    "label 'label'='2024-.* in row 0': .* makes texts of dates": {
        "dataset": FRAME.assign(label=pd.date_range("2024", periods=len(FRAME)))
    },
    # What has no token for an unknown word fails in a language of its own.
    "tokenizer='.*': expected one that reads any text": {"tokenizer": SURE},
    # Outputs beyond the classes would be handed back as a class that no row has.
    r"labels=\[0, 1\]: expected 5 names, one for each output": {
        "dataset": FRAME.assign(label=[0, 1] * 24),
        "model": AutoModelForSequenceClassification.from_pretrained(
            toy_hubs.folder("bert"), num_labels=5
        ),
        "tokenizer": toy_hubs.tokenizer(),
    },
    "model='Linear': expected a Transformers model": {"model": torch.nn.Linear(2, 2)},
    # RoBERTa's positions begin after the padding token's number, here 0; MPNet's after its own, 1.
    "max_length=66: expected a whole number in .2, 65.": {"model": "roberta", "max_length": 66},
    "max_length=66: expected a whole number in .2, 64.": {"model": "mpnet", "max_length": 66},
    "tokenizer=None: expected what AutoTokenizer": {"model": toy_hubs.task("bert").model},
}


@pytest.mark.parametrize("line", BAD)
def test_bad_calls_are_one_line(line):
    call: Options = {"model": "bert", "dataset": FRAME} | LABELLED | BAD[line]
    model = call.pop("model")
    with refused(line):
        fl.tasks.hub(
            toy_hubs.folder(model) if isinstance(model, str) else model, call.pop("dataset"), **call
        )


READABLE = {
    "TEXTS.CSV": b'text,label\n"a\nb",01\n\nc,1e3\n',
    "comma at each end.csv": b'text,label\n"a\nb",01,\n\nc,1e3,\n',
    "of a spreadsheet.csv": '\ufefftext;label;",,,"\r\n"a\nb";01;\r\n\r\nc;1e3;\r\n;;\r\n'.encode(),
    "wide.tsv": 'text\tlabel\n"a\nb"\t01\n\nc\t1e3'.encode("utf-16"),
    "texts.jsonl": b'{"text":"a\\nb","label":"01"}\n\n{"text":"c","label":"1e3"}\n',
}
"""With a comma at each line's end pandas made row names of the texts, and texts of the labels."""


@pytest.mark.filterwarnings("ignore:.*the rows at its end that have no value are not read")
@pytest.mark.parametrize("name", READABLE)
def test_every_bad_row_of_a_file_is_named_by_its_line(name, tmp_path):
    """Whatever separates its cells, and however it is encoded; a quoted cell has two lines."""
    file = tmp_path / name
    file.write_bytes(READABLE[name])
    table = read_splits(file)["train"]
    assert table.iloc[:, :2].to_dict("list") == {"text": ["a\nb", "c"], "label": ["01", "1e3"]}
    lines = (1, 3) if file.suffix == ".jsonl" else (2, 5)
    assert tuple(table.index) == lines
    line = rf"^label 'text'=.*'a.*b' in line {lines[0]}.: expected .*; so also line {lines[1]}$"
    with refused(line):
        read_labels((table, table), "text", ["good", "bad"])


def test_letters_of_an_older_windows_are_told(tmp_path):
    """Read as something else they would train a model on wrong letters without a word."""
    (tmp_path / "texts.csv").write_bytes("text\ntrès\n".encode("cp1252"))
    with pytest.warns(match="is not UTF-8: it is read as Windows-1252; save it as UTF-8"):
        assert read_splits(tmp_path / "texts.csv")["train"]["text"].tolist() == ["très"]


LONG = "x" * 200_000  # Python's CSV reader took 131,072 letters
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
KEPT = {
    "long.csv": (f"text,n\n{LONG},1\n".encode(), [LONG], 2),
    "commas.tsv": (b"text\tn, with, commas\na,b\t1\n", ["a,b"], 2),
    "excel.csv": (b"sep=;\r\ntext;n\r\na,b;1\r\n", ["a,b"], 3),
    "packed.csv.gz": (gzip.compress(b"text,n\n 01,1\n"), [" 01"], 2),
    "packed.jsonl.gz": (gzip.compress(b'{"text": "01"}'), ["01"], 1),
    "array.json": (json.dumps([{"text": CHAT}, {"text": CHAT}]).encode(), [CHAT, CHAT], 0),
    "lines.json": (b'{"text": 9007199254740993}\n{"text": null}', [9007199254740993, None], 1),
    "chat.jsonl": (json.dumps({"text": CHAT}).encode(), [CHAT], 1),
}
"""Content of a file -> the cells of its column, and what its first row is called."""
NO_TABLE = {
    "wide.csv": (
        "text,n\na,1\n".encode("utf-16-le"),
        "'NUL in line 1': .* with its mark at the st",
    ),
    "wider.csv": ("text,n\na,1\n".encode("utf-32"), "'NUL in line 1'"),
    "names.csv": (
        b"text,label,label\na b,1,2",
        r": expected a table \(columns=\['text', 'label', 'label'\]: expected each name once",
    ),
    "quote.csv": (b'text,label\na,1\n"b,2\nc,3\n', r": expected a table \(line 3: "),
    "cells.csv": (
        b"text,label\na,b,1\nc,2\n\nd",
        r": expected a table \(cells='3 cells in line 2': .*; so also line 5",
    ),
    "cut.csv.gz": (gzip.compress(b"text,n\na,1\n")[:-9], "Compressed file ended before"),
    "plain.csv.gz": (b"text,n\na,1\n", "Not a gzipped file"),
    "twice.jsonl": (
        b'{"text": 1}\n{"text": 1, "text": 2}',
        "a key stands there twice. in line 2.*each key once",
    ),
    "twice.json": (b'[{"text": 1}, {"n": [{"x": 1, "x": 2}]}]', "a key stands there twice"),
    "pairs.jsonl": (b'{"text": 1}\n[["text", 2]]', "in line 2.*a JSON object in each"),
    "deep.json": (b'[{"text":' + b"[" * 10**5 + b"]" * 10**5 + b"}]", "recursion depth"),
    "other.json": (b'[{"text": 1}, 2]', "2 in row 1': expected a JSON object in each"),
}
"""Content of a file -> why it is refused."""
HALF = {
    "emoji.jsonl": b'{"text": "good", "n": 1}\n{"text": "bad \\ud83d day", "n": 2}',
    "utf-8.csv": "text,n\ntrès,1\nno".encode() + b"\xe9l,2\n",
    "utf-16.csv": b"\xff\xfe" + "text,n\na,1\n\ud83d,2\n".encode("utf-16-le", "surrogatepass"),
}


@pytest.mark.parametrize("name", [*KEPT, *NO_TABLE, *HALF])
def test_a_reader_keeps_or_refuses_what_a_file_holds(name, tmp_path):
    """Nothing is dropped without a word, and nothing of the process is changed."""
    file = tmp_path / name
    file.write_bytes((KEPT | NO_TABLE)[name][0] if name not in HALF else HALF[name])
    limit = csv.field_size_limit()
    if name in NO_TABLE:
        with refused(rf"^dataset=.*{name}'.*{NO_TABLE[name][1]}"):
            read_splits(file)
        return
    table = read_splits(file)["train"]
    assert csv.field_size_limit() == limit
    if name in KEPT:
        _, cells, first = KEPT[name]
        assert table["text"].tolist() == cells and table.index[0] == first
    for argument in ("text", "label", "by", "person") if name in HALF else ():
        options: Options = {argument: "text"} if argument in ("by", "person") else {}
        with refused(rf"a broken letter, .*, in line [23] \({argument}\)"):
            Rows.read(file, file, 0, columns={argument: "text"}, **options)


class Split:
    """What this library reads of a data set of `datasets`."""

    def __init__(self, table, kind=None, columns=None, **names):
        self.table = table
        self.format = {"type": kind, "columns": columns or list(table)}
        self.features = {key: SimpleNamespace(names=value) for key, value in names.items()}

    def to_pandas(self):
        return self.table

    def __iter__(self):
        for row in self.table.to_dict("records"):
            yield {**row, "text": row["text"].replace("Anna", "X")}


def test_a_data_set_s_own_transform_and_columns_are_respected():
    """They may be what leaves the names out."""
    chat = np.array(CHAT, dtype=object)
    plain = pd.DataFrame({"text": ["Anna came", "no"], "y": [0, 1], "chat": [chat, chat]})
    shown = read_splits(Split(plain, "custom", y=["low", "high"]))["train"]
    assert shown["text"].tolist() == ["X came", "no"] and shown["y"].tolist() == ["low", "high"]
    assert shown["chat"].tolist() == [CHAT, CHAT], "lists of Arrow are lists again"
    named = Split(plain.assign(y=["a", "b"]), "custom", y=["low", "high"])
    assert read_splits(named)["train"]["y"].tolist() == ["a", "b"], "what a transform wrote"
    assert list(read_splits(Split(plain, "torch", ["y"]))["train"]) == ["y"]
    grey = Split(plain)
    grey.features["text"] = SimpleNamespace(mode="L")
    assert read_splits(grey)["train"]["text"][0] == "X came", "what a feature makes of a cell"
    with refused(r"^cells='nothing in row 1 \(label\)': .*the -1 of a ClassLabel is no class"):
        no_class = Split(plain.assign(y=[0, -1]), y=["low", "high"])
        Rows.read(no_class, no_class, 0, columns={"label": "y"})


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
    for others, line in (
        (pd.Series([100, 5]).astype(kind), r"='1 persons of the public .* counts its persons from"),
        (["100", "5"], r"=\[0, '100'\]: expected texts throughout or numbers throughout, in all"),
    ):
        with refused(f"^person 'who'{line}"):
            Rows.read(frame, pd.DataFrame({"who": others}), 0, **public)


ONE_NAME = [["B ", "B"], ["é", "e\u0301"], ["ﬁ", "fi"], [7, 7.0], ["P-0012", " P-0012"]]
ONE_NAME += [[np.int8(7), np.float32(7)], [uuid.UUID(int=5), str(uuid.UUID(int=5))]]
NEARLY_ONE = [["B", "b"], ["1", "01"], ["1", "1.0"], ["P-0012", "P-12"], ["A", "A\u200b"]]
NEARLY_ONE += [["a b", "ab"], ["1e3", "1000"], ["+5", "5"], ["1", "١"], ["1.10", "1.1"]]
NEARLY_ONE += [["Straße", "STRASSE"], ["B", "\ufeffB"]]
NEARLY_ONE += [["O'Neil", other] for other in ("O’Neil", "O´Neil", "O`Neil", "oʼNEIL")]
# A Latin letter beside a Cyrillic or a Greek one.
NEARLY_ONE += [["A1", "А1"], ["A1", "а1"], ["B-2", "В–2"], ["NIK", "ΝΙΚ"]]


@pytest.mark.parametrize("argument", ["by", "person"])
def test_a_site_or_person_is_one_name_or_refused(argument):
    """As two they would be protected by half, and as one two sites would train together."""

    def read(names):
        frame = pd.DataFrame({"who": pd.Series([*names] * 3, dtype=object)})
        options: Options = {argument: "who"}
        return Rows.read(frame, frame, 0, **options)

    for pair in ONE_NAME:
        with nullcontext() if argument == "by" else refused("clients=10: .* at most 1: 1 to deal"):
            assert len(read(pair).clients) == 1
    for pair in NEARLY_ONE:
        with refused(rf"^{argument} 'who'=\[.*\]: expected each written in one .* give them names"):
            read(pair)
    for pair in (["7", 7], ["B", 7], [True, 1]):
        with refused(rf"^{argument} 'who'=\[.*\]: expected texts throughout or numbers throughout"):
            read(pair)
    for other in (0.5, None, "nan", " ", 2.0**53, b"a"):
        with refused(r"in row 1"):
            read(["B", other])
    names = [f"P-{number:04}" for number in range(9)] + ["1.5", "1.05", *"ABC"]
    # Codes of one length have zeros anywhere.
    names += [str(uuid.UUID(int=number)) for number in (0xF0, 0xF00)] + ["0010", "1e01", "10e0"]
    rows: Any = read(names)
    assert len({*(rows.clients if argument == "by" else rows.people)}) == len(names)


def test_patients_whom_each_site_numbers_from_one_are_told_apart():
    """They were told to merge sites that share persons, and share none."""
    frame = toy_hubs.texts().assign(site=["Bonn", "Trier"] * 24, who=np.arange(48) // 4)
    with refused("^persons='one at clients Bonn and Trier': .* counts its persons from 1, make th"):
        bert(frame, by="site", person="who")
    apart = frame.assign(who=frame["site"] + "-" + frame["who"].astype(str))
    assert bert(apart, by="site", person="who", test=frame).person_counts == (12, 12)


def test_empty_cells_of_all_columns_are_named_at_once(tmp_path):
    """One column at a time was told, each after the model had been loaded."""
    frame = toy_hubs.texts()
    frame.loc[3, "text"], frame.loc[[5, 7], "label"] = None, ["", " "]
    frame.loc[9] = None
    frame.to_csv(tmp_path / "gaps.csv", index=False)
    with refused(
        r"^cells='nothing in line 5 \(text\)': .* line 11 .text., line 7 .label., line 9 "
    ):
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
    # A shell gives texts, and whoever reads a file by pandas has numbers.
    ratings = labelled([True, "1", 3.0, 4])
    given = ["1", "2", "3", "4", "True"]
    (codes, _), classes = read_labels((ratings, ratings), "y", given)
    assert codes.tolist() == [4, 0, 2, 3] and classes == tuple(given)
    for other in (6, "1.0", "1 "):
        line = rf"^label 'y'=.*{other!r} in row 1 of the test data.: expected one of the classes"
        with refused(line):
            read_labels((ratings, labelled([1, other])), "y", [1, 2, 3, 4, True])


def frames_of(codes, place):
    """A column with these labels, as every reader finds it."""
    table = pd.DataFrame({"y": codes})
    yield table
    yield table.to_dict("records")
    yield Split(table)
    for name in ("codes.csv", "codes.csv.gz"):
        table.to_csv(place / name, index=False)
        yield place / name
    table.to_json(place / "codes.jsonl", orient="records", lines=True)
    table.to_json(place / "codes.json", orient="records")
    yield place / "codes.jsonl"
    yield place / "codes.json"


CODES = ["250", "250.0", "250.00", "007", "7", "1e3", "1.10", "+5", " 5", "١", "True", "true", "x²"]
WORDS = ["NA", "None", "nan", "null", "N/A"]
ONE_NUMBER = [
    ("250", "250.0", "250.00"),
    ("7", "007"),
    ("1e3", "1000"),
    ("1.1", "1.10"),
    ("5", "+5"),
]
ONE_CODE = [(" 5", "5"), ("١", "1"), ("True", "true"), ("é", "e\u0301"), ("x²", "x2")]


def test_a_code_is_kept_as_it_is_written_or_refused(tmp_path):
    """Diagnosis codes 250, 250.0 and 250.00 became one class, without a word."""
    for code in CODES + WORDS:
        for data in frames_of([code, "other"] * 2, tmp_path):
            table = read_splits(data)["train"]
            (numbers, _), classes = read_labels((table, table), "y", ["other", code])
            assert classes == ("other", code) and numbers.tolist() == [1, 0, 1, 0]
            if code in CODES:
                orders = {read_labels((table, table), "y")[1] for _ in range(2)}
                assert len(orders) == 1 and {*orders.pop()} == {code, "other"}
    for codes in ONE_NUMBER:
        for data in frames_of([*codes, "other"] * 2, tmp_path):
            table = read_splits(data)["train"]
            with pytest.warns(UserWarning, match="are two classes, as they are written"):
                (numbers, _), classes = read_labels((table, table), "y")
            assert [classes[number] for number in numbers] == [*codes, "other"] * 2
    for codes in ONE_CODE:
        for data in frames_of([*codes, "other"] * 2, tmp_path):
            table = read_splits(data)["train"]
            with refused(r"^label 'y'=\['.*'\]: expected each written in one way; .* labels=\["):
                read_labels((table, table), "y")
            if codes[0].strip() != codes[0]:
                continue
            given = [*codes, "other"]
            (numbers, _), classes = read_labels((table, table), "y", given)
            assert [classes[number] for number in numbers] == given * 2


def test_an_empty_cell_of_a_file_is_a_class_only_where_it_is_declared(tmp_path):
    file = tmp_path / "codes.csv"
    pd.DataFrame({"y": ["NA", "x", "NA", "x"]}).to_csv(file, index=False)
    with refused(r"^cells='nothing in line 2 \(label\)': .* unless labels= has them"):
        Rows.read(file, file, 0, columns={"label": "y"})
    Rows.read(file, file, 0, columns={"label": "y"}, classes=["NA", "x"], clients=2)


@pytest.mark.parametrize("pair", [[250, "250.0"], [1, "one"], [True, 1], [np.True_, "True"]])
def test_a_column_of_texts_and_numbers_is_refused_unless_classes_are_declared(pair):
    table = labelled(pd.Series(pair * 2, dtype=object))
    with refused(
        r"^label 'y'=\[.*\]: expected texts throughout or numbers throughout, .*labels=\["
    ):
        read_labels((table, table), "y")
    if str(pair[0]) != str(pair[1]):
        (numbers, _), classes = read_labels((table, table), "y", pair)
        assert numbers.tolist() == [0, 1] * 2 and [*classes] == pair


def test_booleans_and_numbers_are_handed_back_as_they_were():
    frame = toy_hubs.texts()
    task = bert(frame.assign(label=frame["label"] == "kind"))
    assert task.labels is not None and [*map(repr, task.labels)] == ["False", "True"]
    assert bert(frame.assign(label=(frame["label"] == "kind") * 1.0)).labels is None
    assert bert(frame.assign(label=[*"01"] * 24)).labels == ("0", "1")


def test_classes_stand_in_the_order_of_the_model_s_classifier():
    """Else its outputs would stand under each other's names."""
    frame = toy_hubs.texts()
    config = AutoConfig.from_pretrained(toy_hubs.folder("bert"), id2label={0: "kind", 1: "harsh"})
    model = AutoModelForSequenceClassification.from_config(config)
    own: Options = {"model": model, "tokenizer": toy_hubs.tokenizer()}
    assert bert(frame, labels=["kind", "harsh"], **own).labels == ("kind", "harsh")
    for table in (frame, frame.assign(label=frame["label"].str.upper())):
        with refused("^labels=.*: expected the order of the model's own classes: kind, harsh"):
            bert(table, **own)
    with pytest.warns(match="^labels: a, b stand for the outputs that were kind, harsh"):
        bert(frame.assign(label=["a", "b"] * 24), **own)


def test_labels_of_two_tables_are_one_set_of_classes_or_refused():
    """Written otherwise they became classes of their own: epsilon was spent for no right answer."""
    (_, codes), classes = read_labels((labelled([10, 2.0, -1]), labelled([2, -1.0])), "y")
    assert classes == (-1, 2, 10) and codes.tolist() == [1, 0]
    (_, codes), classes = read_labels((labelled(["10", "2", "b"]), labelled(["b", "10"])), "y")
    assert classes == ("2", "10", "b") and codes.tolist() == [2, 1], "numbers by size"
    with refused(r"^label 'y'=\[2, '2'\]: expected texts throughout or numbers throughout, in all"):
        read_labels((labelled([2, 1]), labelled(["2", "1"])), "y")
    with refused(
        "^label 'y' of the test data='neg, pos': expected labels that private rows have: "
    ):
        read_labels((labelled(["no", "yes"]), labelled(["neg", "pos"])), "y")
    with pytest.warns(
        match="^label 'y': no private row has maybe, which test rows have and which "
    ):
        (_, codes), classes = read_labels((labelled(["no", "yes"]), labelled(["no", "maybe"])), "y")
    assert classes == ("maybe", "no", "yes") and codes.tolist() == [1, 0]


def test_class_numbers_stand_for_the_names_of_their_own_table():
    """Class 0 of one table may be class 1 of the other; -1 stands for no class."""
    private, test, unlabelled = (
        read_splits(Split(labelled(numbers), y=names))["train"]
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
        check_public_test(rows_of_numbers(rows, np.concatenate([rows[28:], others])))


@pytest.mark.parametrize("persons", [None, [0] * 5 + [*range(1, 36)]])
def test_nothing_tells_whether_one_person_s_rows_are_public(persons):
    """One public row that was a private one was warned of: whoever chose it had an answer. Nor may
    all rows of a person, whatever share of the tables they are."""
    rows = np.random.default_rng(0).normal(size=(40, 2))
    target = rows[:1] if persons is None else rows[:5]
    others = np.random.default_rng(1).normal(size=(60, 2))
    for public in (target, np.concatenate([target, others[:4]]), np.concatenate([target, others])):
        task = rows_of_numbers(rows, public)
        if persons is not None:
            task = replace(task, persons=(persons[:5], persons[5:]))
        check_public_test(task)  # a warning would be an error here
    check_public_test(rows_of_numbers(rows, np.concatenate([rows[:9], others])))


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
