"""Hugging Face models and data sets as tasks: exact gradients on every architecture, any data, clear refusals."""

# pyright: reportArgumentType=false, reportCallIssue=false
from typing import Any

import hubs
import numpy as np
import pandas as pd
import pytest
import torch
from hubs import IMAGE, TEXT
from test_gradients import agree, one_by_one
from transformers import AutoTokenizer

import fedlora_lab as fl
from fedlora_lab import adapters, passes
from fedlora_lab.mechanism import clip_sum, row_norms
from fedlora_lab.tasks.encode import pixels
from fedlora_lab.tasks.tables import splits_of
from fedlora_lab.tasks.task import take, together

pytestmark = pytest.mark.filterwarnings(hubs.NO_PAD)
LORA = fl.Lora(rank=2, alpha=3.0)  # as in test_gradients, whose loop is used here
OWNER = torch.tensor([0, 0, 1, 2, 2])
every_kind = pytest.mark.parametrize("kind", [*TEXT, *IMAGE, "decoder"])


def task_of(kind):
    return hubs.decoder() if kind == "decoder" else hubs.task(kind)


def batch(kind):
    """Task, adapted model, random values of three clients, five examples."""
    task = task_of(kind)
    adapted = adapters.adapt(task.model, task.targets, task.head, LORA)
    random = torch.Generator().manual_seed(1)
    bank = {slot: 0.3 * torch.randn(3, *shape, generator=random) for slot, shape in adapted.shapes.items()}
    x, y = together(task.clients)
    return task, adapted, bank, (take(x, torch.arange(5)), y[:5])


@every_kind
def test_gradients_are_those_of_a_loop(kind):
    """Clipped per-example gradients of the batch against autograd on one plain PEFT model for each example."""
    task, adapted, bank, data = batch(kind)
    found = passes.per_example_gradients(task, adapted, bank, tuple(bank), data, OWNER)
    expected = one_by_one(task, bank, data, OWNER)
    agree(found, expected)
    norms = row_norms(expected)
    bound = float(norms.median())
    sums, counts = clip_sum(found, bound, OWNER, 3)
    assert 0 < counts.scaled < len(OWNER), "the clip is seen at work"
    for slot, rows in expected.items():
        scale = (bound / norms).clamp(max=1).view(-1, *[1] * (rows.dim() - 1)).float()
        by_hand = torch.stack([(rows * scale)[k == OWNER].sum(0) for k in range(3)])
        torch.testing.assert_close(sums[slot], by_hand, rtol=1e-4, atol=1e-6)


@every_kind
def test_an_example_says_nothing_about_the_others(kind):
    """Another first example: the gradients of the rest stay as they were."""
    task, adapted, bank, data = batch(kind)
    x, y = together(task.clients)
    other = torch.tensor([9, 1, 2, 3, 4])
    here = passes.per_example_gradients(task, adapted, bank, tuple(bank), data, OWNER)
    there = passes.per_example_gradients(task, adapted, bank, tuple(bank), (take(x, other), y[other]), OWNER)
    agree({s: g[1:] for s, g in there.items()}, {s: g[1:] for s, g in here.items()})
    assert any(not torch.allclose(here[s][0], there[s][0]) for s in here), "and its own change"


@every_kind
@pytest.mark.parametrize("method", ["rolora", "la-lora", "fedlora"])
def test_a_private_round(kind, method):
    task = task_of(kind)
    plan = fl.Plan(rounds=1, local_steps=2, batch=4)
    privacy = fl.Privacy(noise_multiplier=1.0, delta=1e-3, accountant="rdp")
    before, after = fl.run(task, method, privacy, plan, lora=LORA)
    assert after.nonfinite == 0 and 0 < after.epsilon < 100
    assert all(np.isfinite(value) for value in after.metrics.values())
    assert any(not torch.equal(b, after.adapter[layer][1]) for layer, (_, b) in before.adapter.items())


