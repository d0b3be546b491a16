"""Accuracy over the learning rate: what noise predicts, and what was measured.

    python -m studies rates    # trains; goes on after a kill
    python -m studies.rates    # the tables of studies/logbook.md, the figures of docs/rates.md

The rule of the prediction was read off committed tuning runs on digits at ε = 3, in both units;
results/rates-predicted.csv has what follows from it. The validation score falls 3 points below its
best where the noise that B takes up reaches about 3, which is ρ where A is noised alike. With A at
rest it is about 18. The study `rates` has other budgets, 1 and 8, and other seeds.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.markdown import fill_blocks, markdown_table
from fedlora_lab.measures.runs import check_equal_privacy, t_interval
from fedlora_lab.plots import grammar, style
from fedlora_lab.recipes.rehearsal import NEAR, plateau_begin, plateau_end
from studies import RESULTS, ROOT, runner
from studies.runner import select_rows

PAGE = ROOT / "studies" / "logbook.md"
FIGURES = {
    "example": ROOT / "docs" / "figures" / "rates.png",
    "client": ROOT / "docs" / "figures" / "rates-client.png",
}
"""Unit of privacy -> its picture."""
BOTH_NOISED = 3.0
"""ρ at which a plateau ends where both factors take up noise."""
A_AT_REST = 18.0
"""The same number, 3 d_in N τ² of B, where A is frozen."""
PLACES = {
    "rates": ["unit", "epsilon", "method"],
    "rates-elsewhere": ["setting", "method"],
    "rates-768": ["epsilon", "method"],
    "widths": ["epsilon", "start_scale"],
    "copies": ["clients", "rounds"],
}
"""Study -> what tells its places apart."""
CLAIMANT = "la-lora"
"""The method whose best rate stands in the figure as the rate that all share."""


LEADS = (("la-lora", "rolora"), ("la-lora", "fedlora"), ("ffa-lora", "fedlora"))
"""Claimed leads: of the first method over the second."""


def with_interval(values: Any, sign: str = "") -> str:
    """Writes a mean over seeds with its 95 % interval."""
    mean, half = t_interval(values)
    text = f"{mean:{sign}.1f} [{mean - half:{sign}.1f}, {mean + half:{sign}.1f}]"
    return text.replace("-", "−")


# ---- equal methods


class Equivalence(NamedTuple):
    """Whether a mean difference lies within a margin, by two one-sided t tests (TOST).

    Args:
        margin: what counts as no difference, chosen before the differences are seen.
        mean, low, high: of the differences, with the 90 % interval.
        p: the larger p value of the two tests, that the mean is above -margin and below it.
        verdict: "equal" where p < 0.05, else "cannot tell".
    """

    margin: float
    mean: float
    low: float
    high: float
    p: float
    verdict: str


def equivalence(differences: np.ndarray, margin: float) -> Equivalence:
    """Tests whether paired differences have a mean within a margin.

    No difference found is no equality shown: few seeds find none anywhere.

    Args: differences: (n,), one a seed, n >= 2, not all the same. margin: > 0, in their unit.
    Guarantees: equal just where the 90 % interval lies within the margin
        (test_pairs.py::test_equality_is_an_interval_within_the_margin).

    >>> equivalence(np.array([0.4, -0.3, 0.1]), margin=1.0).verdict
    'equal'
    """
    from scipy.stats import ttest_1samp  # slow to import

    mean, half = t_interval(differences, 0.9)
    above = ttest_1samp(differences, -margin, alternative="greater").pvalue
    below = ttest_1samp(differences, margin, alternative="less").pvalue
    p = float(max(above, below))
    verdict = "equal" if p < 0.05 else "cannot tell"
    return Equivalence(margin, mean, mean - half, mean + half, p, verdict)


# ---- plateaus


def score_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Pivots the runs of one method in one setting: a row a rate, ascending, a column a seed."""
    return frame.pivot(index="lr", columns="seed", values="accuracy")


def octaves(scores: pd.Series) -> float:
    """Measures how wide a plateau is, in doublings of the rate.

    Args: scores: by rate, ascending.
    """
    return float(np.log2(plateau_end(scores) / plateau_begin(scores)))


