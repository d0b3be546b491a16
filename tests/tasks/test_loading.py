"""What a checkpoint lacks: refused by name, or drawn, named, and saved with the adapter; models
that hold an adapter already; images.
"""

import io
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import toy_hubs
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

import fedlora_lab as fl
from fedlora_lab.lora import adapters
from fedlora_lab.tasks.architectures import encode_images, read_processor
from fedlora_lab.tasks.task import Task, head_names

pytestmark = pytest.mark.filterwarnings(toy_hubs.NO_PAD)
LABELLED: dict[str, Any] = {"text": "text", "label": "label", "clients": 2, "public_test": True}
PICTURES: dict[str, Any] = {"image": "image", "label": "label", "clients": 2, "public_test": True}
MERGE = r"expected a model without an adapter of PEFT's; merge it first \(merge_and_unload\)$"
LORA = fl.Lora(rank=2, alpha=8.0)

# ---- weights that do not fit


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def write(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tiny(path: Path, kind: str = "bert", **sizes: Any) -> Path:
    """A toy model in a folder of its own, which a test may damage."""
    return fl.tasks.tiny(kind, path / kind, toy_hubs.texts()["text"], **sizes)


def cut_weights(weights):
    return {name: x[:-2].clone() if "word_emb" in name else x for name, x in weights.items()}


DAMAGED: dict[str, Any] = {
    r"missing: bert\.encoder\.layer\.1\..* and 13 more": "layer.1.",
    # The file has its weight and not its bias: it was not left out.
    r"missing: bert\.pooler\.dense\.bias": "pooler.dense.bias",
    r"of another shape: bert\.embeddings\.word_\w+\.weight \(14, 16\) for .*": None,
}


@pytest.mark.parametrize("line", DAMAGED)
def test_weights_that_do_not_fit_are_refused_by_name(line, tmp_path):
    """Transformers would draw what is missing at random, and say so in a log at most."""
    folder = tiny(tmp_path)
    lost = DAMAGED[line]
    weights = weights_of(folder)
    write(
        folder,
        {k: v for k, v in weights.items() if lost not in k} if lost else cut_weights(weights),
    )
    start = r"^model='.*bert': expected weights for all of BertForSequenceClassification; "
    with pytest.raises(ValueError, match=f"{start}{line}$"):
        fl.tasks.hub(folder, toy_hubs.texts(), **LABELLED)


def test_a_decoder_has_nothing_that_may_be_new(tmp_path):
    folder = tiny(tmp_path, "llama", tie_word_embeddings=False)
    write(folder, {k: v for k, v in weights_of(folder).items() if k != "lm_head.weight"})
    words = "expected weights for all of LlamaForCausalLM; missing: lm_head.weight$"
    with pytest.raises(ValueError, match=words):
        fl.tasks.prompts(folder, toy_hubs.questions(), prompt="question", answer="answer")


# ---- what loading makes anew

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 24, "max_position_embeddings": 40}
SMALL |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CHECKPOINTS: dict[str, tuple[str, dict[str, Any], tuple[str, ...], Any]] = {
    "bert": ("AutoModelForMaskedLM", SMALL, ("classifier", "bert.pooler"), "classifier"),
    "distilbert": (
        "AutoModelForMaskedLM",
        toy_hubs.SIZES["distilbert"],
        ("pre_classifier", "classifier"),
        ("pre_classifier", "classifier"),
    ),
    "modernbert": (
        "AutoModel",
        SMALL | {"cls_token_id": 1, "sep_token_id": 2},
        ("head", "classifier"),
        ("head.dense", "classifier"),
    ),
}
"""Class that wrote the file, and its configuration; what is new, and the head."""


def checkpoint(kind: str, path: Path) -> Path:
    """A random model as its class for pretraining writes it, and what reads its inputs."""
    body, fields, *_ = CHECKPOINTS[kind]
    code: Any = transformers.AutoTokenizer.from_pretrained(toy_hubs.folder("bert"))
    config = transformers.AutoConfig.for_model(kind, **{"vocab_size": len(code)} | fields)
    with fl.tasks.quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(transformers, body).from_config(config).save_pretrained(path)
    code.save_pretrained(path)
    return path


