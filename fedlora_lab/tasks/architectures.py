"""Transformers' models: how one is loaded, what is adapted, how texts and images become its inputs,
and toy models to practise on.
"""

import copy
import io
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_lab._utils.environment import ignore_warnings
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_one_of, check_whole
from fedlora_lab.tasks.task import (
    CLASSIFIERS,
    MERGE_FIRST,
    check_no_adapters,
    first_line,
    frozen_copy,
    is_linear,
    is_within,
    linear_names,
    matching_modules,
    task_parts,
)

AUTO = {
    "text": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
    "causal": "AutoModelForCausalLM",
}
ATTENTION = (
    "query value",
    "q_lin v_lin",
    "q_proj v_proj",
    "query_proj value_proj",
    "c_attn",
    "qkv_proj",
)
"""Names of the query and value maps in versions of Transformers: what the papers adapt."""
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert")
"""Architectures that number positions from their padding token on."""

# ---- models


def load(source: Any, kind: str, classes: int, seed: int) -> tuple[nn.Module, tuple[str, ...]]:
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
    check(not Path(source).is_file(), "model", str(source), f"{expected}; this is a file")
    adapter = (Path(source) / "adapter_config.json").exists()
    check(not adapter, "model", str(source), MERGE_FIRST)
    import transformers

    # Mismatched sizes are let through for the report, by which they are judged below.
    options: dict[str, Any] = {"ignore_mismatched_sizes": True, "output_loading_info": True}
    options |= {"use_safetensors": True, "trust_remote_code": False}
    if kind != "causal":
        options |= {"num_labels": classes}
    auto = getattr(transformers, AUTO[kind])
    if cached_only(source):
        options |= {"local_files_only": True, "adapter_kwargs": {"local_files_only": True}}
    with _seeded(seed, "hub classifier"):
        try:
            model, report = auto.from_pretrained(str(source), dtype=torch.float32, **options)
        except Exception as error:  # which errors there are depends on the version
            expected = f"a name or folder that {AUTO[kind]} reads from safetensors"
            reason = f"model={str(source)!r}: expected {expected}: {first_line(error)}"
            raise ValueError(reason) from error
    check_no_adapters(model)
    new = _made_anew(model, report, str(source), 0 if kind == "causal" else classes)
    return model.eval().requires_grad_(False), new


def _made_anew(model: Any, report: dict[str, Any], source: str, classes: int) -> tuple[str, ...]:
    """The modules that loading drew at random: a classifier, or a pooler.

    Args:
        model, report: what Transformers loaded, and what it says of it.
        source: for messages.
        classes: outputs of a classifier; 0: of a decoder, of which nothing may be drawn.
    Raises: ``ValueError`` naming what else is missing, or has another shape.
    """
    shapes = {name: (tuple(old), tuple(new)) for name, old, new in report["mismatched_keys"]}
    missing = set(report["missing_keys"])
    parts = task_parts(model) if classes else ()
    resized = {
        name
        for name, (old, new) in shapes.items()
        if any(is_within(name, part) for part in parts) and old[1:] == new[1:] and new[0] == classes
    }
    layers: dict[str, set[str]] = {}
    for name in model.state_dict():
        layers.setdefault(name.rpartition(".")[0], set()).add(name)
    # A layer of which the file has a part was not left out but damaged.
    drawn = {
        layer
        for layer, tensors in layers.items()
        if tensors <= missing | resized and any(is_within(layer, part) for part in parts)
    }
    absent = sorted(name for name in missing if name.rpartition(".")[0] not in drawn)
    wrong = [
        f"{name} {old} for {new}" for name, (old, new) in shapes.items() if name not in resized
    ]
    unused = sorted(report["unexpected_keys"])
    problems = {"missing": absent, "of another shape": sorted(wrong), "not used": unused}
    summary = "; ".join(f"{what}: {_few(names)}" for what, names in problems.items() if names)
    words = f"weights for all of {type(model).__name__}; {summary}"
    check(not absent and not wrong, "model", source, words)
    patterns = {re.sub(r"\d+", "#", name) for name in model.state_dict()}
    base = f"{getattr(model, 'base_model_prefix', '')}."
    patterns |= {name.removeprefix(base) for name in patterns}
    beyond = [name for name in unused if re.sub(r"\d+", "#", name) in patterns]
    if beyond:
        words = f"its file has more layers than its configuration says; not used: {_few(beyond)}"
        warnings.warn(f"model={source!r}: {words}", stacklevel=4)
    if resized:
        names = _largest(model, {name.rpartition(".")[0] for name in resized})
        words = f"was trained for other classes, and is made anew for {classes}"
        warnings.warn(f"model={source!r}: {', '.join(names)} {words}", stacklevel=4)
    new = _largest(model, drawn)
    inside = [name for name in new if is_within(name, base[:-1])]
    if inside:
        words = f"{', '.join(inside)} is not in its file: drawn at random and frozen, unless head="
        words += " names it; saved with each adapter"
        warnings.warn(f"model={source!r}: {words}", stacklevel=4)
    return new


