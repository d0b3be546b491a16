"""The certificate of a run: one page and one JSON of what is promised to whom, and its check.

The JSON holds the ledgers, so `verify` computes every stated number again without any data. Its
sections fall into three: what is known of the run (`EVIDENCE`), numbers that follow from the
ledgers, and words that follow from both.
"""

import hashlib
import json
import math
import re
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlora_lab._utils import files
from fedlora_lab._utils.environment import __version__
from fedlora_lab._utils.validation import check, check_keys, check_one_of, check_whole, error_text
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.config import stream_sensitivity
from fedlora_lab.privacy.ledger import Ledger, Terms

if TYPE_CHECKING:
    from fedlora_lab.report.run_folder import Folder

HERE = Path(__file__).parent
FORMAT, VERSION = "fedlora_lab.certificate", 1
NAME, PAGE, SIGNATURE = "certificate.json", "certificate.html", "certificate.json.sig"
EVIDENCE = (
    "about",
    "budget",
    "card",
    "data",
    "files",
    "ledgers",
    "software",
    "training",
    "utility",
)
"""Sections that are known from the run. All others follow from them."""
NUMERIC = ("spending", "together")
"""Sections with the numbers that follow from the ledgers."""
VERBAL = ("caveats", "status", "summary", "trust")
"""Sections with the sentences that follow from the numbers and the evidence."""
CARD = (
    "base_model",
    "intended_use",
    "out_of_scope",
    "limitations",
    "training_data",
    "license",
    "contact",
    "note",
)
"""What the user may say of a model; the fields follow model cards (arXiv:1810.03993)."""
SECTIONS = (*EVIDENCE, *NUMERIC, *VERBAL)
NUMBERS = ("epsilon", "prv", "rdp", "dp_accounting", "advantage", "tpr_fpr_1", "tpr_fpr_0_1")
"""Stated numbers: rounded up to four digits, so that what is stated is what is promised."""
MAX_BYTES = 1 << 26
"""A larger file is not read as a certificate."""
NAMESPACE = "fedlora-lab-certificate"


class InvalidCertificate(ValueError):
    """A certificate that is not sound: the message names the first fault.

    >>> raise InvalidCertificate("certificate.json: expected a certificate")
    Traceback (most recent call last):
    fedlora_lab.report.certificates.InvalidCertificate: certificate.json: expected a certificate
    """


def _require(ok: bool, place: str, found: Any, expected: str) -> None:
    if not ok:
        text = " ".join((found if isinstance(found, str) else json.dumps(found)).split())
        text = text if len(text) <= 80 else text[:77] + "..."
        raise InvalidCertificate(f"{place}: expected {expected}, found {text}")


