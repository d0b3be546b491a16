"""README, pages, evidence and the studies under way say what the committed frames say.

What the logbook alone says of finished studies was held here up to the commit 126919ed; neither
its text nor their frames change any more.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from places import ROOT

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.measures.runs import t_interval
from fedlora_lab.recipes.noise_on_outputs import OUTPUT_VARIANCE
from fedlora_lab.recipes.rehearsal import NEAR, plateau_end
from fedlora_lab.report import paired_difference
from studies.frames import TUNING_SEED
from studies.ranks import DIGITS, SENTENCES
from studies.table import own_ranks

RESULTS = ROOT / "results"


def words(path: str) -> str:
    """The text of a page without its line breaks."""
    return " ".join((ROOT / path).read_text("utf-8").split())


def missing(path: str, *sentences: str) -> list[str]:
    """Those that do not stand on a page."""
    text = words(path)
    return [sentence for sentence in sentences if sentence not in text]


def logbook_line(start: str) -> str:
    """The row of a table of the logbook that begins so."""
    text = (ROOT / "studies" / "logbook.md").read_text("utf-8")
    return next(line for line in text.splitlines() if line.startswith(f"| {start}"))


def curves() -> Iterator[tuple[Any, pd.DataFrame, float]]:
    """Of each setting of study `rates` the accuracy, by method and rate and by seed, and that of
    the untrained model."""
    runs = pd.read_csv(RESULTS / "rates.csv")
    for place, part in runs.groupby(["unit", "epsilon"], sort=False):
        scores = part.pivot_table("accuracy", ["method", "lr"], "seed")
        yield place, 100 * scores, 100 * part["before_accuracy"].mean()


# ---- one rate for all methods, or one for each


def test_the_pages_say_what_one_shared_rate_hides():
    """A rate suits a method whose mean is within three points of its best."""
    apart, lost, leaders = [], {}, set()
    for place, scores, before in curves():
        means: Any = scores.mean(axis=1).unstack("lr")
        suits = means.ge(means.max(axis=1) - 100 * NEAR, axis=0).any()
        for rate in means.columns[suits]:
            at = means[rate]
            apart.append(np.ptp(at))
            if at.min() < before:
                lost[place] = np.ptp(at)
                leaders.add(at.idxmax())
                assert at.idxmin() in ("fedlora", "fedlpp")
    assert (len(apart), len(lost), leaders) == (15, 4, {"ffa-lora"})
    span = f"{min(lost.values()):.0f} to {max(lost.values()):.0f} points"
    near = max(set(apart) - set(lost.values()))
    readme = (
        f"[{lost['example', 8]:.0f} points](docs/rates.md#what-one-shared-rate-can-hide)",
        f"at ε = 8, and {lost['example', 1]:.0f} points at ε = 1",
    )
    assert missing("README.md", *readme) == []
    said = f"six methods lie at most {near:.1f} points apart", f"they lie {span} apart"
    assert missing("docs/rates.md", *said, "Fifteen rates of these settings") == []


def test_the_pages_say_how_near_six_methods_are_at_rates_of_their_own():
    distances = []
    for _, scores, _ in curves():
        means: Any = scores.mean(axis=1).unstack("lr")
        distances.append(np.ptp(means.max(axis=1)))
    most = f"{max(distances):.1f} points"
    readme = f"[{most}](docs/rates.md#what-one-shared-rate-can-hide)"
    assert missing("README.md", readme) == []
    six = pd.read_csv(RESULTS / "rates.csv")["method"].unique()
    cards = [json.loads((RESULTS / "table" / f"{slug}.json").read_text("utf-8")) for slug in six]
    table = pd.DataFrame([x["settings"] for x in cards]).map(lambda x: x["accuracy"])
    widest = f"the six lie at most {100 * np.ptp(table, axis=0).max():.1f} points apart"
    assert missing("docs/rates.md", f"six lie at most {most} apart. Five seeds", widest) == []


def test_the_example_of_the_page_of_rates_is_that_of_its_frame():
    """Fault: the page said of every method that noise ends its range. DEeR's steps are too long."""
    runs = pd.read_csv(RESULTS / "rates.csv").query("unit == 'example' and epsilon == 8")
    noised: Any = 100 * runs.pivot_table("accuracy", "method", "lr")
    first, second = (noised.loc[["fedlora", "ffa-lora"], rate] for rate in (0.4, 1.6))
    said = [
        "At the rate 0.4 FedLoRA reads {:.0f} % of the test scans and FFA-LoRA {:.0f} %".format(
            *first
        ),
        f"FFA-LoRA still reads {second['ffa-lora']:.0f} %. FedLoRA then reads",
        f"reads {second['fedlora']:.0f} %, which is less than the",
        f"the {100 * runs['before_accuracy'].mean():.0f} % that the model read before training",
    ]
    assert missing("docs/rates.md", *said) == []
    quiet: Any = 100 * pd.read_csv(RESULTS / "quiet-rates.csv").pivot_table(
        "accuracy", "method", "lr"
    )
    last = {"ffa-lora": 3.2, "la-lora": 3.2} | dict.fromkeys(("fedlora", "fedlpp", "rolora"), 1.6)
    assert all(quiet.loc[slug, rate] > noised.loc[slug, rate] + 30 for slug, rate in last.items())
    deer = f"DEeR reads {quiet.loc['deer', 1.6]:.0f} % without noise and"
    said = f"{deer} {noised.loc['deer', 1.6]:.0f} % with it"
    assert missing("docs/evidence/10.md", said) == []


