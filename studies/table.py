"""The open table: a card of every row under one protocol.

    python -m studies.table run [ROW ...]  trains what is missing and writes results/table/ROW.json
    python -m studies.table card FILE.py:ROW [quick]    writes cards/ROW.json; quick: tries the row
    python -m studies.table page           writes the tables of docs/table.md, and its figures

`studies/protocol.py` has the protocol.
Predicted is where the range of rates of each row ends in each setting: where the noise on a layer's
output has the variance 0.35. results/table/predicted.csv had it before any run.
"""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from fedlora_lab import methods
from fedlora_lab._utils.files import to_json, write_atomically
from fedlora_lab._utils.rounding import round_up
from fedlora_lab._utils.validation import check
from fedlora_lab.measures.runs import t_interval
from fedlora_lab.plots import style
from scripts.page_blocks import fill_blocks, markdown_table
from studies import RESULTS, ROOT, protocol
from studies.frames import TUNING_SEED

CARDS = RESULTS / "table"
STORES = RESULTS / "runs" / "table"
PAGE = ROOT / "docs" / "table.md"
EVIDENCE = ROOT / "docs" / "evidence" / "table.md"
WORDS = {
    PAGE: Path(__file__).with_name("table_page.md"),
    EVIDENCE: Path(__file__).with_name("table_settings.md"),
}
"""Page -> its words, without its tables."""
FIGURES = ROOT / "docs" / "figures"
WITHOUT_LORA = {
    "all-weights": "No LoRA: all layers but one",
    "head-only": "No LoRA: the classifier alone",
}
"""Row of `studies.ranks` -> its name here."""


def load_cards() -> list[dict[str, Any]]:
    """The committed cards of today's protocol, by name."""
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(CARDS.glob("*.json"))]
    return [card for card in cards if card["protocol"] == protocol.protocol_digest()]


def run(slugs: list[str]) -> None:
    """Trains rows and writes their cards; what is finished is not trained again."""
    for slug in slugs or list(methods.ALL):
        path = CARDS / f"{slug}.json"
        if path.exists():
            continue
        with tqdm(disable=None, unit="round") as bar:
            out = STORES / slug
            card = protocol.run_protocol(methods.get(slug), jobs=-1, out=out, bar=bar)
        write_atomically(path, to_json(card), shared=True)
        print("\n".join(protocol.card_lines(card)), flush=True)


def make_card(place: str, only_try: bool = False) -> None:
    """Trains a row of somebody's own file by the protocol, and writes its card into cards/.

    Args: place: FILE.py:ROW. only_try: one round at two rates, and no card.
    """
    file, _, name = place.rpartition(":")
    row = runpy.run_path(file)[name]
    path = Path("cards") / f"{row.slug}.json"
    check(only_try or not path.exists(), "card", str(path), "a folder without a card of this row")
    options: Any = {"settings": protocol.QUICK, "seeds": protocol.SEEDS[:1]}
    if not only_try:
        options = {"out": path.with_suffix(".runs")}
    with tqdm(disable=None, unit="round") as bar:
        card = protocol.run_protocol(row, jobs=-1, bar=bar, **options)
    if not only_try:
        write_atomically(path, to_json(card), shared=True)
    print("\n".join(protocol.card_lines(card)), flush=True)


# ---- the page

Found = tuple[dict[str, Any], dict[str, Any]]
"""A card, and what it says of one setting."""


def trained_in(setting: str, cards: list[dict[str, Any]]) -> list[Found]:
    """The cards of the rows that could be trained in a setting, the best row first; those whose
    runs have no epsilon last, since they are compared with nobody.
    """
    found = [(card, card["settings"].get(setting, {})) for card in cards]
    found = [pair for pair in found if "accuracy" in pair[1]]
    place = lambda pair: (is_private(pair[0]), pair[1]["accuracy"])  # noqa: E731
    return sorted(found, key=place, reverse=True)


def is_private(card: dict[str, Any]) -> bool:
    """Whether an epsilon could be stated for all of a row's runs."""
    known = [found for found in card["settings"].values() if "accuracy" in found]
    return all(found["epsilon"] is not None for found in known)


def shown_name(card: dict[str, Any]) -> str:
    return card["name"] if is_private(card) else f"{card['name']} (no ε)"


def _number(value: float | None, text: str, missing: str = "not defined") -> str:
    return missing if value is None else format(value, text)