@pytest.mark.parametrize(
    ("kind", "targets", "head"),
    [
        ("bert", ("query", "value"), "classifier"),
        ("roberta", ("query", "value"), "classifier"),
        ("distilbert", ("q_lin", "v_lin"), "classifier"),
        ("gpt2", ("c_attn",), "score"),
    ],
)
def test_default_targets_and_heads(kind, targets, head):
    task = hubs.task(kind)
    assert (task.targets, task.head) == (targets, head)
    assert hubs.decoder().head is None
    for image in IMAGE:  # named query and value, or q_proj and v_proj, as Transformers' version has it
        assert {name[0] for name in hubs.task(image).targets} == {"q", "v"}


def test_a_tiny_model_is_read_back(tmp_path):
    one, two = (fl.tasks.tiny("vit", tmp_path / name, seed=3) for name in "ab")
    left, right = ((path / "model.safetensors").read_bytes() for path in (one, two))
    assert left == right != (fl.tasks.tiny("vit", tmp_path / "c", seed=4) / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="expected a new folder, or an empty one"):
        fl.tasks.tiny("vit", one)
    with pytest.raises(ValueError, match="kind='elman': expected one of 'bert'"):
        fl.tasks.tiny("elman", tmp_path / "d")
    with pytest.raises(ValueError, match="expected some texts"):
        fl.tasks.tiny("bert", tmp_path / "d")


def test_kinds_of_data_sets(tmp_path):
    """A CSV file, a mapping of splits and a folder of images say what the frame says."""
    frame = hubs.texts()
    frame.to_csv(tmp_path / "texts.csv", index=False)
    options = {"text": "text", "label": "label", "by": "site"}
    from_frame, from_file = (fl.tasks.hub(hubs.folder("bert"), d, **options) for d in (frame, tmp_path / "texts.csv"))
    assert from_frame.fingerprint == from_file.fingerprint
    assert from_frame.client_names == ("site 0", "site 1", "site 2", "site 3")
    assert from_frame.labels == ("harsh", "kind")
    parts = {"train": frame[:30], "validation": frame[30:]}
    split = fl.tasks.hub(hubs.folder("bert"), parts, test="validation", **options)
    assert len(split.test[1]) == 18 and sum(split.sizes) == 30
    given = fl.tasks.hub(hubs.folder("bert"), frame[:30], test=frame[30:], **options)
    assert given.fingerprint == split.fingerprint
    folder = hubs.image_folder(tmp_path / "animals")
    task = fl.tasks.hub(hubs.folder("vit"), folder, image="image", label="label", clients=2, test=0.25)
    assert task.labels == ("cat", "dog") and sum(task.sizes) == 6 and task.test[0].shape == (2, 3, 8, 8)
    assert splits_of(folder)["train"].classes == {"label": ("cat", "dog")}
    for part in ("train", "val"):
        hubs.image_folder(tmp_path / "parts" / part)
    assert sorted(splits_of(tmp_path / "parts")) == ["train", "val"]


def test_data_sets_of_hugging_face():
    datasets = pytest.importorskip("datasets")
    frame = hubs.texts()

    def made_of(columns, features):
        """With a fingerprint of ours: theirs pickles classes that some versions of pyarrow do not let be pickled."""
        table = datasets.table.InMemoryTable.from_pydict(features.encode_batch(columns), schema=features.arrow_schema)
        return datasets.Dataset(table, info=datasets.DatasetInfo(features=features), fingerprint="0")

    words = datasets.Value("string")
    kinds = datasets.Features({"text": words, "label": datasets.ClassLabel(names=["harsh", "kind"]), "site": words})
    made = made_of({name: list(frame[name]) for name in kinds}, kinds)
    task = fl.tasks.hub(hubs.folder("bert"), made, text="text", label="label", by="site")
    assert (
        task.fingerprint == fl.tasks.hub(hubs.folder("bert"), frame, text="text", label="label", by="site").fingerprint
    )
    parts = datasets.DatasetDict({"train": made, "test": made_of(made[:9], kinds)})
    assert len(fl.tasks.hub(hubs.folder("bert"), parts, text="text", label="label", test="test").test[1]) == 9
    shown = hubs.images(12)
    column = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    pictures = made_of({"image": list(shown["image"]), "label": list(shown["label"])}, column)
    ours, theirs = (
        fl.tasks.hub(hubs.folder("vit"), d, image="image", label="label", clients=2) for d in (shown, pictures)
    )
    assert ours.fingerprint == theirs.fingerprint


