"""What a checkpoint lacks: refused by name, or drawn, named, and saved with the adapter; models
that hold an adapter already; images of every mode.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft
import pytest
import torch
import toy_hubs
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

import fedlora_lab as fl
from fedlora_lab.lora import peft as adapters
from fedlora_lab.tasks.architectures import scale_images
from fedlora_lab.tasks.task import Task, head_names

pytestmark = pytest.mark.filterwarnings(toy_hubs.NO_PAD)
LABELLED: dict[str, Any] = {"text": "text", "label": "label", "clients": 2, "public_test": True}
PICTURES: dict[str, Any] = {"image": "image", "label": "label", "clients": 2, "public_test": True}
MERGE = r"expected a model without an adapter of PEFT's; merge it first \(merge_and_unload\)$"

# ---- weights that do not fit


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def write(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tiny(path: Path, kind: str = "bert", **sizes: Any) -> Path:
    """A toy model in a folder of its own, which a test may damage."""
    return fl.tasks.tiny(kind, path / kind, toy_hubs.texts()["text"], **sizes)


def under_a_prefix(path: Path) -> Path:
    folder = tiny(path)
    return write(folder, {f"module.{k}": v for k, v in weights_of(folder).items()})


def of_other_sizes(path: Path) -> Path:
    return write(tiny(path), weights_of(tiny(path / "wide", hidden_size=32)))


def without_a_layer(path: Path) -> Path:
    folder = tiny(path)
    kept = {k: v for k, v in weights_of(folder).items() if "layer.1." not in k}
    return write(folder, kept)


def with_fewer_words(path: Path) -> Path:
    folder = tiny(path)
    weights = weights_of(folder)
    name = "embeddings.word_embeddings.weight"
    return write(folder, {**weights, name: weights[name][:-2].clone()})


def with_a_damaged_pooler(path: Path) -> Path:
    """The file has its weight and not its bias: it was not left out."""
    folder = tiny(path)
    return write(folder, {k: v for k, v in weights_of(folder).items() if k != "pooler.dense.bias"})


DAMAGED = {
    under_a_prefix: r"missing: bert\.embeddings.* not used: module\.embeddings.*",
    of_other_sizes: r"of another shape: bert\.embeddings.* for .*",
    without_a_layer: r"missing: bert\.encoder\.layer\.1\..* and 13 more",
    with_fewer_words: r"of another shape: bert\.embeddings\.word_\w+\.weight \(14, 16\) for .*",
    with_a_damaged_pooler: r"missing: bert\.pooler\.dense\.bias",
}


@pytest.mark.parametrize("damage", DAMAGED, ids=lambda damage: damage.__name__)
def test_weights_that_do_not_fit_are_refused_by_name(damage, tmp_path):
    """Transformers would draw what is missing at random, and say so in a log at most."""
    folder = damage(tmp_path)
    start = r"^model='.*bert': expected weights for all of BertForSequenceClassification; "
    with pytest.raises(ValueError, match=f"{start}{DAMAGED[damage]}$") as error:
        fl.tasks.hub(folder, toy_hubs.texts(), **LABELLED)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_decoder_has_nothing_that_may_be_new(tmp_path):
    folder = tiny(tmp_path, "llama", tie_word_embeddings=False)
    write(folder, {k: v for k, v in weights_of(folder).items() if k != "lm_head.weight"})
    words = "expected weights for all of LlamaForCausalLM; missing: lm_head.weight$"
    with pytest.raises(ValueError, match=words):
        fl.tasks.hub(folder, toy_hubs.texts(), text="text", clients=2)
    named: dict[str, Any] = {"prompt": "question", "answer": "answer", "clients": 2}
    with pytest.raises(ValueError, match=words):
        fl.tasks.prompts(folder, toy_hubs.questions(), **named)


# ---- what loading makes anew

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 24, "max_position_embeddings": 40}
SMALL |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BART = {f"{part}_layers": 1 for part in ("encoder", "decoder")}
BART |= {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
BART |= {f"{part}_ffn_dim": 16 for part in ("encoder", "decoder")}
BART |= {"d_model": 16, "decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "eos_token_id": 2}
PATCHES = {"image_size": 8, "patch_size": 4}
CHECKPOINTS: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[str], Any]] = {
    "bert": ("AutoModelForMaskedLM", SMALL, {}, ["bert.pooler", "classifier"], "classifier"),
    "distilbert": (
        "AutoModelForMaskedLM",
        DISTIL,
        {},
        ["pre_classifier", "classifier"],
        ("pre_classifier", "classifier"),
    ),
    "deberta-v2": (
        "AutoModelForMaskedLM",
        SMALL | {"pooler_hidden_size": 16},
        {},
        ["pooler", "classifier"],
        ("pooler", "classifier"),
    ),
    "modernbert": (
        "AutoModel",
        SMALL | {"cls_token_id": 1, "sep_token_id": 2},
        {"targets": ["Wqkv"]},
        ["head", "classifier"],
        ("head.dense", "classifier"),
    ),
    "bart": ("AutoModel", BART, {}, ["classification_head"], "classification_head"),
    "gpt2": ("AutoModelForCausalLM", GPT2, {}, ["score"], "score"),
    "beit": (
        "BeitForMaskedImageModeling",
        SMALL | PATCHES | {"vocab_size": 8},
        {},
        ["beit.pooler", "classifier"],
        "classifier",
    ),
}
"""Class that wrote the file, its configuration, options of the task; what is new, and the head."""


def checkpoint(kind: str, path: Path) -> Path:
    """A random model as its class for pretraining writes it, and a tokenizer."""
    body, fields, *_ = CHECKPOINTS[kind]
    code: Any = transformers.AutoTokenizer.from_pretrained(toy_hubs.folder("bert"))
    config = transformers.AutoConfig.for_model(kind, **{"vocab_size": len(code)} | fields)
    with fl.tasks.quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = getattr(transformers, body)
        (start.from_config if "Auto" in body else start)(config).save_pretrained(path)
    code.save_pretrained(path)
    return path


def task_of(kind: str, path: Path, **options: Any) -> Task:
    """A task of this checkpoint; with the warning on a pooler that is drawn, and no other."""
    more, (name, *_) = CHECKPOINTS[kind][2:4]
    images = kind in ("vit", "beit")
    data = toy_hubs.images(20) if images else toy_hubs.texts(20)
    named = (PICTURES if images else LABELLED) | more | options
    if "." not in name:
        return fl.tasks.hub(path, data, **named)
    words = f"{name} is not in its file: drawn at random and frozen, unless head= names it; saved"
    with pytest.warns(UserWarning, match=words):
        return fl.tasks.hub(path, data, **named)


def trained(task: Task, lora: Any, path: Path) -> tuple[torch.Tensor, Path]:
    """Logits of the test examples after a few large steps, and the saved adapter."""
    plan = fl.Plan(rounds=1, local_steps=2, batch=4, lr=0.5)
    *_, last = fl.run(task, "fedlora", None, plan, seed=0, lora=lora)
    return fl.predict(task, last, task.test[0]), fl.save_adapter(last, path)


def loaded_anew(folder: Path, adapter: Path, task: Task, seed: int) -> tuple[torch.Tensor, ...]:
    """Logits of the bare base as Transformers loads it, and of plain PEFT on it."""
    kind = "Image" if not isinstance(task.test[0], dict) else "Sequence"
    auto = getattr(transformers, f"AutoModelFor{kind}Classification")
    classes = task.model.config.num_labels  # type: ignore[union-attr]
    with torch.random.fork_rng(devices=[]), fl.tasks.quiet(), torch.no_grad():
        torch.manual_seed(seed)
        base = auto.from_pretrained(folder, num_labels=classes).eval()
        base.config.pad_token_id = task.model.config.pad_token_id  # type: ignore[union-attr]
        bare = task.forward(base, task.test[0])
        model = peft.PeftModel.from_pretrained(base, adapter).eval()
        return bare, task.forward(model, task.test[0])


def check_reproduced(task: Task, lora: Any, folder: Path, path: Path) -> None:
    own, adapter = trained(task, lora, path)
    pairs = [loaded_anew(folder, adapter, task, seed) for seed in (1, 2)]
    assert not torch.equal(pairs[0][0], pairs[1][0]), "the base draws other numbers each time"
    for _, theirs in pairs:
        torch.testing.assert_close(theirs.softmax(-1), own.softmax(-1), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_saved_adapter_reproduces_on_a_base_that_is_loaded_anew(kind, tmp_path):
    folder = checkpoint(kind, tmp_path / "base")
    task = task_of(kind, folder)
    new, head = CHECKPOINTS[kind][3:]
    assert (task.info["new"], task.head) == (new, head)
    check_reproduced(task, LORA, folder, tmp_path / "adapter")


LORA = fl.Lora(rank=2, alpha=8.0)
OTHER_WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no head": ({"head": None}, {}),
    "the pooler is the head": ({"head": "bert.pooler"}, {}),
    "an adapter in the pooler": ({"targets": ["dense"]}, {}),
    "adapters everywhere": ({"head": None}, {"target_modules": "all-linear"}),
    "a task of PEFT's": ({"head": None}, {"task_type": "SEQ_CLS"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", OTHER_WAYS)
def test_whatever_is_trained_the_rest_of_what_is_new_is_saved(way, tmp_path):
    """As a module of its own where PEFT can wrap it, else as a tensor of the base."""
    options, fields = OTHER_WAYS[way]
    folder = checkpoint("bert", tmp_path / "base")
    config = peft.LoraConfig(r=2, lora_alpha=8, **fields) if fields else LORA
    check_reproduced(task_of("bert", folder, **options), config, folder, tmp_path / "adapter")


@pytest.mark.slow
def test_a_module_in_hand_may_have_new_parts(tmp_path):
    """Nobody knows which: what Transformers puts behind the base is saved."""
    folder = checkpoint("bert", tmp_path / "base")
    code = transformers.AutoTokenizer.from_pretrained(folder)
    with fl.tasks.quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    task = fl.tasks.hub(model, toy_hubs.texts(20), tokenizer=code, **LABELLED)
    assert task.info["new"] is None and task.new_modules == ("classifier", "bert.pooler")
    check_reproduced(task, LORA, folder, tmp_path / "adapter")
    plain = fl.tasks.classification(model, task.clients, task.test, task.targets, task.head)
    check_reproduced(plain, LORA, folder, tmp_path / "plain")


def test_what_is_in_the_file_is_not_saved_again(tmp_path):
    """The toy's own pooler is in its file: the adapter's configuration names the classifier."""
    task = toy_hubs.task("bert")
    assert task.info["new"] == ["classifier"]
    _, adapter = trained(task, LORA, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["classifier"]


def test_what_loading_made_anew_is_named(tmp_path):
    """A classifier of other classes, and layers that the configuration leaves out, in a warning."""
    folder, frame = toy_hubs.folder("bert"), toy_hubs.texts()
    auto = transformers.AutoModelForSequenceClassification
    with fl.tasks.quiet(), torch.random.fork_rng(devices=[]):
        auto.from_pretrained(folder, num_labels=5).save_pretrained(tmp_path)
        code: Any = transformers.AutoTokenizer.from_pretrained(folder)
        code.save_pretrained(tmp_path)
    five = frame.assign(label=np.arange(len(frame)) % 5)
    task = fl.tasks.hub(tmp_path, five, **LABELLED)
    given = weights_of(tmp_path)["classifier.weight"]
    assert torch.equal(task.model.get_parameter("classifier.weight"), given)
    assert task.info["new"] == []
    words = "classifier was trained for other classes, and is made anew for 2$"
    with pytest.warns(UserWarning, match=words):
        task = fl.tasks.hub(tmp_path, frame, **LABELLED)
    assert task.info["new"] == ["classifier"]
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    words = r"more layers than its configuration says; not used: bert\.encoder\.layer\.1\..* and 13"
    with pytest.warns(UserWarning, match=words):
        fl.tasks.hub(tmp_path, five, **LABELLED)


def test_weights_in_other_forms_are_those_of_the_file(tmp_path):
    """In several files, in half precision, and with tied embeddings."""
    folder = toy_hubs.folder("llama")
    with fl.tasks.quiet():
        given = transformers.AutoModel.from_pretrained(folder, dtype=torch.float16)
        given.save_pretrained(tmp_path, max_shard_size="5KB")
    code: Any = transformers.AutoTokenizer.from_pretrained(folder)
    code.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    task = fl.tasks.hub(tmp_path, toy_hubs.texts(), **LABELLED)
    assert task.info["new"] == ["score"]
    model: Any = task.model
    weights = dict(model.base_model.named_parameters())
    for name, weight in given.named_parameters():
        assert torch.equal(weights[name], weight.float())


# ---- models that hold an adapter


def test_a_model_with_an_adapter_is_refused_everywhere(tmp_path):
    """PEFT would make its factors anew, with B = 0: a run started at another model than given."""
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    auto = transformers.AutoModelForSequenceClassification
    with fl.tasks.quiet():
        wrapped: Any = peft.get_peft_model(auto.from_pretrained(toy_hubs.folder("bert")), config)
    wrapped.save_pretrained(tmp_path / "adapter")
    task, frame = toy_hubs.task("bert"), toy_hubs.texts()
    code: Any = transformers.AutoTokenizer.from_pretrained(toy_hubs.folder("bert"))
    columns: dict[str, Any] = {"prompt": "question", "answer": "answer", "clients": 2}
    for model in (tmp_path / "adapter", wrapped, wrapped.get_base_model()):
        with pytest.raises(ValueError, match=MERGE):
            fl.tasks.hub(model, frame, tokenizer=code, targets=["value"], **LABELLED)
        with pytest.raises(ValueError, match=MERGE):
            fl.tasks.prompts(model, toy_hubs.questions(), tokenizer=code, **columns)
    with pytest.raises(ValueError, match=MERGE):
        fl.tasks.classification(wrapped, task.clients, task.test, ["value"])
    with pytest.raises(ValueError, match=MERGE):  # a task keeps no copy of a model given to it
        adapters.adapt(wrapped.get_base_model(), ("value",), None, LORA)
    merged = wrapped.merge_and_unload()
    assert fl.tasks.hub(merged, frame, tokenizer=code, **LABELLED).head == "classifier"


def test_what_peft_warns_of_reaches_the_user():
    """Of adapters on the output layer with the embeddings' weight: merging changes both."""
    task = toy_hubs.answers()
    with pytest.warns(UserWarning, match="tie_word_embeddings=True"):
        adapters.adapt(task.model, ("lm_head",), None, LORA)