def test_the_page_says_what_the_suggested_rate_costs_on_mnist():
    """Validation scans chose the best rate, and the costs are of test scans."""
    runs = pd.read_csv(RESULTS / "suggested-mnist.csv")
    costs = []
    for _, part in runs.groupby(["budget", "method"]):
        mean = part.groupby("octave")[["validation", "accuracy"]].mean()
        costs.append(100 * (mean["accuracy"][mean["validation"].idxmax()] - mean["accuracy"][0]))
    assert len(costs) == 8 and (runs["epsilon"] <= runs["budget"]).all()
    assert missing("docs/rates.md", f"on MNIST {max(costs):.1f} ([the tables]") == []


# ---- where a range ends


def measured_ends() -> pd.DataFrame:
    """The predicted ends of the registered test on digits, by cell and method, and those found."""
    runs = pd.read_csv(RESULTS / "ends.csv")
    mean = runs.groupby(["cell", "method", "lr"])["validation"].mean()
    found = mean.groupby(["cell", "method"]).apply(lambda x: plateau_end(x.droplevel([0, 1])))
    predicted = pd.read_csv(ROOT / "studies" / "ends-predicted.csv").set_index(["cell", "method"])
    return predicted.loc[found.index].assign(found=found).dropna(subset="v")


def test_the_pages_say_how_far_off_v_was_in_the_registered_test():
    table = measured_ends()
    assert table.index.unique("cell").size == 12 and len(table) == 48
    off: Any = np.log2(table["v"] / table["found"])
    typical, largest = 2 ** ((off**2).mean() ** 0.5), 2 ** off.abs().max()
    said = f"by a factor of {typical:.1f} typically and {largest:.1f} at most"
    assert missing("docs/rates.md", said) == []


def test_the_page_of_rates_and_lesson_04_say_where_v_fails():
    """Fault: it said "off by up to three times", and one query layer was off by twenty-one."""
    frame = pd.read_csv(RESULTS / "v-elsewhere.csv")
    late = {}
    for case, part in frame.groupby(["case", "method"]):
        means = part.groupby(2.0 ** part["octave"])["score"].mean()
        late[case] = -math.log2(plateau_end(means))
    one, few = (
        [late[case, x] for x in ("ffa-lora", "fedlora")] for case in ("one layer", "few steps")
    )
    assert -3.25 < min(one) < -2.75 and max(one) < 0 and 0.75 < min(few) < max(few) < 1
    said = (
        "| the last value projection alone | up to eight times too early |",
        "| one query projection, at rank 16 | twenty-one times too early |",
        "| 20 single steps | nearly twice too late |",
    )
    assert missing("docs/rates.md", *said) == []
    assert max(one) < -1.9
    said = "so v alone does not give you the rate."
    assert said in words("notebooks/04_why_is_noise_amplified.ipynb")


def test_the_evidence_of_lesson_04_says_at_which_rho_the_range_of_fedlora_ends():
    """ρ goes with the square of the rate. Where v is the bound, 16/576 ρ (1 + ρ) is 0.35."""
    table: Any = measured_ends()
    at_the_bound = math.sqrt(0.25 + OUTPUT_VARIANCE * 576 / 16) - 0.5
    page = words("docs/evidence/04.md")
    for cell, said in (("scaling 2, rank 4", "about 3.3"), ("epsilon 1", "about 1.7")):
        row = table.loc[(cell, "fedlora")]
        rho = at_the_bound * (row["found"] / row["v"]) ** 2
        assert said == f"about {rho:.1f}" and page.count(said) == 1


