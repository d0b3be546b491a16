"""Transformers' models: how one is loaded, what is adapted, how texts and images are encoded."""

import copy
import hashlib
import io
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from fedlora_lab._utils.environment import ignore_warnings
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_rows, check_whole, few, in_one_line, warn
from fedlora_lab.tasks.labels import is_filled
from fedlora_lab.tasks.modules import (
    check_no_adapters,
    frozen_copy,
    is_linear,
    is_linear_head,
    is_within,
    linear_names,
    task_parts,
)

ModelSource = str | Path | nn.Module
"""A name or folder that Transformers reads, or the model itself."""
AUTO = {
    "text": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
    "causal": "AutoModelForCausalLM",
}
ATTENTION = re.compile(
    "(q|v|query|value)(_proj|_lin|_global)?|(W?qkv|query_key_value|in)(_proj)?|c_attn"
)
"""Names of the maps to queries and values, alone or in one: what the papers adapt."""
PROBE = "It's 9.50 for Ärger, or  NOT\n(e.g. re-read it) …"
"""A sentence that tokenizers read differently: case, accents, blanks, signs and numbers."""
MODES_OF_8_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
"""Modes of images whose range is known: of others PIL would cut numbers off."""

# ---- models


def load(
    source: ModelSource, kind: str, classes: int, seed: int
) -> tuple[nn.Module, tuple[str, ...]]:
    """Loads a frozen model from safetensors; no code of its repository is run.

    A classifier that the file lacks, or has for other classes, is drawn from the seed; so is a
    pooler that it lacks. Everything else must be in the file.

    Args:
        source: a name or folder that Transformers reads, or a module, which is copied.
        kind: "text", "image" or "causal".
        classes: outputs of a classifier.
        seed: of what the file does not have.
    Returns: the model, and the names of its modules that were drawn; of a module in hand all
        that may have been.
    Raises: ``ValueError`` in one line where it cannot be read, where weights are missing or have
        another shape, or where it holds an adapter.
    Guarantees: tests/tasks/test_loading.py::test_weights_that_do_not_fit_are_refused_by_name,
        ::test_what_loading_made_anew_is_named,
        ::test_a_model_with_an_adapter_is_refused_everywhere.
    """
    expected = "a Transformers model, a name or a folder"
    if isinstance(source, nn.Module):
        check(hasattr(source, "config"), "model", type(source).__name__, expected)
        check_no_adapters(source)
        return frozen_copy(source), task_parts(source)
    check(isinstance(source, (str, Path)), "model", source, expected)
    import transformers

    # Mismatched sizes are let through for the report, by which they are judged below.
    options: dict[str, Any] = {"ignore_mismatched_sizes": True, "output_loading_info": True}
    options |= {"use_safetensors": True, "trust_remote_code": False}
    if kind != "causal":
        options |= {"num_labels": classes}
    auto = getattr(transformers, AUTO[kind])
    name = str(source)
    where = "" if Path(source).exists() else " (here is no such folder)"
    expected = f"a name or folder{where} that {AUTO[kind]} reads from safetensors"
    with seeded(seed, "hub classifier"), in_one_line(f"model={name!r}: expected {expected}"):
        model, report = auto.from_pretrained(name, dtype=torch.float32, **options)
    check_no_adapters(model)
    # Of a decoder nothing may be drawn: it has no classifier.
    drawable = () if kind == "causal" else task_parts(model)
    new = _made_anew(model, drawable, report, str(source))
    return model.eval().requires_grad_(False), new