# ---- what is known of a run


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Size and digest of some files; a link is refused, since it may lead elsewhere tomorrow."""
    found = {}
    for name in sorted(names):
        path = folder / name
        plain = path.is_file() and not path.is_symlink()
        check(plain, "file", str(path), "a file that is there and is no link")
        found[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    return found


def _adapter_files(folder: Path) -> list[str]:
    """Names of all that an adapter folder hands on but the certificate; hidden files are not."""
    paths = (p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    names = (path.relative_to(folder).as_posix() for path in paths)
    ours = {NAME, PAGE, SIGNATURE}
    return sorted(n for n in names if n not in ours and not n.startswith("."))


def _training(plan: Mapping[str, Any], privacy: Any, lora: Any, method: Any) -> dict[str, Any]:
    """How one run was trained, without what its ledger states."""
    stated = {*Terms._fields, "noise_multiplier", "sample_rate"}
    kept = None if privacy is None else {k: v for k, v in privacy.items() if k not in stated}
    return {"method": method, "plan": dict(plan), "privacy": kept, "lora": lora}


def _released(books: Mapping[str, Ledger | None]) -> dict[str, Ledger]:
    """The runs with privacy whose noise has no recorded seed; where there is none, the others."""
    private = {name: book for name, book in books.items() if book is not None}
    return {name: book for name, book in private.items() if not book.reproducible} or private


def _read_run_folder(folder: "Folder") -> dict[str, Any]:
    """The sections that follow from a run folder.

    Guarantees: test_a_certificate_tells_no_number_of_what_is_private.
    """
    from fedlora_lab.report.run_folder import SPENT, read_frame

    settings, books, path = folder.settings, folder.ledgers(), folder.path
    training: dict[str, Any] = {}
    for name in books:
        slug = name.rpartition("-")[0]
        known = slug in settings["plans"]
        parts = (settings[part].get(slug) for part in ("plans", "privacies"))
        row = {key: settings["methods"].get(slug, {}).get(key) for key in ("name", "source")}
        training[name] = _training(*parts, settings["lora"], row) if known else None  # type: ignore[arg-type]
    tensors = (sorted(path.glob(f"checkpoints/{name}/round-*.safetensors"))[-1:] for name in books)
    kept = [*path.glob("checkpoints/*/ledger.json"), *path.glob(SPENT), *path.glob("cells/*.json")]
    kept += [path / "settings.json", *(p for some in tensors for p in some)]
    kept += [p for p in (path / "ledger.json", path / "frame.csv") if p.exists()]
    utility = {}
    if (path / "frame.csv").is_file():
        from fedlora_lab.report.summary_table import display_rows, summary

        table = summary(read_frame(path / "frame.csv"))
        about = {"measure": table.attrs["measure"]}
        # A score of what was trained without privacy, or may not leave, is a release of its own.
        hidden = {name.rpartition("-")[0] for name in books.keys() - _released(books).keys()}
        rows = [row for row in display_rows(table) if row["method"] not in hidden]
        utility = {r["method"]: about | {k: r[k] for k in ("before", "score")} for r in rows}
    task = settings["task"]
    told = {key: task["info"].get(key) for key in ("model", "weights_sha256")}
    data = {key: task.get(key) for key in ("name", "sizes", "test")}
    return {
        "data": data | {"info": {key: value for key, value in told.items() if value is not None}},
        "files": _digests(path, (p.relative_to(path).as_posix() for p in kept)),
        "ledgers": {name: book and json.loads(book.to_json()) for name, book in books.items()},
        "software": settings["versions"],
        "training": training,
        "utility": utility,
    }


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """The sections that follow from a checkpoint folder of `fl.run` or of a Flower server."""
    from fedlora_lab.federated import checkpoint

    ledger = Ledger.load(path / checkpoint.LEDGER)
    kept, settings = [checkpoint.LEDGER], None
    if rounds := checkpoint.rounds_in(path):
        stem = f"round-{rounds[-1]:06d}"
        kept += [f"{stem}.json", f"{stem}.safetensors"]
        settings = files.parse_json((path / f"{stem}.json").read_bytes(), f"{stem}.json")
        settings = settings["body"]["settings"]
    training = None
    if settings is not None:
        row = {key: settings["method"][key].strip("'") for key in ("name", "source")}
        training = _training(settings["plan"], settings["privacy"], settings["lora"], row)
    return {
        "data": {"name": None, "sizes": None, "test": None, "info": {}},
        "files": _digests(path, kept),
        "ledgers": {"run": json.loads(ledger.to_json())},
        "software": {},
        "training": {"run": training},
        "utility": {},
    }


def _read_source(path: Path) -> dict[str, Any]:
    """The sections that follow from a folder of runs.

    Raises: ``ValueError`` where it is none, or nothing in it has privacy.
    """
    run, alone = (path / "settings.json").is_file(), (path / "ledger.json").is_file()
    expected = "a run folder (settings.json) or a checkpoint's (ledger.json)"
    check(path.is_dir() and (run or alone), "folder", str(path), expected)
    try:
        if run:
            from fedlora_lab.report.run_folder import Folder

            found = _read_run_folder(Folder(path))
        else:
            found = _read_checkpoint(path)
    except (LookupError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error_text(error, 80)}"
        raise ValueError(f"{path}: expected the files of a run ({why})") from error
    some = any(ledger is not None for ledger in found["ledgers"].values())
    why = "a run with privacy (a ledger): without it there is nothing to certify"
    check(some, "folder", str(path), why)
    return found


def read_card(path: str | Path) -> dict[str, str]:
    """What a TOML file says of a model: texts under the names in `CARD`.

    Raises: ``ValueError`` for another name or a value that is no text.
    """
    try:
        card = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # of TOML and of UTF-8
        raise ValueError(f"{path}: expected TOML ({error_text(error)})") from error
    return _check_card(card)


def _check_card(card: Any) -> dict[str, str]:
    check_keys("card", card, CARD)
    for name, text in card.items():
        right = isinstance(text, str) and 0 < len(text) <= 4000
        right = right and all(letter.isprintable() or letter == "\n" for letter in text)
        check(right, f"card.{name}", text, "a text of 1 to 4000 printable characters")
    return dict(card)


# ---- what follows from it


def _state_ledger(ledger: Ledger, rounded: bool) -> dict[str, Any]:
    """What a ledger states, observer by observer.

    Args:
        ledger: of one run, or a composition.
        rounded: numbers rounded up, to be stated; else as they are, to compare with.
    """
    parts = ledger.parts or (ledger,)
    entries = [entry for part in parts for entry in part.releases]
    pairs = [pair for entry in entries if entry.count for _, pair in entry.rows()]
    histories = (ledger.history(client) for client in (None, *ledger.clients))
    counts = (sum(n for *_, n in accounting.flatten(history)) for history in histories)
    found: dict[str, Any] = {
        **ledger.terms._asdict(),
        "uncertified": ledger.uncertified,
        "rounds": sum(max((entry.round for entry in part.releases), default=0) for part in parts),
        "releases": max(counts),
        "noise_multiplier": [f(s for s, _ in pairs) for f in (min, max)] if pairs else [],
        "sample_rate": [f(q for _, q in pairs) for f in (min, max)] if pairs else [],
        "observers": [],
    }
    if ledger.streams:
        found["correlated"] = sorted({str(one["strategy"]) for one in ledger.streams})
    if not ledger.parts:
        found["sha256"] = hashlib.sha256(f"{ledger.to_json()}\n".encode()).hexdigest()
    for observer in ledger.observers if ledger.uncertified is None else ():
        one: dict[str, Any] = {name: ledger.epsilon_by(name, observer) for name in ("prv", "rdp")}
        rates = ledger.tradeoff(np.array([0.01, 0.001]), None, observer)
        second, name = ledger.second_opinion(observer)
        one |= {"dp_accounting": second, "epsilon": ledger.epsilon(None, observer)}
        one |= {"advantage": ledger.advantage(None, observer)}
        one |= {"tpr_fpr_1": float(rates[0]), "tpr_fpr_0_1": float(rates[1])}
        one = {key: _round_up(value) if rounded else value for key, value in one.items()}
        one = {key: value if math.isfinite(value) else None for key, value in one.items()}
        found["observers"].append(one | {"observer": observer, "second": name})
    return found


def _round_up(value: float) -> float:
    """Four significant digits, never below the value but for the last bits of a float."""
    if value == 0 or not math.isfinite(value):
        return value
    digits = 3 - math.floor(math.log10(value))
    return float(f"{math.ceil(value * 10.0**digits * (1 - 1e-12)) / 10.0**digits:.4g}")


def check_accountants(spent: Mapping[str, Any], place: str) -> None:
    """Raises `InvalidCertificate` unless the ledger's accountant and dp-accounting agree.

    Args:
        spent: of a ledger, with numbers as they are or as they are stated.
        place: for the error.

    Guarantees: test_accountants_that_disagree_are_refused.
    """
    for one in spent["observers"]:
        own, ours, second = (one[name] for name in ("epsilon", "prv", "dp_accounting"))
        if own is None and ours is None and second is None:
            continue  # a release without noise: no number to agree on
        right = None not in (own, ours, second)
        room = 0.02 + 0.01 * (second or 0.0)
        # Tight accountants agree from both sides, a Renyi bound may lie above. The accountant that
        # is relied on may only say more.
        right = (
            right and ours <= second + room and (one["second"] == "rdp" or ours >= second - room)
        )
        right = right and own >= min(second, ours) - room
        told = f"{spent['accountant']} {own}, prv {one['prv']}, dp-accounting {second}"
        _require(right, f"{place} against {one['observer']}", told, "accountants that agree")


def _status(spent: Mapping[str, Any] | None) -> tuple[str, str]:
    """Whether something is promised, and why not."""
    if spent is None:
        return "no guarantee", "it was trained without privacy"
    if reason := spent.get("none"):
        return "no guarantee", reason
    if spent["uncertified"] is not None:
        return "no guarantee", spent["uncertified"]
    if any(one["epsilon"] is None for one in spent["observers"]):
        return "no guarantee", "something was released without noise"
    if spent["reproducible"]:
        return "not for release", "the noise came from a recorded seed and can be subtracted"
    return "guaranteed", ""


def _ledger(content: Any, name: str) -> Ledger | None:
    return None if content is None else Ledger.from_json(json.dumps(content, sort_keys=True), name)


def _numbers(content: Mapping[str, Any], rounded: bool) -> dict[str, Any]:
    """The numbers that follow from the ledgers of a certificate."""
    books = {name: _ledger(text, f"ledgers.{name}") for name, text in content["ledgers"].items()}
    spending = {name: book and _state_ledger(book, rounded) for name, book in books.items()}
    together: dict[str, Any] | None = None
    released = {n: book for n, book in books.items() if book is None or not book.reproducible}
    counted = released if any(book is not None for book in released.values()) else books
    if len(books) > 1:
        names, bare = sorted(counted), [n for n, book in sorted(books.items()) if book is None]
        together = {"runs": names, "left_out": sorted(books.keys() - counted.keys())}
        if bare:
            why = f"trained without privacy on the same data: {', '.join(bare)}"
            together |= {"none": why}
        else:
            try:
                whole = Ledger.compose(*(book for book in counted.values() if book is not None))
                together |= _state_ledger(whole, rounded)
            except ValueError as error:
                together |= {"none": error_text(error)}
    return {"spending": spending, "together": together}


def _subject_numbers(content: Mapping[str, Any]) -> Any:
    """What is promised of what the certificate is about."""
    one = content["about"]["subject"]
    return content["together"] if one == "all runs" else content["spending"][one]


@cache
def _texts() -> dict[str, Any]:
    return tomllib.loads((HERE / "report.toml").read_text(encoding="utf-8"))["certificate"]


def _sentences(content: Mapping[str, Any]) -> dict[str, Any]:
    """The sentences that follow from the other sections."""
    said, spent = _texts(), _subject_numbers(content)
    status, because = _status(spent)
    books = [one for one in content["spending"].values() if one is not None]
    trusts = sorted({one["trust"] for one in books})
    facts = {
        "guaranteed": status == "guaranteed",
        "reproducible": any(one["reproducible"] for one in books),
        "uncertified": status == "no guarantee",
        "several": content["together"] is not None,
        "sampled": any(one["sample_rate"] and one["sample_rate"][0] < 1 for one in books),
        "example": any(one["unit"] == "example" for one in books),
        "person": any(one["unit"] == "person" for one in books),
        "client": any(one["unit"] == "client" for one in books),
        "always": True,
    }
    facts |= {trust: trust in trusts for trust in ("local", "secagg", "central")}
    return {
        "status": status,
        "summary": _summary(content, spent, status, because, said),
        "trust": [pair for trust in trusts for pair in said["trust"].get(trust, [])],
        "caveats": [text for fact, text in said["caveats"] if facts[fact]],
    }


def _unit(spent: Mapping[str, Any]) -> str:
    """What is hidden, in words."""
    return _texts()["units"].get(spent["unit"], f"one {spent['unit']}").format(**spent)


def _fill_ins(spent: Mapping[str, Any], because: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """What sentences about a status are filled with."""
    words: dict[str, Any] = {"why": because, "delta": spent.get("delta")}
    if spent.get("observers"):
        one = spent["observers"][0]
        words |= {name: one[name] for name in NUMBERS}
        words["unit"] = _unit(spent)
        words["observer"] = said["observers"][one["observer"]]
        words |= {"found": 100 * one["tpr_fpr_1"], "rare": 100 * one["tpr_fpr_0_1"]}
    return words


def _summary(
    content: Mapping[str, Any], spent: Any, status: str, because: str, said: Mapping[str, Any]
) -> list[str]:
    words = _fill_ins(spent, because, said)
    opening = [said["none"].format(**words)]
    if status != "no guarantee":
        start = said["seeded"] if status == "not for release" else []
        opening = [*start, *(text.format(**words) for text in said["promise"])]
        if content["about"]["subject"] == "all runs":
            opening = [said["all"].format(count=len(spent["runs"])), *opening]
    whole = content["together"]
    if whole is not None and content["about"]["subject"] != "all runs":
        apart, why = _status(whole)
        told = said["together_none"].format(why=why)
        if apart != "no guarantee":
            first = whole["observers"][0]["epsilon"]
            told = said["together"].format(count=len(whole["runs"]), epsilon=first)
        opening.append(told)
    return opening


def _distinct(values: Iterable[Any]) -> str:
    """The distinct values, of numbers their range."""
    some = [value for value in values if value is not None]
    if some and all(type(value) in (int, float) for value in some) and len({*some}) > 1:
        return f"{min(some):.4g} to {max(some):.4g}"
    return ", ".join(dict.fromkeys(map(str, some))) or "not recorded"


def _in_ledgers(content: Mapping[str, Any], name: str) -> str:
    """What the ledgers state under a name."""
    values = (one[name] for one in content["spending"].values() if one is not None)
    return _distinct(x for value in values for x in (value if isinstance(value, list) else [value]))


def _in_training(content: Mapping[str, Any], part: str, name: str) -> str:
    """What the runs have in a part of their settings ("method", "plan", "privacy", "lora")."""
    runs = (one for one in content["training"].values() if one is not None)
    return _distinct((one[part] or {}).get(name) for one in runs)


def _answers(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The questions of NIST SP 800-226, and what this certificate answers."""
    books = [one for one in content["spending"].values() if one is not None]
    units = sorted({_unit(one) for one in books})
    data, whole = content["data"], content["together"]
    sizes, test = data["sizes"] or [], data["test"]
    scores = ", ".join(
        f"{slug}: {one['measure']} {one['before']} before, {one['score']} after"
        for slug, one in content["utility"].items()
    )
    counted = "persons" if all(one["unit"] == "person" for one in books) else "examples"
    held = f"{len(sizes)} clients with {sum(sizes)} {counted}" if sizes else "not recorded"
    held += f"; {test} public test examples" if test else ""
    seeded = any(one["reproducible"] for one in books)

    def ledger(name: str) -> str:
        return _in_ledgers(content, name)

    names = sorted({name for one in books for name in one.get("correlated", ())})
    correlated = " and the sensitivity of a strategy" * bool(names)
    correlated += f" by which steps take earlier noise back ({', '.join(names)})" * bool(names)
    answers = [
        ("What is protected?", f"{'; '.join(units)}, replaced by nothing ({ledger('relation')})"),
        ("How strongly?", "ε, δ and what attackers find: the table above"),
        (
            "By what mechanism?",
            f"clipping to norm {_in_training(content, 'privacy', 'clip_norm')} and Gaussian noise "
            f"of {ledger('noise_multiplier')} times that norm{correlated}; sampled at rate "
            f"{ledger('sample_rate')}; {ledger('rounds')} rounds of "
            f"{_in_training(content, 'plan', 'local_steps')} local steps; at most "
            f"{ledger('releases')} releases of a unit; method "
            f"{_in_training(content, 'method', 'name')}",
        ),
        (
            "Where does the noise come from?",
            "recorded seeds in some runs: those are not for release"
            if seeded
            else "the operating system's entropy: nobody can draw it again",
        ),
        ("Against whom?", f"{ledger('trust')} trust: see the next table"),
        ("Is it computed correctly?", "counted from the ledger by two libraries, above"),
        ("How useful is the result?", scores or "not recorded"),
        ("What of the data is public?", f"{held}; what is said under “What it does not say”"),
        ("Side channels, access, collection?", "outside: “What it does not say”"),
    ]
    if whole is not None and whole["left_out"]:
        answers.append(("Not counted together", f"{', '.join(whole['left_out'])}: may not leave"))
    return answers


