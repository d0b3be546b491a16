"""The papers' own set-ups, one row each: model, data, federation, budget, and what had to be assumed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedlora_lab.plan import Lora, Plan

ROBERTA_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
}
SWIN_B = {
    "embed_dim": 128,
    "depths": [2, 2, 18, 2],
    "num_heads": [4, 8, 16, 32],
    "window_size": 7,
    "image_size": 224,
    "patch_size": 4,
}
VIT_B = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 16,
}
GPT2_MEDIUM = {"n_embd": 1024, "n_layer": 24, "n_head": 16, "n_positions": 1024, "vocab_size": 50257}
GLUE: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "sst2": (67_349, 2, ("sentence",)),
    "qnli": (104_743, 2, ("question", "sentence")),
    "qqp": (363_846, 2, ("question1", "question2")),
    "mnli": (392_702, 3, ("premise", "hypothesis")),
    "rte": (2_490, 2, ("sentence1", "sentence2")),
}


@dataclass(frozen=True)
class Preset:
    """A published set-up as data.

    Args:
        name, source: short name; arXiv id of the paper.
        assumed: what the paper's text, as far as it could be read, does not settle.
        model, architecture, config: name of the weights, Transformers' name of the architecture, and its numbers.
        dataset: what `datasets.load_dataset` takes, or () where the data come as a folder of images for each class.
        text, image, label: columns.
        examples, classes, length: private examples, classes (0: language), tokens of a text (0: images).
        clients, alpha: of the federation; Dirichlet concentration, ``None``: at random.
        test: name of the split to test on, or a share.
        targets: ends of names in any version of Transformers, of which those are used that the model has.
        head: the classifier is trained in full.
        epsilon, delta, clip: of the example unit; epsilon ``None``: no privacy.
    """

    name: str
    source: str
    assumed: str
    model: str
    architecture: str
    config: Mapping[str, Any]
    dataset: tuple[str, ...]
    examples: int
    classes: int
    clients: int
    method: str
    text: tuple[str, ...] = ()
    image: str | None = None
    label: str | None = "label"
    length: int = 0
    alpha: float | None = None
    test: str | float = "validation"
    targets: tuple[str, ...] = ("query", "value")
    head: bool = False
    lora: Lora = field(default=Lora(8, 8.0))
    plan: Plan = field(default=Plan())
    epsilon: float | None = None
    delta: float = 1e-5
    clip: float = 2.0


def _glue(paper: str, source: str, assumed: str, **fields: Any) -> list[Preset]:
    """A set-up on every task of GLUE that the papers share."""
    return [
        Preset(
            f"{paper}-{task}",
            source,
            assumed,
            model="FacebookAI/roberta-large",
            architecture="roberta",
            config=ROBERTA_LARGE,
            dataset=("nyu-mll/glue", task),
            examples=examples,
            classes=classes,
            text=columns,
            length=128,
            test="validation_matched" if task == "mnli" else "validation",
            **fields,
        )
        for task, (examples, classes, columns) in GLUE.items()
    ]


_LA = Preset(
    "la-lora-cifar100",
    "arXiv:2602.19926",
    "SGD without dropout; epsilon 1 for every client's own sampling rate; images resized to 224",
    model="microsoft/swin-base-patch4-window7-224",
    architecture="swin",
    config=SWIN_B,
    dataset=("uoft-cs/cifar100",),
    examples=50_000,
    classes=100,
    clients=8,
    method="la-lora",
    image="img",
    label="fine_label",
    alpha=0.1,
    test="test",
    targets=("query", "key", "value", "q_proj", "k_proj", "v_proj", "attention.output.dense", "o_proj"),
    head=True,
    lora=Lora(16, 16.0),
    plan=Plan(rounds=100, local_steps=20, batch=16, lr=0.1, participation=0.5, lr_decay=0.99),
    epsilon=1.0,
)
_DEER = Preset(
    "deer-kvasir",
    "arXiv:2410.12926",
    "a trained classifier in the place of text features; a phase is a round; epsilon of the example unit, as the "
    "release counts; no weight decay",
    model="google/vit-base-patch16-224-in21k",
    architecture="vit",
    config=VIT_B,
    dataset=(),
    examples=6_400,
    classes=8,
    clients=12,
    method="deer",
    image="image",
    alpha=0.1,
    test=0.2,
    targets=("query", "key", "value", "q_proj", "k_proj", "v_proj"),
    head=True,
    plan=Plan(rounds=100, local_steps=5, batch=10, lr=0.01, momentum=0.9),
    epsilon=1.0,
    delta=1e-4,
    clip=0.2,
)

PRESETS: dict[str, Preset] = {
    row.name: row
    for row in (
        *_glue(
            "ffa-lora-3",
            "arXiv:2403.12313",
            "labels dealt by Dirichlet(0.5) for the published shares of three clients; scaling 8 as alpha 64",
            clients=3,
            method="ffa-lora",
            alpha=0.5,
            lora=Lora(8, 64.0),
            plan=Plan(rounds=1000, local_steps=10, batch=200, lr=0.1),
            epsilon=6.0,
        ),
        *_glue(
            "fedsvd-6",
            "arXiv:2505.12805",
            "the classifier stays as drawn",
            clients=6,
            method="fedsvd",
            alpha=0.5,
            plan=Plan(rounds=100, local_steps=10, batch=128, lr=0.5, participation=0.5),
            epsilon=6.0,
        ),
        *_glue(
            "rolora-50",
            "arXiv:2502.01755",
            "batch 32 and 200 rounds; no privacy in the paper",
            clients=50,
            method="rolora",
            head=True,
            lora=Lora(4, 8.0),
            plan=Plan(rounds=200, local_steps=20, batch=32, lr=0.01),
        ),
        _LA,
        replace(
            _LA,
            name="la-lora-tinyimagenet",
            dataset=("zh-plus/tiny-imagenet",),
            examples=100_000,
            classes=200,
            image="image",
            label="label",
            test="valid",
        ),
        _DEER,
        replace(
            _DEER,
            name="deer-oct",
            examples=18_400,
            plan=_DEER.plan.replace(batch=42),
            epsilon=0.5,
            clip=0.3,
            test=0.13,
        ),
        Preset(
            "fedlpp-e2e",
            "arXiv:2406.10976",
            "ten clients, rank 8, 20 rounds; loss on every token of the pair; SGD for AdamW; no privacy in the paper",
            model="openai-community/gpt2-medium",
            architecture="gpt2",
            config=GPT2_MEDIUM,
            dataset=("tuetschek/e2e_nlg",),
            examples=42_061,
            classes=0,
            clients=10,
            method="fedlpp",
            text=("meaning_representation", "human_reference"),
            label=None,
            length=128,
            targets=("c_attn",),
            lora=Lora(8, 16.0),
            plan=Plan(rounds=20, local_steps=10, batch=10, lr=0.1),
        ),
    )
}