def _made_anew(
    model: nn.Module, parts: Sequence[str], report: Mapping[str, Any], source: str
) -> tuple[str, ...]:
    """Those of a model's parts that loading drew at random, wholly or partly.

    Args:
        model, report: what Transformers loaded, and what it says of it.
        parts: which may be drawn: classifiers and poolers.
        source: for messages.
    Raises: ``ValueError`` naming what else is missing, or has another shape.
    """
    resized = {n: f"{tuple(old)} for {tuple(new)}" for n, old, new in report["mismatched_keys"]}
    drawn = sorted({*report["missing_keys"], *resized})
    unused = sorted(report["unexpected_keys"])
    # A layer of which the file has a part was not left out but damaged.
    damaged = {_layer(name) for name in model.state_dict() if name not in drawn}
    wrong = [
        name
        for name in drawn
        if _layer(name) in damaged or not any(is_within(name, part) for part in parts)
    ]
    problems = {
        "missing": [name for name in wrong if name not in resized],
        "of another shape": [f"{name} {resized[name]}" for name in wrong if name in resized],
        "not used": unused,
    }
    summary = "; ".join(f"{what}: {few(names)}" for what, names in problems.items() if names)
    check(not wrong, "model", source, f"weights for all of {type(model).__name__}; {summary}")
    new = tuple(part for part in parts if any(is_within(name, part) for name in drawn))
    base = str(getattr(model, "base_model_prefix", ""))

    def unnumbered(name: str) -> str:
        return re.sub(r"\d+", "#", name.removeprefix(f"{base}."))

    # Layers are numbered: what is not used, but for its number, belongs to one too many.
    numbered = {*map(unnumbered, model.state_dict())}
    remarks = {
        "the configuration has fewer layers than the file, so it does not use": [
            name for name in unused if unnumbered(name) in numbered
        ],
        "the file is for other classes, so this part is made anew": [
            part for part in new if any(is_within(name, part) for name in resized)
        ],
    }
    for remark, names in remarks.items():
        if names:
            warn(f"model={source!r}: {remark}: {few(names)}")
    return new


def _layer(name: str) -> str:
    """The layer of a tensor."""
    return name.rpartition(".")[0]


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Lets torch's and Transformers' initial weights follow from a seed, without messages."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(int(Streams(seed).numpy(purpose).integers(2**63)))
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Transformers' progress bars, notes on new classifiers and future warnings."""
    from transformers import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def default_targets(model: nn.Module, given: Sequence[str] | None = None) -> tuple[str, ...]:
    """The targets that were given, or else the linear maps to queries and values.

    Raises: ``ValueError`` with the linear maps that the model has.
    Guarantees:
        tests/lora/test_gradients.py::test_usual_models_do_as_their_table_says.
    """
    if given is not None:
        check(not isinstance(given, str), "targets", given, "a list of ends of names")
        return tuple(given)
    names = {path.rpartition(".")[2]: None for path, m in model.named_modules() if is_linear(m)}
    targets = tuple(name for name in names if ATTENTION.fullmatch(name))
    expected = f"names, since none is known for queries; linear maps: {linear_names(model)}"
    check(bool(targets), "targets", None, expected)
    return targets


def default_head(model: nn.Module) -> str | tuple[str, ...] | None:
    """The modules of linear maps that Transformers puts behind the base: what classifies.

    One name where there is one, and ``None`` where there is nothing that can be trained in full.

    Guarantees:
        tests/lora/test_gradients.py::test_usual_models_do_as_their_table_says.
    """
    base = str(getattr(model, "base_model_prefix", ""))
    names: list[str] = []
    for part in task_parts(model):
        module = model.get_submodule(part)
        if is_within(part, base):
            continue
        if is_linear_head(module):
            names.append(part)
        else:  # such as a classifier with a norm: its linear maps
            inner = module.named_modules(prefix=part)
            names += [path for path, layer in inner if type(layer) is nn.Linear]
    return tuple(names) if len(names) > 1 else names[0] if names else None


# ---- their inputs


def read_processor(source: ModelSource, given: Any, auto: str) -> Any:
    """A copy of the given tokenizer or image processor, or the one that lies beside the model.

    Args:
        source: name or folder of the model, or the module that the user gave.
        given: what ``tokenizer=`` was; ``None``: read.
        auto: the class that reads it, "AutoTokenizer" or "AutoImageProcessor".
    Raises: ``ValueError`` in one line where there is none.
    """
    if given is not None:
        check(callable(given), "tokenizer", type(given).__name__, "one of Transformers'")
        return copy.deepcopy(given)
    expected = f"what {auto} reads, since the model was given as a module"
    check(isinstance(source, (str, Path)), "tokenizer", None, expected)
    import transformers

    expected = f"what {auto} reads beside the model, or tokenizer="
    with quiet(), in_one_line(f"tokenizer={str(source)!r}: expected {expected}"):
        return getattr(transformers, auto).from_pretrained(str(source), trust_remote_code=False)