# ---- several modules as the head


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.middle, self.last = (torch.nn.Linear(3, 3) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.body(x).tanh()).tanh())


def two(**options: Any) -> Task:
    torch.manual_seed(0)
    pair = torch.randn(12, 3), torch.arange(12) % 3
    return fl.tasks.classification(Two(), [pair, pair], pair, ["body"], **options)


def test_a_head_of_several_modules_is_clipped_and_noised_as_one():
    """Without noise the whole of a client's step is as long as the clip; with noise both move."""
    task = two(head=("middle", "last"))
    assert task.head == ("middle", "last") and "head middle, last" in repr(task)
    plan = fl.Plan(rounds=1, local_steps=1, batch=None, lr=1.0, optimizer="sgd")
    first, last = fl.run(task, "fedlora", None, plan, seed=0, lora=LORA)
    moved = {name for name, x in last.head.items() if not torch.equal(x, first.head[name])}
    parts = {f"{part}.{kind}" for part in head_names(task.head) for kind in ("weight", "bias")}
    assert set(last.head) == moved == parts
    privacy = fl.Privacy(clip_norm=1e-3, noise_multiplier=0.0, delta=1e-3)
    first, last = fl.run(task, "fedlora", privacy, plan, seed=0, lora=LORA)
    steps = [last.head[name] - x for name, x in first.head.items()]
    steps += [b - first.adapter[layer][1] for layer, (_, b) in last.adapter.items()]
    length = float(torch.cat([step.flatten() for step in steps]).norm())
    assert 0 < length <= 1.001e-3


