"""Notebook 14: a model and a table to start from, and figures of plans made on public numbers."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedlora_lab._utils.validation import check_whole
from fedlora_lab.plots import style, tidy
from fedlora_lab.tasks import architectures

WORDS = ("good", "great", "fine", "poor", "awful", "dull", "film", "book", "song", "day", "very")


class Materials(NamedTuple):
    """A model, its tokenizer and a table of texts to start from.

    Args:
        model: a frozen classifier of texts.
        tokenizer: makes its inputs of a list of texts.
        table: columns text, label, site.
        targets, head: what gets adapters, and what is trained in full.
    """

    model: Any
    tokenizer: Any
    table: pd.DataFrame
    targets: tuple[str, ...]
    head: str


def materials(folder: str | Path, rows: int = 1000) -> Materials:
    """Makes a toy model of random weights, and sentences of four sites.

    Args: folder: new or empty, for the model; rows: of each site, drawn from a fixed seed.
    Guarantees: test_a_toy_trains_on_its_table.
    """
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

    check_whole("rows", rows, 1)
    table = _made_up(rows)
    with architectures.quiet():
        architectures.tiny("bert", folder, table["text"], hidden_size=32, initializer_range=0.3)
        model = AutoModelForSequenceClassification.from_pretrained(str(folder))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    places = tuple(f"layer.1.attention.self.{kind}" for kind in ("query", "value"))
    return Materials(model, tokenizer, table, places, "classifier")


def _made_up(rows: int) -> pd.DataFrame:
    """Makes sentences of twelve words at four sites; those with a kind word are positive."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, draw.integers(3, 9))) for _ in range(4 * rows)]
    kind = ["good" in text or "great" in text for text in texts]
    labels = np.where(kind, "positive", "negative")
    sites = np.repeat(["films", "news", "products", "tweets"], rows)
    return pd.DataFrame({"text": texts, "label": labels, "site": sites})


@style.paper()
def noise_over_releases(table: pd.DataFrame, floor: float) -> style.Picture:
    """Draws noise against signal over the number of releases, one line for each batch.

    Args:
        table: columns batch, releases, noise_to_signal.
        floor: what it comes down to.
    Guarantees: test_the_lines_are_the_tables.
    """
    figure, (ax,) = style.panels(7.6, 3.6, (0.1, 0.16, 0.68, 0.72))
    colours = (style.FACTOR["A"], style.FACTOR["B"], style.INK)
    labels = []
    for (batch, part), colour in zip(table.groupby("batch"), colours, strict=True):
        drawn = part["releases"], part["noise_to_signal"], f"batch {batch}", colour
        labels.append(style.named_line(ax, *drawn, marker="o"))
    ax.axhline(floor, color=style.GREY, ls=style.DASHED)
    high = 1.3 * table["noise_to_signal"].max()
    ax.set(xscale="log", yscale="log", ylim=(0.7 * floor, high))
    style.log_axis(ax.yaxis, (0.03, 0.1, 0.3))
    style.log_axis(ax.xaxis, tuple(sorted(table["releases"].unique())))
    ax.set(xlabel="releases N of a run, all at the same ε", ylabel="noise over the largest signal")
    ax.set_title("More steps and larger batches lower noise against signal, down to a floor")
    put: Any = {"transform": ax.get_yaxis_transform(), "va": "top"}
    style.note(ax, 0.02, 0.95 * floor, "dashed: the floor in closed form", **put)
    style.draw_labels(ax, labels)
    return figure


@style.paper()
def accuracy_by_budget(table: pd.DataFrame) -> style.Picture:
    """Draws the accuracy of every method over ε with 95 % intervals over seeds.

    Args: table: rows of a study: method, epsilon (NaN: without privacy), seed, before_accuracy,
        accuracy.
    Guarantees: test_the_budgets_show_the_study.
    """
    figure, (ax,) = style.panels(7.6, 3.6, (0.1, 0.16, 0.68, 0.72))
    table, labels = table.assign(epsilon=table["epsilon"].fillna(np.inf)), []
    places = {budget: i for i, budget in enumerate(sorted(table["epsilon"].unique()))}
    slugs = tidy.slugs_in_order(table)
    for i, slug in enumerate(slugs):
        part, look = table[table["method"] == slug], style.look(slug)
        budgets, mean, low, high = tidy.bands(part, "epsilon", "accuracy")
        x = np.array([places[budget] for budget in budgets]) + 0.06 * (i - (len(slugs) - 1) / 2)
        ax.vlines(x, low, high, color=look.colour, lw=2)
        drawn: Any = {"marker": look.marker, "dashes": look.dashes, "mec": style.CARD}
        labels.append(style.named_line(ax, x, mean, style.name(slug), look.colour, **drawn))
    start = table["before_accuracy"].mean()
    ax.axhline(start, color=style.GREY, ls=style.DOTTED)
    put: Any = {"transform": ax.get_yaxis_transform(), "va": "bottom"}
    style.note(ax, 0.02, start, f"before training {start:.2f}", **put)
    words = ["no privacy" if np.isinf(e) else f"ε = {e:g}" for e in places]
    ax.set_xticks(list(places.values()), words)
    ax.set(xlim=(-0.3, len(places) - 0.7), ylim=(start - 0.03, None), ylabel="test accuracy")
    ax.set_title("With thousands of sentences a site, ε = 8 costs FFA-LoRA little")
    style.draw_labels(ax, labels, together=False)
    seeds = table.groupby(["method", "epsilon"])["seed"].nunique().min()
    style.footer(figure, f"mean and 95 % interval over {seeds} seeds; MiniLM, four sites")
    return figure