def input_reader(
    kind: str, source: ModelSource, given: Any, model: nn.Module, max_length: int | None
) -> "partial[Any]":
    """What makes a classifier's inputs of texts or images: (rows, names of the rows) -> inputs.

    Args:
        kind: "text" or "image".
        source, given: as of `read_processor`.
        model, max_length: as of `tokenize`.
    """
    if kind == "image":
        processor = read_processor(source, given, "AutoImageProcessor")
        config: Any = model.config
        channels = getattr(getattr(config, "vision_config", config), "num_channels", 3)
        check(channels in (1, 3), "model", f"{channels} channels", "1 or 3, for grey or colours")
        return partial(encode_images, processor, channels=channels)
    tokenizer = prepare_tokenizer(source, given, model)
    return partial(tokenize, tokenizer, model, max_length)


def prepare_tokenizer(source: ModelSource, given: Any, model: nn.Module) -> Any:
    """Copies or reads a tokenizer, and makes it pad on the right; it cuts where it always does.

    One without a padding token pads with its end token, with a warning.

    Args:
        source, given: as of `read_processor`.
        model: gets the number of the padding token, with a warning where it had another one.
    Raises: ``ValueError`` in one line where there is none.
    Guarantees:
        tests/tasks/test_hub.py::test_a_classifier_on_a_decoder_reads_each_text_s_last_token,
        tests/tasks/test_hub.py::test_a_tokenizer_cuts_where_it_was_set_to.
    """
    tokenizer = read_processor(source, given, "AutoTokenizer")
    check(
        hasattr(tokenizer, "pad_token"), "tokenizer", type(given).__name__, "one of Transformers'"
    )
    # Transformers reads a folder without one as a tokenizer that knows no word.
    knows = len(tokenizer) > len(tokenizer.all_special_ids)
    check(knows, "tokenizer", "special tokens alone", "words too; are its files in the folder?")
    kind = type(tokenizer).__name__
    with in_one_line(f"tokenizer={kind!r}: expected one that reads any text, but it says"):
        tokenizer(PROBE, verbose=False)  # some have no token for what they do not know
    # On the left, padding would move positions, and a text would depend on the batch's width. The
    # side on which texts are cut decides what is learned, and is the user's choice.
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        end = tokenizer.eos_token
        check(end is not None, "tokenizer", "no padding token", "one, or an end token to pad with")
        tokenizer.pad_token = end
        message = f"tokenizer without a padding token: {end} pads, behind the mask"
        warn(message)
    config: Any = model.config
    before = getattr(config, "pad_token_id", None)
    # Classifiers on a decoder find a text's last token by this number. RoBERTa's kin count
    # positions from theirs, which a tokenizer cannot change.
    if before is None or not _first_position(model):
        config.pad_token_id = tokenizer.pad_token_id
        if before not in (None, tokenizer.pad_token_id):
            change = f"pad_token_id was {before} and is now {tokenizer.pad_token_id}"
            advice = "which the tokenizer has; set it in the base's config as well"
            warn(f"{change}, {advice}")
    return tokenizer


def tokenizer_facts(tokenizer: Any) -> dict[str, str]:
    """What tells a tokenizer from another one, for `Task.info`: public, as the model is.

    The digest is of its vocabulary, and of how it reads a sentence.
    """
    read = tokenizer(PROBE, verbose=False)["input_ids"]
    content = json.dumps([read, sorted(tokenizer.get_vocab().items())])
    digest = hashlib.sha256(content.encode()).hexdigest()
    return {"tokenizer": digest, "truncation_side": tokenizer.truncation_side}


def use_tokenizer_of(info: Mapping[str, Any], tokenizer: Any, source: str) -> None:
    """Makes a tokenizer cut as that of a run; refuses one that reads otherwise.

    Args: info: of the run's task. tokenizer: changed. source: where it was read, for messages.
    """
    facts = tokenizer_facts(tokenizer)
    is_same = info.get("tokenizer", facts["tokenizer"]) == facts["tokenizer"]
    expected = "the one that tokenizer= gave in the run; this is another: save that one here"
    check(is_same, "tokenizer", source, expected)
    tokenizer.truncation_side = info.get("truncation_side", facts["truncation_side"])


