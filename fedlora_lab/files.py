"""Files that are there whole or not at all."""

import os
import secrets
from pathlib import Path


def write_atomically(path: str | os.PathLike, content: "bytes | str") -> None:
    """Write under a temporary name beside the target, flush to the disk, rename; text as UTF-8, line ends as they are.

    A reader finds the old file or the new one, at every moment. Missing folders above it are made.

    Raises: ``OSError`` where the disk or the folder does not allow it, ``TypeError`` for anything but bytes or text;
        the old file is then as it was and nothing else is left.
    Guarantees: test_checkpoint.py::test_a_failed_write_leaves_the_old_file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with open(draft, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