def test_lesson_05_says_what_a_larger_rank_gains():
    """Each method at the rate that is best by validation; five seeds tell no gain from another."""
    runs = pd.read_csv(RESULTS / "ends.csv")

    def accuracy(method: str, scaling: str, rank: int) -> pd.Series:
        cell = f"scaling {scaling}, rank {rank}"
        here = runs[(runs["cell"] == cell) & (runs["method"] == method)]
        rate = here.groupby("lr")["validation"].mean().idxmax()
        return here[here["lr"] == rate].set_index("seed")["accuracy"]

    gains: dict[str, list] = {"ffa-lora": [], "fedlora": []}
    for scaling in ("0.5", "2", "8"):
        for method, several in gains.items():
            several.append(100 * (accuracy(method, scaling, 16) - accuracy(method, scaling, 1)))
        apart = gains["ffa-lora"][-1] - gains["fedlora"][-1]
        assert 0 in fl.theory.mean_band(apart.to_numpy(), 2.776) and len(apart) == 5
    means = {fl.methods.get(slug).name: [one.mean() for one in x] for slug, x in gains.items()}
    (one, first), (two, second) = means.items()
    said = f"gains {one} {min(first):.1f} to {max(first):.1f} points and {two} {min(second):.1f} to"
    assert f"{said} {max(second):.1f}" in words("docs/evidence/05.md")


# ---- forty-five cells


def errors(table: pd.DataFrame) -> pd.DataFrame:
    """By prediction: cells, root mean square, median, earliest and latest, in octaves from the end
    that was found."""
    closed = table[table["found"].notna() & ~table["open"]]
    ends = closed[["v", "dry", "rehearsal"]].replace(math.inf, math.nan)
    off: Any = np.log2(ends.div(closed["found"], axis=0))  # type: ignore
    sizes = {"rms": (off**2).mean() ** 0.5, "median": off.abs().median()}
    return pd.DataFrame({"cells": off.count(), "earliest": off.min(), "latest": off.max(), **sizes})


def test_the_pages_say_what_forty_five_cells_found():
    table = pd.read_csv(RESULTS / "rehearsals-judged.csv")
    assert len(table) == 45 and not table.duplicated(["setting", "method"]).any()
    assert sum(table["setting"].str.startswith("qv")) == 12
    off = errors(table)
    for name, label in (("v", "from v"), ("dry", "dry run"), ("rehearsal", "rehearsal")):
        one = off.loc[name]
        typical, largest = 2 ** one["rms"], 2 ** max(-one["earliest"], one["latest"])
        row = f"{label} | {typical:.1f} | {largest:.1f} | {one['cells']:g} |"
        assert missing("docs/rates.md", row) == []
    typical, largest = 2 ** off["rms"], 2 ** -off["earliest"]
    mean, worst = typical["rehearsal"], largest["rehearsal"]
    linked = [f"[{factor:.1f}](docs/rates.md#where-a-range-ends)" for factor in (mean, worst)]
    assert missing("README.md", *linked) == []
    cheap = f"at most 3 points against the best rate tried in {sum(table['cost'] <= 0.03)} of 45"
    assert missing("docs/rates.md", cheap) == []


# ---- other findings


def test_the_pages_say_what_training_all_weights_found():
    columns = ["method", "epsilon", "seed", "accuracy"]
    names = ("full-model", "full-seeds", "digits-example")
    runs = pd.concat(pd.read_csv(RESULTS / f"{name}.csv")[columns] for name in names)
    scores = runs.dropna(subset="epsilon").set_index(columns[:3])["accuracy"].sort_index()
    gap = 100 * (scores["all-weights", 8.0] - scores["ffa-lora", 8.0]).dropna()
    mean, half = t_interval(gap.to_numpy())
    link = f"[{mean:.1f} points](studies/logbook.md#six-methods-in-two-minutes)"
    assert len(gap) == 20 and mean > half and missing("README.md", link) == []
    images = pd.read_csv(RESULTS / "fashion.csv").query("setting == 'trained' and seed < 3")
    tests = 100 * images.pivot(index="seed", columns="method", values="accuracy")
    mean, half = t_interval((tests["ffa-lora"] - tests["all-weights"]).to_numpy())
    link = f"[{mean:.1f} points](studies/logbook.md#fashion-mnist-over-a-hundred-clients)"
    assert mean > half and missing("README.md", link) == []


