"""Random toy models of real architectures, to practise on without a download."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedlora_lab._utils.torch_state import in_usual_torch
from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.tasks.architectures import quiet, seeded

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
SIZES |= {"hidden_size": 16, "head_dim": 8, "d_head": 8, "intermediate_size": 24}
"""As most configurations call them; others are given by their own names."""
IMAGE = {"image_size": 8, "patch_size": 4}
LONGEST_TEXT = 64


@in_usual_torch
@quiet()
def tiny(
    kind: str, folder: "str | Path", texts: Iterable[str] = (), seed: int = 0, **sizes: Any
) -> Path:
    """Writes a random toy model of a real architecture, with a tokenizer of the texts' words.

    The folder is one for `hub`: a model to practise on without a download. It has learned nothing.

    Args:
        kind: what Transformers calls the architecture: bert, llama, vit, ...
        folder: new, or empty.
        texts: whose words the tokenizer knows; needed for all but models of images.
        seed: of the weights.
        sizes: fields of the architecture's configuration.
    Returns: the folder.
    Raises: ValueError for an unknown kind, one whose tokenizer is no list of words, a folder that
        holds something, or no texts.
    """
    import transformers
    from transformers.models.auto import modeling_auto as known

    is_known = kind in known.MODEL_MAPPING_NAMES
    check(is_known, "kind", kind, "an architecture of Transformers, such as bert, llama or vit")
    check_whole("seed", seed)
    folder = Path(folder)
    new = not folder.exists() or not any(folder.iterdir())
    check(new, "folder", str(folder), "a new folder, or an empty one")
    usual = transformers.AutoConfig.for_model(kind)
    fields: dict[str, Any] = {**SIZES}
    body: Any = transformers.AutoModel
    if kind in known.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        fields |= IMAGE
        side = sizes.get("image_size", IMAGE["image_size"])
        half = [0.5] * sizes.get("num_channels", 3)
        processor = transformers.ViTImageProcessor(
            size={"height": side, "width": side}, image_mean=half, image_std=half
        )
        processor.save_pretrained(folder)
    else:
        vocabulary = sorted({word for text in texts for word in text.lower().split()})
        check(bool(vocabulary), "texts", (), "some texts, whose words the tokenizer will know")
        tokenizer = _word_tokenizer(kind, vocabulary)
        # For some kinds Transformers reads a class of its own, whatever was stored.
        with tempfile.TemporaryDirectory() as draft:
            tokenizer.save_pretrained(draft)
            stored: Any = transformers.AutoTokenizer.from_pretrained(draft, config=usual)
        same = stored.tokenize(" ".join(vocabulary)) == vocabulary
        check(same, "kind", kind, "one without a tokenizer class of its own, such as qwen3")
        tokenizer.save_pretrained(folder)
        marks = ("pad_token_id", "bos_token_id", "eos_token_id")
        fields |= {mark: getattr(tokenizer, mark) for mark in marks}
        fields |= {"vocab_size": len(tokenizer), "max_position_embeddings": LONGEST_TEXT}
        # Encoders have a language model as well, which sees what comes later.
        if kind not in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            body = transformers.AutoModelForCausalLM
    config = transformers.AutoConfig.for_model(kind, **{**_known(usual, fields), **sizes})
    with seeded(seed, "tiny weights"):
        body.from_config(config).save_pretrained(folder)
    return folder


def _known(config: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """Those fields that a configuration has, and so for each of the configurations inside it."""
    names = {*config.to_dict(), *config.attribute_map}
    parts = {name: _known(getattr(config, name), fields) for name in config.sub_configs}
    return {name: value for name, value in fields.items() if name in names} | parts


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
