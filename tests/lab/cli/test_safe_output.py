"""Printing stops no work: not in a log of another encoding, nor on a closed pipe or a full disk."""

import io
import os
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
from commands import SMALL, call

import fedlora_lab as fl
from fedlora_lab._utils.safe_output import SafeStream

LATIN = b"r\xe9".decode("utf-8", "surrogateescape")
"""A name in Latin-1, as Python reads it where names are UTF-8."""
COMPARE = ["compare", "regression", *SMALL, "--methods=rolora", "--seeds=1", "--out=run"]
ENCODINGS = ["cp1252", "ascii", "cp437", "latin-1"]


def log(encoding):
    """A stream as the interpreter makes it for a file: what it cannot encode raises."""
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")


@contextmanager
def broken(kind):
    """A stream that fails: of a reader that has gone, on a full disk, closed, or none at all."""
    places: dict[str, Any] = {"disk": "/dev/full"}
    if kind == "pipe":
        reader, places["pipe"] = os.pipe()
        os.close(reader)
    if kind == "disk" and not Path("/dev/full").exists():
        pytest.skip("needs a device that is always full")
    stream = open(places.get(kind, os.devnull), "w", encoding="utf-8")  # noqa: SIM115, its close may fail
    if kind == "closed":
        stream.close()
    try:
        yield None if kind == "none" else stream
    finally:
        with suppress(OSError):  # what was kept back cannot be written now either
            stream.close()


@pytest.mark.every(2)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_log_of_any_encoding_stops_no_command(encoding, tmp_path, monkeypatch):
    """The table at the end, help: ε and δ stand in all of them. Nor does the name of a folder that
    no encoding holds."""
    monkeypatch.chdir(tmp_path)
    latin = [*COMPARE[:-1], f"--out={LATIN}"]
    for command in (COMPARE, latin, ["compare", "--help"], ["methods"]):
        out = log(encoding)
        with redirect_stdout(out), redirect_stderr(log(encoding)):
            assert call(*command) == 0
        out.seek(0)
        has_table = "\\u03b5: against" in out.read()
        assert has_table == (encoding != "cp437" and command in (COMPARE, latin))
    assert Path("run/frame.csv").is_file()


@pytest.mark.every(2)
@pytest.mark.parametrize("kind", ["pipe", "disk", "none"])
def test_output_that_cannot_be_written_stops_no_run(kind, tmp_path, monkeypatch, capsys):
    """All is trained, stored and reported; the status says that not all was printed."""
    monkeypatch.chdir(tmp_path)
    with broken(kind) as stream, redirect_stdout(stream):
        assert call(*COMPARE) == (0 if kind == "none" else 1)
    assert ("not everything could be printed" in capsys.readouterr().err) == (kind == "disk")
    assert Path("run/frame.csv").is_file()


def test_a_line_can_be_read_when_it_is_told():
    """Fault: a log or a pipe that stays empty until a run of hours ends."""
    log = io.TextIOWrapper(io.BytesIO())
    SafeStream(log).write("4 runs\n")
    assert log.buffer.getvalue() == b"4 runs\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["pipe", "closed", "none"])
def test_no_stream_stops_the_work(kind):
    """Nor does a bar on one."""
    task, plan = fl.tasks.regression(clients=2), fl.Plan(rounds=1, local_steps=1)
    with broken(kind) as stream, redirect_stderr(stream):
        safe = SafeStream(stream)
        safe.write("ε ≤ 8\n")
        assert not safe.isatty()
        privacy = fl.Privacy(noise_multiplier=1.0)
        assert len(fl.compare(task, ["rolora"], privacy, plan, seeds=[0]))
