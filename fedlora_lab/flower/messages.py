"""Messages between server and clients: tensors as Flower's array records, and their checks."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from fedlora_lab._utils.validation import check
from fedlora_lab.methods.quantization import array_names, pack, rule_for, unpack
from fedlora_lab.methods.state import ParamKey, TensorDict, Tensors, shape_at_rank

LOG = logging.getLogger("fedlora_lab.flower")
ABOUT = "about"
ARRAYS = "arrays"


@contextmanager
def private_errors(what: str) -> Iterator[None]:
    """Logs an error of work on what is private here, and raises it in words without values.

    A message of torch can hold a label, one of the file system a site's folders, and Flower sends
    an error's text to the coordinator.

    Guarantees: test_attack_flower.py::test_an_error_tells_the_coordinator_no_value.
    """
    try:
        yield
    except Exception:
        LOG.exception("%s failed", what)
        raise ValueError(f"{what} failed at this site; its own log says why") from None


def wire_name(key: ParamKey) -> str:
    """Returns the name of a tensor in a message."""
    return f"{key.name}/{key.layer}"


def parse_key(name: str) -> ParamKey:
    """Returns the tensor that a name in a message stands for."""
    tensor_name, _, layer = name.partition("/")
    return ParamKey(tensor_name, layer)


def pack_arrays(tensors: Tensors) -> ArrayRecord:
    """Copies tensors into an array record: what is sent no longer changes."""
    return ArrayRecord({wire_name(k): x.detach().cpu().contiguous() for k, x in tensors.items()})


def unpack_arrays(record: ArrayRecord, like: Tensors, finite: bool = True) -> TensorDict:
    """Reads the tensors of an array record after checking it against the tensors that are expected.

    Args:
        record: from another party; nothing about it is trusted.
        like: tensors of the expected names, types and shapes.
        finite: NaN and infinity are refused.
    Raises: ``ValueError`` in one line. Sizes are compared before anything is read.
    """
    expected = sorted(map(wire_name, like))
    names = sorted(record)
    check(names == expected, "arrays", names[: len(expected) + 1], f"{expected}")
    tensors = {key: _read(key, record[wire_name(key)].data, x) for key, x in like.items()}
    for key, tensor in tensors.items():
        check(not finite or bool(tensor.isfinite().all()), str(key), float("nan"), "finite numbers")
    return tensors


def _read(key: ParamKey, data: bytes, like: Tensor) -> Tensor:
    """Reads bytes that NumPy wrote for such a tensor; raises ``ValueError`` for any others."""
    numbers = like.detach().cpu().contiguous().numpy()
    expected = Array(numbers).data
    # Compared with the one header that NumPy writes for such an array: nothing is parsed or
    # unpickled, and nothing is allocated for what another header claims.
    header = expected[: len(expected) - numbers.nbytes]
    check(len(data) == len(expected), f"bytes of {key}", len(data), f"{len(expected)}")
    check(data.startswith(header), f"header of {key}", data[: len(header)], f"{header!r}")
    received = numpy.frombuffer(data, numbers.dtype, offset=len(header))
    return torch.from_numpy(received.reshape(numbers.shape).copy())


def arrays_digest(record: ArrayRecord) -> str:
    """A short digest of the names and bytes of an array record."""
    parts = {name: hashlib.sha256(record[name].data).hexdigest() for name in sorted(record)}
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def encode_broadcast(tensors: Tensors, rule: Any) -> TensorDict:
    """Encodes the server's factors as the method's broadcast rule sends them, such as quantized."""
    return {
        ParamKey(key.name + part, key.layer): x
        for key, tensor in tensors.items()
        for part, x in pack(tensor, rule_for(key, rule)).items()
    }


def decode_broadcast(codes: Tensors, rule: Any, like: Tensors) -> TensorDict:
    """Undoes `encode_broadcast`.

    Args: codes: as received. rule: the method's. like: tensors of the names and shapes to restore.
    Raises: ``ValueError`` for codes without a level.
    """
    tensors = {}
    for key, tensor in like.items():
        rounding = rule_for(key, rule)
        arrays = {
            name: codes[ParamKey(key.name + name, key.layer)] for name in array_names(rounding)
        }
        tensors[key] = unpack(arrays, rounding, tensor)
    return tensors


def take_ranks(tensors: Tensors, rank: int) -> TensorDict:
    """Keeps the first ranks of each factor: a client sends no more than it holds and shares."""
    return {
        key: x[tuple(map(slice, shape_at_rank(key, x.shape, rank)))] for key, x in tensors.items()
    }


def fill_ranks(tensors: Tensors, base: Tensors) -> TensorDict:
    """Undoes `take_ranks`: the ranks that were not sent are those of ``base``."""
    # Copies: what the server holds is not written to.
    filled = {key: base[key].clone() for key in tensors}
    for key, tensor in tensors.items():
        filled[key][tuple(map(slice, tensor.shape))] = tensor
    return filled


def make_content(about: Mapping[str, str | int], arrays: ArrayRecord | None = None) -> RecordDict:
    """Makes the content of a message: its subject, compared by `check_about`, and tensors."""
    records = RecordDict({ABOUT: ConfigRecord(dict(about))})
    if arrays is not None:
        records[ARRAYS] = arrays
    return records


def check_about(message: Message, expected: Mapping[str, str | int]) -> None:
    """Checks a message's subject. Raises ``ValueError`` naming the first entry that differs."""
    check(message.has_content(), "message", "no content", "a content")
    about = message.content.config_records.get(ABOUT, {})
    for key, value in expected.items():
        sent = about.get(key)
        # By type as well: True == 1.
        check(sent == value and type(sent) is type(value), key, sent, f"{value}")


def get_arrays(message: Message) -> ArrayRecord:
    """Returns the tensors of a message. Raises ``ValueError`` for none, or for other records."""
    names = sorted(message.content)
    right = names == [ABOUT, ARRAYS] and ARRAYS in message.content.array_records
    check(right, "records", names, f"{ABOUT} and {ARRAYS}")
    return message.content.array_records[ARRAYS]