def plateaus(name: str) -> pd.DataFrame:
    """Measures the plateau of the mean at each place of a study.

    Args: name: of `PLACES`.
    Returns: what tells the places apart; best (mean accuracy) and best_lr; last_lr, the largest
        rate of the grid on the plateau, and where it is predicted predicted_lr; octaves, the width
        seed by seed; end, the rate where it ends; noise, what B takes up there.
    """
    frame = runner.read_study(name)
    predicted = RESULTS / f"{name}-predicted.csv"
    if predicted.is_file():
        frame = frame.merge(pd.read_csv(predicted), on=[*PLACES[name], "lr"])
    else:  # of FedLoRA alone, where it is the number that runs record
        frame["taken_up"] = frame["amplification"]
    rows = []
    for place, part in frame.groupby(PLACES[name], sort=False):
        table = score_table(part)
        mean = table.mean(axis=1)
        end = plateau_end(mean)
        # Noise goes with the square of the rate.
        growth = (part["taken_up"] / part["lr"] ** 2).mean()
        row = dict(zip(PLACES[name], place, strict=True))
        last = mean[: end * (1 + 1e-9)].index[-1]
        row |= {"best": mean.max(), "best_lr": mean.idxmax(), "last_lr": last}
        if "on_plateau" in part:
            row |= {"predicted_lr": part.loc[part["on_plateau"], "lr"].max()}
        width = with_interval(table.apply(octaves))
        rows.append({**row, "octaves": width, "end": end, "noise": growth * end**2})
    return pd.DataFrame(rows)


# ---- one rate for all, or one for each


def shared_and_own(frame: pd.DataFrame, claimant: str, rival: str) -> tuple[str, str, str]:
    """Writes a lead in points: at one rate for both, and with each at its own best.

    Args: frame: runs of one setting. claimant, rival: methods.
    Returns: the lead at the claimant's best rate; the least and the largest at a rate on the
        claimant's plateau; the lead with each at its own best.
    """
    one, other = (score_table(select_rows(frame, method=x)) for x in (claimant, rival))
    # The grid is the same for all methods, and so are the seeds.
    gaps = one - other
    mean = one.mean(axis=1)
    best, own = mean.idxmax(), other.mean(axis=1).idxmax()
    on_plateau = 100 * gaps.mean(axis=1)[mean >= mean.max() - NEAR]
    span = f"{on_plateau.min():+.1f} to {on_plateau.max():+.1f}".replace("-", "−")
    at_one, each = (
        with_interval(100 * x, "+") for x in (gaps.loc[best], one.loc[best] - other.loc[own])
    )
    return at_one, span, each