def test_seeds_and_shares():
    """The split is the seed's; nothing is lost, nothing twice; a limit takes from the private part only."""
    frame = hubs.texts()
    frame["text"] = [f"{text} w{i}" for i, text in enumerate(frame["text"])]  # every text is another
    folder = hubs.folder("bert")
    made = [fl.tasks.hub(folder, frame, text="text", label="label", clients=4, alpha=0.5, seed=s) for s in (0, 0, 1)]
    assert made[0].fingerprint == made[1].fingerprint != made[2].fingerprint
    assert sum(made[0].sizes) + len(made[0].test[1]) == len(frame)
    less = fl.tasks.hub(folder, frame, text="text", label="label", clients=4, limit=20)
    assert sum(less.sizes) == 20 and len(less.test[1]) == len(made[0].test[1])
    pair = fl.tasks.hub(folder, frame.assign(more="good day"), text=("text", "more"), label="label", clients=2)
    assert int(pair.clients[0][0]["attention_mask"].sum(1).min()) >= 3 + 2 + 3, "both texts and three marks"


def test_texts_too_long_are_refused_or_cut():
    frame = hubs.texts()
    frame.loc[5, "text"] = "good " * 70
    with pytest.raises(ValueError, match=r"text='72 tokens in row .*': expected at most 64; max_length=64 cuts them"):
        fl.tasks.hub(hubs.folder("bert"), frame, text="text", label="label", clients=2)
    cut = fl.tasks.hub(hubs.folder("bert"), frame, text="text", label="label", clients=2, max_length=16)
    assert cut.info["texts cut"] == 1 and cut.test[0]["input_ids"].shape[1] == 16
    for kind, room in (("roberta", 65), ("gpt2", 64)):  # positions begin after the padding token's number, here 0
        with pytest.raises(ValueError, match=f"max_length=66: expected a whole number in .2, {room}."):
            fl.tasks.hub(hubs.folder(kind), frame, text="text", label="label", max_length=66)


def test_padding_is_cut_off_and_changes_nothing():
    """Outputs of a batch cut to its longest text are those of the padded one."""
    for kind in TEXT:
        task = hubs.task(kind)
        x = take(task.test[0], (task.test[0]["attention_mask"].sum(1) < 8).nonzero().squeeze(1))
        cut = passes.ready(task, x, torch.device("cpu"))
        assert cut["input_ids"].shape[1] < x["input_ids"].shape[1]
        torch.testing.assert_close(task.forward(task.model, cut), task.forward(task.model, x), rtol=1e-5, atol=1e-6)


def test_a_padding_token_is_set_and_said():
    with pytest.warns(UserWarning, match="tokenizer without a padding token: </s> pads"):
        task = fl.tasks.hub(hubs.folder("gpt2"), hubs.texts(), text="text", label="label", clients=2)
    config: Any = task.model.config
    assert config.pad_token_id == 0


def test_images_are_scaled_as_the_model_says(tmp_path):
    model = hubs.task("vit").model
    white = [np.full((8, 8, 3), 255, np.uint8)]
    assert torch.equal(pixels(white, model, None), torch.ones(1, 3, 8, 8)), "(1 - 0.5) / 0.5"
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 1], "image_std": [1, 2, 1]}')
    (tmp_path / "config.json").write_text("{}")
    assert pixels(white, model, tmp_path)[0, :, 0, 0].tolist() == [1.0, 0.5, 0.0]


def test_a_model_in_hand_is_copied():
    from transformers import AutoModelForSequenceClassification

    from fedlora_lab.tasks.architectures import quiet

    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(hubs.folder("bert"), num_labels=2)
    model.train()
    code = AutoTokenizer.from_pretrained(hubs.folder("bert"))
    task = fl.tasks.hub(model, hubs.texts(), text="text", label="label", clients=2, tokenizer=code)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert not task.model.training
    with pytest.raises(ValueError, match="tokenizer=None: expected a tokenizer, since the model was given as a module"):
        fl.tasks.hub(model, hubs.texts(), text="text", label="label")


