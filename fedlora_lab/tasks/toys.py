"""Random toy models of real architectures, to practise on without a download."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedlora_lab._utils.validation import check, check_one_of, check_whole
from fedlora_lab.tasks.architectures import quiet, seeded

_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2}
_IMAGE = {"hidden_size": 16, **_LAYERS, "intermediate_size": 24}
_TEXT = {**_IMAGE, "max_position_embeddings": 64}
_DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 64}
_SWIN = {"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 2}
TOYS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", _TEXT),
    "roberta": ("RobertaModel", {**_TEXT, "max_position_embeddings": 66, "type_vocab_size": 1}),
    "distilbert": ("DistilBertModel", _DISTIL),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "llama": (
        "LlamaForCausalLM",
        {**_TEXT, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "vit": ("ViTModel", {**_IMAGE, "image_size": 8, "patch_size": 4}),
    "swin": ("SwinModel", {**_SWIN, "image_size": 8, "patch_size": 2}),
}


def tiny(
    kind: str, folder: "str | Path", texts: Iterable[str] = (), seed: int = 0, **sizes: Any
) -> Path:
    """Writes a random toy model of a real architecture, with a tokenizer of the texts' words.

    The folder is one for `hub`: a model to practise on without a download. It has learned nothing.

    Args:
        kind: bert, roberta, distilbert, gpt2, llama, vit or swin.
        folder: new, or empty.
        texts: whose words the tokenizer knows; needed for all but the last two.
        seed: of the weights.
        sizes: fields of the architecture's configuration.
    Returns: the folder.
    Raises: ValueError for an unknown kind, a folder that holds something, or no texts.
    Guarantees: tests/tasks/test_hub.py::test_a_tiny_model_follows_from_its_seed.
    """
    import transformers

    check_one_of("kind", kind, tuple(TOYS))
    check_whole("seed", seed)
    folder = Path(folder)
    new = not folder.exists() or not any(folder.iterdir())
    check(new, "folder", str(folder), "a new folder, or an empty one")
    body, fields = TOYS[kind]
    if kind in ("vit", "swin"):
        side = {**fields, **sizes}["image_size"]
        with quiet():
            processor = transformers.ViTImageProcessor(size={"height": side, "width": side})
            processor.save_pretrained(folder)
    else:
        vocabulary = sorted({word for text in texts for word in text.lower().split()})
        check(bool(vocabulary), "texts", (), "some texts, whose words the tokenizer will know")
        tokenizer = _word_tokenizer(kind, vocabulary)
        tokenizer.save_pretrained(folder)
        marks = ("pad_token_id", "bos_token_id", "eos_token_id")
        fields = fields | {mark: getattr(tokenizer, mark) for mark in marks}
        fields |= {"vocab_size": len(tokenizer)}
    config = transformers.AutoConfig.for_model(kind, **{**fields, **sizes})
    with seeded(seed, "tiny weights"):
        getattr(transformers, body)(config).save_pretrained(folder)
    return folder


def _word_tokenizer(kind: str, words: Sequence[str]) -> Any:
    """Lower case, split at blanks, one number for each word; with marks as the kind has them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    marks = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if kind == "gpt2":  # has no mark for padding, and none before a text
        del marks["pad_token"], marks["bos_token"]
    numbers = {word: number for number, word in enumerate([*marks.values(), *words])}
    code = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    code.normalizer = normalizers.Lowercase()
    code.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if kind != "gpt2":
        form = "<s> $A" if kind == "llama" else "<s> $A </s>"
        code.post_processor = processors.TemplateProcessing(
            single=form,
            pair=f"{form} $B </s>",
            special_tokens=[(word, numbers[word]) for word in ("<s>", "</s>")],
        )
    return PreTrainedTokenizerFast(tokenizer_object=code, **marks)