def _few(names: Sequence[str]) -> str:
    """The first names, and how many there are more."""
    tail = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + tail


def _largest(model: nn.Module, layers: set[str]) -> tuple[str, ...]:
    """The largest modules all of whose weights are in some layers."""
    holders = {name.rpartition(".")[0] for name in model.state_dict()}
    names: list[str] = []
    for name, _ in model.named_modules():
        inside = {holder for holder in holders if is_within(holder, name)}
        apart = not any(is_within(name, other) for other in names)
        if name and inside and inside <= layers and apart:
            names.append(name)
    return tuple(names)


def cached_only(source: str | Path) -> bool:
    """Whether only the cache can have it: it is no folder, and the hub does not answer."""
    if Path(source).exists():
        return False
    from huggingface_hub import constants, get_session

    try:
        # One quick question: the hub's own calls would retry for half a minute.
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # which errors there are depends on the version
        return True
    return False


@contextmanager
def _seeded(seed: int, purpose: str) -> Iterator[None]:
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


def default_targets(model: nn.Module) -> tuple[str, ...]:
    """The query and value maps: PEFT's default for the architecture where it fits, else known ones.

    Raises: ``ValueError`` with the linear maps that the model has.
    Guarantees: tests/tasks/test_hub.py::test_default_targets_and_heads.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    kind = getattr(getattr(model, "config", None), "model_type", None)
    for names in (tuple(KNOWN.get(str(kind), ())), *(tuple(n.split()) for n in ATTENTION)):
        matches = [matching_modules(model, [name]) for name in names]
        if names and all(matches) and all(is_linear(m) for part in matches for m in part.values()):
            return names
    expected = "names, since this architecture is not known; linear maps: "
    raise ValueError(f"targets=None: expected {expected}{linear_names(model)}")


def default_head(model: nn.Module) -> str | tuple[str, ...] | None:
    """The modules outside the base that consist of linear maps: what classifies.

    One name where there is one, and ``None`` where there is nothing that can be trained in full.

    Guarantees: tests/tasks/test_hub.py::test_default_targets_and_heads.
    """
    base = getattr(model, "base_model_prefix", "")
    modules = dict(model.named_modules())
    queue = [name for name in task_parts(model) if not is_within(name, base)]
    queue = queue or [name for name in CLASSIFIERS if name in modules]
    names: list[str] = []
    while queue:
        name = queue.pop(0)
        inner = [m for m in modules[name].modules() if type(m) is nn.Linear]
        linear = {p for m in inner for p in m.parameters(recurse=False)}
        if inner and set(modules[name].parameters()) <= linear:
            names.append(name)
        else:  # such as a classifier with a norm: its linear maps
            queue = [f"{name}.{child}" for child, _ in modules[name].named_children()] + queue
    return tuple(names) if len(names) > 1 else names[0] if names else None


# ---- their inputs


def prepare_tokenizer(source: Any, given: Any, model: nn.Module) -> Any:
    """Copies or reads a tokenizer, and makes it pad and cut on the right.

    One without a padding token pads with its end token, with a warning.

    Args:
        source: name or folder of the model, or the module that the user gave.
        given: a tokenizer; ``None``: the one beside the model.
        model: gets the number of the padding token, with a warning where it had another one.
    Raises: ``ValueError`` in one line where there is none.
    Guarantees: tests/tasks/test_loading.py::test_another_padding_token_is_told.
    """
    if given is None:
        expected = "a tokenizer, since the model was given as a module"
        check(isinstance(source, (str, Path)), "tokenizer", None, expected)
        from transformers import AutoTokenizer

        try:
            here: dict[str, Any] = {"local_files_only": cached_only(source)}
            given = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False, **here)
        except Exception as error:  # which errors there are depends on the version
            words = f"a tokenizer beside the model, or tokenizer=: {first_line(error)}"
            raise ValueError(f"tokenizer={str(source)!r}: expected {words}") from error
    ok = callable(given) and hasattr(given, "pad_token")
    check(ok, "tokenizer", type(given).__name__, "one of Transformers'")
    tokenizer = copy.deepcopy(given)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:
        end = tokenizer.eos_token
        expected = "one, or an end token to pad with"
        check(end is not None, "tokenizer", "no padding token", expected)
        tokenizer.pad_token = end
        words = f"tokenizer without a padding token: {end} pads, behind the mask"
        warnings.warn(words, stacklevel=3)
    config: Any = model.config
    # Classifiers on a decoder find a text's last token by this number. RoBERTa's kin count
    # positions from theirs, which a tokenizer cannot change.
    fixed = getattr(config, "model_type", "") in OFFSET_POSITIONS
    before = getattr(config, "pad_token_id", None)
    if before is None or not fixed:
        config.pad_token_id = tokenizer.pad_token_id
        if before not in (None, tokenizer.pad_token_id):
            change = f"pad_token_id was {before} and is {tokenizer.pad_token_id}"
            advice = "as of the tokenizer; set it in the base's config as well"
            warnings.warn(f"{change}, {advice}", stacklevel=3)
    return tokenizer


RowNames = Sequence[Any] | None
"""What messages call each row of some texts or images; ``None``: by its place."""


def row_name(rows: RowNames, place: int) -> Any:
    """What messages call the row at a place."""
    return place if rows is None else rows[place]


def longest_text(model: Any) -> int | None:
    """The most tokens that a model holds; ``None`` where its configuration does not say."""
    config: Any = model.config
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if limit and getattr(config, "model_type", "") in OFFSET_POSITIONS:
        limit -= int(config.pad_token_id) + 1  # their positions begin after the padding token
    return limit


def check_tokens(texts: Sequence[Sequence[int]], model: nn.Module, rows: RowNames = None) -> None:
    """Refuses texts with tokens that the model does not know, naming the row.

    Args:
        texts, model: numbers of tokens, and whose vocabulary they are of.
        rows: what messages call each row.
    """
    # Some models read characters or pixels of text, and name no number of tokens.
    vocabulary = getattr(model.config, "vocab_size", None) or math.inf
    largest = [max(ids, default=0) for ids in texts]
    row = next((i for i, token in enumerate(largest) if token >= vocabulary), None)
    advice = "as many as the model knows: resize its embeddings, or give its own tokenizer"
    token = f"token {largest[row or 0]} in row {row_name(rows, row or 0)}"
    check(row is None, "tokenizer", token, f"tokens below {vocabulary}, {advice}")


def tokenize(
    tokenizer: Any,
    texts: Sequence[list[str]],
    model: nn.Module,
    max_length: int | None,
    rows: RowNames = None,
) -> tuple[dict[str, Tensor], int]:
    """Encodes texts as the model's keywords, each (n, tokens); also returns how many were cut.

    Args:
        tokenizer: from `prepare_tokenizer`.
        texts: one list of n strings, or two of them for pairs.
        model: whose vocabulary and longest text are respected.
        max_length: cut longer texts to so many tokens; ``None``: nothing is cut.
        rows: what messages call each row.
    Raises: ``ValueError`` naming the row of a text that is too long for the model, or empty.
    """
    limit = longest_text(model)
    if max_length is not None:
        check_whole("max_length", max_length, 2, limit)
    for part in texts:
        odd = next((i for i, text in enumerate(part) if not isinstance(text, str)), None)
        expected = f"text in every row, which row {row_name(rows, odd or 0)} has not"
        check(odd is None, "text", part[odd or 0], expected)
    with ignore_warnings():  # texts beyond the tokenizer's own limit are checked below
        encodings = tokenizer(*texts, verbose=False)["input_ids"]
    check_tokens(encodings, model, rows)
    lengths = np.array([len(ids) for ids in encodings])
    row = int(lengths.argmax())
    longest = int(lengths.max())
    fits = max_length is not None or limit is None or longest <= limit
    advice = f"at most {limit}; max_length={limit} cuts them"
    check(fits, "text", f"{longest} tokens in row {row_name(rows, row)}", advice)
    size = min(longest, max_length or limit or longest)
    options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": size}
    encoded = tokenizer(*texts, **options, return_tensors="pt")
    # With one text in a row there is one kind of token only: the model's own default.
    wanted = ("input_ids", "attention_mask", "token_type_ids")[: 1 + len(texts)]
    inputs = {key: encoded[key].long() for key in wanted if key in encoded}
    counts = inputs["attention_mask"].sum(1)
    empty = f"row {row_name(rows, int(counts.argmin()))} is empty"
    check(bool((counts > 0).all()), "text", empty, "at least one token in every row")
    return inputs, int((lengths > size).sum())


def trim_padding(x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drops the columns that are padding in every text of a batch: they only cost time."""
    longest = max(int(x["attention_mask"].sum(1).max()), 1) if len(x["attention_mask"]) else 1
    return {key: value[:, :longest] for key, value in x.items()}


