"""What a checkpoint lacks: refused by name, or drawn, named, and saved with the adapter; models
that hold an adapter already; images.
"""

import io
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import peft
import pytest
import torch
import toy_hubs
import transformers
from calls import Options, refused
from PIL import Image
from safetensors.torch import load_file, save_file

import fedlora_lab as fl
from fedlora_lab.lora import adapters
from fedlora_lab.tasks.architectures import encode_images, read_processor

pytestmark = pytest.mark.filterwarnings(toy_hubs.NO_PAD)
LABELLED: Options = {"text": "text", "label": "label", "clients": 2, "public_test": True}
MERGE = r"expected a model without an adapter of PEFT's; merge it first \(merge_and_unload\)$"
LORA = fl.Lora(rank=2, alpha=8.0)

# ---- weights that do not fit


DAMAGED = {
    r"missing: bert\.encoder\.layer\.1\..* and 13 more": "layer.1.",
    # The file has its weight and not its bias: it was not left out.
    r"missing: bert\.pooler\.dense\.bias": "pooler.dense.bias",
    r"of another shape: bert\.embeddings\.word_\w+\.weight \(14, 16\) for .*": "word_emb",
}


@pytest.mark.parametrize(("line", "damaged"), DAMAGED.items())
def test_weights_that_do_not_fit_are_refused_by_name(line, damaged, tmp_path):
    """Transformers would draw what is missing at random, and say so in a log at most."""
    folder = fl.tasks.tiny("bert", tmp_path / "bert", toy_hubs.texts()["text"])
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if damaged in name]:
        tensor = weights.pop(name)
        if "shape" in line:
            weights[name] = tensor[:-2].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    start = r"^model='.*bert': expected weights for all of BertForSequenceClassification; "
    with refused(f"{start}{line}$"):
        fl.tasks.hub(folder, toy_hubs.texts(), **LABELLED)


# ---- toys

TOYS: dict[str, Options] = {
    "": {},
    "num_hidden_layer=2: expected a field of BertConfig; did you mean 'num_hidden_layers'": {
        "num_hidden_layer": 2
    },
    "kind='bert': expected one that becomes a toy .*heads": {"hidden_size": 15},
    "kind='bert': expected one that becomes a toy .*hidden": {"hidden_size": "big"},
    "kind='vit': expected one that becomes a toy": {"kind": "vit", "num_channels": "x"},
    "kind='gpt_neo': expected one that becomes a toy": {"kind": "gpt_neo"},
    # Each had sizes of other names, and took minutes and gigabytes.
    "kind='longcat_flash of .*,... weights': expected at most 50,000,000": {
        "kind": "longcat_flash"
    },
    "kind='gemma4_text of .* by their names, such as vocab_size_per_layer_input": {
        "kind": "gemma4_text"
    },
    "texts='good day': expected a list of texts": {"texts": "good day"},
    r"texts=\['good', None\]: expected a list of texts": {"texts": ["good", None]},
    "texts=.*: expected a list of texts": {"texts": 3},
    "kind=None: expected an architecture": {"kind": None},
    "folder=None: expected the path": {"folder": None},
}


@pytest.mark.parametrize("line", TOYS)
def test_a_toy_is_small_and_whole_or_refused(line, tmp_path):
    """In one line, and nothing of it is left behind."""
    call: Options = {"kind": "bert", "folder": tmp_path, "texts": ["good day"]} | TOYS[line]
    with refused(f"^{line}") if line else nullcontext():
        fl.tasks.tiny(call.pop("kind"), call.pop("folder"), **call)
    assert any(tmp_path.iterdir()) == (not line)


# ---- what loading makes anew

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 24, "max_position_embeddings": 40}
SMALL |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL |= {"cls_token_id": 1, "sep_token_id": 2}
WRITTEN = {
    "bert": ("AutoModelForMaskedLM", ("classifier", "bert.pooler")),
    "modernbert": ("AutoModel", ("head", "classifier")),
}
"""Class that wrote the file, and what is new to a classifier."""


def checkpoint(kind, path):
    """A random model as its class for pretraining writes it, and what reads its inputs."""
    code = toy_hubs.tokenizer()
    config = transformers.AutoConfig.for_model(kind, **SMALL, vocab_size=len(code))
    with fl.tasks.quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(transformers, WRITTEN[kind][0]).from_config(config).save_pretrained(path)
    code.save_pretrained(path)
    return path