def check_control_tokens(
    argument: str, tokenizer: Any, texts: Sequence[Any], rows: Sequence[str], rendered: bool
) -> None:
    """Refuses texts of people that spell a tokenizer's control tokens, which it would read as such.

    Args:
        argument: for messages.
        tokenizer: whose special tokens are looked for.
        texts, rows: what is read, and what messages call each row.
        rendered: the texts may come from a chat template: then every one of them has some, and a
            text without, or one of a few that have, is no such text.
    Raises: ``ValueError`` naming the rows and the token.
    Guarantees: tests/tasks/test_chats.py::test_a_control_token_in_a_text_of_people_is_refused.
    """
    added = tokenizer.added_tokens_decoder.values()
    special = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    # The longest first, so that a message names what is read.
    spelled = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
    found = {}
    for row, text in zip(rows, texts, strict=True):
        match = spelled.search(text) if special and isinstance(text, str) else None
        if match:
            found[row] = match.group()
    if rendered and len(found) == len(texts):
        return
    expected = "no control token of the tokenizer in a text: it would be read as one"
    if rendered:
        expected += "; a chat template writes some in every row"
    check_rows(argument, found, expected)


def longest_text(model: nn.Module) -> int | None:
    """The most tokens that a model holds; ``None`` where its configuration does not say."""
    config: Any = model.config
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if limit is None or limit < 0:  # XLNet's says -1
        return None
    return limit - _first_position(model)