def gaps(card: dict[str, Any], cards: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """The differences of a row from FedLoRA, in the settings in which it trained otherwise."""
    pairs = [(card["settings"].get(name, {}), _base(name, cards)) for name in protocol.SETTINGS]
    return [
        more_than(found, base)
        for found, base in pairs
        if base is not None and "accuracy" in found and not is_same(found, base)
    ]


def cards_without_lora() -> list[dict[str, Any]]:
    """What the runs of `studies.ranks` found for the rows without LoRA, in the form of cards."""
    runs = pd.read_csv(RESULTS / "ranks.csv")
    reported = runs[runs["seed"].isin(protocol.SEEDS)]
    cards = []
    for slug, name in WITHOUT_LORA.items():
        settings = {}
        for setting, part in reported[reported["method"] == slug].groupby("setting"):
            scores = part.set_index(part["seed"].astype(str))["accuracy"]
            settings[setting] = {
                "accuracy": float(scores.mean()),
                "by_seed": scores.to_dict(),
                "rates": sorted(part["lr"].unique()),
                "epsilon": protocol.SETTINGS[str(setting)].epsilon,
            }
        cards.append({"method": slug, "name": name, "settings": settings})
    return cards


def own_ranks(setting: str) -> dict[str, tuple[int, float]]:
    """Row with LoRA of `studies.ranks` -> the rank of its best validation score, of 2 to 64 by
    octaves, and the mean accuracy there."""
    runs = pd.read_csv(RESULTS / "ranks.csv").query("setting == @setting")
    tried = runs[(runs["seed"] == TUNING_SEED) & runs["rank"].isin(2 ** np.arange(1, 7))]
    best = tried.loc[tried.groupby("method")["validation"].idxmax(), ["method", "rank"]]
    reported = runs[runs["seed"] != TUNING_SEED].merge(best).groupby("method")
    means = reported[["rank", "accuracy"]].mean()
    return {slug: (int(rank), score) for slug, rank, score in means.itertuples()}


def overview(cards: list[dict[str, Any]]) -> str:
    """The table of all rows with an ε, by accuracy in the first setting, with that at a rank of its
    own, and in how many of all settings a row is behind FedLoRA beyond its interval.
    """
    first = next(iter(protocol.SETTINGS))
    own = {slug: f" → {score:.3f} ({rank})" for slug, (rank, score) in own_ranks(first).items()}
    lines = []
    for card in filter(is_private, cards):
        score = _number(card["settings"].get(first, {}).get("accuracy"), ".3f", "refused")
        compared = gaps(card, cards)
        behind = sum(mean + half < 0 for mean, half in compared)
        share = f"{behind} of {len(compared)}" if compared else ""
        lines.append([card["name"], score + own.get(card["method"], ""), share])
    lines.sort(key=lambda line: line[1], reverse=True)
    head = ["method", "accuracy at rank 4 → at its own", "clearly behind FedLoRA in"]
    return markdown_table([head, *lines])


def table_of(setting: str, cards: list[dict[str, Any]]) -> str:
    """Writes the Markdown table of a setting, the best row first."""
    head = ["method", "accuracy", "more than FedLoRA", "rate", "collapsed at it"]
    head += ["range of rates", "v at its end", "predicted end", "deviation", "ε spent"]
    base = _base(setting, cards)
    pairs = trained_in(setting, cards)
    return markdown_table([head, *(_line(*pair, base, setting) for pair in pairs)])


def _base(setting: str, cards: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What FedLoRA's card says of a setting."""
    found = trained_in(setting, [card for card in cards if card["method"] == "fedlora"])
    return found[0][1] if found else None


def is_same(found: dict[str, Any], base: dict[str, Any]) -> bool:
    """Whether a row trained as another did, at every rate."""
    return found["rates"] == base["rates"]


def more_than(found: dict[str, Any], base: dict[str, Any]) -> tuple[float, float]:
    """The difference of two rows and the half of its 95 % interval, seed by seed: runs of a seed
    have their split in common.
    """
    gaps = [score - base["by_seed"][seed] for seed, score in found["by_seed"].items()]
    return t_interval(np.array(gaps))


def leads(cards: list[dict[str, Any]]) -> str:
    """Says how often a row is ahead of FedLoRA or behind it, beyond its interval."""
    rows = [card for card in cards if is_private(card) and card["method"] != "fedlora"]
    compared = [gap for card in rows for gap in gaps(card, cards)]
    above = sum(mean > half for mean, half in compared)
    below = sum(-mean > half for mean, half in compared)
    said = f"Of {len(compared)} comparisons with FedLoRA, each row at its own rate, **{above} are "
    said += f"clearly ahead and {below} clearly behind**, which means that the 95 % interval of "
    return said + "the difference leaves out zero."


def _line(
    card: dict[str, Any], found: dict[str, Any], base: dict[str, Any] | None, setting: str
) -> list[str]:
    collapsed = {one["lr"]: one["collapsed"] for one in found["rates"]}
    rates = [one["lr"] for one in found["rates"]]
    begin, end, at_end = found["begin"], found["end"], found["output_variance"]
    open_below, open_above = begin <= min(rates), end >= max(rates)
    edge = {min(rates): ", the first", max(rates): ", the last"}.get(found["rate"], "")
    if base is None or card["method"] == "fedlora":
        more = ""
    elif not is_private(card):
        more = "no ε, so not compared"
    elif is_same(found, base):
        more = "is FedLoRA here"
    else:
        more = "{:+.3f} ± {:.3f}".format(*more_than(found, base))
    return [
        shown_name(card),
        f"{found['accuracy']:.3f} ({_number(found['low'], '.3f')} to "
        f"{_number(found['high'], '.3f')})",
        more,
        f"{found['rate']:g}{edge}",
        f"{collapsed[found['rate']]} of {len(found['by_seed'])}",
        f"{begin:.2g}{' or less' * open_below} to {end:.2g}{' or more' * open_above}",
        "at least " * (open_above and at_end is not None) + _number(at_end, ".2g"),
        _number(found["predicted_end"], ".2g"),
        "0" if (found["deviation"] or 1) < 1e-6 else _number(found["deviation"], ".2g"),
        "none certified" if found["epsilon"] is None else round_up(found["epsilon"], ".3f"),
    ]


def figure(setting: str, cards: list[dict[str, Any]]) -> style.Figure:
    """Draws a line for each row: its accuracy, and its range of rates with the end that v
    predicted.
    """
    rates = protocol.SETTINGS[setting].rates
    found = trained_in(setting, cards)
    scores = [one["accuracy"] for card, one in found if is_private(card)]
    picture, axes = style.subplots(
        7.5, 1.5 + 0.24 * len(found), columns=2, sharey=True, width_ratios=[3, 4]
    )
    accuracy, rate = axes
    for y, (card, one) in enumerate(found):
        colour = style.look(card["method"]).colour
        low, high = (
            one[key] if one[key] is not None else one["accuracy"] for key in ("low", "high")
        )
        accuracy.plot([low, high], [y, y], color=colour, lw=1.5, alpha=0.5)
        style.draw_dots(accuracy, [one["accuracy"]], [y], colour)
        rate.plot([one["begin"], one["end"]], [y, y], color=colour, lw=4, alpha=0.35)
        if one["begin"] <= rates[0]:
            rate.plot(rates[:1], [y], "<", color=colour, ms=6)
        if one["end"] >= rates[-1]:
            rate.plot(rates[-1:], [y], ">", color=colour, ms=6)
        style.draw_dots(rate, [one["rate"]], [y], colour)
        if one["predicted_end"] is not None:
            rate.plot([one["predicted_end"]], [y], "|", color=style.INK, ms=11, mew=2)
    accuracy.set_yticks(range(len(found)), [shown_name(card) for card, _ in found])
    accuracy.invert_yaxis()
    accuracy.axvline(float(np.mean([one["start"] for _, one in found])), color=style.SOFT, ls=":")
    accuracy.set_xlabel("accuracy at the chosen rate")
    rate.set_xscale("log", base=2)
    rate.set_xticks(rates, [f"{x:.2g}" for x in rates])
    rate.set_xlabel("learning rate")
    style.headline(picture, f"{in_words(setting)}: {min(scores):.2f} to {max(scores):.2f}")
    style.footer(
        picture,
        "Dots: the rate that validation chose, three seeds; thin lines: 95 % intervals; dotted: "
        "before training.\nBars: rates within three points of the best, with an arrow where they "
        "go on; black strokes: the end that v predicted.",
    )
    return picture


def in_words(setting: str) -> str:
    """A setting as readers see it."""
    return setting.replace("epsilon", "ε =")


def slug_of(setting: str) -> str:
    """The name of a setting in the names of files and blocks."""
    return setting.replace(", ", "-").replace(" ", "-")


def pages(cards: list[dict[str, Any]]) -> dict[Path, str]:
    """Fills the tables of the cards into the words of both pages."""
    blocks = {
        PAGE: {"overview": overview([*cards, *cards_without_lora()]), "leads": leads(cards)},
        EVIDENCE: {slug_of(name): table_of(name, cards) for name in protocol.SETTINGS},
    }
    return {
        path: fill_blocks(words.read_text(encoding="utf-8"), blocks[path])
        for path, words in WORDS.items()
    }


def write_page() -> None:
    """Writes the page and its figures, from the cards."""
    cards = load_cards()
    for name in protocol.SETTINGS:
        picture = style.png(figure(name, cards))
        write_atomically(FIGURES / f"table-{slug_of(name)}.png", picture, shared=True)
    for path, text in pages(cards).items():
        write_atomically(path, text, shared=True)


def main(act: str, *slugs: str) -> None:
    if act == "run":
        run(list(slugs))
    elif act == "card":
        make_card(slugs[0], "quick" in slugs[1:])
    elif act == "page":
        write_page()
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