def loaded_anew(folder, adapter, task, seed):
    """Logits of the bare base as Transformers loads it, and of plain PEFT on it."""
    auto = transformers.AutoModelForSequenceClassification
    config: Any = task.model.config
    with torch.random.fork_rng(devices=[]), fl.tasks.quiet(), torch.no_grad():
        torch.manual_seed(seed)
        base = auto.from_pretrained(folder, num_labels=config.num_labels).eval()
        base.config.pad_token_id = config.pad_token_id
        bare = task.forward(base, task.test[0])
        model = peft.PeftModel.from_pretrained(base, adapter).eval()
        return bare, task.forward(model, task.test[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "trained", "frozen", "lora"),
    [
        ("bert", {}, {"classifier"}, "bert.pooler", LORA),
        ("bert", {}, {"bert.pooler.dense"}, "classifier", replace(LORA, head=("pooler.dense",))),
        (
            "bert",
            {"head": None},
            set(),
            "classifier, bert.pooler",
            replace(LORA, targets="all-linear"),
        ),
        ("modernbert", {}, {"head.dense", "classifier"}, "", LORA),
    ],
)
def test_a_saved_adapter_reproduces_on_a_base_that_is_loaded_anew(
    kind, options, trained, frozen, lora, tmp_path
):
    """After a few large steps; what is new and not trained is named at the run, and saved too."""
    new = WRITTEN[kind][1]
    folder = checkpoint(kind, tmp_path / "base")
    task = fl.tasks.hub(folder, toy_hubs.texts(20), **LABELLED, **options)
    assert task.new_modules == new
    plan = fl.Plan(rounds=1, local_steps=2, batch=4, lr=0.5)
    words = f"^model: the file has no {frozen}: drawn at random and frozen, unless head= names it"
    with pytest.warns(match=words) if frozen else nullcontext() as told:
        *_, last = fl.run(task, "fedlora", None, plan, lora=lora, seed=0)
    assert not told or [x.filename for x in told] == [__file__], "once, at the user's own line"
    assert {name.rpartition(".")[0] for name in last.head} == trained
    adapter = fl.save_adapter(last, tmp_path / "adapter")
    predicted = fl.predict(task, last, task.test[0]).softmax(-1)
    pairs = [loaded_anew(folder, adapter, task, seed) for seed in (1, 2)]
    assert not torch.equal(pairs[0][0], pairs[1][0]), "the base draws other numbers each time"
    for _, theirs in pairs:
        torch.testing.assert_close(theirs.softmax(-1), predicted, rtol=0, atol=1e-6)


def test_a_module_in_hand_may_have_new_parts():
    """Nobody knows which: what Transformers puts behind the base is saved."""
    task = toy_hubs.task("bert")
    code = toy_hubs.tokenizer()
    hub = fl.tasks.hub(task.model, toy_hubs.texts(20), tokenizer=code, **LABELLED)
    plain = fl.tasks.classification(task.model, task.clients, task.test, ["query"])
    assert hub.new_modules == plain.new_modules == ("classifier", "bert.pooler")


def test_what_loading_made_anew_is_named(tmp_path):
    """A classifier of other classes, and layers that the configuration leaves out, in a warning."""
    frame = toy_hubs.texts()
    auto = transformers.AutoModelForSequenceClassification
    with fl.tasks.quiet(), torch.random.fork_rng(devices=[]):
        shutil.copytree(toy_hubs.folder("bert"), tmp_path, dirs_exist_ok=True)
        auto.from_pretrained(tmp_path, num_labels=5).save_pretrained(tmp_path)
    five = frame.assign(label=np.arange(len(frame)) % 5)
    task = fl.tasks.hub(tmp_path, five, **LABELLED)
    assert task.new_modules == ()
    words = "the file is for other classes, so this part is made anew: classifier$"
    with pytest.warns(match=words):
        assert fl.tasks.hub(tmp_path, frame, **LABELLED).new_modules == ("classifier",)
    config = json.loads((tmp_path / "config.json").read_text())
    fewer = json.dumps(config | {"num_hidden_layers": 1})
    (tmp_path / "config.json").write_text(fewer)
    words = r"layers than the file, so it does not use: bert\.encoder\.layer\.1\..* and 13 more"
    with pytest.warns(match=words):
        fl.tasks.hub(tmp_path, five, **LABELLED)
    # A file of the base alone has no prefix before its names.
    base: Any = task.model.get_submodule("bert")
    base.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(fewer)
    with pytest.warns(match="so it does not use: .* and 13 more"):
        fl.tasks.hub(tmp_path, five, **LABELLED)


def test_a_head_of_another_model_is_refused():
    """The model's own would stay as it was drawn."""
    task = toy_hubs.task("bert")
    config = peft.LoraConfig(r=2, modules_to_save=["score"])
    with refused(r"^modules_to_save=\('score',\): expected modules of this model, such as class"):
        list(fl.run(task, "fedlora", None, fl.Plan(rounds=1), lora=config))


# ---- models that hold an adapter