# ---- images


RAMP = np.linspace(0, 255, 8).round().astype(np.uint8).repeat(8).reshape(8, 8)
WORDS_16 = RAMP.astype(np.uint16) * 257  # the same greys


def of_mode(mode: str) -> Image.Image:
    return Image.fromarray(RAMP).convert("RGB").convert(mode)


def file_of(image: Image.Image, kind: str) -> dict[str, bytes]:
    file = io.BytesIO()
    image.save(file, kind)
    return {"bytes": file.getvalue()}


SAME: dict[str, Any] = {
    mode: of_mode(mode) for mode in ("L", "LA", "RGB", "RGBA", "RGBX", "YCbCr", "HSV", "CMYK")
}
SAME["P"] = Image.fromarray(RAMP).convert("P")
SAME |= {"array": RAMP, "array of 16 bits": WORDS_16, "I;16": Image.fromarray(WORDS_16)}
SAME["array of 16 bits, big-endian"] = WORDS_16.astype(">u2")
SAME["png of 16 bits"] = file_of(Image.fromarray(WORDS_16), "png")
SAME["tiff of 16 bits"] = file_of(Image.fromarray(WORDS_16), "tiff")
REFUSED: dict[str, Any] = {mode: Image.new(mode, (8, 8)) for mode in ("I", "F", "LAB")}
REFUSED["tiff of 32 bits"] = file_of(Image.new("I", (8, 8), 70000), "tiff")
REFUSED["tiff of floats"] = file_of(Image.new("F", (8, 8), 0.5), "tiff")
REFUSED |= {kind: RAMP.astype(kind) for kind in ("int16", "int32", "int64", "float32", "float64")}
REFUSED["colours of 16 bits"] = WORDS_16[..., None].repeat(3, 2)