def test_the_pages_say_what_ten_seeds_of_fashion_mnist_found():
    """FFA-LoRA's leads with a frozen head, and in the further settings."""
    runs = pd.read_csv(RESULTS / "fashion.csv").query("seed < 10")

    def lead(setting: str, over: str) -> tuple[float, float]:
        scores = runs[runs["setting"] == setting].pivot_table("accuracy", "seed", "method")
        gap: Any = 100 * (scores["ffa-lora"] - scores[over])
        mean, half = t_interval(gap.to_numpy())
        return mean, half

    def interval(mean: float, half: float) -> str:
        return f"[{mean - half:.1f}, {mean + half:.1f}]".replace("-", "−")

    others = ("fedlora", "fedlpp", "deer", "rolora", "la-lora")
    leads = {slug: lead("frozen", slug) for slug in others}
    assert all(mean > half for mean, half in leads.values())
    cells = [f"{mean:.1f} {interval(mean, half)}" for mean, half in leads.values()]
    assert missing("studies/logbook.md", " | ".join(cells)) == []
    mean, half = leads["fedlora"]
    said = f"leads FedLoRA by {mean:.1f} points {interval(mean, half)} over ten seeds"
    assert missing("docs/table.md", said) == []
    for setting in ("epsilon 1", "epsilon 3", "alike", "clients"):
        mean, half = lead(f"frozen, {setting}", "fedlora")
        assert missing("studies/logbook.md", f"| {mean:.1f} {interval(mean, half)} |") == []
    tuned = pd.read_csv(RESULTS / "fashion.csv").query(
        f"setting == 'frozen' and seed == {TUNING_SEED}"
    )
    scores = tuned.pivot_table("validation", "lr", "method")
    chosen = pd.read_csv(RESULTS / "fashion-rehearsals.csv").groupby(["public", "method"])["chosen"]
    for kind, slug, rate in chosen.first().reset_index().to_numpy():
        costs = 100 * (scores[slug].max() - scores[slug][rate])
        assert f" {rate:g} | {costs:.1f} |" in logbook_line(f"rehearsed on: {kind}")


def views_of(setting: str) -> tuple[pd.DataFrame, float]:
    """The rows with LoRA, each with its rank and the mean of the reported seeds, at its own rank
    and at equal upload (the largest reported rank at
    which it sends no more than FedLoRA at rank 4); and the mean of all weights."""
    runs = pd.read_csv(RESULTS / "ranks.csv").query("setting == @setting")
    seeds = runs[runs["seed"] < 3].groupby(["method", "rank"])
    means, sent = seeds["accuracy"].mean(), seeds["bytes_up"].max()
    rows, lines = {}, []
    for slug, (rank, own) in own_ranks(setting).items():
        alike = sent[slug].index[sent[slug] <= sent["fedlora", 4]].max()
        rows[slug] = {"own rank": rank, "own": own, "equal": means[slug, alike]}
        there = "| |" if slug == "fed-zo" else f"{alike} | {means[slug, alike]:.3f} |"
        line = f"| {methods.get(slug).name} | {rank} | {own:.3f} | {there}"
        lines.append(line.replace(" 0.", " ."))
    assert missing("studies/logbook.md", *lines) == []
    return pd.DataFrame(rows).T.drop("fed-zo"), means["all-weights"].item()


def test_the_logbook_says_what_own_ranks_and_equal_upload_found():
    rows, full = views_of(DIGITS)
    own, equal = rows["own"], rows["equal"]
    six = own[["ffa-lora", "fedlora", "rolora", "deer", "la-lora", "fedlpp"]]
    behind = 100 * (own["fedlora"] - own["ravan"])
    spread = 100 * np.ptp(six)
    assert own.idxmax() == equal.idxmax() == "fed-sb"
    leads = 100 * (own.max() - full), 100 * (equal.max() - full)
    assert leads[0] < 0 < leads[1] < 2
    said = [
        f"own ranks: {spread:.1f} points, **held**",
        f"{-leads[0]:.1f} below at its own rank and {leads[1]:.1f} above at equal upload",
        f"FedLoRA at own ranks: {behind:.1f}, **held**",
    ]
    assert missing("studies/logbook.md", *said) == []
    assert missing("docs/table.md", f"highest accuracy of {len(rows) + 1} methods.") == []