def task_of(kind: str, path: Path, **options: Any) -> Task:
    """A task of this checkpoint; with the warning on a pooler that is drawn, and no other."""
    new = CHECKPOINTS[kind][2]
    words = rf"{new[-1]}: not in the file: drawn at random and frozen, unless head= names it"
    with pytest.warns(UserWarning, match=words) if "." in new[-1] else nullcontext():
        return fl.tasks.hub(path, toy_hubs.texts(20), **LABELLED | options)


def loaded_anew(folder: Path, adapter: Path, task: Task, seed: int) -> tuple[torch.Tensor, ...]:
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


def check_reproduced(task: Task, lora: Any, folder: Path, path: Path) -> None:
    """Trains with a few large steps, and compares with plain PEFT on a base that is loaded anew."""
    plan = fl.Plan(rounds=1, local_steps=2, batch=4, lr=0.5)
    *_, last = fl.run(task, "fedlora", None, plan, seed=0, lora=lora)
    if lora is LORA:
        trained = {name.rpartition(".")[0] for name in last.head}
        assert trained == set(head_names(task.head))
    adapter = fl.save_adapter(last, path)
    own = fl.predict(task, last, task.test[0])
    pairs = [loaded_anew(folder, adapter, task, seed) for seed in (1, 2)]
    assert not torch.equal(pairs[0][0], pairs[1][0]), "the base draws other numbers each time"
    for _, theirs in pairs:
        torch.testing.assert_close(theirs.softmax(-1), own.softmax(-1), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_saved_adapter_reproduces_on_a_base_that_is_loaded_anew(kind, tmp_path):
    folder = checkpoint(kind, tmp_path / "base")
    task = task_of(kind, folder)
    new, head = CHECKPOINTS[kind][2:]
    assert (task.new_modules, task.head) == (new, head)
    check_reproduced(task, LORA, folder, tmp_path / "adapter")


OTHER_WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "the pooler is the head": ("bert.pooler.dense", {}),
    "adapters everywhere": (None, {"target_modules": "all-linear"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", OTHER_WAYS)
def test_whatever_is_trained_the_rest_of_what_is_new_is_saved(way, tmp_path):
    head, fields = OTHER_WAYS[way]
    folder = checkpoint("bert", tmp_path / "base")
    config = peft.LoraConfig(r=2, lora_alpha=8, **fields) if fields else LORA
    check_reproduced(task_of("bert", folder, head=head), config, folder, tmp_path / "adapter")


def test_a_module_in_hand_may_have_new_parts():
    """Nobody knows which: what Transformers puts behind the base is saved."""
    with fl.tasks.quiet():
        auto = transformers.AutoModelForSequenceClassification
        model = auto.from_pretrained(toy_hubs.folder("bert"))
    code = transformers.AutoTokenizer.from_pretrained(toy_hubs.folder("bert"))
    task = fl.tasks.hub(model, toy_hubs.texts(20), tokenizer=code, **LABELLED)
    plain = fl.tasks.classification(model, task.clients, task.test, task.targets, task.head)
    assert task.new_modules == plain.new_modules == ("classifier", "bert.pooler")


def test_what_loading_made_anew_is_named(tmp_path):
    """A classifier of other classes, and layers that the configuration leaves out, in a warning."""
    frame = toy_hubs.texts()
    auto = transformers.AutoModelForSequenceClassification
    with fl.tasks.quiet(), torch.random.fork_rng(devices=[]):
        auto.from_pretrained(toy_hubs.folder("bert"), num_labels=5).save_pretrained(tmp_path)
        code: Any = transformers.AutoTokenizer.from_pretrained(toy_hubs.folder("bert"))
        code.save_pretrained(tmp_path)
    five = frame.assign(label=np.arange(len(frame)) % 5)
    task = fl.tasks.hub(tmp_path, five, **LABELLED)
    given = weights_of(tmp_path)["classifier.weight"]
    assert torch.equal(task.model.get_parameter("classifier.weight"), given)
    assert task.new_modules == ()
    words = "classifier: made anew, since the file has it for other classes$"
    with pytest.warns(UserWarning, match=words):
        assert fl.tasks.hub(tmp_path, frame, **LABELLED).new_modules == ("classifier",)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    words = r"bert\.encoder\.layer\.1\..* and 13 more: not used, for the configuration has fewer"
    with pytest.warns(UserWarning, match=words):
        fl.tasks.hub(tmp_path, five, **LABELLED)


# ---- models that hold an adapter


def test_a_model_with_an_adapter_is_refused_everywhere(tmp_path):
    """PEFT would make its factors anew, with B = 0: a run started at another model than given."""
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    auto = transformers.AutoModelForSequenceClassification
    with fl.tasks.quiet():
        wrapped: Any = peft.get_peft_model(auto.from_pretrained(toy_hubs.folder("bert")), config)
    wrapped.save_pretrained(tmp_path / "adapter")
    task = toy_hubs.task("bert")
    frame = toy_hubs.texts()
    code: Any = transformers.AutoTokenizer.from_pretrained(toy_hubs.folder("bert"))
    for model in (tmp_path / "adapter", wrapped, wrapped.get_base_model()):
        with pytest.raises(ValueError, match=MERGE):
            fl.tasks.hub(model, frame, tokenizer=code, targets=["value"], **LABELLED)
    with pytest.raises(ValueError, match=MERGE):
        fl.tasks.classification(wrapped, task.clients, task.test, ["value"])
    with pytest.raises(ValueError, match=MERGE):  # a task keeps no copy of a model given to it
        adapters.adapt(wrapped.get_base_model(), ("value",), None, LORA)
    merged = wrapped.merge_and_unload()
    assert fl.tasks.hub(merged, frame, tokenizer=code, **LABELLED).head == "classifier"


def test_adapters_on_an_output_layer_with_the_embeddings_weight_are_warned_of():
    """Merging such an adapter changes both."""
    with pytest.warns(UserWarning, match="tie_word_embeddings=True"):
        adapters.adapt(toy_hubs.answers().model, ("lm_head",), None, LORA)


def test_another_padding_token_is_told():
    """Plain PEFT on the base alone would find the last token of a text by another number."""
    code: Any = transformers.AutoTokenizer.from_pretrained(toy_hubs.folder("llama"))
    config = transformers.AutoConfig.from_pretrained(toy_hubs.folder("llama"), num_labels=2)
    config.pad_token_id = code.eos_token_id
    model = transformers.LlamaForSequenceClassification(config)
    with pytest.warns(UserWarning, match=r"^pad_token_id was \d and is \d, as of the tokenizer"):
        fl.tasks.hub(model, toy_hubs.texts(20), tokenizer=code, **LABELLED)


# ---- images

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)


def vit_processor() -> Any:
    return read_processor(toy_hubs.folder("vit"), None, "AutoImageProcessor")


def test_images_are_those_of_the_model_s_own_processor():
    """However they are stored: a camera's turn is undone, and grey becomes a colour."""
    picture = Image.fromarray(RAMP).convert("RGB")
    plain = io.BytesIO()
    picture.save(plain, "png")
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    picture.rotate(90, expand=True).save(turned, "png", exif=exif)
    stored = [RAMP, picture, {"bytes": plain.getvalue()}, {"bytes": turned.getvalue()}]
    expected = (torch.from_numpy(RAMP) / 127.5 - 1).expand(4, 3, 8, 8)
    torch.testing.assert_close(encode_images(vit_processor(), stored), expected)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("I", (8, 8), 70000),
        Image.fromarray(RAMP.astype(np.uint16)),
        RAMP / 255,
        {"bytes": b"not a picture"},
    ],
)
def test_what_is_no_image_of_8_bits_is_refused(image):
    """PIL cuts other ranges than 0 to 255 off: of 16 bits all but black was white."""
    with pytest.raises(ValueError, match=r"^image: expected an image in row 7, but: "):
        encode_images(vit_processor(), [image], ["7"])


def test_images_for_a_model_without_a_processor_or_of_texts_are_refused(tmp_path):
    frame = toy_hubs.images(8)
    with pytest.raises(
        ValueError, match=r"^model=.*: expected a name or folder that AutoModelForI"
    ):
        fl.tasks.hub(toy_hubs.folder("bert"), frame, **PICTURES)
    folder = fl.tasks.tiny("vit", tmp_path / "vit")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"^tokenizer=.*: expected what AutoImageProcessor reads"):
        fl.tasks.hub(folder, frame, **PICTURES)
