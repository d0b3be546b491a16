"""Every reader of files before damaged, hostile and wrong ones: one clear line, nothing written,
good state kept. Single bytes, links and paths: test_ledger.py, test_checkpoint.py."""

import pytest
from calls import refused

from fedlora_lab._utils.files import append_line, parse_json, read_lines

STRANGE = {
    "nan": b'{"a": NaN}',
    "twice inside": b'[{"b": {"a": 1, "a": 1}}]',
    "deep": b'{"a":' * 200_000,
    "long number": b"1" * 10_000,
    "no text": b'"\xff\xfe"',
    "empty": b"",
}


@pytest.mark.parametrize("content", STRANGE.values(), ids=STRANGE)
def test_json_is_taken_strictly(content, tmp_path):
    with refused(r"^file: expected JSON \(.{,600}$"):
        parse_json(content, "file")
    path = tmp_path / "lines.jsonl"
    # As a kill leaves a line: without its end.
    path.write_bytes(b'{"good": 1}\n' + content)
    append_line(path, {"good": 2})
    assert read_lines(path) == [{"good": 1}, {"good": 2}]
