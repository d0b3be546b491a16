"""Every reader of files before damaged, hostile and wrong ones: one clear line, nothing written,
good state kept. Single bytes, links and paths: test_ledger.py, test_checkpoint.py."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from reports import frame as report_frame, ledgers as report_ledgers, settings as report_settings

from fedlora_lab._utils.files import append_line, parse_json, read_lines
from fedlora_lab.report.page import report
from fedlora_lab.report.run_folder import Folder, read_frame, to_json

SHORT = st.text(max_size=5)
PLAIN = st.none() | st.booleans() | st.integers() | SHORT
PLAIN |= st.floats(allow_nan=False, allow_infinity=False)
JUNK = st.recursive(
    PLAIN,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(SHORT, x, max_size=3),
    max_leaves=5,
)


def taken_or_refused(call):
    """ "" where a call took what it was given; else the one line with which it must refuse."""
    try:
        call()
    except (ValueError, OSError) as error:
        line = str(error)
        assert line and "\n" not in line and len(line) < 700, line
        return line
    return ""


# ---- JSON

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
    assert taken_or_refused(lambda: parse_json(content, "file")).startswith("file: expected JSON (")
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"good": 1}\n' + content + b"\n")
    append_line(path, {"good": 2})
    assert read_lines(path) == [{"good": 1}, {"good": 2}]


def put_junk(value, draw):
    """Any value at any place of nested JSON."""
    inner = value if isinstance(value, dict) else range(len(value))
    key = draw(st.sampled_from([*inner]))
    if isinstance(value[key], dict | list) and value[key] and draw(st.booleans()):
        put_junk(value[key], draw)
    else:
        value[key] = draw(JUNK)


# ---- run folder

LEDGER = "checkpoints/fedlora-0/ledger.json"
ONE: Any = {"methods": ("fedlora",), "seeds": (0,)}


@pytest.fixture(scope="module")
def folder_files():
    """A run folder's files; its frame has nothing to draw, so that a report is quick."""
    frame: Any = report_frame(**ONE)
    frame = frame[frame["round"].isin([0, 4])]
    frame = frame[frame["measure"].isin(["bytes_up", "bytes_down", "seconds", "loss"])]
    frame = frame.assign(value=frame["value"].where(frame["measure"] != "loss", np.inf))
    texts = {
        "settings.json": to_json(report_settings(**ONE)),
        LEDGER: report_ledgers(**ONE)["fedlora-0"].to_json() + "\n",
        "frame.csv": frame.to_csv(index=False),
    }
    return {name: text.encode() for name, text in texts.items()}


ODD = ["", "nan", "inf", "-1", "1e999", "0.5", "9" * 400, '"', "\0", "<script>", "=1+1", "é" * 3000]


def spoiled(name, content, draw):
    """The file cut, or with any value at any place."""
    if draw(st.booleans()):
        return content[: draw(st.integers(0, len(content) - 1))]
    if name == "frame.csv":
        rows = [line.split(",") for line in content.decode().splitlines()]
        cell = draw(st.sampled_from(ODD) | st.text(max_size=4))
        rows[draw(st.integers(0, len(rows) - 1))][draw(st.integers(0, 6))] = cell
        return "\n".join(map(",".join, rows)).encode("utf-8", "surrogatepass")
    value = json.loads(content)
    put_junk(value, draw)
    return json.dumps(value).encode()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["settings.json", LEDGER, "frame.csv"])
@given(st.data())
@settings(max_examples=30)
def test_a_damaged_run_folder_is_one_line(name, folder_files, tmp_path_factory, data):
    """The report and a run that joins take it or refuse in one line; nothing else is
    touched, and what is taken as a frame is one."""
    place = tmp_path_factory.mktemp("damaged")
    folder = place / "run"
    for path, content in folder_files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (folder / name).write_bytes(spoiled(name, folder_files[name], data.draw))
    (place / "other").write_text("mine")
    taken_or_refused(lambda: report(folder))
    with Folder(folder) as held:
        taken_or_refused(lambda: held.claim(report_settings(**ONE)))
    assert {*place.iterdir()} == {folder, place / "other"}
    assert (place / "other").read_text() == "mine"
    if not taken_or_refused(lambda: read_frame(folder / "frame.csv")):
        frame: Any = read_frame(folder / "frame.csv")
        assert len(frame) == 0 or (frame["round"] >= 0).all()
        assert set(report_frame(**ONE).columns) <= set(frame.columns)
