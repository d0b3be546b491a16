"""Certificates state what the ledger states, and nothing that was changed is taken for sound."""

import copy
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import SMALL, call

import fedlora_lab as fl
from fedlora_lab.privacy import accounting
from fedlora_lab.report import certificates
from fedlora_lab.report.certificates import EVIDENCE, InvalidCertificate
from fedlora_lab.report.run_folder import Folder

CARD = {"intended_use": "Sorting of requests.", "note": "für die Prüfung; ε"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A certified run for release; tests that change something copy it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert call("run", "regression", "rolora", *SMALL, "--seed=none", "--out", out) == 0
    fl.report.certificate(out, card=CARD).save(out)
    return out


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def content_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "certificate.json").read_text())


def write(folder: Path, content: Any, again: bool = False) -> None:
    """Writes other content; ``again``: with digests that fit, as a forger would."""
    if again:
        kept = [key for key in content["digests"] if key in content]
        content["digests"] = {k: certificates._section_digest(content[k]) for k in kept}
    (folder / "certificate.json").write_text(certificates._dump(content), "utf-8")


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InvalidCertificate) as error:
        fl.report.verify(path, **options)
    said = str(error.value)
    assert "\n" not in said and "expected" in said and len(said) < 500
    return said


def test_a_run_is_certified_and_verified(made, capsys):
    """The numbers are those of the ledger, rounded up; the command says the same in two
    sentences."""
    (ledger,) = Folder(made).ledgers().values()
    assert ledger is not None
    stated = content_of(made)["spending"]["rolora-release"]["observers"]
    for one in stated:
        pairs = {"epsilon": ledger.epsilon(None, one["observer"])}
        pairs |= {name: ledger.epsilon_by(name, one["observer"]) for name in ("prv", "rdp")}
        pairs["dp_accounting"] = ledger.second_opinion(one["observer"])[0]
        pairs["advantage"] = ledger.advantage(None, one["observer"])
        pairs["tpr_fpr_1"] = ledger.tradeoff(0.01, None, one["observer"])
        for name, value in pairs.items():
            assert value * (1 - 1e-9) <= one[name] <= 1.001 * value
    assert call("verify", made, "--release") == 0
    said = capsys.readouterr().out
    assert said.startswith("Sound: ε = ") and said.count(". ") == 1
    assert "all files that it names" in said


@pytest.mark.slow
def test_two_libraries_agree_on_epsilon():
    """Where PRV, exact or by its grid, and dp-accounting's distributions differ, one is wrong."""
    for sigma, q, steps in ((0.8, 0.02, 1000), (4.0, 0.9, 20), (1.0, 1.0, 10), (0.3, 0.2, 1000)):
        ours = accounting.epsilon(((sigma, q, steps),), 1e-6)
        second, name = accounting.second_opinion(((sigma, q, steps),), 1e-6)
        assert name == "pld" and abs(ours - second) <= 0.02 + 0.01 * second
    assert accounting.second_opinion(((None, 0.1, 1),), 1e-6)[0] == float("inf")
    assert accounting.second_opinion((), 1e-6)[0] == 0


def leaves(value: Any, path: tuple = ()) -> Any:
    """Paths of all values, containers included."""
    if path:
        yield path
    pairs = value.items() if isinstance(value, dict) else ()
    pairs = enumerate(value) if isinstance(value, list) else pairs
    for key, inner in pairs:
        yield from leaves(inner, (*path, key))


def changed(content: Any, path: tuple, new: Any) -> Any:
    """A copy with another value there; ``...`` takes it away."""
    whole = copy.deepcopy(content)
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return whole


def others(value: Any, draw: random.Random) -> list[Any]:
    """Other values in its place: of another type, rounded, raised, with a look-alike letter."""
    if isinstance(value, bool) or value is None:
        return [..., int(value or 0), not value, "none"]
    if isinstance(value, int):
        return [..., float(value), value + 1, str(value), True]
    if isinstance(value, float):
        near = [value * 0.9, value * 1.1, float(f"{value * 0.999:.3g}"), float(f"{value:.1g}")]
        return [..., str(value), None, *(x for x in near if x != value)]
    if isinstance(value, str):
        alike = value.translate({ord("a"): "а", ord("e"): "е", ord("0"): "O", ord("1"): "l"})
        found = [..., value + " ", value.upper(), [value], alike]
        return [x for x in found if x != value]
    if isinstance(value, list):
        return [..., value[::-1], [*value, *value[-1:]], {}, None]
    return [..., {**value, "more": 1}, [], None]


