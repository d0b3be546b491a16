"""What crosses the wire: tensors as Flower's array records, and every check on one that comes from elsewhere."""

from collections.abc import Mapping
from io import BytesIO
from math import prod
from typing import Any, NamedTuple

import numpy
import numpy.lib.format
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedlora_lab.checks import check, check_number
from fedlora_lab.method import Slot
from fedlora_lab.packing import pack, parts, unpack
from fedlora_lab.ranks import AXES, held_shape
from fedlora_lab.wire import full

ABOUT, ARRAYS, SCORES = "about", "arrays", "scores"
HEADER = 1024
"""Bytes that an array may take on the wire beside its numbers."""


class Form(NamedTuple):
    """What a tensor on the wire must look like."""

    shape: tuple[int, ...]
    dtype: torch.dtype


Forms = Mapping[Slot, Form]


def name(slot: Slot) -> str:
    """The key of a slot on the wire."""
    return f"{slot.side}/{slot.layer}"


def slot_of(key: str) -> Slot:
    """The slot of a key."""
    side, _, layer = key.partition("/")
    return Slot(side, layer)


def packed(tensors: Mapping[Slot, Tensor]) -> ArrayRecord:
    """Tensors as an array record; `ArrayRecord` copies, so what is sent no longer changes."""
    return ArrayRecord({name(slot): tensor.detach().cpu().contiguous() for slot, tensor in tensors.items()})


def unpacked(record: ArrayRecord, forms: Forms, finite: bool = True) -> dict[Slot, Tensor]:
    """The tensors of an array record, after it is known to hold just these.

    Raises: ``ValueError`` in one line for another set of names, another type, shape or length, and, with ``finite``,
        for numbers that are none. Sizes are compared before anything is read.
    """
    expected = {name(slot) for slot in forms}
    check(set(record) == expected, "arrays", sorted(record)[: len(expected) + 1], f"{sorted(expected)}")
    tensors = {}
    for slot, (shape, dtype) in forms.items():
        array, kind = record[name(slot)], str(dtype).removeprefix("torch.")
        check(array.dtype == kind, f"type of {slot}", array.dtype, kind)
        check(tuple(array.shape) == shape, f"shape of {slot}", tuple(array.shape), f"{shape}")
        check(array.stype == "numpy.ndarray", f"format of {slot}", array.stype, "numpy.ndarray")
        tensor = _read(slot, array.data, shape, dtype)
        check(not finite or bool(tensor.isfinite().all()), str(slot), float("nan"), "finite numbers")
        tensors[slot] = tensor
    return tensors


def _read(slot: Slot, data: bytes, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor in bytes that NumPy wrote. The header is parsed as data, and nothing is allocated for what it claims.

    Raises: ``ValueError`` for any other bytes.
    """
    size = prod(shape) * dtype.itemsize
    check(size <= len(data) <= size + HEADER, f"bytes of {slot}", len(data), f"{size} and a header")
    file, kind = BytesIO(data), numpy.dtype(str(dtype).removeprefix("torch."))
    try:
        numpy.lib.format.read_magic(file)
        found = numpy.lib.format.read_array_header_1_0(file)
    except Exception:
        found = "no header"
    check(found == (shape, False, kind), f"header of {slot}", found, f"{shape}, {kind}")
    check(len(data) - file.tell() == size, f"bytes of {slot}", len(data) - file.tell(), f"{size}")
    return torch.from_numpy(numpy.frombuffer(data, kind, offset=file.tell()).reshape(shape).copy())


def coded(tensors: Mapping[Slot, Tensor], rule: Any) -> dict[Slot, Tensor]:
    """The server's tensors as they go down: factors in the parts in which the row's broadcast sends them."""
    return {
        Slot(slot.side + part, slot.layer): x
        for slot, tensor in tensors.items()
        for part, x in pack(tensor, _rule(slot, rule)).items()
    }


def decoded(found: Mapping[Slot, Tensor], rule: Any, like: Mapping[Slot, Tensor]) -> dict[Slot, Tensor]:
    """The tensors that `coded` took apart, shaped like these. Raises ``ValueError`` for codes of no level."""
    whole = {}
    for slot, tensor in like.items():
        own = {part: found[Slot(slot.side + part, slot.layer)] for part in parts(_rule(slot, rule))}
        whole[slot] = unpack(own, _rule(slot, rule), tensor)
    return whole


def _rule(slot: Slot, rule: Any) -> Any:
    """The row's broadcast for a factor; what else goes down goes as it is."""
    return rule if slot.side in AXES else full


def trimmed(tensors: Mapping[Slot, Tensor], rank: int) -> dict[Slot, Tensor]:
    """The first ranks of each factor: a client sends no more than it holds and shares."""
    cut = {}
    for slot, tensor in tensors.items():
        for axis in AXES.get(slot.side, ()):
            tensor = tensor.narrow(axis, 0, min(rank, tensor.shape[axis]))
        cut[slot] = tensor
    return cut


def filled(tensors: Mapping[Slot, Tensor], base: Mapping[Slot, Tensor]) -> dict[Slot, Tensor]:
    """The factors in full size, from their first ranks and, for the others, ``base``."""
    whole = {}
    for slot, tensor in tensors.items():
        whole[slot] = base[slot].clone()
        whole[slot][tuple(slice(size) for size in tensor.shape)] = tensor
    return whole


def forms(like: Mapping[Slot, Tensor], rank: int | None = None) -> dict[Slot, Form]:
    """The forms of these tensors, as a client of this rank sends them."""
    return {
        slot: Form(tuple(x.shape) if rank is None else held_shape(slot, x.shape, rank), x.dtype)
        for slot, x in like.items()
    }


def content(about: Mapping[str, str | int], arrays: ArrayRecord | None = None, **scores: float) -> RecordDict:
    """The content of a message: what it is about, and tensors or scores."""
    records = RecordDict({ABOUT: ConfigRecord(dict(about))})
    if arrays is not None:
        records[ARRAYS] = arrays
    if scores:
        records[SCORES] = MetricRecord({**scores})
    return records


def about(message: Message, expected: Mapping[str, str | int]) -> None:
    """Check what a message says that it is about. Raises ``ValueError`` naming the first entry that differs."""
    check(message.has_content(), "message", "no content", "a content")
    found = message.content.config_records.get(ABOUT, {})
    for key, value in expected.items():
        check(found.get(key) == value and type(found.get(key)) is type(value), key, found.get(key), f"{value}")


def arrays(message: Message) -> ArrayRecord:
    """The tensors of a message. Raises ``ValueError`` when it holds none, or records beside them."""
    keys, own = sorted(message.content), sorted((ABOUT, ARRAYS))
    check(keys == own and ARRAYS in message.content.array_records, "records", keys, " and ".join(own))
    return message.content.array_records[ARRAYS]


def scores(message: Message, expected: Mapping[str, str | int], names: tuple[str, ...]) -> dict[str, float]:
    """The scores of a message about this. Raises ``ValueError`` unless it holds one number for each name."""
    about(message, expected)
    found = message.content.metric_records.get(SCORES, {})
    check(set(found) == set(names), "scores", sorted(found)[: len(names) + 1], f"{sorted(names)}")
    for key in names:
        check_number(key, found[key])
    return {key: float(found[key]) for key in names}  # type: ignore[arg-type]
