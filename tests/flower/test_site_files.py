"""A site's table becomes tensors or one line for each fault, and a running federation can be
watched without anything private.
"""

import contextlib
import io
import json
import re
import shutil
import stat
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import toy_hubs
from commands import call
from flower_runs import protected
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tasks import LORA, PLAN, private, tokens

import fedlora_lab as fl
from fedlora_lab.flower import InProcessGrid, SimulatedClients, client_app, deployment, site
from fedlora_lab.flower.server import PRESENCE, open_run, rounds

PLAIN: dict[str, Any] = {
    "features": ("age",),
    "label": "code",
    "labels": ("yes", "no"),
    "person": "who",
}
SCHEMA = site.Schema(**PLAIN)
HEAD = "age,code,who\n"


def prepared(folder: Path, content: "str | bytes", schema=SCHEMA, **options):
    """What `prepare` says of a file of this content."""
    table = folder / "own.csv"
    table.write_bytes(content.encode() if isinstance(content, str) else content)
    return site.prepare(table, schema, folder / "out" / "site.safetensors", **options)


def schema(**changes) -> site.Schema:
    return site.Schema(**{**PLAIN, **changes})


BAD = {
    "empty": ("", "line 1: the file is empty"),
    "header only": (HEAD, "the table: no row to train on (0 with a missing cell)"),
    "no header": ("1,yes,anna\n", "line 1: no column 'age' in the header"),
    "case of a column": ("Age,code,who\n1,yes,a\n", "differs from it in case or blanks"),
    "column twice": ("age,code,who,age\n1,yes,a,2\n", "column 'age' stands there twice"),
    "separator": ("age;code;who\n1;yes;a\n", "the separator may be the semicolon"),
    "too few cells": (HEAD + "1,yes,a\n1,yes\n", "line 3: 2 cells, the header has 3 columns"),
    "too many cells": (HEAD + "1,yes,a,b\n", "line 2: 4 cells, the header has 3 columns"),
    "label": (HEAD + "1,maybe,a\n", "line 2, column 'code': not among the 2 allowed"),
    "case of a label": (HEAD + "1,Yes ,a\n", "allowed; it differs from one in case or blanks"),
    "no number": (HEAD + "old,yes,a\n", "line 2, column 'age': not a number"),
    "comma": (HEAD + '"1,5",yes,a\n', "it has a ',', the schema's decimal sign is '.'"),
    "underscore": (HEAD + "1_000,yes,a\n", "line 2, column 'age': not a number"),
    "NaN": (HEAD + "NaN,yes,a\n", "line 2, column 'age': missing"),
    "infinite": (HEAD + "inf,yes,a\n", "line 2, column 'age': not a number"),
    "large": (HEAD + "1e39,yes,a\n", "line 2, column 'age': a number beyond 3.4e38"),
    "no person": (HEAD + "1,yes, \n", "line 2, column 'who': missing"),
    "after a long cell": ('age,code,who\n1,yes,"a\nb\nc"\n1,maybe,d\n', "line 5, column 'code'"),
    "after CRLF": ("age,code,who\r\n1,yes,a\r\n1,maybe,d\r\n", "line 3, column 'code'"),
    "open quote": (HEAD + '1,yes,a\n1,"yes,a\n2,no,b\n', "line 3: a quote that is never closed"),
    "loose quote": (HEAD + '1,"ye"s,a\n', "line 2: not CSV with the separator comma"),
    "huge cell": (HEAD + f"1,yes,{'a' * 140_000}\n", "line 2: a cell of more than 131,072"),
    "latin-1": ((HEAD + "1,yes,jörg\n").encode("latin-1"), "line 2: a character that is not utf-8"),
    "utf-16": ((HEAD + "1,yes,a\n").encode("utf-16"), "line 1: a character that is not utf-8"),
    "a spreadsheet": (b"PK\x03\x04rest", "a spreadsheet or an archive"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line(tmp_path, case):
    """Each fault is named with its line; a file that fits but for it would be written otherwise."""
    content, words = BAD[case]
    with pytest.raises(site.InvalidTable, match=re.escape(words)) as found:
        prepared(tmp_path, content)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()


BAD_SCHEMAS = {
    "no column": ({"text": (), "features": ()}, "text, features="),
    "a text for a list": ({"labels": "yes"}, "labels='yes'"),
    "one label": ({"labels": ("yes",)}, "labels=('yes',)"),
    "a label twice": ({"labels": ("yes", "yes")}, "labels="),
    "a label that is missing": ({"labels": ("NA", "yes")}, "labels=['NA']"),
    "one column for two": ({"person": "age"}, "columns=['age']"),
    "texts without tokenizer": ({"features": (), "text": ("note",)}, "tokenizer=None"),
    "an encoding": ({"encoding": "latin-99"}, "encoding='latin-99'"),
    "a separator": ({"separator": "x"}, "separator='x'"),
    "a decimal sign": ({"decimal": "'"}, "decimal="),
    "a rule": ({"on_missing": "guess"}, "on_missing='guess'"),
    "a split without values": ({"split": "fold"}, "splits=()"),
    "a split that is a path": ({"split": "fold", "splits": ("train", "../x")}, "splits='../x'"),
    "no label": ({"label": None, "labels": ()}, "label=None"),
    "an answer to numbers": ({"answer": "note"}, "answer='note'"),
}


@pytest.mark.parametrize("case", BAD_SCHEMAS)
def test_a_schema_that_says_nothing_is_one_line(case):
    changes, words = BAD_SCHEMAS[case]
    with pytest.raises(ValueError, match=re.escape(words)) as found:
        schema(**changes)
    assert "\n" not in str(found.value)


def test_a_schema_file_is_taken_strictly(tmp_path):
    """It comes back as it was, whatever its line ends; all else is one line."""
    path = site.write_schema(tmp_path / "schema.json", SCHEMA)
    assert site.read_schema(path) == SCHEMA
    text = path.read_text("utf-8")
    path.write_bytes(text.replace("\n", "\r\n").encode())
    assert site.read_schema(path).digest == SCHEMA.digest
    for other, words in (
        ("{", "expected JSON"),
        ("[]", "a file that `fedlora-lab site schema` wrote"),
        (text.replace("schema 1", "schema 2"), "a file that `fedlora-lab site schema` wrote"),
        (text.replace('"label"', '"lable"'), "keys among"),
        (text.replace('"age"', "3"), "different texts in a list"),
    ):
        path.write_text(other, "utf-8")
        with pytest.raises(ValueError, match=re.escape(words)):
            site.read_schema(path)
    with pytest.raises(ValueError, match="there is none in"):
        site.read_schema(tmp_path / "gone.json")
    with pytest.raises(ValueError, match="this is a folder"):
        site.read_schema(tmp_path)


GOOD = {
    "byte order mark": ("\ufeff" + HEAD + "1,yes,a\n2,no,b\n", {}),
    "semicolons and comma": (
        "age;code;who\n1,0;yes;a\n2;no;b\n",
        {"separator": ";", "decimal": ","},
    ),
    "tabs": (HEAD.replace(",", "\t") + "1\tyes\ta\n2\tno\tb\n", {"separator": "\t"}),
    "latin-1": ((HEAD + "1,yes,jörg\n2,no,b\n").encode("latin-1"), {"encoding": "latin-1"}),
    "utf-16": ((HEAD + "1,yes,a\n2,no,b\n").encode("utf-16"), {"encoding": "utf-16"}),
    "CRLF": (HEAD.replace("\n", "\r\n") + "1,yes,a\r\n2,no,b\r\n", {}),
    "CR": ((HEAD + "1,yes,a\n2,no,b\n").replace("\n", "\r"), {}),
    "more columns, other order": ("who,x,code,age\na,9,yes,1\nb,9,no,2\n", {}),
    "empty lines and no last end": ("\n" + HEAD + "\n1,yes,a\n\n2,no,b", {}),
    "dropped": (HEAD + "1,yes,a\n,no,c\n2,no,b\n", {"on_missing": "drop"}),
}


@pytest.mark.parametrize("case", GOOD)
def test_one_table_in_all_its_forms(tmp_path, case):
    """The same two rows, however a program wrote them, give the same tensors."""
    content, changes = GOOD[case]
    done = prepared(tmp_path, content, schema(**changes))
    x, y, persons = deployment.read_examples(done.files[0])
    assert persons.tolist() == [0, 1]
    assert x.tolist() == [[1.0], [2.0]] and x.dtype == torch.float32
    assert y.tolist() == [0, 1]
    assert done.counts == {
        "format": site.SITE_FORMAT,
        "schema": schema(**changes).digest,
        "persons": 2,
    }
    assert done.dropped == (case == "dropped")
    assert site.read_sizes(done.files[1], unit="person") == [2] == [done.rows]
    assert {stat.S_IMODE(path.stat().st_mode) for path in done.files} == {0o600}


def test_parquet_is_read_as_csv(tmp_path):
    """The same tensors, also of whole numbers beside a missing one; where pandas cannot read it,
    one line says what to install.
    """
    frame = pd.DataFrame({"age": [1.5, 2, 3], "code": ["yes", "no", "no"], "who": [1, 2, None]})
    frame = frame.convert_dtypes()
    some = schema(on_missing="drop")
    try:
        frame.to_parquet(tmp_path / "own.parquet")
    except ImportError:
        (tmp_path / "own.parquet").write_bytes(b"PAR1 and more")
        with pytest.raises(ValueError, match="pip install pyarrow"):
            site.prepare(tmp_path / "own.parquet", some, tmp_path / "site.safetensors")
        return
    done = site.prepare(tmp_path / "own.parquet", some, tmp_path / "site.safetensors")
    x, y, persons = deployment.read_examples(done.files[0])
    assert (x.tolist(), y.tolist(), persons.tolist()) == ([[1.5], [2.0]], [0, 1], [0, 1])
    with pytest.raises(site.InvalidTable, match="row 3, column 'who': missing"):
        site.prepare(tmp_path / "own.parquet", SCHEMA, tmp_path / "other.safetensors")


def test_splits_persons_and_copies(tmp_path):
    """Other splits go to files of their own, persons keep no identifier, and a person in two splits
    is refused: whoever is trained on is no test.
    """
    split = schema(split="fold", splits=("train", "test"))
    head = "age,code,who,fold\n"
    done = prepared(
        tmp_path,
        head + "1,yes,p7,train\n2,no,p9,test\n1,yes,p7,train\n4,no,p3,train\n",
        split,
    )
    first, second, about = done.files
    assert second.name == "site-test.safetensors"
    assert deployment.read_examples(second)[0].tolist() == [[2.0]]
    x, _, persons = deployment.read_examples(first)
    assert persons.tolist() == [0, 0, 1] and x.tolist() == [[1.0], [1.0], [4.0]]
    assert (done.copies, done.most_of_one_person) == (1, 2)
    assert done.labels == {"yes": 2, "no": 1}
    assert json.loads(about.read_text("utf-8"))["persons"] == 2 and done.rows == 3
    with pytest.raises(ValueError, match="no such file; a federation may be running"):
        prepared(tmp_path, head + "1,yes,a,train\n", split)
    with pytest.raises(site.InvalidTable, match="line 3, column 'fold': this person has another"):
        prepared(tmp_path, head + "1,yes,a,train\n2,no,a,test\n", split, replace=True)
    assert deployment.read_examples(first)[0].tolist() == [[1.0], [1.0], [4.0]]
    prepared(tmp_path, head + "1,yes,a,train\n", split, replace=True)
    assert deployment.read_examples(first)[0].tolist() == [[1.0]]


def test_nothing_for_others_tells_how_many_rows_a_person_has(tmp_path, capsys):
    """Anna has five rows or one: the file for the coordinator is the same to the byte, and what is
    printed says which numbers stay. Finds a count of rows beside the one of persons; and terms that
    would take one for the other."""
    site.write_schema(tmp_path / "schema.json", SCHEMA)
    told = []
    for rows in (5, 1):
        (tmp_path / "own.csv").write_text(HEAD + "1,yes,anna\n" * rows + "2,no,bo\n", "utf-8")
        words = ["--schema", tmp_path / "schema.json", "--out", tmp_path / "a.safetensors"]
        assert call("site", "prepare", tmp_path / "own.csv", *words, "--replace") == 0
        said = capsys.readouterr().out.splitlines()
        told.append([(tmp_path / "a.json").read_bytes()])
        told[-1] += [line for line in said if "for this site only" not in line]
        assert f"rows: {rows + 1} (for this site only)" in said
    assert told[0] == told[1] and "persons: 2; the sample rate" in told[0][1]
    with pytest.raises(ValueError, match=r"unit='example': expected 'person': .*of persons"):
        site.read_sizes(tmp_path / "a.json", unit="example")
    prepared(tmp_path, "age,code\n1,yes\n", schema(person=None))
    with pytest.raises(ValueError, match=r"unit='person': expected 'example' or"):
        site.read_sizes(tmp_path / "out" / "site.json", unit="person")


SECRETS = st.text("bcdfghjklmpqvwxz", min_size=8, max_size=60).map(lambda word: f"Qz{word}")


@st.composite
def bad_tables(draw):
    """A table full of secrets that some fault makes unfit, and its secrets."""
    rows = draw(st.lists(st.tuples(SECRETS, SECRETS, SECRETS), min_size=1, max_size=4))
    lines = [",".join(row) for row in rows]  # no label is allowed, no number is one
    fault = draw(st.sampled_from(["cells", "headless", "quote", "loose", "bytes", "label"]))
    body = "\n".join(lines)
    if fault == "headless":
        content = body
    elif fault == "quote":
        content = HEAD + body + '\n1,"yes,' + rows[0][0]
    elif fault == "loose":
        content = HEAD + f'1,"{rows[0][0]}"{rows[0][1]},x\n' + body
    elif fault == "label":
        content = HEAD + f"1,{rows[0][0]},x\n"
    else:
        content = HEAD + body + ("," + rows[0][0] if fault == "cells" else "")
    found = content.encode() + (b"\xff" if fault == "bytes" else b"")
    return found, [cell for row in rows for cell in row]


@settings(max_examples=60)
@given(bad_tables(), st.integers(1, 5))
def test_a_refusal_writes_nothing_and_tells_no_cell(table, most):
    """Whatever is wrong, neither the error nor the command's output holds eight letters of a cell,
    and no file is there afterwards, not even a draft.
    """
    content, secrets = table
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        site.write_schema(folder / "schema.json", SCHEMA)
        with pytest.raises(site.InvalidTable) as found:
            prepared(folder, content, folder / "schema.json", most=most)
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            options = ["--out", folder / "site.safetensors", "--problems", most]
            status = call(
                "site", "prepare", folder / "own.csv", "--schema", folder / "schema.json", *options
            )
        assert status == 2
        assert sorted(path.name for path in folder.iterdir()) == ["own.csv", "schema.json"]
    assert len(found.value.lines) <= most
    assert found.value.__context__ is None, "what it was raised from may hold the file"
    told = said.getvalue() + str(found.value) + repr(found.value)
    assert not [cell for cell in secrets if cell[:8] in told]


def test_cells_are_shown_on_request(tmp_path):
    """And shortened; without it they are not there."""
    content = HEAD + f"1,{'m' * 90},a\n"
    for show in (False, True):
        with pytest.raises(site.InvalidTable) as found:
            prepared(tmp_path, content, show=show)
        assert ("m" * 37 + "'..." in str(found.value)) == show
        assert "m" * 38 not in str(found.value)


def test_a_full_disk_leaves_no_half(tmp_path):
    """A folder stands where the second file belongs: the first is taken away again."""
    split = schema(split="fold", splits=("train", "test"))
    out = tmp_path / "out"
    (out / "site-test.safetensors").mkdir(parents=True)
    content = "age,code,who,fold\n1,yes,a,train\n2,no,b,test\n"
    with pytest.raises(OSError, match="site-test"):
        prepared(tmp_path, content, split, replace=True)
    assert [path.name for path in out.iterdir()] == ["site-test.safetensors"]


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> tuple[Path, Path]:
    """A table of texts and, as the command makes it from there, its schema."""
    folder = tmp_path_factory.mktemp("sample")
    frame = toy_hubs.texts()
    frame.to_csv(folder / "public.csv", index=False)
    shutil.copytree(toy_hubs.folder("bert"), folder / "model")
    options = ["--text=text", "--label=label", "--person=site", "--tokenizer", folder / "model"]
    assert call("site", "schema", folder / "public.csv", *options, "--out", folder / "s.json") == 0
    return folder, folder / "s.json"


def test_prepared_examples_are_those_of_the_hub(sample, tmp_path):
    """The command's tensors are those that `hub` makes of the same rows, and a node of a deployment
    reads them; where they are fewer and shorter, they keep their width.
    """
    folder, path = sample
    out = tmp_path / "site.safetensors"
    assert call("site", "prepare", folder / "public.csv", "--schema", path, "--out", out) == 0
    frame = toy_hubs.texts()
    task = fl.tasks.hub(
        toy_hubs.folder("bert"), frame, text="text", label="label", clients=1, test=frame
    )
    (x, y), (own_x, own_y, whose) = task.clients[0], deployment.read_examples(out)
    assert own_y.equal(y) and own_x.keys() == x.keys()
    assert whose.equal(torch.tensor(pd.factorize(frame["site"])[0]))
    assert all(own_x[name].equal(x[name]) for name in x)
    short = frame[frame["text"].str.count(" ") == 2]
    short.to_csv(tmp_path / "short.csv", index=False)
    done = site.prepare(tmp_path / "short.csv", path, tmp_path / "short.safetensors")
    few, *_ = deployment.read_examples(done.files[0])
    rows = torch.tensor(short.index.to_numpy())
    assert all(few[name].equal(x[name][rows]) for name in x)


@pytest.mark.filterwarnings(toy_hubs.NO_PAD)
def test_a_decoder_s_examples_are_those_of_the_hub(tmp_path):
    """Without a label the targets are the texts' own tokens, padding none of them."""
    frame, model = toy_hubs.texts(), toy_hubs.folder("gpt2")
    frame.to_csv(tmp_path / "own.csv", index=False)
    made = site.make_schema(tmp_path / "own.csv", text=("text",), tokenizer=str(model))
    done = site.prepare(tmp_path / "own.csv", made, tmp_path / "site.safetensors")
    x, y = fl.tasks.hub(model, frame, text="text", clients=1, test=frame).clients[0]
    own_x, own_y = deployment.read_examples(done.files[0])
    assert own_y.equal(y) and all(own_x[name].equal(x[name]) for name in x)


@pytest.mark.filterwarnings(toy_hubs.NO_PAD)
def test_prompts_and_answers_are_those_of_the_task(tmp_path):
    """A decoder's loss counts the answer alone, at every site over the same width; a prompt that
    leaves no room is refused by its line.
    """
    frame, model = toy_hubs.texts(), toy_hubs.folder("gpt2")
    frame.to_csv(tmp_path / "own.csv", index=False)
    columns = {"text": ("text",), "answer": "label"}
    made = site.make_schema(tmp_path / "own.csv", **columns, tokenizer=str(model))
    done = site.prepare(tmp_path / "own.csv", made, tmp_path / "site.safetensors")
    options: Any = {"prompt": "text", "answer": "label", "clients": 1, "test": frame}
    x, y = fl.tasks.prompts(model, frame, **options).clients[0]
    own_x, own_y = deployment.read_examples(done.files[0])
    assert own_y.equal(y) and all(own_x[name].equal(x[name]) for name in x)
    wide = replace(made, max_length=20)
    done = site.prepare(tmp_path / "own.csv", wide, tmp_path / "wide.safetensors")
    assert deployment.read_examples(done.files[0])[1].shape[1] == wide.max_length
    with pytest.raises(site.InvalidTable, match=r"column 'text': \d tokens leave none of 4"):
        site.prepare(tmp_path / "own.csv", replace(made, max_length=4), tmp_path / "a.safetensors")


@pytest.mark.filterwarnings(toy_hubs.NO_PAD)
def test_texts_that_do_not_fit_are_refused(sample, tmp_path):
    """Another tokenizer, texts that are too long or the model cannot hold."""
    folder, path = sample
    made = site.read_schema(path)
    assert (made.labels, made.max_length) == (("harsh", "kind"), 10)
    strict = replace(made, max_length=5, too_long="refuse")
    with pytest.raises(site.InvalidTable, match=r"column 'text': \d+ tokens, max_length is 5"):
        site.prepare(folder / "public.csv", strict, tmp_path / "a.safetensors")
    cut = replace(made, max_length=5)
    assert site.prepare(folder / "public.csv", cut, tmp_path / "a.safetensors").cut == 40
    with pytest.raises(ValueError, match="another tokenizer or version"):
        site.prepare(
            folder / "public.csv",
            path,
            tmp_path / "b.safetensors",
            tokenizer=toy_hubs.folder("gpt2"),
        )
    with pytest.raises(ValueError, match="max_length=100000: expected a whole number in"):
        site.make_schema(
            text=("text",),
            label="label",
            labels=("a", "b"),
            tokenizer=str(folder / "model"),
            max_length=100_000,
        )
    with pytest.raises(ValueError, match="a public sample to take it from"):
        site.make_schema(features=("age",), label="code")


# ---- a running federation


def run_over(folder: Path, privacy, plan, broken: int | None = None) -> list:
    """A run over messages into a folder; one client may fail."""
    task = tokens("head", (5, 8, 4))
    who = SimulatedClients(task, "fedlora", privacy, plan, LORA, 0)

    def some(message, context, call):
        if (
            context.node_config["partition-id"] == broken
            and "train" in message.metadata.message_type
        ):
            raise ValueError("gone")
        return call(message, context)

    grid = InProcessGrid(client_app(who, [some]), 3)
    participant = who.participant()
    return list(rounds(grid, participant, open_run(participant, folder)))


def test_the_page_holds_nothing_private(tmp_path, capsys):
    """Without private/, frames and scores the page is the same, so it has nothing of them; it tells
    rounds, who answered, and the ledger's epsilon.
    """
    plan = PLAN.replace(rounds=2)
    records = run_over(tmp_path, private("example"), plan, broken=1)
    fl.to_frame(records).assign(layer="client 1").to_csv(tmp_path / "frame-000000.csv", index=False)
    before = site.read_status(tmp_path)
    shutil.rmtree(tmp_path / "private")
    (tmp_path / "frame-000000.csv").unlink()
    now = site.read_status(tmp_path)
    assert now == before
    assert (now.done, now.rounds, now.sites, now.present) == (2, 2, 3, (0, 2))
    assert now.epsilon == pytest.approx(records[-1].epsilon) and now.finished
    assert call("site", "status", tmp_path, "--html", tmp_path / "now.html") == 0
    page, said = (tmp_path / "now.html").read_text("utf-8"), capsys.readouterr().out
    names = [
        "rounds done",
        "sites in the last round",
        "ε so far",
        "method",
        "time left",
        "last update",
    ]
    assert re.findall("<dt>(.*?)</dt>", page) == names
    assert [line.split(": ")[0] for line in said.splitlines()] == names
    assert "2 of 3: 0, 2" in page and f"{records[-1].epsilon:.3g} at δ" in page
    assert "a rehearsal" in page and "refresh" not in page
    for score in records[-1].metrics.values():
        assert f"{score:.3g}" not in page
    going = now._replace(done=1)
    assert '<meta http-equiv="refresh" content="10">' in site.status_page(going)


@pytest.mark.parametrize("participation", [0.5, 1.0])
def test_presence_is_not_told_where_privacy_counts_on_it(tmp_path, participation):
    """An epsilon amplified by the draw of clients holds while nobody learns who was drawn."""
    plan = PLAN.replace(rounds=2, participation=participation)
    run_over(tmp_path, protected("client"), plan)
    there = json.loads((tmp_path / PRESENCE).read_text("utf-8"))["there"]
    assert there == (None if participation < 1 else [0, 1, 2])
    assert ("not published" in site.status_page(site.read_status(tmp_path))) == (participation < 1)


def test_a_folder_that_is_none_is_one_line(tmp_path):
    """So are files in it that no server wrote."""
    for folder, words in ((tmp_path / "gone", "the folder of a run"), (tmp_path, "no checkpoint")):
        with pytest.raises(ValueError, match=words):
            site.read_status(folder)
    for text in ("[1]", '{"done": 1}', '{"done": NaN}'):
        (tmp_path / PRESENCE).write_text(text, "utf-8")
        with pytest.raises(ValueError, match=PRESENCE) as found:
            site.read_status(tmp_path)
        assert "\n" not in str(found.value)


def test_watching_ends_with_the_run(tmp_path, capsys):
    """A run without privacy, from its checkpoints alone: nothing is invented."""
    run_over(tmp_path, None, PLAN.replace(rounds=1))
    assert call("site", "status", tmp_path, "--watch", "--every", 1) == 0
    assert "rounds done 1 of 1" in capsys.readouterr().out
    (tmp_path / PRESENCE).unlink()
    now = site.read_status(tmp_path)
    assert (now.done, now.rounds, now.present, now.epsilon) == (1, None, None, None)
    frame = pd.DataFrame(now.lines(0.0))
    assert "none, the run is without privacy" in frame[1].tolist()