@pytest.mark.slow
def test_every_mutation_is_refused(made, tmp_path):
    """Each field changed, removed, retyped, rounded, raised or with a look-alike letter, by itself
    and with digests that fit: the line names the place."""
    content, draw, count = content_of(made), random.Random(0), 0
    known = {*EVIDENCE} - {"ledgers"}
    for path in leaves(content):
        for new in others(_at(content, path), draw):
            mutant = changed(content, path, new)
            if mutant == content and json.dumps(mutant) == json.dumps(content):
                continue
            for again in (False, True):
                if again and (path[0] in known or path[0] == "digests"):
                    continue  # a sound statement of another author
                if again and is_true(content, path, new):
                    continue
                write(tmp_path, mutant, again)
                said = refusal(tmp_path / "certificate.json")
                place = path[1] if path[0] == "digests" and len(path) > 1 else path[0]
                # Without a ledger, or with another one, it is the numbers that do not follow.
                named = str(place) in said or (
                    path[0] == "ledgers" and again and "spending" in said
                )
                assert named, (path, said)
                count += 1
    assert count >= 500


def test_a_section_of_another_form_is_named(made, tmp_path):
    """With digests that fit, a field too few or too many was blamed on the ledgers, and a day that
    no calendar has passed."""
    content = content_of(made)
    file = next(iter(content["files"]))
    run = next(iter(content["training"]))
    slug = next(iter(content["utility"]))
    objects = [("about",), ("data",), ("files", file), ("training", run), ("utility", slug)]
    for path in objects:
        for key in [*_at(content, path)]:
            write(tmp_path, changed(content, (*path, key), ...), True)
            assert f"{'.'.join(path)}=" in refusal(tmp_path / "certificate.json")
        write(tmp_path, changed(content, (*path, "more"), 1), True)
        assert f"{'.'.join(path)}=" in refusal(tmp_path / "certificate.json")
    wrong = {("about", "written"): "2026-02-30", ("data", "sizes"): ["a"], ("data", "info"): 3}
    for path, value in wrong.items():
        write(tmp_path, changed(content, path, value), True)
        assert f"{'.'.join(path)}=" in refusal(tmp_path / "certificate.json")


def is_true(content: Any, path: tuple, new: Any) -> bool:
    """Whether another number promises less, by up to 1 %: it is sound, if not what was written."""
    old = _at(content, path)
    both = isinstance(old, float) and isinstance(new, float)
    return both and path[0] in ("spending", "together") and old < new <= 1.01 * old


def _at(content: Any, path: tuple) -> Any:
    for key in path:
        content = content[key]
    return content


def test_the_text_is_taken_in_one_form_only(made, tmp_path):
    """Duplicated names, other order or spacing, NaN, infinities, other forms of a number, huge
    nesting, cut files, other encodings."""
    file, whole = tmp_path / "certificate.json", (made / "certificate.json").read_text("utf-8")
    content = json.loads(whole)
    turned = dict(reversed(content.items()))
    texts = {
        "twice": whole.replace('"version": 1', '"version": 1,\n "version": 1'),
        "names sorted": json.dumps(turned, indent=1, ensure_ascii=False) + "\n",
        "line 1": json.dumps(content, sort_keys=True),
        "NaN": whole.replace("0.0001", "NaN"),
        "Infinity": whole.replace("0.0001", "Infinity"),
        "1e-4": whole.replace("0.0001", "1e-4"),
        "finite": whole.replace("0.0001", "1e999"),
        "JSON": "[" * 200_000,
        "object": "[]\n",
        "another end": whole + "\n",
        "end": whole.removesuffix("\n"),
    }
    for word, text in texts.items():
        file.write_text(text, "utf-8")
        assert word in refusal(file), word
    for data in (whole.encode("utf-16"), b"\xef\xbb\xbf" + whole.encode(), b"\0", b""):
        file.write_bytes(data)
        refusal(file)
    deep = changed(content, ("card", "note"), json.loads("[" * 400 + "]" * 400))
    write(tmp_path, deep, again=True)
    refusal(file)
    file.unlink()
    file.symlink_to(made / "certificate.json")
    assert "link" in refusal(file)