def _first_position(model: nn.Module) -> int:
    """The number of a text's first position; RoBERTa's kin count from the padding token on."""
    # Asked of the layer: the list of such architectures grows with every version.
    for path, module in model.named_modules():
        if (
            path.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            return int(module.padding_idx) + 1  # type: ignore[arg-type]
    return 0


def check_max_length(max_length: int | None, model: nn.Module) -> None:
    """Refuses a number of tokens to keep that is no whole number, or more than the model holds."""
    if max_length is not None:
        check_whole("max_length", max_length, 2, longest_text(model))


def check_tokens(
    ids: Int[Tensor, "n tokens"],
    mask: Int[Tensor, "n tokens"],
    model: nn.Module,
    rows: Sequence[str],
) -> None:
    """Refuses texts that are empty, longer than the model holds, or of tokens unknown to it.

    Args:
        ids, mask: the tokens, and 1 for those of the text.
        model: with its configuration.
        rows: what messages call each row.
    """
    config: Any = model.config
    limit = longest_text(model) or math.inf
    # Some models read characters or pixels of text, and name no number of tokens.
    vocabulary = getattr(config, "vocab_size", None) or math.inf
    sizes = list(zip(rows, mask.sum(1).tolist(), strict=True))
    empty = {row: "no token" for row, length in sizes if length == 0}
    check_rows("text", empty, "at least one token in every row")
    long = {row: f"{length} tokens" for row, length in sizes if length > limit}
    check_rows(
        "text",
        long,
        f"at most {limit}; max_length={limit} (--max-length {limit}) cuts them",
    )
    largest = zip(rows, ids.amax(1).tolist(), strict=True)
    unknown = {row: f"token {token}" for row, token in largest if token >= vocabulary}
    expected = f"tokens below {vocabulary}: resize the embeddings, or give the model's own"
    check_rows("tokenizer", unknown, expected)


def tokenize(
    tokenizer: Any,
    model: nn.Module,
    max_length: int | None,
    texts: Sequence[str],
    rows: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Encodes texts as the model's keywords, each (n, tokens).

    Args:
        tokenizer: from `prepare_tokenizer`.
        model: whose vocabulary and longest text are respected.
        max_length: cut longer texts to so many tokens; ``None``: nothing is cut.
        texts: n strings.
        rows: what messages call each row; by default "row 0" and so on.
    Raises: ``ValueError`` naming the row of a text that is too long for the model, or empty.
    """
    rows = rows or [f"row {i}" for i in range(len(texts))]
    check_max_length(max_length, model)
    pairs = zip(rows, texts, strict=True)
    other = {row: repr(text) for row, text in pairs if not is_filled(text)}
    check_rows("text", other, "text in every row, in whole letters of Unicode")
    options: dict[str, Any] = {"truncation": max_length is not None, "max_length": max_length}
    with ignore_warnings():  # texts beyond the tokenizer's own limit are checked below
        encoded = tokenizer(texts, padding=True, **options, return_tensors="pt", verbose=False)
    # There is one kind of token only, which is the model's own default.
    inputs = {key: encoded[key].long() for key in ("input_ids", "attention_mask")}
    check_tokens(inputs["input_ids"], inputs["attention_mask"], model, rows)
    return inputs


def trim_padding(x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drops the columns that are padding in every text of a batch: they only cost time."""
    longest = max(int(x["attention_mask"].sum(1).max()), 1) if len(x["attention_mask"]) else 1
    return {key: value[:, :longest] for key, value in x.items()}


def encode_images(
    processor: Any, images: Sequence[object], rows: Sequence[str] = (), *, channels: int = 3
) -> Tensor:
    """The pixels that a model's own image processor makes of images, (n, channels, height, width).

    Args:
        processor: an image processor of Transformers.
        images: paths, contents of files, PIL images, arrays or tensors of bytes (height, width),
            (height, width, channels) or (channels, height, width), or what `datasets` keeps in a
            column. A camera's turn is undone.
        rows: what messages call each row; by default "row 0" and so on.
        channels: of the model: 3 for colours, 1 for grey.
    Raises: ``ValueError`` naming the row that is no image, or that has what the model cannot see:
        transparent parts, several pages, numbers whose range is not known, colours beyond grey.
    Guarantees: tests/tasks/test_loading.py::test_an_image_is_seen_whole_or_refused.
    """
    pixels = []
    bad = {}
    # One at a time: what the model sees of a photograph is much smaller than the photograph.
    for i, image in enumerate(images):
        try:
            picture = _picture(image, channels)
        except Exception as error:  # whatever Pillow raises
            bad[rows[i] if rows else f"row {i}"] = error
            continue
        with quiet():
            pixels.append(processor(images=[picture], return_tensors="pt")["pixel_values"])
    check_rows("image", bad, "an image in every row")
    return torch.cat(pixels)


def _picture(image: Any, channels: int) -> Any:
    """An image as PIL has it, upright and in colours or grey of 8 bits; refuses what has more."""
    from PIL import Image, ImageOps

    if isinstance(image, dict):  # an image column of `datasets`
        image = image.get("bytes") or image["path"]
    if isinstance(image, bytes):
        image = io.BytesIO(image)
    if isinstance(image, (str, Path, io.BytesIO)):
        image = Image.open(image)
    elif not hasattr(image, "convert"):
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim < 2 or array.size == 0:
            shape = f"shape {array.shape} of {array.dtype}"
            raise TypeError(f"an array of {shape}, not of height and width in bytes (uint8)")
        is_first = array.ndim == 3 and array.shape[2] > 4 and array.shape[0] in (1, 3, 4)
        array = np.moveaxis(array, 0, 2) if is_first else array
        is_grey = array.ndim == 3 and array.shape[2] == 1
        image = Image.fromarray(np.ascontiguousarray(array[:, :, 0] if is_grey else array))
    # PIL's conversion cuts other ranges off: of 16 bits all but black would be white.
    if image.mode not in MODES_OF_8_BITS:
        reason = "whose range is not known; convert it to 8 bits first"
        raise ValueError(f"its mode is {image.mode}, {reason}")
    if (pages := getattr(image, "n_frames", 1)) > 1:
        raise ValueError(f"it has {pages} pages, of which one would be seen; save each by itself")
    # Behind what is transparent stands any colour, mostly black.
    if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
        raise ValueError("parts of it are transparent; put it on a background first")
    upright = ImageOps.exif_transpose(image).convert("RGB")
    if channels == 3:
        return upright
    grey = upright.convert("L")
    if grey.convert("RGB").tobytes() != upright.tobytes():
        raise ValueError("it has colours, and the model sees grey alone; convert it first")
    return grey
