"""Random toy models of real architectures, to practise on without a download."""

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from fedlora_lab._utils.torch_state import in_usual_torch
from fedlora_lab._utils.validation import check, check_whole, did_you_mean, few, in_one_line
from fedlora_lab.tasks.architectures import quiet, seeded

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
SIZES |= {"hidden_size": 16, "head_dim": 8, "d_head": 8, "intermediate_size": 24}
"""As most configurations call them; others are given by their own names."""
IMAGE = {"image_size": 8, "patch_size": 4}
LONGEST_TEXT = 64
MOST_WEIGHTS = 50_000_000
"""Of a toy, 200 MB: some architectures have sizes of other names, which stay those of a model."""


@in_usual_torch
@quiet()
def tiny(
    kind: str, folder: "str | Path", texts: Iterable[str] = (), seed: int = 0, **sizes: Any
) -> Path:
    """Writes a random toy model of a real architecture, with a tokenizer of the texts' words.

    The folder is one for `hub`: a model to practise on without a download. It has learned nothing.

    Args:
        kind: what Transformers calls the architecture: bert, llama, vit, ...
        folder: new, or empty; it stays so if anything is refused.
        texts: whose words the tokenizer knows; needed for all but models of images.
        seed: of the weights.
        sizes: fields of the architecture's configuration.
    Returns: the folder.
    Raises: ValueError in one line for an unknown kind, one whose tokenizer is no list of words, or
        that these sizes do not make a toy; a folder that holds something; no texts.
    Guarantees: test_loading.py::test_a_toy_is_small_and_whole_or_refused.
    """
    import transformers
    from transformers.models.auto import modeling_auto as known

    is_known = isinstance(kind, str) and kind in known.MODEL_MAPPING_NAMES
    check(is_known, "kind", kind, "an architecture of Transformers, such as bert, llama or vit")
    check_whole("seed", seed)
    check(isinstance(folder, str | Path), "folder", folder, "the path of one")
    folder = Path(folder)
    new = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    check(new, "folder", str(folder), "a new folder, or an empty one")
    unfit = f"kind={kind!r}: expected one that becomes a toy with these sizes, but"
    with in_one_line(unfit):
        usual = transformers.AutoConfig.for_model(kind)
    names = {*usual.to_dict(), *usual.attribute_map}
    for name, size in sizes.items():
        expected = f"a field of {type(usual).__name__}" + did_you_mean(name, sorted(names))
        check(name in names, name, size, expected)
    fields: dict[str, Any] = {**SIZES}
    body: Any = transformers.AutoModel
    with tempfile.TemporaryDirectory() as draft:
        if kind in known.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
            fields |= IMAGE
            side = sizes.get("image_size", IMAGE["image_size"])
            with in_one_line(unfit):
                half = [0.5] * sizes.get("num_channels", 3)
                processor = transformers.ViTImageProcessor(
                    size={"height": side, "width": side}, image_mean=half, image_std=half
                )
                processor.save_pretrained(draft)
        else:
            lines = (
                list(texts) if isinstance(texts, Iterable) and not isinstance(texts, str) else []
            )
            vocabulary = sorted({word for text in lines for word in str(text).lower().split()})
            is_text = bool(vocabulary) and all(isinstance(text, str) for text in lines)
            expected = "a list of texts, whose words the tokenizer will know"
            check(is_text, "texts", texts if isinstance(texts, str) else lines, expected)
            tokenizer = _word_tokenizer(kind, vocabulary)
            tokenizer.save_pretrained(draft)
            # For some kinds Transformers reads a class of its own, whatever was stored.
            with in_one_line(unfit):
                stored: Any = transformers.AutoTokenizer.from_pretrained(draft, config=usual)
            same = stored.tokenize(" ".join(vocabulary)) == vocabulary
            check(same, "kind", kind, "one without a tokenizer class of its own, such as qwen3")
            marks = ("pad_token_id", "bos_token_id", "eos_token_id")
            fields |= {mark: getattr(tokenizer, mark) for mark in marks}
            fields |= {"vocab_size": len(tokenizer), "max_position_embeddings": LONGEST_TEXT}
            # Encoders have a language model as well, which sees what comes later.
            if kind not in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
                body = transformers.AutoModelForCausalLM
        with in_one_line(unfit), torch.random.fork_rng(devices=[]):
            chosen = {**_known(usual, fields), **sizes}
            config = transformers.AutoConfig.for_model(kind, **chosen)
            with torch.device("meta"):  # takes no memory, however large it is
                count = sum(weight.numel() for weight in body.from_config(config).parameters())
        numbers = {name: x for name, x in config.to_dict().items() if type(x) is int}
        large = few(sorted(numbers, key=lambda name: -numbers[name]))
        expected = f"at most {MOST_WEIGHTS:,}; give its sizes by their names, such as {large}"
        check(count <= MOST_WEIGHTS, "kind", f"{kind} of {count:,} weights", expected)
        with in_one_line(unfit), seeded(seed, "tiny weights"):
            body.from_config(config).save_pretrained(draft)
        shutil.copytree(draft, folder, dirs_exist_ok=True)
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