def test_every_changed_file_is_refused(folder, made):
    """A byte of any file that is named, and of the page; files that are gone, links, swapped."""
    names = sorted(content_of(made)["files"])
    assert len(names) >= 5
    for name in [*names, "certificate.html"]:
        path, old = folder / name, (folder / name).read_bytes()
        for place in (0, len(old) // 2, len(old) - 1):
            path.write_bytes(old[:place] + bytes([old[place] ^ 1]) + old[place + 1 :])
            assert path.name in refusal(folder) and path.name in refusal(
                folder / "certificate.json"
            )
        path.unlink()
        if name != "certificate.html":
            assert name in refusal(folder)
        path.symlink_to(made / name)
        assert name in refusal(folder)
        path.unlink()
        path.write_bytes(old)
    assert fl.report.verify(folder)
    one, two = (folder / name for name in names[:2])
    one.rename(folder / "x"), two.rename(one), (folder / "x").rename(two)
    refusal(folder)


def test_what_a_forger_says_of_a_run_its_folder_contradicts(folder):
    """With digests that fit: the folder still tells another clip norm, method or size."""
    content = content_of(folder)
    for path in (("training", "rolora-release", "privacy", "clip_norm"), ("data", "sizes", 0)):
        write(folder, changed(content, path, 7), again=True)
        assert path[0] in refusal(folder)


def test_a_refusal_names_the_version_that_wrote_it(made, tmp_path):
    """The words of a certificate are those of its version: another one may not know them."""
    older = changed(content_of(made), ("software", "fedlora-lab"), "0.0.9")
    write(tmp_path, older, again=True)
    assert fl.report.verify(tmp_path / "certificate.json")
    write(tmp_path, changed(older, ("summary", 0), "In other words."), again=True)
    assert "summary" in (said := refusal(tmp_path)) and "fedlora-lab 0.0.9" in said


def test_releases_after_the_certificate_are_found(folder):
    """A run that goes on, or another in the folder, is not covered."""
    ledger = folder / "checkpoints" / "rolora-release" / "ledger.json"
    shutil.copy(ledger, folder / "spent-001-rolora-release.json")
    assert "spent-001" in refusal(folder)


@pytest.mark.slow
def test_seeds_are_never_certified_as_protected(tmp_path, capsys):
    """A reproducible run, alone and beside a release: only what is for release says so."""
    out = tmp_path / "run"
    assert call("run", "regression", "fedlora", *SMALL, "--out", out) == 0
    found = fl.report.certificate(out)
    assert found.content["status"] == "not for release"
    assert "Not for release" in found.page and "Guaranteed: ε" not in found.page
    found.save(out)
    assert fl.report.verify(out).startswith("Sound, and not for release")
    assert "guarantee for release" in refusal(out, release=True)
    forged = {**content_of(out), "status": "guaranteed"}
    write(tmp_path, forged, again=True)
    assert "status" in refusal(tmp_path / "certificate.json")


@pytest.mark.slow
def test_without_privacy_nothing_is_certified(tmp_path, capsys):
    out = tmp_path / "run"
    assert call("run", "regression", "fedlora", *SMALL, "--epsilon=none", "--out", out) == 0
    capsys.readouterr()
    assert call("certify", out) == 2
    said = capsys.readouterr().err
    assert "nothing to certify" in said and said.count("\n") == 1
    assert not (out / "certificate.json").exists()
    # Beside a run with privacy it takes the promise away from both together.
    for name in ("rolora", "non-private"):
        words = ("run", "regression", name, *SMALL, "--seed=none", "--out", tmp_path / "two")
        assert call(*words) == 0
    both = fl.report.certificate(tmp_path / "two").content
    assert both["status"] == "no guarantee" and "non-private-release" in both["summary"][0]
    one = fl.report.certificate(tmp_path / "two", run="rolora-release").content
    assert one["status"] == "guaranteed" and "nothing is promised" in one["summary"][-1]
    # The exact score of what was trained without privacy stood in a certificate of the other run.
    assert [*both["utility"]] == [*one["utility"]] == ["rolora"]


def test_a_certificate_tells_no_number_of_what_is_private(folder):
    """How many private texts were cut is exact, and no ledger counts it."""
    settings = json.loads((folder / "settings.json").read_text())
    settings["task"]["info"] |= {"model": "Bert", "texts cut": 4711}
    (folder / "settings.json").write_text(json.dumps(settings))
    told = fl.report.certificate(folder)
    assert told.content["data"]["info"] == {"model": "Bert"}
    assert "4711" not in told.text + told.page


@pytest.mark.slow
def test_runs_on_the_same_data_are_composed(tmp_path):
    """Two releases, one of them cleared away: the certificate states what they spend together."""
    out = tmp_path / "run"
    words = ("run", "regression", "rolora", *SMALL, "--seed=none", "--out", out)
    assert call(*words) == 0 and call(*words, "--fresh") == 0
    books = Folder(out).ledgers()
    assert len(books) == 2
    content = fl.report.certificate(out).content
    whole = fl.Ledger.compose(*(book for book in books.values() if book)).epsilon()
    assert whole <= content["together"]["observers"][0]["epsilon"] <= 1.001 * whole
    assert f"{content['together']['observers'][0]['epsilon']:g}" in content["summary"][1]
    fl.report.certificate(out).save(out)
    fl.report.verify(out)


def checkpoint_of(ledger: fl.Ledger, folder: Path) -> Path:
    folder.mkdir()
    ledger.save(folder / "ledger.json")
    return folder


def test_an_uncertified_ledger_is_certified_without_epsilon(tmp_path):
    """And so is one with a release that has no noise; no number stands in their certificates."""
    book = fl.Ledger(reproducible=False)
    book.record(1, None, 4, sample_rate=0.1, noise_multiplier=1.0)
    book.uncertified = "noise added before the clip"
    bare = fl.Ledger(reproducible=False)
    bare.record(1, None, 4, sample_rate=0.1, noise_multiplier=0.0)
    for name, one in {"a": book, "b": bare}.items():
        found = fl.report.certificate(checkpoint_of(one, tmp_path / name))
        assert found.content["status"] == "no guarantee" and "ε =" not in " ".join(
            found.content["summary"]
        )
        found.save(tmp_path / name)
        assert "nothing is promised" in fl.report.verify(tmp_path / name)


def test_accountants_that_disagree_are_refused(tmp_path, monkeypatch):
    """An accountant of one's own that says too little, in a certificate made without the check."""
    half = fl.privacy.Accountant(lambda key, delta: 0.5 * accounting.prv_epsilon(key, delta))
    monkeypatch.setitem(fl.privacy.ACCOUNTANTS, "half", half)
    book = fl.Ledger(reproducible=False, accountant="half")
    book.record(1, None, 40, sample_rate=0.1, noise_multiplier=1.0)
    path = checkpoint_of(book, tmp_path / "run")
    with pytest.raises(InvalidCertificate, match="accountants that agree"):
        fl.report.certificate(path)
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "check_accountants", lambda spent, place: None)
        fl.report.certificate(path).save(path)
    assert "accountants that agree" in refusal(path)


