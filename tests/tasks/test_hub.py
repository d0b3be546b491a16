"""Hugging Face models and data sets as tasks: exact gradients on every architecture, any data,
clear refusals.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import toy_hubs
from toy_hubs import IMAGE, TEXT
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import fedlora_lab as fl
from fedlora_lab.lora import per_example
from fedlora_lab.tasks.architectures import load
from fedlora_lab.tasks.hub import check_public_test, people_of, read_splits, split_rows
from fedlora_lab.tasks.labels import read_labels
from fedlora_lab.tasks.metrics import IGNORED, next_token_accuracy, next_token_loss
from fedlora_lab.tasks.task import take

pytestmark = pytest.mark.filterwarnings(toy_hubs.NO_PAD)
LORA = fl.Lora(rank=2, alpha=3.0)
LABELLED: dict[str, Any] = {"text": "text", "label": "label"}
PICTURES: dict[str, Any] = {"image": "image", "label": "label"}


def bert(data, **options):
    """A sentence classifier of two clients on this data set."""
    clients: dict[str, Any] = {} if "by" in options else {"clients": 2}
    return fl.tasks.hub(toy_hubs.folder("bert"), data, **LABELLED | clients | options)


def test_default_targets_and_heads():
    for kind, targets, head in (
        ("bert", ("query", "value"), "classifier"),
        ("distilbert", ("q_lin", "v_lin"), ("pre_classifier", "classifier")),
        ("gpt2", ("c_attn",), "score"),
    ):
        assert (toy_hubs.task(kind).targets, toy_hubs.task(kind).head) == (targets, head)
    assert toy_hubs.decoder().head is None
    for image in IMAGE:  # query and value, or q_proj and v_proj, as Transformers' version has it
        assert {name[0] for name in toy_hubs.task(image).targets} == {"q", "v"}


def test_a_tiny_model_is_read_back(tmp_path):
    seeds = {"a": 3, "b": 3, "c": 4}
    folders = [fl.tasks.tiny("vit", tmp_path / name, seed=seed) for name, seed in seeds.items()]
    one, again, other = ((path / "model.safetensors").read_bytes() for path in folders)
    assert one == again != other
    with pytest.raises(ValueError, match="expected a new folder, or an empty one"):
        fl.tasks.tiny("vit", tmp_path / "a")
    with pytest.raises(ValueError, match="kind='elman': expected one of 'bert'"):
        fl.tasks.tiny("elman", tmp_path / "d")
    with pytest.raises(ValueError, match="expected some texts"):
        fl.tasks.tiny("bert", tmp_path / "d")


# ---- data sets


def test_files_and_folders_equal_the_frame(tmp_path):
    """A CSV file, a mapping of splits and a folder of images say what the frame says."""
    frame = toy_hubs.texts()
    frame.to_csv(tmp_path / "texts.csv", index=False)
    from_frame, from_file = (bert(d, by="site") for d in (frame, tmp_path / "texts.csv"))
    assert from_frame.fingerprint == from_file.fingerprint
    assert from_frame.client_names == ("site 0", "site 1", "site 2", "site 3")
    assert from_frame.labels == ("harsh", "kind")
    parts = {"train": frame[:30], "validation": frame[30:]}
    split = bert(parts, by="site", test="validation")
    assert len(split.test[1]) == 18 and sum(split.sizes) == 30
    assert bert(frame[:30], by="site", test=frame[30:]).fingerprint == split.fingerprint
    frame[30:].to_csv(tmp_path / "test.csv", index=False)
    assert bert(frame[:30], by="site", test=str(tmp_path / "test.csv")).fingerprint == (
        split.fingerprint
    )
    animals = toy_hubs.image_folder(tmp_path / "animals")
    task = fl.tasks.hub(toy_hubs.folder("vit"), animals, **PICTURES, clients=2, test=0.25)
    assert task.labels == ("cat", "dog")
    assert sum(task.sizes) == 6 and task.test[0].shape == (2, 3, 8, 8)
    for part in ("train", "val"):
        toy_hubs.image_folder(tmp_path / "parts" / part)
    assert sorted(read_splits(tmp_path / "parts")) == ["train", "val"]


def test_data_sets_of_hugging_face_equal_the_frame():
    datasets = pytest.importorskip("datasets")

    def made_of(columns, **kinds):
        # With a fingerprint of ours: theirs pickles classes that some versions of pyarrow do not
        # let be pickled.
        features = datasets.Features(kinds)
        encoded = features.encode_batch({name: list(columns[name]) for name in kinds})
        table = datasets.table.InMemoryTable.from_pydict(encoded, schema=features.arrow_schema)
        info = datasets.DatasetInfo(features=features)
        return datasets.Dataset(table, info=info, fingerprint="0")

    frame, words = toy_hubs.texts(), datasets.Value("string")
    kinds = {"text": words, "label": datasets.ClassLabel(names=["harsh", "kind"]), "site": words}
    made = made_of(frame, **kinds)
    assert bert(made, by="site").fingerprint == bert(frame, by="site").fingerprint
    parts = datasets.DatasetDict({"train": made, "test": made_of(made[:9], **kinds)})
    task = bert(parts, test="test")
    assert len(task.test[1]) == 9 and task.labels == ("harsh", "kind")
    shown = toy_hubs.images(12)
    pictures = made_of(shown, image=datasets.Image(), label=datasets.Value("int64"))
    tasks = [
        fl.tasks.hub(toy_hubs.folder("vit"), x, **PICTURES, clients=2) for x in (shown, pictures)
    ]
    assert tasks[0].fingerprint == tasks[1].fingerprint


def test_the_seed_decides_the_split_and_a_limit_takes_private_rows():
    """The split is the seed's, and of all rows; a limit takes from the private part only."""
    frame = toy_hubs.texts()
    made = [bert(frame, clients=4, alpha=0.5, seed=s) for s in (0, 0, 1)]
    assert made[0].fingerprint == made[1].fingerprint != made[2].fingerprint
    assert sum(made[0].sizes) + len(made[0].test[1]) == len(frame)
    less = bert(frame, limit=20)
    assert sum(less.sizes) == 20 and torch.equal(less.test[1], made[0].test[1])
    pair = bert(frame.assign(more="good day"), text=("text", "more"))
    shortest = int(pair.clients[0][0]["attention_mask"].sum(1).min())
    assert shortest >= 3 + 2 + 3, "both texts and three marks"