def grey(image: Any, channels: int = 3) -> np.ndarray:
    """An image as the model sees it, in 0 to 255."""
    config = transformers.ViTConfig(image_size=8, num_channels=channels)
    model: Any = type("Model", (torch.nn.Module,), {"config": config})()
    scaled = scale_images([image], model, None, ["7"])
    assert scaled.shape == (1, channels, 8, 8)
    return (scaled[0].numpy() * 0.5 + 0.5) * 255


def colour_model() -> Any:
    """What has the configuration of a small model of colours."""
    return type("Model", (torch.nn.Module,), {"config": transformers.ViTConfig(image_size=8)})()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", [*SAME, *REFUSED])
def test_an_image_is_scaled_by_its_mode_s_range_or_refused(mode, channels):
    """PIL cuts other ranges than 0 to 255 off: of 16 bits all but black was white."""
    if mode in SAME:
        np.testing.assert_allclose(grey(SAME[mode], channels), [RAMP] * channels, atol=1.5)
        return
    words = (
        "^image: expected an image in row 7, but: (its mode is .*; convert it|.*rray|.*data type)"
    )
    with pytest.raises(ValueError, match=words):
        grey(REFUSED[mode], channels)


def test_sixteen_bits_are_not_rounded_to_eight():
    """Of 12 bits in 16, as cameras write them, 16 grey levels would be left."""
    seen = grey(np.arange(64, dtype=np.uint16).reshape(8, 8) * 16)
    np.testing.assert_allclose(seen[0].ravel(), np.arange(64) * 16 / 257, atol=1e-3)