def test_the_logbook_says_what_own_ranks_and_equal_upload_found_on_sentences():
    rows, full = views_of(SENTENCES)
    own, equal = rows["own"], rows["equal"]
    place, large = (own > own["fed-sb"]).sum() + 1, (rows["own rank"] >= 8).sum()
    assert (equal > equal["fed-sb"]).sum() == 3
    said = [
        f"place {place} of {len(rows) + 1}",
        f"{large} of {len(rows) + 1}",
        f"all {len(rows)} rows lie within {100 * np.ptp(equal):.1f} points",
    ]
    said += [f"{100 * (scores.max() - full):+.1f} points, **held**" for scores in (own, equal)]
    assert missing("studies/logbook.md", *said) == []


def test_the_pages_say_how_often_balanced_lora_leads():
    """Intervals of twelve settings hold together."""
    places = []
    for name in ("digits-client", "digits-example", "mnist-client", "mnist-example"):
        places += [part for _, part in pd.read_csv(RESULTS / f"{name}.csv").groupby("epsilon")]
    places += [x for _, x in pd.read_csv(RESULTS / "sentiment-example.csv").groupby("epsilon")]
    assert len(places) == 12
    counts = []
    for other in ("fedlora", "ffa-lora"):
        leads = [paired_difference(x, "balanced-lora", other, comparisons=12) for x in places]
        counts.append((sum(lead.low > 0 for lead in leads), sum(lead.high < 0 for lead in leads)))
    assert counts == [(6, 1), (6, 0)]
    assert missing("docs/evidence/methods.md", "[leads FedLoRA in six and is behind in one]") == []


def test_the_pages_say_how_many_claims_were_decided():
    claims = pd.read_csv(RESULTS / "claims.csv")
    verdicts = claims["verdict"].value_counts()
    holds, opposite, none = verdicts[["holds", "opposite", "no difference of that size"]]
    decided = f"[{holds + opposite + none}](studies/logbook.md#published-claims-measured-again)"
    of_these = f"{holds} hold here, {opposite + none} do not"
    assert missing("README.md", f"Of {len(claims)} claims they decide {decided}: {of_these}") == []


def test_the_evidence_states_what_stored_studies_found():
    """Claims that no notebook computes: lessons 04, 10 and 15."""
    scales = pd.read_csv(RESULTS / "own-outputs.csv").set_index("task")["input_mean_square"]
    means = scales.map(np.log).groupby("task").mean().map(np.exp)
    digits, texts, wide = means["digits"], means["sentiment"], means["texts-768"]
    said = f"on digits they have {digits:.2f}, on short texts {texts:.2f}, in the layers of 768"
    assert missing("docs/evidence/04.md", f"{said} inputs {wide:.2f}.") == []
    quiet = pd.read_csv(RESULTS / "quiet-rates.csv").query("method == 'fedlora' and lr == 1.6")
    said = f"no noise FedLoRA reads {100 * quiet['accuracy'].mean():.0f} % at the rate 1.6"
    assert missing("docs/evidence/10.md", said) == []
    ahead = {}
    for task in ("mnist", "sentiment"):
        runs = pd.read_csv(RESULTS / f"{task}-example.csv")
        means = 100 * runs.groupby(["epsilon", "method"])["accuracy"].mean().unstack()
        ahead[task] = means["rolora"] - means["ffa-lora"]
    images, texts = ahead["mnist"], ahead["sentiment"]
    said = f"RoLoRA is {images[3]:.1f} and {images[8]:.1f} points ahead of FFA-LoRA on MNIST"
    assert missing("docs/evidence/15.md", said) == []
    said = f"and {-texts[1]:.1f} and {-texts[8]:.1f} behind it on these 19,000 sentences"
    assert missing("docs/evidence/15.md", said) == []


def test_the_evidence_of_methods_states_what_cores_found():
    """Each row at its best rate, in the mean over three seeds."""
    runs = pd.read_csv(RESULTS / "cores.csv").fillna({"epsilon": 0.0})
    scores = 100 * runs.pivot_table("accuracy", ["epsilon", "method", "lr"], "seed")

    def best(epsilon: float, slug: str) -> pd.Series:
        here: Any = scores.xs((epsilon, slug))
        return here.loc[here.mean(axis=1).idxmax()]

    page = words("docs/evidence/methods.md")
    for epsilon in (0.0, 8.0):
        gap = best(epsilon, "fed-sb") - best(epsilon, "ravan")
        mean, half = t_interval(np.array(gap))
        assert f"by {mean:.1f} points" in page or f"by {mean:.1f} [" in page
        assert f"[{mean - half:.1f}, {mean + half:.1f}]".replace("-", "−") in page
    gap = best(8.0, "fedgsa") - best(8.0, "fedsvd")
    assert f"Its lead is {gap.mean():.1f} points" in page
