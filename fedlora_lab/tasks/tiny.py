"""Real architectures at a random toy size, in a local folder with a tokenizer of their own: practice without a hub."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from fedlora_lab.checks import check, check_one_of, check_whole
from fedlora_lab.streams import Streams
from fedlora_lab.tasks.architectures import quiet

ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
IMAGE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SIZES: dict[str, dict[str, Any]] = {
    "bert": ENCODER,
    "roberta": {**ENCODER, "max_position_embeddings": 66, "type_vocab_size": 1},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 64},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "vit": {**IMAGE, "image_size": 8, "patch_size": 4},
    "swin": {"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 2, "image_size": 8, "patch_size": 2},
}
BODIES = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "distilbert": "DistilBertModel",
    "gpt2": "GPT2LMHeadModel",
    "vit": "ViTModel",
    "swin": "SwinModel",
}
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def tiny(kind: str, folder: "str | Path", texts: Iterable[str] = (), seed: int = 0, **sizes: Any) -> Path:
    """Write a random model of a real architecture, and for texts a tokenizer of their words, as Transformers does.

    The folder is one for `hub`: a model to practise on where no other is at hand. It has learned nothing.

    Args:
        kind: bert, roberta, distilbert, gpt2, vit or swin.
        folder: new, or empty.
        texts: whose words the tokenizer knows; needed for the first four.
        seed: of the weights.
        sizes: fields of the architecture's configuration.
    Returns: the folder.
    Raises: ValueError for an unknown kind, a folder that holds something, or no texts.
    Guarantees: tests/test_hub.py::test_a_tiny_model_is_read_back.
    """
    import transformers

    check_one_of("kind", kind, tuple(SIZES))
    check_whole("seed", seed)
    folder = Path(folder)
    check(not folder.exists() or not any(folder.iterdir()), "folder", str(folder), "a new folder, or an empty one")
    more: dict[str, Any] = {}
    if kind not in ("vit", "swin"):
        words = sorted({word for text in texts for word in text.lower().split()})
        check(bool(words), "texts", (), "some texts, whose words the tokenizer will know")
        known = SPECIAL if kind != "gpt2" else SPECIAL[2:]
        _tokenizer(known, words).save_pretrained(folder)
        numbers = {f"{name}_token_id": known.index(word) if word in known else None for name, word in _NAMES.items()}
        more = {"vocab_size": len(known) + len(words), **numbers}
    config = transformers.AutoConfig.for_model(kind, **{**SIZES[kind], **more, **sizes})
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(int(Streams(seed).numpy("tiny weights").integers(2**63)))
        getattr(transformers, BODIES[kind])(config).save_pretrained(folder)
    return folder


_NAMES = {"pad": "<pad>", "bos": "<s>", "eos": "</s>"}


def _tokenizer(special: list[str], words: list[str]) -> Any:
    """Lower case, split at blanks, one number for each word."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    code = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *words])}, unk_token="<unk>"))
    code.normalizer, code.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    ends = [(word, special.index(word)) for word in ("<s>", "</s>") if word in special]
    if len(ends) == 2:
        code.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ends
        )
    named = {f"{name}_token": word for name, word in _NAMES.items() if word in special}
    return PreTrainedTokenizerFast(tokenizer_object=code, unk_token="<unk>", **named)
