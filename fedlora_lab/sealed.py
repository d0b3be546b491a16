"""Small JSON files that are whole or refused: canonical text with a digest, written under another name first."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NoReturn

from fedlora_lab.files import write_atomically


def write(kind: str, version: int, content: dict[str, Any]) -> str:
    """One line of JSON: content, digest, format and version. The digest finds damage, not forgery."""
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({"content": content, "digest": digest, "format": kind, "version": version}, sort_keys=True)


def read(kind: str, version: int, text: str, name: str) -> dict[str, Any]:
    """The content of a text that ``write`` gave.

    Args:
        kind: expected format.
        version: expected version.
        text: the text.
        name: what to call it in an error.

    Raises:
        ValueError: one line, for any other text, down to one changed character.
    """
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, TypeError, RecursionError):
        data = None
    if not isinstance(data, dict) or data.get("format") != kind:
        _refuse(name, f"a whole file of format {kind}; it is another, or was cut off or altered")
    if data.get("version") != version:
        _refuse(name, f"version {version} of {kind}, found {str(data.get('version'))[:20]}")
    content = data.get("content")
    if not isinstance(content, dict) or write(kind, version, content) != text:
        _refuse(name, f"an unaltered file of format {kind}; digest and content do not fit")
    return content


def save(path: str | os.PathLike, text: str) -> None:
    """Write one line, whole or not at all."""
    write_atomically(path, text + "\n")


def load(path: str | os.PathLike) -> str:
    """The line that ``save`` wrote, without its end; bytes that are no text come back as text that no reader takes."""
    text = Path(path).read_bytes().decode("utf-8", errors="replace")
    return text[:-1] if text.endswith("\n") else text + "<cut>"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _refuse(name: str, expected: str) -> NoReturn:
    raise ValueError(f"{name}: expected {expected}")