def scale_images(
    images: Sequence[Any], model: nn.Module, source: Any, rows: RowNames = None
) -> Tensor:
    """Scales images to the model's size, mean and deviation: (n, channels, height, width).

    White is 1 before mean and deviation, in 8 bits and in 16, unless the model's own settings have
    another factor. What is transparent is laid on white, and a camera's turn is undone.

    Args:
        images: paths, PIL images, arrays of 8 bits (height, width[, channels]) or of 16 bits
            (height, width), or what `datasets` keeps in a column.
        model: has the size and the number of channels.
        source: name or folder, whose ``preprocessor_config.json`` has mean and deviation; without
            one both are 0.5. Of a module, the folder that it was loaded from.
        rows: what messages call each row.
    Raises: ``ValueError`` naming the row that is no image, or one of numbers whose range is not
        known; for a model without a size of images.
    Guarantees: tests/tasks/test_loading.py::test_an_image_is_scaled_by_its_mode_s_range_or_refused,
        ::test_images_are_prepared_as_the_model_s_settings_say.
    """
    from PIL import Image, ImageOps

    config: Any = model.config
    size: Any = getattr(config, "image_size", None)
    fits = size is not None and getattr(config, "num_channels", None) in (1, 3)
    expected = "an image classifier whose configuration has image_size, and num_channels of 1 or 3"
    check(fits, "model", type(model).__name__, expected)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    factor, mean, std = _image_settings(model, source)
    mode = "L" if config.num_channels == 1 else "RGB"
    scaled = []
    for i, image in enumerate(images):
        try:
            if isinstance(image, dict):  # an image column of `datasets`
                image = io.BytesIO(image["bytes"]) if image.get("bytes") else image["path"]
            if isinstance(image, (str, Path, io.BytesIO)):
                image = Image.open(image)
            elif not hasattr(image, "convert"):
                array = np.asarray(image)
                if array.dtype.name not in ("uint8", "uint16", "bool"):
                    raise TypeError(f"an array of {array.dtype}, not of bytes (uint8) or uint16")
                image = Image.fromarray(array)
            picture = _of_8_bits(ImageOps.exif_transpose(image), mode)
            picture = picture.resize((width, height), resample=2)
        except Exception as error:
            where = row_name(rows, i)
            raise ValueError(f"image: expected an image in row {where}, but: {error}") from error
        array = np.asarray(picture, dtype=np.float32).reshape(height, width, -1) * factor
        array = array.repeat(config.num_channels // array.shape[2], axis=2)
        scaled.append(((array - mean) / std).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(scaled).astype(np.float32))


def _image_settings(model: nn.Module, source: Any) -> tuple[float, np.ndarray, np.ndarray]:
    """What the model's own image processor does behind the resizing: factor, mean and deviation.

    Raises: ``ValueError`` for a processor that does not scale.
    """
    from transformers.utils.hub import cached_file

    settings: dict[str, Any] = {}
    config: Any = model.config
    folder = getattr(config, "_name_or_path", "") if isinstance(source, nn.Module) else source
    if folder and (not isinstance(source, nn.Module) or Path(folder).is_dir()):
        with suppress(OSError):
            file = cached_file(str(folder), "preprocessor_config.json")
            settings = json.loads(Path(str(file)).read_text(encoding="utf-8"))
    scales = settings.get("do_rescale", True)
    words = "true in preprocessor_config.json: the model takes numbers that are not scaled"
    check(scales, "do_rescale", scales, words)
    if settings.get("do_center_crop", False):
        words = "images are resized as a whole, where the model's own processor crops them"
        warnings.warn(words, stacklevel=4)
    factor = settings.get("rescale_factor", 1 / 255)
    if not settings.get("do_normalize", True):
        return factor, np.zeros(1, np.float32), np.ones(1, np.float32)
    mean, std = (np.array(settings.get(f"image_{x}", 0.5), np.float32) for x in ("mean", "std"))
    return factor, mean, std


MODES_OF_8_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}


