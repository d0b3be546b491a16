"""Messages between server and clients: tensors as Flower's array records, and their checks."""

from collections.abc import Mapping
from io import BytesIO
from math import prod
from typing import Any

import numpy
import numpy.lib.format
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedlora_lab._utils.validation import check, check_number
from fedlora_lab.methods.quantization import array_names, pack, rule_for, unpack
from fedlora_lab.methods.state import ParamKey, Tensors, shape_at_rank

ABOUT = "about"
ARRAYS = "arrays"
SCORES = "scores"
HEADER = 1024
"""Bytes that an array may take on the wire beside its numbers."""


def wire_name(key: ParamKey) -> str:
    """Returns the name of a tensor in a message."""
    return f"{key.side}/{key.layer}"


def parse_key(name: str) -> ParamKey:
    """Returns the tensor that a name in a message stands for."""
    side, _, layer = name.partition("/")
    return ParamKey(side, layer)


def pack_arrays(tensors: Tensors) -> ArrayRecord:
    """Copies tensors into an array record: what is sent no longer changes."""
    return ArrayRecord({wire_name(k): x.detach().cpu().contiguous() for k, x in tensors.items()})


def unpack_arrays(
    record: ArrayRecord, like: Tensors, rank: int | None = None, finite: bool = True
) -> dict[ParamKey, Tensor]:
    """Reads the tensors of an array record after checking it against the tensors that are expected.

    Args:
        record: from another party; nothing about it is trusted.
        like: tensors of the expected names, types and shapes.
        rank: of the client that sent it, if its factors have another one than ``like``.
        finite: NaN and infinity are refused.
    Raises: ``ValueError`` in one line. Sizes are compared before anything is read.
    """
    expected = sorted(map(wire_name, like))
    found = sorted(record)
    check(found == expected, "arrays", found[: len(expected) + 1], f"{expected}")
    tensors = {}
    for key, model in like.items():
        shape = tuple(model.shape) if rank is None else shape_at_rank(key, model.shape, rank)
        tensor = tensors[key] = _read(key, record[wire_name(key)], shape, model.dtype)
        check(not finite or bool(tensor.isfinite().all()), str(key), float("nan"), "finite numbers")
    return tensors


def _read(key: ParamKey, array: Array, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Reads bytes that NumPy wrote; raises ``ValueError`` for any others."""
    name = str(dtype).removeprefix("torch.")
    data = array.data
    check(array.dtype == name, f"type of {key}", array.dtype, name)
    check(tuple(array.shape) == shape, f"shape of {key}", tuple(array.shape), f"{shape}")
    check(array.stype == "numpy.ndarray", f"format of {key}", array.stype, "numpy.ndarray")
    size = prod(shape) * dtype.itemsize
    check(size <= len(data) <= size + HEADER, f"bytes of {key}", len(data), f"{size} and a header")
    # The header is parsed as data, never unpickled, and nothing is allocated for what it claims.
    file = BytesIO(data)
    kind = numpy.dtype(name)
    try:
        numpy.lib.format.read_magic(file)
        found = numpy.lib.format.read_array_header_1_0(file)
    except Exception:
        found = "no header"
    check(found == (shape, False, kind), f"header of {key}", found, f"{shape}, {kind}")
    check(len(data) - file.tell() == size, f"bytes of {key}", len(data) - file.tell(), f"{size}")
    return torch.from_numpy(numpy.frombuffer(data, kind, offset=file.tell()).reshape(shape).copy())


def encode_broadcast(tensors: Tensors, rule: Any) -> dict[ParamKey, Tensor]:
    """Encodes the server's factors as the method's broadcast rule sends them, such as quantized."""
    return {
        ParamKey(key.side + part, key.layer): x
        for key, tensor in tensors.items()
        for part, x in pack(tensor, rule_for(key, rule)).items()
    }


def decode_broadcast(found: Tensors, rule: Any, like: Tensors) -> dict[ParamKey, Tensor]:
    """Undoes `encode_broadcast`.

    Args: found: the codes. rule: the method's. like: tensors of the names and shapes to restore.
    Raises: ``ValueError`` for codes without a level.
    """
    whole = {}
    for key, tensor in like.items():
        own = rule_for(key, rule)
        codes = {part: found[ParamKey(key.side + part, key.layer)] for part in array_names(own)}
        whole[key] = unpack(codes, own, tensor)
    return whole


def take_ranks(tensors: Tensors, rank: int) -> dict[ParamKey, Tensor]:
    """Keeps the first ranks of each factor: a client sends no more than it holds and shares."""
    return {
        key: x[tuple(map(slice, shape_at_rank(key, x.shape, rank)))] for key, x in tensors.items()
    }


def fill_ranks(tensors: Tensors, base: Tensors) -> dict[ParamKey, Tensor]:
    """Undoes `take_ranks`: the ranks that were not sent are those of ``base``."""
    whole = {key: base[key].clone() for key in tensors}
    for key, tensor in tensors.items():
        whole[key][tuple(map(slice, tensor.shape))] = tensor
    return whole


def make_content(
    about: Mapping[str, str | int], arrays: ArrayRecord | None = None, **scores: float
) -> RecordDict:
    """Makes the content of a message: its subject, and tensors or scores.

    Args: about: the subject, compared by `check_about`. arrays: tensors. scores: by their name.
    """
    records = RecordDict({ABOUT: ConfigRecord(dict(about))})
    if arrays is not None:
        records[ARRAYS] = arrays
    if scores:
        records[SCORES] = MetricRecord({**scores})
    return records


def check_about(message: Message, expected: Mapping[str, str | int]) -> None:
    """Checks a message's subject. Raises ``ValueError`` naming the first entry that differs."""
    check(message.has_content(), "message", "no content", "a content")
    found = message.content.config_records.get(ABOUT, {})
    for key, value in expected.items():
        other = found.get(key)
        check(other == value and type(other) is type(value), key, other, f"{value}")


def get_arrays(message: Message) -> ArrayRecord:
    """Returns the tensors of a message. Raises ``ValueError`` for none, or for other records."""
    keys = sorted(message.content)
    own = sorted((ABOUT, ARRAYS))
    ok = keys == own and ARRAYS in message.content.array_records
    check(ok, "records", keys, " and ".join(own))
    return message.content.array_records[ARRAYS]


def get_scores(
    message: Message, expected: Mapping[str, str | int], names: tuple[str, ...]
) -> dict[str, float]:
    """Returns the scores of a message.

    Args: message: from a client. expected: its subject, see `check_about`. names: of the scores.
    Raises: ``ValueError`` unless it has one number a name; NaN is a score that is undefined.
    """
    check_about(message, expected)
    found: Any = message.content.metric_records.get(SCORES, {})
    check(set(found) == set(names), "scores", sorted(found)[: len(names) + 1], f"{sorted(names)}")
    for key in names:
        check_number(key, 0.0 if found[key] != found[key] else found[key])
    return {key: float(found[key]) for key in names}