def test_a_site_that_is_left_without_rows_is_named():
    """Its only row was held out: it would take part in nothing, and nobody would know."""
    frame = toy_hubs.texts()
    for seed in range(20):  # until the draw takes the one row
        frame["site"] = [
            "alone" if i == 5 else site for i, site in enumerate(toy_hubs.texts()["site"])
        ]
        held = sorted(split_rows(frame, 0.2, None, seed)[1].index)
        if 5 in held:
            break
    with pytest.warns(UserWarning, match="by='site': alone: no client, since test= held all rows"):
        task = bert(frame, by="site", seed=seed)
    assert task.client_names == ("site 0", "site 1", "site 2", "site 3")
    whole = bert(frame, by="site", test=frame)
    assert whole.client_names[0] == "alone" and whole.sizes[0] == 1
    frame.loc[7, "site"] = None
    with pytest.raises(ValueError, match="by 'site'='nothing in row 7': expected an owner"):
        bert(frame, by="site")


# ---- texts and images


def test_texts_too_long_are_refused_or_cut():
    frame = toy_hubs.texts()
    frame.loc[5, "text"] = "good " * 70
    line = r"text='72 tokens in row 5': expected at most 64; max_length=64 cuts them"
    with pytest.raises(ValueError, match=line):
        bert(frame)
    cut = bert(frame, max_length=16)
    assert cut.info["texts cut"] == 1 and cut.test[0]["input_ids"].shape[1] == 16
    # RoBERTa's positions begin after the padding token's number, here 0.
    for kind, room in (("roberta", 65), ("gpt2", 64)):
        line = f"max_length=66: expected a whole number in .2, {room}."
        with pytest.raises(ValueError, match=line):
            fl.tasks.hub(toy_hubs.folder(kind), frame, **LABELLED, max_length=66)