@pytest.mark.slow
def test_an_adapter_carries_its_own_certificate_only(tmp_path):
    """The folder loads by PEFT as before; refused are the certificate of another run, a changed
    weight and an added file."""
    from peft import PeftConfig

    task = fl.tasks.regression(clients=3, examples=20, d_in=4, d_out=4, rank=1, test=8)
    privacy, plan = fl.Privacy(noise_multiplier=1.0, delta=1e-4), fl.Plan(rounds=1, batch=8, lr=0.1)
    runs = []
    for name in ("one", "two"):
        options: Any = {"seed": None, "checkpoint": tmp_path / name}
        *_, last = fl.run(task, "rolora", privacy, plan.replace(rounds=len(name)), **options)
        runs.append((last, fl.report.certificate(tmp_path / name)))
    (record, own), (_, foreign) = runs[0], runs[1]
    other = fl.Ledger(delta=1e-4, reproducible=False)
    other.record(1, None, 3, sample_rate=0.5, noise_multiplier=1.0)
    foreign = fl.report.certificate(checkpoint_of(other, tmp_path / "other"))
    with pytest.raises(ValueError, match="that of the run of this record"):
        fl.save_adapter(record, tmp_path / "adapter", certificate=foreign)
    assert not (tmp_path / "adapter").exists()
    folder = fl.save_adapter(record, tmp_path / "adapter", certificate=own)
    assert PeftConfig.from_pretrained(str(folder)).peft_type == "LORA"
    assert "all files that it names" in fl.report.verify(folder)
    fl.save_adapter(record, folder, certificate=own)  # once more into the same folder
    weights = folder / "adapter_model.safetensors"
    old = weights.read_bytes()
    weights.write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    assert weights.name in refusal(folder) and weights.name in refusal(folder / "certificate.json")
    weights.write_bytes(old)
    right = content_of(folder)
    write(folder, changed(right, ("files", weights.name, "bytes"), len(old) + 1), True)
    (folder / "certificate.html").unlink()
    assert f"files.{weights.name}.bytes" in refusal(folder)  # its digest alone was compared
    fl.save_adapter(record, folder, certificate=own)
    (folder / "more.bin").write_bytes(b"1")
    assert "more.bin" in refusal(folder)
    (folder / "more.bin").unlink()
    shutil.copy(tmp_path / "one" / "ledger.json", tmp_path / "ledger.json")
    own.save(folder)  # a certificate of the run, and not of this folder
    assert "run folder" in refusal(folder)