def _model_card(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of what is known of the model, and of what the user wrote."""
    card, data, empty = content["card"], content["data"], "not filled in"
    rows = [
        ("base model", card.get("base_model") or data["info"].get("model") or empty),
        ("task", data["name"] or "not recorded"),
        ("method", _in_training(content, "method", "name")),
        ("adapter", f"LoRA, rank {_in_training(content, 'lora', 'rank')}"),
    ]
    rows += [(name.replace("_", " "), card[name]) for name in CARD[1:] if name in card]
    if left := [name.replace("_", " ") for name in CARD[1:-1] if name not in card]:
        rows.append((empty, ", ".join(left)))
    return rows


def _page_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows beside the sections themselves."""
    spending, whole, texts = content["spending"], content["together"], _texts()
    several = [("all together", whole)] if whole is not None else []
    filled = _fill_ins(_subject_numbers(content), "", texts)
    parts = content["data"]["name"], _in_training(content, "method", "name")
    return {
        "headline": texts["headlines"][content["status"]].format(**filled),
        "title": ", ".join(filter(None, parts)),
        "rows": [*spending.items(), *several],
        "delta": _in_ledgers(content, "delta"),
        "accountant": _in_ledgers(content, "accountant"),
        "answers": _answers(content),
        "model": _model_card(content),
        "ledgers": [(name, one) for name, one in spending.items() if one is not None],
    }


# ---- the certificate


@dataclass(frozen=True)
class Certificate:
    """What runs promise to whom, with all that is needed to check it.

    Args: content: the sections, JSON values.

    >>> Certificate({"status": "guaranteed", "summary": ["ε = 2."]})
    Certificate(guaranteed: ε = 2.)
    """

    content: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Certificate({self.content['status']}: {' '.join(self.content['summary'])})"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p><b>{escape(self.content['status'])}.</b> {escape(repr(self)[12:-1])}</p>"

    @property
    def text(self) -> str:
        """The JSON as it is written: names sorted, so that one content has one text."""
        return _dump(self.content)

    @property
    def page(self) -> str:
        """The page, self-contained."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        return _page_template().render(
            c=self.content, said=_texts(), digest=digest, **_page_fields(self.content)
        )

    def require_covered(self, ledger: Ledger | None) -> None:
        """Raises ``ValueError`` unless every release of a ledger is in one of the certificate's.

        Args: ledger: of the record whose adapter is to carry the certificate.
        Guarantees: test_an_adapter_carries_its_own_certificate_only.
        """
        check(ledger is not None, "ledger", None, "a run with privacy")
        assert ledger is not None
        books = (_ledger(text, "ledgers") for text in self.content["ledgers"].values())
        own = ledger.terms, ledger.releases
        same = any(b is not None and (b.terms, b.releases[: len(own[1])]) == own for b in books)
        check(
            same, "certificate", self.content["about"]["subject"], "that of the run of this record"
        )

    def save(self, folder: str | Path, adapter: bool = False) -> Path:
        """Writes ``certificate.json`` and ``certificate.html`` into a folder; returns the first.

        Args:
            folder: made when it is missing.
            adapter: the folder is one of an adapter, whose files the certificate then names.
        """
        path, whole = Path(folder), self
        if adapter:
            found = _digests(path, _adapter_files(path))
            check(bool(found), "folder", str(path), "an adapter folder with its files")
            about = {**self.content["about"], "kind": "adapter"}
            whole = Certificate(_with_digests({**self.content, "about": about, "files": found}))
        (path / SIGNATURE).unlink(missing_ok=True)  # it would be that of another text
        files.write_atomically(path / PAGE, whole.page, shared=True)
        files.write_atomically(path / NAME, whole.text, shared=True)
        return path / NAME


@cache
def _page_template() -> Any:
    from jinja2 import Environment, StrictUndefined

    options: Any = {"autoescape": True, "undefined": StrictUndefined, "finalize": _printable}
    env: Any = Environment(trim_blocks=True, lstrip_blocks=True, **options)
    return env.from_string((HERE / "certificate.html").read_text(encoding="utf-8"))


def _printable(value: Any) -> Any:
    """A text without letters that reorder or hide others."""
    if not isinstance(value, str):
        return value
    return "".join(x if x.isprintable() or x == "\n" else "\ufffd" for x in value)


def _dump(content: Any) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _section_digest(section: Any) -> str:
    return hashlib.sha256(_dump(section).encode()).hexdigest()


def _with_digests(content: dict[str, Any]) -> dict[str, Any]:
    """The certificate with its words, and the digests of its sections."""
    whole = {**content, **_sentences(content)}
    digests = {name: _section_digest(whole[name]) for name in SECTIONS}
    # In the order in which a file has it: the page of what was read is the page that was written.
    return json.loads(_dump({**whole, "digests": digests}))


def certificate(
    path: str | Path,
    *,
    run: str | None = None,
    card: Mapping[str, str] | None = None,
    budget: str | Path | None = None,
) -> Certificate:
    """States what the runs in a folder promise to whom; `Certificate.save` writes it.

    Args:
        path: a run folder, as run, compare and flower write it, or a checkpoint folder of `fl.run`.
        run: the name of one run in it, such as "rolora-release"; default: the only one, or all
            together.
        card: texts under the names in `CARD`, such as ``{"intended_use": "..."}``.
        budget: file of an `fl.Budget` that the runs were counted in; its digest is stated.

    Raises: ``ValueError`` where no run has privacy, or a file is damaged; `InvalidCertificate`
        where accountants disagree.
    Guarantees: test_a_run_is_certified_and_verified, test_seeds_are_never_certified_as_protected,
        test_without_privacy_nothing_is_certified, test_an_uncertified_ledger_states_no_epsilon.
    Source: questions after NIST SP 800-226 (2025); card after arXiv:1810.03993.

    >>> certificate("nowhere")
    Traceback (most recent call last):
    ValueError: folder='nowhere': expected a run folder ...
    """
    check(isinstance(path, (str, Path)), "folder", path, "the path of a run folder")
    found = _read_source(Path(path).expanduser())
    names = tuple(found["ledgers"])
    expected = "one of " + ", ".join(names)
    check(run is None or run in names, "run", run, expected)
    bare = run is not None and found["ledgers"][run] is None
    check(not bare, "run", run, "a run with privacy: without it there is nothing to certify")
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "about": {
            "kind": "run",
            "subject": run or (names[0] if len(names) == 1 else "all runs"),
            "written": time.strftime("%Y-%m-%d", time.gmtime()),
        },
        "card": _check_card(card or {}),
        "budget": None,
        **found,
    }
    if budget is not None:
        file = Path(budget).expanduser()
        content["budget"] = {"name": file.name, **_digests(file.parent, [file.name])[file.name]}
    content |= _numbers(content, rounded=True)
    for place, spent in _stated(content):
        check_accountants(spent, place)
    return Certificate(_with_digests(content))


def _stated(content: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Place and numbers of all that states something."""
    pairs = [(f"spending.{name}", one) for name, one in content["spending"].items()]
    pairs.append(("together", content["together"]))
    return [(place, one) for place, one in pairs if one is not None and "observers" in one]


# ---- the check


def verify(path: str | Path, signer: str | Path | None = None, release: bool = False) -> str:
    """Checks a certificate without any data; returns in two sentences what holds.

    Every number is computed again from the ledgers, by the accountant of the ledger and by that of
    dp-accounting; every word follows from the numbers, every file has its digest.

    Args:
        path: certificate.json, or a run or adapter folder that holds one.
        signer: file with a public key, or ssh's allowed signers, whose signature it must have.
        release: refuse what states no guarantee for release.

    Raises: `InvalidCertificate` in one line that names the first fault.
    Guarantees: test_every_mutation_is_refused, test_every_changed_file_is_refused,
        test_accountants_that_disagree_are_refused, test_a_signature_is_checked.

    >>> verify("nowhere")
    Traceback (most recent call last):
    fedlora_lab.report.certificates.InvalidCertificate: nowhere: expected certificate.json or ...
    """
    _require(isinstance(path, (str, Path)), "certificate", str(path), "the path of a file")
    given = Path(path).expanduser()
    file = given / NAME if given.is_dir() else given
    expected = f"{NAME} or its folder"
    _require(file.exists() or file.is_symlink(), str(path), "nothing", expected)
    plain = file.is_file() and not file.is_symlink()
    _require(plain, str(file), "a link or another thing", "a file")
    _require(
        file.stat().st_size <= MAX_BYTES, str(file), "a larger one", f"at most {MAX_BYTES} bytes"
    )
    text = file.read_bytes()
    content = _parse(text, file.name)
    try:
        _check_content(content, file.name)
        place = _check_place(content, file, given.is_dir())
    except InvalidCertificate as error:
        software = content.get("software")
        writer = software.get("fedlora-lab") if isinstance(software, dict) else None
        if writer in (None, __version__):
            raise
        # The words of a page are those of its version.
        raise InvalidCertificate(
            f"{error}; it names fedlora-lab {writer}, this is {__version__}"
        ) from error
    signed = "it has no signature, so whoever wrote it could have written another"
    if signer is not None:
        _check_signature(file, Path(signer).expanduser())
        signed = f"it was signed with a key of {Path(signer).name}"
    elif (file.parent / SIGNATURE).exists():
        signed = "its signature was not checked (--signer)"
    if release:
        found = content["status"]
        _require(found == "guaranteed", f"{file.name}: status", found, "a guarantee for release")
    said, spent = _texts(), _subject_numbers(content)
    status, because = _status(spent)
    names = {"guaranteed": "sound", "not for release": "sound_seeded"}
    opening = said[names.get(status, "sound_none")].format(**_fill_ins(spent, because, said))
    counted = ""
    if status != "no guarantee":
        counted = f", counted again by two libraries from a ledger of {spent['releases']} releases"
    return (
        f"{opening}{counted}; {place}. Not known from this is whether the ledger tells all that "
        f"was done and the model came from it; {signed}."
    )


def _parse(text: bytes, name: str) -> dict[str, Any]:
    """The content of a certificate, whose text must be the one that it has."""
    try:
        content = files.parse_json(text, name)
    except ValueError as error:
        raise InvalidCertificate(error_text(error, 200)) from error
    try:
        again = _dump(content).encode()
    except (ValueError, RecursionError) as error:
        why = f"finite numbers, texts and few levels ({error_text(error, 80)})"
        raise InvalidCertificate(f"{name}: expected {why}") from error
    _require(isinstance(content, dict), name, type(content).__name__, "an object")
    kind = content.get("format", "none")
    _require(kind == FORMAT, f"{name}: format", kind, repr(FORMAT))
    lines = zip(text.split(b"\n"), again.split(b"\n"))
    first = next((k for k, (a, b) in enumerate(lines, 1) if a != b), 0)
    as_written = "names sorted and numbers as certify writes them"
    found = text.split(b"\n")[first - 1].decode(errors="replace") if first else "another end"
    _require(text == again, f"{name}, line {first}", found, as_written)
    return content


def _check_streams(content: Mapping[str, Any], name: str) -> None:
    """Raises unless the sensitivity of correlated noise is that of the steps and its strategy.

    Guarantees: test_a_certificate_computes_the_sensitivity_again.
    """
    for run, text in content["ledgers"].items():
        ledger = _ledger(text, f"ledgers.{run}")
        for one in () if ledger is None else ledger.streams:
            sizes = one["sensitivity"]
            sizes = sizes if isinstance(sizes, list) else [sizes]
            least = stream_sensitivity(one)
            pairs = list(zip(sizes * (len(least) if len(sizes) == 1 else 1), least))
            right = len(pairs) >= len(least) and all(a >= b * (1 - 1e-9) for a, b in pairs)
            words = f"at least {max(least):.6g}, that of its steps"
            _require(right, f"{name}: ledgers.{run}: sensitivity", sizes, words)


def _check_content(content: dict[str, Any], name: str) -> None:
    """Raises unless the sections are those of a certificate and follow from its evidence."""
    sections = {*SECTIONS, "format", "version", "digests"}
    for key in sorted(sections ^ content.keys()):
        found = "none" if key in sections else "it"
        words = f"a section {key!r}" if key in sections else f"no section {key!r}"
        _require(False, name, found, words)
    for key, value in (("format", FORMAT), ("version", VERSION)):
        same = type(content[key]) is type(value) and content[key] == value
        _require(same, f"{name}: {key}", content[key], repr(value))
    stated = content["digests"]
    _require(isinstance(stated, dict), f"{name}: digests", stated, "an object")
    _check_equal(dict.fromkeys(stated, ""), dict.fromkeys(SECTIONS, ""), f"{name}: digests")

    def check_digests(keys: tuple[str, ...]) -> None:
        for key in keys:
            same = stated[key] == _section_digest(content[key])
            _require(same, f"{name}: section {key}", "another", "what was written, by its digest")

    check_digests(EVIDENCE)
    try:
        _check_evidence(content)
        _check_streams(content, name)
        fresh = _numbers(content, rounded=False)
        all_runs = ["all runs"] if fresh["together"] is not None else []
        subject = content["about"]["subject"]
        _require(subject in [*fresh["spending"], *all_runs], f"{name}: subject", subject, "a run")
        for place, spent in _stated(fresh):
            check_accountants(spent, f"{name}: {place}")
        for key in NUMERIC:
            _check_equal(content[key], fresh[key], f"{name}: {key}")
        check_digests(NUMERIC)  # after what does not follow, which is named by its field
        for key, value in _sentences(content).items():
            _check_equal(content[key], value, f"{name}: {key}")
        check_digests(VERBAL)
        _ = Certificate(content).page  # one can be made of it
    except InvalidCertificate:
        raise
    except ValueError as error:
        raise InvalidCertificate(f"{name}: {error_text(error, 400)}") from error
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        why = f"{type(error).__name__}: {error_text(error, 80)}"
        raise InvalidCertificate(
            f"{name}: ledgers or spending: expected what certify writes ({why})"
        ) from error


def _check_evidence(content: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` unless what nothing else follows from has the right form."""
    for name in ("data", "files", "ledgers", "software", "training", "utility"):
        check(isinstance(content[name], dict), name, content[name], "an object")
    for name, version in content["software"].items():
        check(isinstance(version, str), f"software.{name}", version, "a text")
    about, data = content["about"], content["data"]
    _check_fields("about", about, ("kind", "subject", "written"))
    check_one_of("about.kind", about["kind"], ("run", "adapter"))
    try:
        day = date.fromisoformat(about["written"]).isoformat() == about["written"]
    except (TypeError, ValueError):
        day = False
    check(day, "about.written", about["written"], "a date")
    _check_card(content["card"])
    _check_fields("data", data, ("name", "sizes", "test", "info"))
    check(isinstance(data["info"], dict), "data.info", data["info"], "an object")
    sizes = [] if data["sizes"] is None else data["sizes"]
    listed = isinstance(sizes, list) and all(type(size) is int for size in sizes)
    check(listed, "data.sizes", sizes, "whole numbers")
    for name, one in content["files"].items():
        _check_file_digest(f"files.{name}", one, ("bytes", "sha256"))
    if content["budget"] is not None:
        _check_file_digest("budget", content["budget"], ("name", "bytes", "sha256"))
    for name, one in content["utility"].items():
        _check_fields(f"utility.{name}", one, ("measure", "before", "score"))
    for name, one in content["training"].items():
        if one is not None:
            _check_fields(f"training.{name}", one, ("method", "plan", "privacy", "lora"))
            for part, value in one.items():
                known = value is None or isinstance(value, dict)
                check(known, f"training.{name}.{part}", value, "an object")
    same = {*content["training"]} == {*content["ledgers"]}
    check(same, "training", sorted(content["training"]), "the runs that have ledgers")


def _check_fields(place: str, value: Any, fields: tuple[str, ...]) -> None:
    """Raises ``ValueError`` unless a value is an object with these fields and no others."""
    check(isinstance(value, dict), place, value, "an object")
    check({*value} == {*fields}, place, sorted(value), f"the fields {', '.join(fields)}")


def _check_file_digest(place: str, one: Any, fields: tuple[str, ...]) -> None:
    _check_fields(place, one, fields)
    check_whole(f"{place}.bytes", one["bytes"])
    right = isinstance(one["sha256"], str) and bool(re.fullmatch("[0-9a-f]{64}", one["sha256"]))
    check(right, f"{place}.sha256", one["sha256"], "64 hexadecimal digits")


def _check_equal(stated: Any, right: Any, place: str) -> None:
    """Raises `InvalidCertificate` at the first place where what is stated is not what follows."""
    if isinstance(right, dict) and isinstance(stated, dict):
        for key in sorted({*right, *stated}):
            _require(key in right, f"{place}.{key}", "it", "no such field")
            _require(key in stated, f"{place}.{key}", "none", "a field of this name")
            _check_equal(stated[key], right[key], f"{place}.{key}")
    elif isinstance(right, list) and isinstance(stated, list):
        words = f"{len(right)} entries"
        _require(len(right) == len(stated), place, f"{len(stated)}", words)
        for k, pair in enumerate(zip(stated, right)):
            _check_equal(*pair, f"{place}[{k}]")
    elif place.rpartition(".")[2] in NUMBERS and isinstance(right, float):
        # Rounded up, and computed again with other versions of the packages perhaps.
        near = isinstance(stated, float) and right * (1 - 1e-6) <= stated <= right * 1.01 + 1e-6
        _require(near, place, stated, f"{_round_up(right):.4g}, which the ledger's releases give")
    else:
        same = type(stated) is type(right) and stated == right
        _require(same, place, stated, json.dumps(right)[:80])


def _check_place(content: Mapping[str, Any], file: Path, as_folder: bool) -> str:
    """Raises unless the files beside a certificate are those that it names; says what was looked
    at."""
    folder, stated = file.parent, content["files"]
    beside = any((folder / name).exists() for name in stated)
    if not as_folder and not beside:
        return f"none of the {len(stated)} files that it names lies beside it"
    if content["about"]["kind"] == "adapter":
        found = _adapter_files(folder)
        extra = sorted({*found} - {*stated})
        _require(not extra, str(folder), extra[:1], "no file that the certificate does not name")
    elif not beside:
        others = _adapter_files(folder)
        words = "the run folder of this certificate, or nothing beside it"
        _require(not others, str(folder), others[:1], words)
        return f"none of the {len(stated)} files that it names lies beside it"
    for name, one in stated.items():
        path = folder / name
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        plain = inside and path.is_file() and not path.is_symlink()
        _require(plain, name, "none, or a link", "the file that the certificate names")
        _require(_sha256(path) == one["sha256"], name, "others", "the bytes of its digest")
        size = path.stat().st_size
        _require(size == one["bytes"], f"{NAME}: files.{name}.bytes", one["bytes"], str(size))
    if content["about"]["kind"] == "run":
        try:
            now = _read_source(folder)
        except ValueError as error:
            raise InvalidCertificate(error_text(error)) from error
        for key, value in json.loads(_dump(now)).items():
            _check_equal(content[key], value, f"{NAME} and its folder: {key}")
    page = folder / PAGE
    if page.exists() or page.is_symlink():
        same = page.is_file() and not page.is_symlink()
        same = same and page.read_bytes() == Certificate(content).page.encode()
        _require(same, PAGE, "another", f"the page of {NAME}, as certify writes it")
    return f"all files that it names ({len(stated)}) are as they were"


# ---- signatures, by ssh-keygen


def _ssh_keygen(*words: str | Path, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(["ssh-keygen", *map(str, words)], capture_output=True, **options)
    except FileNotFoundError:
        raise ValueError("ssh-keygen: expected it to be installed, for signatures") from None


def sign(path: str | Path, key: str | Path) -> Path:
    """Signs a certificate with an SSH key; returns the signature's path.

    Args: path: certificate.json. key: file of the private key.
    Raises: ``ValueError`` where ssh-keygen is not installed or does not take the key.
    Guarantees: test_a_signature_is_checked.
    """
    key = Path(key).expanduser()
    check(key.is_file(), "key", str(key), "the file of a private SSH key")
    signature = Path(path).parent / SIGNATURE
    signature.unlink(missing_ok=True)  # ssh-keygen would ask whether to write over it
    done = _ssh_keygen("-Y", "sign", "-f", key, "-n", NAMESPACE, path)
    said = " ".join(done.stderr.decode(errors="replace").split())
    check(done.returncode == 0 and signature.is_file(), "key", str(key), f"a signature ({said})")
    return signature


def _check_signature(file: Path, signer: Path) -> None:
    check(signer.is_file(), "signer", str(signer), "a file with a public key or allowed signers")
    signature = file.parent / SIGNATURE
    plain = signature.is_file() and not signature.is_symlink()
    _require(plain, SIGNATURE, "none", "a signature beside the certificate")
    kinds = ("ssh-", "ecdsa-", "sk-")
    lines = signer.read_text(encoding="utf-8", errors="replace").splitlines()
    # A line of a public key begins with its kind, one of allowed signers with a name.
    lines = [f"signer {line}" if line.startswith(kinds) else line for line in lines]
    with tempfile.TemporaryDirectory() as folder:
        allowed = Path(folder) / "allowed"
        allowed.write_text("\n".join(lines) + "\n", encoding="utf-8")
        found = _ssh_keygen("-Y", "find-principals", "-s", signature, "-f", allowed)
        name = found.stdout.decode(errors="replace").split("\n")[0].split(",")[0] or "signer"
        with open(file, "rb") as content:
            words = ("-Y", "verify", "-f", allowed, "-I", name, "-n", NAMESPACE, "-s", signature)
            done = _ssh_keygen(*words, stdin=content)
    _require(done.returncode == 0, SIGNATURE, "another", f"the signature of a key in {signer.name}")