def _of_8_bits(image: Any, mode: str) -> Any:
    """An image of 8 bits in this mode; one of 16 bits in floating point, with white at 255.

    Raises: ``ValueError`` for a mode of numbers whose range is not known: PIL would cut them off.
    """
    from PIL import Image

    if image.mode.startswith("I;16"):
        # No rounding to 8 bits: of 12 bits in 16, as cameras write them, 16 grey levels were left.
        return Image.fromarray(np.asarray(image, dtype=np.float32) / 257)
    if image.mode not in MODES_OF_8_BITS:
        reason = "whose range is not known; convert it to 8 or 16 bits first"
        raise ValueError(f"its mode is {image.mode}, {reason}")
    if "a" in image.mode.lower() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


# ---- toy models of real architectures

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
    Guarantees: tests/tasks/test_hub.py::test_a_tiny_model_is_read_back.
    """
    import transformers

    check_one_of("kind", kind, tuple(TOYS))
    check_whole("seed", seed)
    folder = Path(folder)
    new = not folder.exists() or not any(folder.iterdir())
    check(new, "folder", str(folder), "a new folder, or an empty one")
    body, fields = TOYS[kind]
    if kind not in ("vit", "swin"):
        words = sorted({word for text in texts for word in text.lower().split()})
        check(bool(words), "texts", (), "some texts, whose words the tokenizer will know")
        roles = {} if kind == "gpt2" else {"pad": "<pad>", "bos": "<s>"}
        roles |= {"eos": "</s>", "unk": "<unk>"}
        form = "<s> $A" if kind == "llama" else "<s> $A </s>"
        _word_tokenizer([*roles.values(), *words], roles, form).save_pretrained(folder)
        numbers = {f"{role}_token_id": i for i, role in enumerate(roles) if role != "unk"}
        numbers = {"pad_token_id": None, "bos_token_id": None, **numbers}
        fields = {**fields, "vocab_size": len(roles) + len(words), **numbers}
    config = transformers.AutoConfig.for_model(kind, **{**fields, **sizes})
    with _seeded(seed, "tiny weights"):
        getattr(transformers, body)(config).save_pretrained(folder)
    return folder


def _word_tokenizer(words: list[str], roles: dict[str, str], form: str) -> Any:
    """Lower case, split at blanks, one number for each word; marks as ``form`` has them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: i for i, word in enumerate(words)}
    code = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    code.normalizer = normalizers.Lowercase()
    code.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if "bos" in roles:
        code.post_processor = processors.TemplateProcessing(
            single=form,
            pair=f"{form} $B </s>",
            special_tokens=[(word, numbers[word]) for word in ("<s>", "</s>")],
        )
    tokens = {f"{role}_token": word for role, word in roles.items()}
    return PreTrainedTokenizerFast(tokenizer_object=code, **tokens)
