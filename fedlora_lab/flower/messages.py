"""Messages between server and clients: a subject, and tensors by safetensors; and their checks."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from safetensors.torch import load, save

from fedlora_lab._utils.validation import check, in_one_line
from fedlora_lab.methods.state import ParamKey, TensorDict, Tensors

LOG = logging.getLogger("fedlora_lab.flower")
ABOUT = "about"
TENSORS = "tensors"


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


# ---- tensors


def pack_tensors(tensors: Tensors) -> ArrayRecord:
    """Writes tensors into one array of bytes: what is sent no longer changes."""
    named = {f"{k.name}/{k.layer}": x.detach().cpu().contiguous() for k, x in tensors.items()}
    content = save(named)
    array = Array(dtype="uint8", shape=(len(content),), stype="safetensors", data=content)
    return ArrayRecord({TENSORS: array})


def unpack_tensors(record: ArrayRecord) -> TensorDict:
    """Reads the tensors of an array record. Raises ``ValueError`` for bytes that hold none."""
    check([*record] == [TENSORS], "arrays", [*record][:2], f"{TENSORS} alone")
    with in_one_line(f"{TENSORS}: expected bytes of safetensors, but"):
        named = load(record[TENSORS].data)
        # Sorted: safetensors has no order of its own.
        return {ParamKey(*name.split("/", 1)): x for name, x in sorted(named.items())}


def check_tensors(received: Tensors, like: Tensors) -> TensorDict:
    """Checks tensors from another party, of whom nothing is trusted.

    Args:
        received: from a message.
        like: tensors of the expected names, types and shapes.
    Returns: those received, in the order of those expected.
    Raises: ``ValueError`` in one line, also for NaN and infinity.
    """
    kinds, expected = (
        sorted((str(key), str(x.dtype), tuple(x.shape)) for key, x in part.items())
        for part in (received, like)
    )
    check(kinds == expected, TENSORS, kinds[: len(expected) + 1], f"{expected}")
    tensors = {key: received[key] for key in like}
    for key, tensor in tensors.items():
        check(bool(tensor.isfinite().all()), str(key), float("nan"), "finite numbers")
    return tensors


def tensors_digest(record: ArrayRecord) -> str:
    """A short digest of the bytes of an array record."""
    return hashlib.sha256(record[TENSORS].data).hexdigest()[:32]


# ---- messages


def make_content(about: Mapping[str, str | int], arrays: ArrayRecord | None = None) -> RecordDict:
    """Makes the content of a message: its subject, compared by `check_about`, and tensors."""
    records = RecordDict({ABOUT: ConfigRecord(dict(about))})
    if arrays is not None:
        records[TENSORS] = arrays
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
    right = names == [ABOUT, TENSORS] and TENSORS in message.content.array_records
    check(right, "records", names, f"{ABOUT} and {TENSORS}")
    return message.content.array_records[TENSORS]