def test_a_model_with_an_adapter_is_refused_everywhere(tmp_path):
    """PEFT would make its factors anew, with B = 0: a run started at another model than given."""
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    task = toy_hubs.fresh("bert")
    with fl.tasks.quiet():
        wrapped: Any = peft.get_peft_model(task.model, config)  # which changes it
    wrapped.save_pretrained(tmp_path / "adapter")
    frame = toy_hubs.texts()
    code = toy_hubs.tokenizer()
    for model in (tmp_path / "adapter", wrapped, wrapped.get_base_model()):
        with refused(MERGE):
            fl.tasks.hub(model, frame, tokenizer=code, targets=["value"], **LABELLED)
    with refused(MERGE):  # a task keeps no copy of a model given to it
        adapters.adapt(task, LORA)
    merged = wrapped.merge_and_unload()
    assert fl.tasks.hub(merged, frame, tokenizer=code, **LABELLED).head == "classifier"


def test_adapters_on_an_output_layer_with_the_embeddings_weight_are_warned_of():
    """Merging such an adapter changes both."""
    with pytest.warns(match="tie_word_embeddings=True"):
        adapters.adapt(toy_hubs.answers(), replace(LORA, targets=("lm_head",)))


# ---- images

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
PROCESSOR = read_processor(toy_hubs.folder("vit"), None, "AutoImageProcessor")


def stored(image, kind="png", **options):
    """A picture as a file of this kind holds it."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return {"bytes": file.getvalue()}


TURNED = Image.Exif()
TURNED[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
GREY = Image.fromarray(RAMP)
CLEAR = Image.fromarray(np.uint8(255) - RAMP)
COLOURS = np.dstack([RAMP, RAMP[::-1], RAMP.T])
SEEN = {
    "opaque": stored(Image.merge("LA", (GREY, Image.new("L", GREY.size, 255)))),
    "RGBA": stored(Image.merge("RGBA", (GREY, GREY, GREY, Image.new("L", GREY.size, 255)))),
    "CMYK": stored(Image.merge("CMYK", (CLEAR, CLEAR, CLEAR, Image.new("L", GREY.size))), "tiff"),
    "palette": stored(GREY.convert("P"))["bytes"],
    "turned by a camera": stored(GREY.convert("RGB").rotate(90, expand=True), exif=TURNED),
    "(8, 8)": RAMP,
    "(8, 8, 1)": RAMP[:, :, None],
    "(1, 8, 8)": torch.from_numpy(RAMP[None]),
    "(3, 8, 8)": np.stack([RAMP] * 3),
    "one page": stored(GREY, "tiff", save_all=True),
}
UNSEEN = {
    "whose range is not known": Image.fromarray(RAMP.astype(np.uint16)),
    "not of height and width in bytes": RAMP / 255,
    "not of height and width in": RAMP[:0],
    "cannot identify": {"bytes": b"not a picture"},
    "[Cc]annot handle": np.zeros((9, 8, 8), np.uint8),
    "parts of it are transparent": stored(Image.merge("LA", (GREY, GREY))),
    "parts of it are transparent;": Image.merge("RGBA", (GREY, GREY, GREY, GREY)),
    "parts of it are transparent; ": stored(GREY.convert("P"), transparency=0),
    "parts of it are transparent; p": stored(
        Image.fromarray(COLOURS), transparency=tuple(map(int, COLOURS[2, 3]))
    ),
    "it has 2 pages": stored(GREY, "tiff", save_all=True, append_images=[CLEAR]),
    "it has 2 pages, of": stored(GREY, "gif", save_all=True, append_images=[CLEAR]),
    "it has 2 pages, of which": stored(GREY, "webp", save_all=True, append_images=[CLEAR]),
    "it has 2 pages, of which one": stored(GREY, save_all=True, append_images=[CLEAR]),
}


@pytest.mark.parametrize("name", [*SEEN, *UNSEEN])
def test_an_image_is_seen_whole_or_refused(name):
    """As by the model's own processor, however it is stored: a camera's turn is undone, and grey
    becomes a colour. Drawings in the transparency became one black square, pages after the first
    were dropped, and PIL cuts other ranges than 0 to 255 off."""
    if name in UNSEEN:
        with refused(rf"^image=.*{name}.* in row 7.: expected an image in every row$"):
            encode_images(PROCESSOR, [UNSEEN[name]], ["row 7"])
    else:
        expected = (torch.from_numpy(RAMP) / 127.5 - 1).expand(1, 3, 8, 8)
        torch.testing.assert_close(encode_images(PROCESSOR, [SEEN[name]]), expected)


def test_a_model_of_grey_images_gets_grey_or_refuses_colours(tmp_path):
    folder = fl.tasks.tiny("vit", tmp_path / "vit", num_channels=1)
    frame = toy_hubs.images(12)
    pictures: Options = {"image": "image", "label": "label", "clients": 2}
    with refused("^image='it has colours, and the model sees grey alone"):
        fl.tasks.hub(folder, frame, **pictures)
    frame["image"] = [pixels[:, :, 0] for pixels in frame["image"]]
    task = fl.tasks.hub(folder, frame, **pictures)
    x: Any = task.test[0]
    assert x.shape[1] == 1 and len(x.unique(dim=0)) == len(x)
