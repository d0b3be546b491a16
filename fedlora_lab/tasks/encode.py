"""Texts and images as tensors: tokens padded to the right with a mask, pixels of the size that the model takes."""

import copy
import io
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_lab.checks import check, check_whole
from fedlora_lab.tasks.architectures import longest_text

IGNORED = -100
"""In the place of a target that does not count, as in Transformers."""


def tokenizer_of(source: Any, given: Any, model: nn.Module) -> Any:
    """A copy of the tokenizer that pads to the right; one without a padding token pads with its end token, said aloud.

    Raises: ``ValueError`` in one line where there is none.
    """
    if given is None:
        expected = "a tokenizer, since the model was given as a module"
        check(isinstance(source, (str, Path)), "tokenizer", None, expected)
        from transformers import AutoTokenizer

        try:
            given = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
        except Exception as error:  # which errors there are depends on the version
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"tokenizer={str(source)!r}: expected a tokenizer beside the model, or tokenizer=: {reason}"
            ) from error
    check(callable(given) and hasattr(given, "pad_token"), "tokenizer", type(given).__name__, "one of Transformers'")
    tokenizer = copy.deepcopy(given)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:
        check(tokenizer.eos_token is not None, "tokenizer", "no padding token", "one, or an end token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
        warnings.warn(f"tokenizer without a padding token: {tokenizer.eos_token} pads, behind the mask", stacklevel=4)
    config: Any = model.config
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def tokens(
    tokenizer: Any, texts: Sequence[list[str]], model: nn.Module, max_length: int | None
) -> tuple[dict[str, Tensor], int]:
    """What the model takes as keywords, each (n, tokens), and how many texts were cut.

    Args:
        texts: one list of n strings, or two of them for pairs.
        max_length: cut longer texts to so many tokens; ``None``: nothing is cut.
    Raises: ``ValueError`` naming the row of a text that is too long for the model, or empty.
    """
    limit = longest_text(model)
    if max_length is not None:
        check_whole("max_length", max_length, 2, limit)
    for part in texts:
        odd = next((i for i, text in enumerate(part) if not isinstance(text, str)), None)
        check(odd is None, "text", part[odd or 0], f"text in every row, which row {odd} has not")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # texts longer than the tokenizer's own idea of a limit are met below
        whole = tokenizer(*texts, verbose=False)["input_ids"]
    # Some models know characters or pixels of text, and name no number of tokens.
    known = getattr(getattr(model, "config", None), "vocab_size", None) or math.inf
    strange = next((i for i, ids in enumerate(whole) if max(ids, default=0) >= known), None)
    expected = f"tokens below {known}, as many as the model knows: resize its embeddings, or give its own tokenizer"
    check(strange is None, "tokenizer", f"token {max(whole[strange or 0], default=0)} in row {strange}", expected)
    lengths = np.array([len(ids) for ids in whole])
    row = int(lengths.argmax())
    room = max_length or limit
    fits = max_length is not None or limit is None or lengths[row] <= limit
    check(bool(fits), "text", f"{lengths[row]} tokens in row {row}", f"at most {limit}; max_length={limit} cuts them")
    size = int(min(lengths.max(), room or lengths.max()))
    coded = tokenizer(*texts, padding="max_length", truncation=True, max_length=size, return_tensors="pt")
    wanted = ("input_ids", "attention_mask", "token_type_ids")
    found = {key: coded[key].long() for key in wanted if key in coded}
    low = found["attention_mask"].sum(1)
    check(bool((low > 0).all()), "text", f"row {int(low.argmin())} is empty", "at least one token in every row")
    if len(texts) == 1:
        found.pop("token_type_ids", None)  # one kind of token only: the model's own default
    return found, int((lengths > size).sum())


def trimmed(x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the columns that are padding for everyone: they cost time and say nothing."""
    longest = max(int(x["attention_mask"].sum(1).max()), 1) if len(x["attention_mask"]) else 1
    return {key: value[:, :longest] for key, value in x.items()}


def next_tokens(x: dict[str, Tensor]) -> Tensor:
    """Targets of a causal model, (n, tokens): the token itself, and `IGNORED` where there is padding.

    Raises: ``ValueError`` naming a text of one token, which has nothing to predict.
    """
    short = x["attention_mask"].sum(1) < 2
    check(not bool(short.any()), "text", f"row {int(short.int().argmax())} has one token", "at least two in every row")
    return torch.where(x["attention_mask"].bool(), x["input_ids"], IGNORED)


def pixels(images: Sequence[Any], model: nn.Module, source: Any) -> Tensor:
    """Images (n, channels, height, width) of the model's size, centred and scaled as its own folder says.

    Args:
        images: paths, PIL images, arrays of bytes (height, width[, channels]), or what `datasets` keeps in a column.
        source: name or folder of the model; without a ``preprocessor_config.json`` in it mean and deviation are 0.5.
    Raises: ``ValueError`` naming the row that is no image.
    """
    config: Any = model.config
    size = config.image_size if isinstance(config.image_size, (list, tuple)) else (config.image_size,) * 2
    mean, std = (np.asarray(part, dtype=np.float32) for part in _scale(source))
    mode = "L" if config.num_channels == 1 else "RGB"
    rows = []
    for i, image in enumerate(images):
        try:
            picture = _picture(image).convert(mode).resize((size[1], size[0]), resample=2)
        except Exception as error:
            raise ValueError(f"image: expected an image in row {i}, but: {error}") from error
        array = np.asarray(picture, dtype=np.float32).reshape(*size, -1) / 255
        rows.append(((array - mean) / std).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def _picture(image: Any) -> Any:
    from PIL import Image

    if isinstance(image, dict):  # an undecoded image column of `datasets`
        image = io.BytesIO(image["bytes"]) if image.get("bytes") else image["path"]
    if isinstance(image, (str, Path, io.BytesIO)):
        return Image.open(image)
    if hasattr(image, "convert"):
        return image
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise TypeError(f"an array of {array.dtype}, not of bytes (uint8)")
    return Image.fromarray(array)


def _scale(source: Any) -> tuple[Any, Any]:
    """Mean and deviation of the pixels that the model was trained with."""
    half = (0.5, 0.5)
    if not isinstance(source, (str, Path)):
        return half
    from transformers.utils.hub import cached_file

    try:
        file = cached_file(str(source), "preprocessor_config.json")
    except OSError:
        return half
    settings = json.loads(Path(str(file)).read_text(encoding="utf-8"))
    return settings.get("image_mean", half[0]), settings.get("image_std", half[1])