def test_what_is_transparent_is_laid_on_white():
    for mode, colour in {"RGBA": (9, 9, 9, 0), "LA": (9, 0)}.items():
        assert np.all(grey(Image.new(mode, (8, 8), colour)) == 255)
        half = grey(Image.new(mode, (8, 8), (*colour[:-1], 128)))
        np.testing.assert_allclose(half, 255 - 246 * 128 / 255, atol=1.0)
    palette = Image.new("P", (8, 8), 3)
    palette.info["transparency"] = 3
    assert np.all(grey(palette) == 255)
    assert np.all(grey(Image.new("1", (8, 8), 1)) == 255)
    assert np.all(grey(np.ones((8, 8), bool)) == 255)


SETTINGS: dict[str, Any] = {
    "nothing": {},
    "another factor": {
        "rescale_factor": 1 / 127.5,
        "image_mean": [1.0] * 3,
        "image_std": [1.0] * 3,
    },
    "no mean": {"do_normalize": False},
    "a mean": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
}


@pytest.mark.parametrize("by", ["folder", "module"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_images_are_prepared_as_the_model_s_settings_say(settings, by, tmp_path):
    """Beside Transformers' own processor, for images of the model's size."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    model = colour_model()
    model.config._name_or_path = str(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    half: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    own = transformers.ViTImageProcessor(size={"height": 8, "width": 8}, **half | settings)
    theirs = own(image, return_tensors="pt")["pixel_values"]
    ours = scale_images([image], model, tmp_path if by == "folder" else model)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_what_a_processor_does_otherwise_is_told_or_refused(tmp_path):
    file = tmp_path / "preprocessor_config.json"
    file.write_text('{"do_rescale": false}')
    with pytest.raises(ValueError, match=r"^do_rescale=False: expected true in preprocessor_conf"):
        scale_images([RAMP], colour_model(), tmp_path)
    file.write_text('{"do_center_crop": true}')
    with pytest.warns(UserWarning, match="resized as a whole, where the model's own processor"):
        scale_images([RAMP], colour_model(), tmp_path)


def test_a_camera_s_turn_is_undone():
    photo = Image.fromarray(RAMP).convert("RGB")
    turned, stored = photo.rotate(90, expand=True), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    turned.save(stored, "png", exif=exif)
    np.testing.assert_allclose(grey(stored), grey(photo), atol=1e-3)


def test_another_padding_token_is_told():
    """Plain PEFT on the base alone would find the last token of a text by another number."""
    code: Any = transformers.AutoTokenizer.from_pretrained(toy_hubs.folder("llama"))
    config = transformers.AutoConfig.from_pretrained(toy_hubs.folder("llama"), num_labels=2)
    config.pad_token_id = code.eos_token_id
    model = transformers.LlamaForSequenceClassification(config)
    with pytest.warns(
        UserWarning, match=r"^pad_token_id was \d and is \d, as of the tokenizer; set"
    ):
        task = fl.tasks.hub(model, toy_hubs.texts(20), tokenizer=code, **LABELLED)
    model: Any = task.model
    assert model.config.pad_token_id == code.pad_token_id != code.eos_token_id


def test_a_model_without_a_size_of_images_is_refused_in_one_line():
    config = transformers.CLIPConfig()
    model: Any = type("Model", (torch.nn.Module,), {"config": config})()
    with pytest.raises(ValueError, match=r"^model='Model': expected an image classifier whose"):
        scale_images([RAMP], model, None)
    frame = pd.DataFrame({"image": [RAMP] * 8, "label": [0, 1] * 4})
    small: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2}
    resnet = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], **small)
    with pytest.raises(ValueError, match=r"^model='ResNetForImageClassification': expected an"):
        fl.tasks.hub(transformers.ResNetForImageClassification(resnet), frame, **PICTURES)
