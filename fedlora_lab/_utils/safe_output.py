"""Printing that never stops the work, whatever becomes of the stream."""

import io
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO


class SafeStream(io.TextIOBase):
    """Passes text on to a stream, and never raises where the stream does.

    A character that the stream's encoding lacks is written as an escape such as ``\\u03b5``. After
    the first error nothing more is written: a run goes on whose log cannot.

    Args:
        stream: or ``None``, where the process has none.
    Guarantees: test_safe_output.py::test_no_stream_stops_the_work.

    >>> log = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    >>> SafeStream(log).write("ε = 8 €")
    7
    >>> log.seek(0), log.read()
    (0, '\\\\u03b5 = 8 €')
    """

    def __init__(self, stream: "TextIO | Any") -> None:
        self.stream = stream
        self.failure: Exception | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def escape(self, text: str) -> str:
        """The text as the stream can hold it."""
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)

    def write(self, text: str) -> int:
        """Writes what the stream can hold."""
        escaped = self.escape(text)
        self._try(lambda: self.stream.write(escaped))
        if "\n" in text:  # whoever follows a log or a pipe reads a line when it is told
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Passes on what the stream has kept back."""
        self._try(lambda: self.stream.flush())

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        with suppress(OSError, ValueError):  # a closed stream raises ValueError
            return self.stream is not None and self.stream.isatty()
        return False

    def fileno(self) -> int:
        """The stream's number."""
        if self.stream is None:
            raise io.UnsupportedOperation("fileno")
        return self.stream.fileno()

    def _try(self, action: Callable[[], Any]) -> None:
        if self.stream is None or self.failure is not None:
            return
        try:
            action()
        except (OSError, ValueError) as error:
            self.failure = error

    def abandon(self) -> None:
        """Lets the process end without a further attempt to write what the stream has kept back."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
