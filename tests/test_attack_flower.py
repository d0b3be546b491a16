"""Two runs that ask one client the same: its memory gives one answer, and no second noise."""

import copy
import stat
import threading
from random import Random

import pytest
import torch
from hospitals.hospitals.app import task
from small import tokens
from test_flower_memory import sites

from fedlora_lab.files import held
from fedlora_lab.flower import InProcess, deployment, rounds
from fedlora_lab.flower.server import open_run

pytestmark = pytest.mark.attack


def first_question(folder):
    """A site's own settings, the server's message of the first round to it, and the terms."""
    grid, party = sites(folder, "fedlora", None)
    messages = []
    grid.seen = messages.append
    list(rounds(grid, party, open_run(party)))
    message = next(m for m in messages if m.metadata.message_type == "train" and not m.metadata.reply_to_message_id)
    return dict(grid.contexts[message.metadata.dst_node_id].node_config), message, party.terms


def site(config, memory):
    """The site as a node that has just started, with this memory."""
    context = InProcess(deployment.client(task), 1).contexts[1000]
    context.node_config = {**config, "memory": str(memory)}
    return context


def test_two_runs_get_one_answer(tmp_path):
    """At the same moment, without a seed: whoever had both answers could take their mean, with half the noise."""
    config, message, _ = first_question(tmp_path)
    public = task()  # made once: its weights are drawn with torch's own generator, which threads share
    app, single = deployment.client(lambda: public), []
    for number in range(5):
        together, found = threading.Barrier(3), []

        def ask(context, together=together, found=found):
            together.wait()
            found.append(app(copy.deepcopy(message), context).content["arrays"])

        memory = tmp_path / f"shared{number}"
        threads = [threading.Thread(target=ask, args=[site(config, memory)]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 3 and found[0] == found[1] == found[2]
        single.append(found[0])
    assert len({str(arrays["B/inner"].data) for arrays in single}) == 5, "other memories have other noise"


def test_another_run_gets_the_answer_of_the_round_again(tmp_path):
    """Begun anew later, under the same terms, by whatever server: the same bits, then nothing of the past."""
    config, message, _ = first_question(tmp_path)
    app, memory = deployment.client(task), tmp_path / "memory"
    one, two = (app(copy.deepcopy(message), site(config, memory)).content["arrays"] for _ in range(2))
    assert one == two


def test_a_memory_in_use_is_waited_for_and_then_named(tmp_path):
    config, message, terms = first_question(tmp_path)
    memory = tmp_path / "memory"
    with (
        held(memory, f".client-0-{terms}.lock"),
        pytest.raises(
            ValueError, match=r"^memory='.*client-0-.*': expected a file that no other run is using within 0.2 s$"
        ),
    ):
        deployment.client(task, patience=0.2)(message, site(config, memory))
    assert deployment.client(task)(message, site(config, memory)).content["arrays"]
    with pytest.raises(ValueError, match=r"^patience=0: expected a number > 0$"):
        deployment.client(task, patience=0)


def test_memory_terms_and_examples_are_their_owner_s(tmp_path):
    config, message, _ = first_question(tmp_path)
    deployment.client(task)(message, site(config, tmp_path / "memory"))
    deployment.write_examples(tmp_path / "own" / "data.safetensors", tokens().clients[0])
    paths = [
        *(tmp_path / "memory").rglob("*"),
        tmp_path / "terms.json",
        *tmp_path.glob("data*"),
        *tmp_path.glob("own/*"),
    ]
    assert len(paths) >= 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o600}
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("memory", "own", "memory0")} == {0o700}


def test_an_error_tells_the_coordinator_no_value(tmp_path, caplog):
    """Flower sends an error's text to whoever asked: it names no label, and a label that torch refuses is no error."""
    config, message, _ = first_question(tmp_path)
    (x, y), data = tokens("head").clients[0], tmp_path / "data57.safetensors"

    def told(**changed: str) -> str:
        context = site({**config, **changed}, tmp_path / "memory-error")
        with pytest.raises(ValueError) as found:
            deployment.client(task)(copy.deepcopy(message), context)
        assert len(str(found.value).splitlines()) == 1
        return str(found.value)

    for labels in (y + 57.5, torch.stack([y, y * 0 + 57], 1)):
        deployment.write_examples(data, (x, labels))
        assert told(data=str(data)).startswith("examples: expected inputs and labels of the types and shapes")
    data.write_bytes(b"57 is a label")
    assert told(data=str(data)) == "reading its examples failed at this site; its own log says why"
    assert "57" in caplog.text and {record.name for record in caplog.records} == {"fedlora_lab.flower"}
    assert not list((tmp_path / "memory-error").glob("client-*")), "nothing was answered"
    deployment.write_examples(data, (x, y * 0 + 57))
    answer = deployment.client(task)(copy.deepcopy(message), site({**config, "data": str(data)}, tmp_path / "other"))
    assert not answer.has_error(), "examples that the loss cannot take count as zero, and nobody is told"


def test_no_answer_comes_from_a_damaged_memory(tmp_path):
    """Empty, cut, extended, one bit flipped anywhere, another client's: refused, and never answered anew."""
    config, message, terms = first_question(tmp_path)
    app, memory = deployment.client(task), tmp_path / "memory"
    answer = app(copy.deepcopy(message), site(config, memory)).content["arrays"]
    path = memory / f"client-0-{terms}"
    whole, random = path.read_bytes(), Random(0)
    damaged = [b"", b"\0", whole[:31], whole[:32], whole[:-1], whole[32:], whole + b"\0", whole[: len(whole) // 2]]
    for _ in range(12):
        at, bit = random.randrange(len(whole)), 1 << random.randrange(8)
        damaged.append(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^memory='client-0-.*': expected what this site wrote there, it is dam"):
            app(copy.deepcopy(message), site(config, memory))
        assert path.read_bytes() == content
    other = memory / f"client-1-{terms}"
    other.write_bytes(whole)
    with pytest.raises(ValueError, match=r"^memory='client-1-.*': expected what this site wrote there"):
        app(copy.deepcopy(message), site({**config, "client": 1, "data": str(tmp_path / "data1.safetensors")}, memory))
    path.write_bytes(whole)
    assert app(copy.deepcopy(message), site(config, memory)).content["arrays"] == answer