@pytest.mark.parametrize("kind", TEXT)
def test_padding_is_cut_off_and_changes_nothing(kind):
    """Outputs of a batch cut to its longest text are those of the padded one."""
    task = toy_hubs.task(kind)
    x: Any = take(task.test[0], (task.test[0]["attention_mask"].sum(1) < 8).nonzero().squeeze(1))
    cut: Any = per_example.prepare_inputs(task, x, torch.device("cpu"))
    assert cut["input_ids"].shape[1] < x["input_ids"].shape[1]
    outputs = [task.forward(task.model, part) for part in (cut, x)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:pad_token_id was")
@pytest.mark.parametrize("kind", toy_hubs.DECODERS)
@pytest.mark.parametrize("number", [None, -1, 7])
def test_a_classifier_on_a_decoder_reads_each_text_s_last_token(kind, number):
    """Whatever number the model's own configuration has for padding: with another one than the
    tokenizer's it would read padding, and an example's output depend on how long others are."""
    code = AutoTokenizer.from_pretrained(toy_hubs.folder(kind))
    with fl.tasks.quiet():
        model = AutoModelForSequenceClassification.from_pretrained(toy_hubs.folder(kind))
    model.config.pad_token_id = number
    frame = toy_hubs.texts()
    task = fl.tasks.hub(model, frame, **LABELLED, clients=2, tokenizer=code)
    x: Any = task.test[0]
    lengths = x["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 2, "texts of unequal length"
    decoder: Any = task.model
    hidden = decoder.base_model(**x).last_hidden_state
    last = decoder.score(hidden[torch.arange(len(lengths)), lengths - 1])
    torch.testing.assert_close(task.forward(decoder, x), last, rtol=1e-5, atol=1e-6)
    for i, length in enumerate(lengths.tolist()):
        alone = decoder(x["input_ids"][i : i + 1, :length]).logits[0]
        torch.testing.assert_close(alone, last[i], rtol=1e-5, atol=1e-6)


def test_loss_is_each_text_s_own():
    """By hand, token by token; Transformers' own loss of each text alone, without padding."""
    task = toy_hubs.decoder()
    x, y = task.test
    outputs = task.forward(task.model, x)
    found = next_token_loss(outputs, y)
    lengths = x["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 2, "texts of unequal length"
    for i, length in enumerate(lengths.tolist()):
        ids = x["input_ids"][i, :length]
        logs = outputs[i, : length - 1].log_softmax(-1)
        by_hand = -sum(logs[j, ids[j + 1]] for j in range(length - 1)) / (length - 1)
        theirs = task.model(input_ids=ids[None], labels=ids[None]).loss
        assert abs(float(found[i] - by_hand)) < 1e-5 and abs(float(found[i] - theirs)) < 1e-5
    first = (outputs[:, :-1].argmax(-1) == y[:, 1:]) & (y[:, 1:] != IGNORED)
    torch.testing.assert_close(next_token_accuracy(outputs, y), first.sum(1) / (lengths - 1))
    assert bool((y[x["attention_mask"] == 0] == IGNORED).all())


# ---- what is refused


def test_a_model_in_hand_is_copied():
    with fl.tasks.quiet():
        load = AutoModelForSequenceClassification.from_pretrained
        model = load(toy_hubs.folder("bert"), num_labels=2).train()
    code = AutoTokenizer.from_pretrained(toy_hubs.folder("bert"))
    task = fl.tasks.hub(model, toy_hubs.texts(), **LABELLED, clients=2, tokenizer=code)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert not task.model.training
    line = "tokenizer=None: expected a tokenizer, since the model was given as a module"
    with pytest.raises(ValueError, match=line):
        fl.tasks.hub(model, toy_hubs.texts(), **LABELLED)


def test_a_padding_token_is_set_and_said():
    with pytest.warns(UserWarning, match="tokenizer without a padding token: </s> pads"):
        task = fl.tasks.hub(toy_hubs.folder("gpt2"), toy_hubs.texts(), **LABELLED, clients=2)
    config: Any = task.model.config
    assert config.pad_token_id == 0


FRAME = toy_hubs.texts()
BAD: dict[str, dict[str, Any]] = {
    "label='y': expected a column: text, label, site": {"label": "y"},
    "clients=3: expected none with by=": {"by": "site", "clients": 3},
    "text, image=.*: expected one of them": {"text": None},
    "text=3: expected text in every row, which row 0": {"dataset": FRAME.assign(text=3)},
    r"max_length=1: expected a whole number in \[2, 64\]": {"max_length": 1},
    "dataset='nowhere.csv': expected a file that exists": {"dataset": "nowhere.csv"},
    r"dataset=\['test'\]: expected a split called train": {"dataset": {"test": FRAME}},
    "model='Linear': expected a Transformers model": {"model": torch.nn.Linear(2, 2)},
}


@pytest.mark.parametrize("line", BAD)
def test_bad_calls_are_one_line(line):
    call: dict[str, Any] = {"model": toy_hubs.folder("bert"), "dataset": FRAME}
    call |= LABELLED | BAD[line]
    with pytest.raises(ValueError, match=line) as error:
        fl.tasks.hub(call.pop("model"), call.pop("dataset"), **call)
    assert "\n" not in str(error.value)


TABLES = {
    r"columns=\['text', 'label', 'label'\]: expected each name once": "text,label,label\na b,1,2\n",
    "dataset=.*more cells than the header": "text,label,site\na b,good,1,\nc d,bad,0,\n",
    "label 'label'='nothing in row 1': .* None and null count": "text,label\na b,good\nc d,None\n",
}


@pytest.mark.parametrize("line", TABLES)
def test_a_file_whose_cells_pandas_would_move_or_rename_is_refused(line, tmp_path):
    """With a comma at each line's end the texts became row names, and labels the texts."""
    (tmp_path / "texts.csv").write_text(TABLES[line])
    with pytest.raises(ValueError, match=line):
        bert(tmp_path / "texts.csv", by=None, clients=1, test=0.5)
    (tmp_path / "texts.jsonl").write_bytes('{"text": "très"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"dataset=.*jsonl': expected JSONL in UTF-8"):
        bert(tmp_path / "texts.jsonl")


def test_a_hub_that_does_not_answer_is_not_asked_again(monkeypatch):
    """Its library waits between its tries, most of a minute together."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="model='no/such-model': expected a name or folder"):
        load("no/such-model", "text", 2, 0)
    assert waits == []


def test_a_picture_that_is_none_is_named(tmp_path):
    folder = toy_hubs.image_folder(tmp_path)
    (folder / "cat" / "1.png").write_bytes(b"not a picture")
    arrays = pd.DataFrame({"image": [np.zeros((4, 4))] * 4, "label": [0, 1, 0, 1]})
    lines = ("image: expected an image in row .*identify", "an array of float64, not of bytes")
    for data, line in zip((folder, arrays), lines, strict=True):
        with pytest.raises(ValueError, match=line):
            fl.tasks.hub(toy_hubs.folder("vit"), data, **PICTURES, clients=1)


# ---- persons and owners


def crowd(count=30, sites=3):
    """Persons with one to three texts each, and the site that each is at."""
    draw = np.random.default_rng(7)
    who = np.repeat(np.arange(count), draw.integers(1, 4, count))
    return toy_hubs.texts(len(who)).assign(who=who, site=who % sites)


def more_rows(frame, seed, person="who"):
    """The same table, in which one person has up to 100 more rows, anywhere."""
    draw = np.random.default_rng(seed)
    rows = frame[frame[person] == draw.choice(frame[person].unique())]
    more = rows.sample(int(draw.integers(1, 101)), replace=True, random_state=seed)
    places = np.sort(draw.integers(0, len(frame) + 1, len(more)))
    index = np.insert(np.arange(len(frame)), places, more.index.to_numpy())
    return frame.loc[index].reset_index(drop=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("options", [(0.2, None), (0.4, 9), ("test", None), ("test", 12)])
def test_who_is_drawn_does_not_depend_on_how_many_rows_a_person_has(seed, options):
    """Held out or left out: else the other persons' sides would tell of one person's rows, and
    whether somebody was trained on would depend on others."""
    (test, limit), frame = options, crowd()
    sides = []
    for table in (frame, more_rows(frame, seed)):
        data = {"train": table, "test": frame.head(5)}
        private, held, _ = split_rows(data, test, limit, seed, "who")
        sides.append((set(private["who"]), set(held["who"]) if test == 0.2 else None))
    assert sides[0] == sides[1] and len(sides[0][0]) == (limit or (30 if test == "test" else 24))


def test_a_person_s_rows_move_nobody_to_another_client():
    """All of them lie at one client, in numbers of persons that the rows do not change."""
    frame = crowd()
    one, two = (bert(table, person="who", clients=3) for table in (frame, more_rows(frame, 1)))
    assert one.person_counts == two.person_counts == (8, 8, 8)
    members = [[set(part.tolist()) for part in task.persons or ()] for task in (one, two)]
    assert members[0] == members[1] and one.sizes != two.sizes
    with pytest.raises(ValueError, match="min_size=11: expected at most 10, the smallest client"):
        bert(frame, person="who", by="site", min_size=11, test=frame)


WAYS = {
    "numbers": lambda who: who.astype(int),
    "floats": lambda who: who.astype(float),
    "categories": lambda who: who.astype("category"),
    "objects": lambda who: pd.Series([x if x % 2 else float(x) for x in who], dtype=object),
    "nullable": lambda who: who.astype("Int64"),
}


@pytest.mark.parametrize("public", WAYS)
def test_persons_of_both_tables_are_found(public):
    """Where a cell is missing elsewhere pandas makes floats of numbers: 7 and 7.0 are one person,
    whose private rows a score of public ones would be about."""
    who = pd.Series(np.arange(12) % 6)
    frame = pd.DataFrame({"who": WAYS["objects"](who)})
    other = pd.DataFrame({"who": WAYS[public](pd.Series([100, 5, 100]))})
    numbers: Any = people_of(frame, other.iloc[[0, 2]], "who", True)
    assert numbers.tolist() == who.tolist()
    with pytest.raises(ValueError, match=r"^person 'who'='1 persons of the public"):
        people_of(frame, other, "who", True)
    assert people_of(frame, other, "who", False) is not None


def test_owners_are_compared_by_value():
    """A blank behind a name, or a number read as a float, made a second client."""
    frame = toy_hubs.texts().assign(site=[[7, 7.0, "7 ", "B"][i % 4] for i in range(48)])
    task = bert(frame, by="site", test=frame)
    assert task.client_names == ("7", "B") and task.sizes == (36, 12)
    others: Any = ("b", " B0", None, 0.5)
    for other in others:
        with pytest.raises(ValueError, match=r"^by 'site'='.*row 3"):
            bert(frame.assign(site=["B", 7, "B 0", other] * 12), by="site")


# ---- labels


def labelled(labels, names=None):
    """A table of these labels, with names of its own for the classes, as `datasets` has them."""
    frame = pd.DataFrame({"y": labels})
    frame.attrs = {} if names is None else {"y": tuple(names)}
    return frame


def test_declared_labels_are_the_classes():
    """In their order, whatever labels the rows have; a row with another one is named."""
    frame = toy_hubs.texts()
    task = bert(frame, labels=["kind", "mixed", "harsh"])
    assert task.labels == ("kind", "mixed", "harsh") and task.info["classes"] == 3
    model: Any = task.model
    assert model.config.num_labels == 3
    y = torch.cat([y for _, y in task.clients] + [task.test[1]])
    assert set(y.tolist()) == {0, 2} and int((y == 0).sum()) == int(
        (frame["label"] == "kind").sum()
    )
    ratings = labelled([5, 1.0, "3 ", 4])
    for declared in ([1, 2, 3, 4, 5], ["1", "2", "3", "4", "5"], range(1, 6)):
        (codes, _), classes = read_labels((ratings, ratings), "y", declared)
        assert codes.tolist() == [4, 0, 2, 3] and classes == tuple(declared)
    assert read_labels((labelled([-1, 1]),) * 2, "y", [-1, 1])[0][0].tolist() == [0, 1]
    assert read_labels((labelled(["No", "no"]),) * 2, "y", ["No", "no"])[1] == ("No", "no")
    for labels, line in (
        ([1, 2, 6], "^label 'y'='6 in row 2': expected one of the classes that labels= has: 1, 2"),
        (["1", "one"], "^label 'y'='one in row 1': expected one of"),
    ):
        with pytest.raises(ValueError, match=line):
            read_labels((labelled(labels), ratings), "y", [1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match=r"^label 'y'='6 in row 1 of the test data': exp"):
        read_labels((ratings, labelled([1, 6])), "y", [1, 2, 3, 4, 5])


@pytest.mark.parametrize("words", [("pos", "neg"), ("warm", "cold", "mild")])
def test_classes_stand_in_the_order_of_the_model_s_classifier(words, tmp_path):
    """A classifier that knows the classes keeps its outputs under their own names."""
    texts = toy_hubs.texts(30)
    frame = texts.assign(label=[sorted(words)[i % len(words)] for i in range(len(texts))])
    code = AutoTokenizer.from_pretrained(toy_hubs.folder("bert"))
    known = {"id2label": dict(enumerate(words)), "label2id": {w: i for i, w in enumerate(words)}}
    config = AutoConfig.from_pretrained(toy_hubs.folder("bert"), **known)
    model = AutoModelForSequenceClassification.from_config(config)
    given: dict[str, Any] = {"tokenizer": code, "clients": 2, **LABELLED}
    task = fl.tasks.hub(model, frame, **given)
    assert task.labels == words and task.info["labels"] == "read from the rows"
    alone, sort = bert(frame), sorted(words)
    assert alone.labels == tuple(sort)
    for (_, y), (_, other) in zip(task.clients, alone.clients, strict=True):
        assert [words[i] for i in y] == [sort[i] for i in other]
    assert fl.tasks.hub(model, frame, labels=words, **given).labels == words
    line = rf"^labels=.*: expected the order of the model's own classes: {', '.join(words)}"
    with pytest.raises(ValueError, match=line):
        fl.tasks.hub(model, frame, labels=sorted(words), **given)


TOGETHER = {
    "numbers as floats": ([0, 1], [1.0, 0.0], (0, 1), [1, 0]),
    "numbers as texts": ([0, 1], ["1", "0 "], (0, 1), [1, 0]),
    "truth as numbers": ([False, True], [1, 0], (0, 1), [1, 0]),
    "blanks": (["no", "yes"], ["yes ", " no"], ("no", "yes"), [1, 0]),
    "a class without private rows of a kind": ([0, 2], [2, 0], (0, 1, 2), [2, 0]),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_labels_of_two_tables_are_compared_by_value(case):
    private, test, classes, numbers = TOGETHER[case]
    (_, codes), found = read_labels((labelled(private), labelled(test)), "y")
    assert found == classes and codes.tolist() == numbers


def test_labels_of_two_tables_are_one_set_of_classes_or_refused():
    """Written otherwise they became classes of their own: epsilon was spent for no right answer."""
    for private, test, shown in (
        ([0, 1], ["neg", "pos"], "neg, pos"),
        (["neg", "pos"], [0, 1], "0, 1"),
        (["neg", "pos"], ["negative", "positive"], "negative, positive"),
        ([0, 1], [2, 3], "2, 3"),
    ):
        line = f"^label 'y' of the test data='{shown}': expected labels that private rows have: "
        with pytest.raises(ValueError, match=line):
            read_labels((labelled(private), labelled(test)), "y")
    line = "^label 'y': no private row has maybe, which test rows have and which becomes a class"
    with pytest.warns(UserWarning, match=line) as told:
        (_, codes), classes = read_labels((labelled(["no", "yes"]), labelled(["no", "maybe"])), "y")
    assert len(told) == 1 and classes == ("maybe", "no", "yes") and codes.tolist() == [1, 0]
    for test in (["No", "yes"], ["no", "ye s"]):
        with pytest.raises(
            ValueError, match=r"^label 'y'=\[.*\]: expected each class written in one"
        ):
            read_labels((labelled(["no", "yes"]), labelled(test)), "y")


def test_class_numbers_stand_for_the_names_of_their_own_table():
    """Class 0 of one table may be class 1 of the other."""
    private, test = labelled([0, 1], ["no", "yes"]), labelled([0, 1], ["yes", "no"])
    (one, two), classes = read_labels((private, test), "y")
    assert classes == ("no", "yes") and (one.tolist(), two.tolist()) == ([0, 1], [1, 0])
    for other in (labelled([1, 0]), labelled(["yes", "no"])):
        assert read_labels((private, other), "y")[0][1].tolist() == [1, 0]
    assert read_labels((labelled(["yes", "no"]), private), "y")[0][1].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"^label 'y'=2: expected one of 2 classes"):
        read_labels((private, labelled([2, 0])), "y")


@pytest.mark.parametrize(
    "cell", [None, "", " ", np.nan, "nan", 0.5, -1, pd.Timestamp("2024-01-01"), b"a"]
)
def test_what_is_no_label_is_refused(cell):
    frame = labelled(pd.Series([0, 1, cell], dtype=object))
    with pytest.raises(
        ValueError, match=r"^label 'y'=.*: expected (words, or|a label in every row)"
    ):
        read_labels((frame, frame), "y")


# ---- public test rows


def judged(private, test):
    """Checks a task of these rows of numbers, whose classes follow from them."""
    x, other = (torch.tensor(rows, dtype=torch.float32) for rows in (private, test))
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    clients = [(x[:5], (x[:5, 0] > 0).long()), (x[5:], (x[5:, 0] > 0).long())]
    parts: Any = {"test": (other, (other[:, 0] > 0).long()), "targets": ["0"]}
    task = fl.tasks.classification(model, clients, **parts)
    check_public_test(task, (pd.DataFrame(), pd.DataFrame()))


def test_private_rows_are_no_public_test():
    """The table itself, in any order, parts of it, and tables that hold it."""
    draw = np.random.default_rng(0)
    rows, others = draw.normal(size=(40, 2)), draw.normal(size=(40, 2))
    few = np.tile([[1.0, 0.0], [-1.0, 0.0]], (20, 1))
    for private, test, count in (
        (rows, rows, "40 of 40"),
        (rows, draw.permutation(rows), "40 of 40"),
        (rows, rows[7:9], "2 of 2"),
        (rows, np.concatenate([rows[:21], others[:19]]), "21 of 40"),
        (rows[:20], np.concatenate([rows[:20], others]), "20 of 60"),
        (np.concatenate([rows, rows[:9]]), rows[:20], "20 of 20"),
        (few, draw.permutation(few), "40 of 40"),
        (np.tile(rows, (2, 1)), rows, "40 of 40"),
        (np.tile(rows, (2, 1)), np.concatenate([rows, others[:9]]), "40 of 49"),
    ):
        line = f"^test='{count} rows equal private rows': expected public rows of their own, with"
        with pytest.raises(ValueError, match=line):
            judged(private, test)
    # Of two kinds of rows any honest table consists.
    for private, test in ((rows, others), (few, few[:11])):
        judged(private, test)


def test_public_rows_that_are_private_are_warned_of_without_their_number():
    draw = np.random.default_rng(0)
    rows, others = draw.normal(size=(40, 2)), draw.normal(size=(40, 2))
    with pytest.warns(UserWarning, match="^test: some rows equal private rows") as told:
        judged(rows, np.concatenate([others, rows[:3]]))
    assert len(told) == 1 and not any(sign.isdigit() for sign in str(told[0].message))


@pytest.mark.slow
def test_the_private_table_is_known_from_any_place(tmp_path, monkeypatch):
    """It was known by the object alone: a file, a copy or a link to it was scored after every
    round, exactly. Held out rows, and test rows that are not declared public, are not compared."""
    monkeypatch.chdir(tmp_path)
    frame = toy_hubs.texts()
    frame.to_csv("data.csv", index=False)
    frame.assign(site="elsewhere").to_csv("copy.csv", index=False)
    (tmp_path / "link.csv").symlink_to("data.csv")
    line = r"^test='.* rows equal private rows': expected public rows of their own"
    for test in (frame, frame.head(5), "data.csv", "./data.csv", Path("link.csv"), "copy.csv"):
        with pytest.raises(ValueError, match=line):
            bert("data.csv", test=test, public_test=True)
    assert bert(frame, public_test=True).public_test
    assert not bert(frame, test=frame).public_test
    with pytest.raises(ValueError, match=line):
        toy_hubs.fresh_answers("llama", test=toy_hubs.questions().head(9))
    folders = [toy_hubs.image_folder(tmp_path / name) for name in ("one", "two")]
    vit: Any = {**PICTURES, "clients": 1, "public_test": True}
    with pytest.raises(ValueError, match=line):
        fl.tasks.hub(toy_hubs.folder("vit"), folders[0], test=folders[1], **vit)