def places() -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields the settings at which six methods ran at the same rates and spent the same epsilon."""
    for name, label in (("rates", "unit"), ("rates-elsewhere", "setting")):
        settings = runner.read_study(name).groupby([label, "epsilon"], sort=False)
        for (value, epsilon), part in settings:
            for slug in part["method"].unique():
                check_equal_privacy(part, CLAIMANT, slug)
            yield f"{value}, ε = {epsilon:g}", part


def shared_rate_table() -> pd.DataFrame:
    """Measures how far apart six methods lie at each rate that suits at least one of them.

    A rate suits a method if its mean accuracy is on the method's plateau (`NEAR`).

    Returns: place and lr; apart, the best less the worst mean, in points; first and last, which
        methods these are; lowest, the accuracy of the last one and before, that of the untrained
        model; apart_tuned and gained, of the place: how far apart the methods lie at their own best
        rates, and what training gains at most, in points.
    """
    rows = []
    for place, part in places():
        means = part.groupby(["lr", "method"])["accuracy"].mean().unstack()
        tops = means.max()
        before = part["before_accuracy"].mean()
        whole = {"apart_tuned": 100 * np.ptp(tops), "gained": 100 * (tops.max() - before)}
        for rate, scores in means[(means >= tops - NEAR).any(axis=1)].iterrows():
            ends = {"first": scores.idxmax(), "last": scores.idxmin(), "lowest": scores.min()}
            spread = {"apart": 100 * np.ptp(scores), "before": before}
            rows.append({"place": place, "lr": rate, **spread, **ends, **whole})
    return pd.DataFrame(rows)


EQUAL = 6.0
"""Points of accuracy within which the page calls methods equal."""


def equal_pairs() -> pd.DataFrame:
    """Tests for every two methods whether they are equal, each at its own best rate.

    Returns: place, one, other, and margin, mean, low, high, p in points and verdict, as of
        `equivalence`. Rates are chosen on the runs shown.
    """
    rows = []
    for place, part in places():
        scores = {}
        for slug, runs in part.groupby("method"):
            table = score_table(runs)
            scores[slug] = 100 * table.loc[table.mean(axis=1).idxmax()]
        for one, other in combinations(scores, 2):
            test = equivalence((scores[one] - scores[other]).to_numpy(), EQUAL)
            pair = {"place": place, "one": one, "other": other}
            rows.append(pair | test._asdict())
    return pd.DataFrame(rows)


def shared_rates() -> str:
    """The same as a table of the page: a row a place."""
    heads = ["place", "at each shared rate", "each at its own best", "pairs shown within 6 points"]
    rows = [[*heads, "gained by training"]]
    pairs = (
        equal_pairs().groupby("place")["verdict"].agg(lambda x: f"{sum(x == 'equal')} of {len(x)}")
    )
    for place, part in shared_rate_table().groupby("place", sort=False):
        apart = ", ".join(f"{number:.1f}" for number in part["apart"])
        tuned, gained = (f"{part[name].mean():.1f}" for name in ("apart_tuned", "gained"))
        rows.append([str(place), apart, tuned, pairs[place], gained])
    return markdown_table(rows)


# ---- the page


@style.paper()
def figure(frame: pd.DataFrame, table: pd.DataFrame) -> style.Figure:
    """Draws accuracy over the rate, a panel a budget, a mark at each method's best.

    Args: frame: of the study, one unit of privacy. table: of `plateaus`.
    """
    budgets = frame["epsilon"].map("ε = {:g}, every ".format)
    picture = grammar.lines(
        frame.assign(setting=budgets + frame["unit"] + " protected"),
        "lr",
        value="accuracy",
        band="area",
        panel="setting",
        title=finding(frame),
        xlabel="learning rate",
        ylabel="accuracy after the last round",
        log="x",
        reference=float(frame["before_accuracy"].mean()),
    )
    # Each second one, or the labels run into one another.
    rates = sorted(frame["lr"].unique())[::2]
    bests = table.groupby(["unit", "epsilon"], sort=False)
    for ax, (_, best) in zip(picture.axes, bests, strict=True):
        ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
        for row in best.to_dict("records"):
            rate = row["best_lr"]
            style.draw_dots(
                ax,
                [rate],
                [row["best"]],
                style.look(row["method"]).colour,
                12,
                marker="*",
                zorder=4,
            )
            if row["method"] == CLAIMANT:
                ax.axvline(rate, color=style.GREY, lw=1, ls=style.DASHED, zorder=0.9)
    style.footer(
        picture,
        f"digits; seeds: {frame['seed'].nunique()}, band: 95 % interval of the mean; "
        "star: a method's best, some covered; "
        f"dashed: the best rate of {style.name(CLAIMANT)}; dotted: before training",
    )
    return picture


def finding(frame: pd.DataFrame) -> str:
    """Says in one line how far apart methods are at one rate, and each at its own.

    Of the rates within `NEAR` of the best of some method.
    """
    place = str(frame["unit"].iloc[0])
    table = shared_rate_table()
    table = table[table["place"].str.startswith(place)]
    apart, each = table["apart"], table["apart_tuned"].max()
    at_one = f"{apart.median():.0f} (median) to {apart.max():.0f} points apart"
    return f"At rates good for one, six methods lie {at_one}; at their own, up to {each:.0f}"


def lead_table() -> str:
    """The claimed leads at a shared rate and at the own rates."""
    rows = [
        ["lead", "place", "at the claimant's best rate", "on its range", "each at its own best"]
    ]
    for claimant, rival in LEADS:
        words = f"{style.name(claimant)} over {style.name(rival)}"
        for place, part in places():
            rows.append([words, place, *shared_and_own(part, claimant, rival)])
            words = ""
    return markdown_table(rows)


def write() -> None:
    """Writes the measured block of the page, the plateaus and the figures."""
    equal_pairs().to_csv(RESULTS / "rates-equal.csv", index=False, float_format="%.4g")
    frame = runner.read_study("rates")
    tables = {name: plateaus(name) for name in PLACES}
    for name, table in tables.items():
        table.to_csv(RESULTS / f"{name}-plateaus.csv", index=False, float_format="%.4g")
    blocks = {"measured": lead_table(), "shared": shared_rates()}
    text = fill_blocks(PAGE.read_text(encoding="utf-8"), blocks)
    write_atomically(PAGE, text, shared=True)
    for unit, path in FIGURES.items():
        picture = figure(select_rows(frame, unit=unit), select_rows(tables["rates"], unit=unit))
        write_atomically(path, style.png(picture), shared=True)


if __name__ == "__main__":
    write()
