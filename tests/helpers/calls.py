"""Options of a call, and the one line in which a wrong call is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

Options = dict[str, Any]


@contextmanager
def refused(line: str) -> Iterator[None]:
    """Assert that the block is refused in a single line, in which this pattern is found."""
    with pytest.raises(ValueError, match=line) as refusal:
        yield
    assert "\n" not in str(refusal.value)