def test_a_signature_is_checked(folder, tmp_path, capsys):
    """By a public key, and by a file of allowed signers; of another key or another text it is
    refused."""
    for name in ("key", "other"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(words, check=True)
    assert call("certify", folder, "--sign", tmp_path / "key") == 0
    public = tmp_path / "key.pub"
    assert "signed with a key" in fl.report.verify(folder, signer=public)
    # A key that is not there must not cost the signed certificate that is.
    before = (folder / "certificate.json").read_bytes()
    assert call("certify", folder, "--sign", tmp_path / "gone", "--note", "another") == 2
    assert (folder / "certificate.json").read_bytes() == before
    assert "signed with a key" in fl.report.verify(folder, signer=public)
    allowed = tmp_path / "allowed"
    allowed.write_text(f"officer@example.org {public.read_text()}")
    assert "signed with a key" in fl.report.verify(folder, signer=allowed)
    assert "signature" in refusal(folder, signer=tmp_path / "other.pub")
    forged = changed(content_of(folder), ("card",), {"note": "another"})
    (folder / "certificate.html").unlink()
    write(folder, forged, again=True)
    assert "not checked" in fl.report.verify(folder)
    assert "signature" in refusal(folder, signer=public)
    (folder / "certificate.json.sig").unlink()
    assert "signature" in refusal(folder, signer=public)


BAD_CALLS = {
    "folder='nowhere'": ["nowhere"],
    "run='x': expected one of rolora-release": ["--run=x"],
    "card.toml: expected TOML": ["--card=card.toml"],
    "keys among base_model": ["--card=keys.toml"],
    "card.note=": ["--note="],
    "adapter=": ["--adapter=nowhere"],
    "out='x': expected not given with --adapter": ["--adapter=.", "--out=x"],
    "key='nokey'": ["--sign=nokey"],
}


@pytest.mark.parametrize("said", [*BAD_CALLS])
def test_bad_calls_are_one_line(folder, tmp_path, monkeypatch, capsys, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "card.toml").write_text("= 1")
    (tmp_path / "keys.toml").write_text('colour = "red"')
    words = BAD_CALLS[said]
    assert call("certify", *([] if words == ["nowhere"] else [folder]), *words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error


@pytest.mark.slow
def test_verification_loads_no_library_that_trains(made):
    """In a process of its own: what tables share with training would load PEFT, for seconds."""
    code = f"import sys; import fedlora_lab as fl; fl.report.verify({str(made)!r}); "
    code += "print(*sorted({'peft', 'sklearn', 'transformers'} & {*sys.modules}))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == ""