def bad(**changes):
    call = {"model": hubs.folder("bert"), "dataset": hubs.texts(), "text": "text", "label": "label", **changes}
    return fl.tasks.hub(call.pop("model"), call.pop("dataset"), **call)


FRAME = hubs.texts()
WIDER = AutoTokenizer.from_pretrained(hubs.folder("bert"))
WIDER.add_tokens(["[EMAIL]"])
BAD = [
    ({"text": "words"}, "text='words': expected a column: text, label, site"),
    ({"label": "y"}, "label='y': expected a column: text, label, site"),
    ({"by": "hospital"}, "by='hospital': expected a column"),
    ({"by": "site", "clients": 3}, "clients=3: expected none with by="),
    ({"by": "site", "alpha": 1.0}, "alpha=1.0: expected none with by="),
    ({"by": "site", "min_size": 99}, "min_size=99: expected at most 9"),
    ({"image": "text"}, "text, image=.*: expected one of them"),
    ({"text": None}, "text, image=.*: expected one of them"),
    ({"text": None, "image": "text", "label": None}, "label=None: expected a column's name"),
    ({"label": None, "alpha": 0.5, "model": hubs.folder("gpt2")}, "alpha=0.5: expected none without label="),
    ({"targets": ["attend"]}, "targets='attend': expected the end of a module's name; linear maps here"),
    ({"head": "top"}, "head='top': expected the full name of a module"),
    ({"test": 0.9}, "test=0.9: expected a number in"),
    ({"test": "validation"}, "test='validation': expected a share, a data set, or the name of a split: none here"),
    ({"seed": -1}, "seed=-1: expected a whole number"),
    ({"limit": 0}, "limit=0: expected a whole number"),
    ({"max_length": 1}, "max_length=1: expected a whole number in"),
    ({"clients": 1000}, "clients=1000: expected at most"),
    ({"dataset": 5}, "dataset='int': expected a pandas DataFrame"),
    ({"dataset": FRAME[:0]}, "dataset='0 rows': expected at least one row"),
    ({"dataset": "nowhere.csv"}, "dataset='nowhere.csv': expected a pandas DataFrame"),
    ({"dataset": {"test": FRAME}}, r"dataset=\['test'\]: expected a split called train"),
    ({"dataset": FRAME.assign(label=0.5)}, "label 'label'=0.5: expected words, or whole numbers >= 0"),
    ({"dataset": FRAME.assign(label=-1)}, "label 'label'=-1.0: expected words, or whole numbers >= 0"),
    ({"dataset": FRAME.assign(label=np.nan)}, "label 'label'='nothing in row 0': expected a label in every row"),
    ({"dataset": FRAME.assign(text=3)}, "text=3: expected text in every row, which row 0 has not"),
    (
        {"dataset": FRAME.assign(text="[EMAIL] film"), "tokenizer": WIDER},
        "tokenizer='token 16 in row 0': expected tokens below 16",
    ),
    ({"model": "no/such/model/anywhere"}, "model='no/such/model/anywhere': expected a name or folder"),
    ({"model": hubs.folder("vit")}, "model=.*: expected a name or folder that AutoModelForSequenceClassification"),
    ({"model": torch.nn.Linear(2, 2)}, "model='Linear': expected a Transformers model"),
    ({"model": 3}, "model=3: expected a Transformers model, a name or a folder"),
]


@pytest.mark.parametrize(("changes", "line"), BAD, ids=[line for _, line in BAD])
def test_bad_calls_are_one_line(changes, line):
    with pytest.raises(ValueError, match=line) as error:
        bad(**changes)
    assert "\n" not in str(error.value)


def test_a_picture_that_is_none_is_named(tmp_path):
    folder = hubs.image_folder(tmp_path)
    (folder / "cat" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="image: expected an image in row") as error:
        fl.tasks.hub(hubs.folder("vit"), folder, image="image", label="label", clients=2)
    assert "\n" not in str(error.value)
    frame = pd.DataFrame({"image": [np.zeros((4, 4))] * 4, "label": [0, 1, 0, 1]})
    with pytest.raises(ValueError, match="an array of float64, not of bytes"):
        fl.tasks.hub(hubs.folder("vit"), frame, image="image", label="label", clients=1)
