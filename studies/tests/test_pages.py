"""Pages on what was found: number by number, they say what the committed frames say."""

import math
import re

import numpy as np
import pandas as pd
from places import ROOT
from scipy.stats import t

from fedlora_lab.measures.runs import t_interval
from studies import amplification, ends, protocol, rates, runner, table, v_elsewhere


def apart_where_others_choose(runs):
    """How far apart the methods of a setting lie if four seeds choose the rate of the fifth."""
    grid = runs.pivot_table("accuracy", ["method", "lr"], "seed")
    scores: dict[str, list[float]] = {}
    for seed in grid:
        others = grid.drop(columns=seed).mean(axis=1)
        for method, rate in others.groupby("method").idxmax():
            scores.setdefault(method, []).append(grid.loc[(method, rate), seed])
    means = [np.mean(values) for values in scores.values()]
    return 100 * (max(means) - min(means))


def test_what_was_found_is_what_the_frames_say():
    """Number by number: all of the page of findings, and the four sentences of README."""
    results = ROOT / "results"
    rate = rates.shared_rate_table()
    digits = rate[rate["place"].str.contains("example|client")]
    assert digits["lowest"].lt(digits["before"]).sum() == 4 and len(digits) == 15
    apart = f"{digits['apart'].max():.0f} points"
    near = f"{digits['apart_tuned'].min():.1f} to {digits['apart_tuned'].max():.1f} points apart"
    chosen = f"{max(apart_where_others_choose(part) for _, part in rates.places()):.1f}"
    halves = []
    for place, part in rates.places():
        for row in digits[
            digits["lowest"].lt(digits["before"]) & digits["place"].eq(place)
        ].itertuples():
            at = part[part["lr"] == row.lr].pivot(index="seed", columns="method", values="accuracy")
            halves.append(100 * t_interval((at[row.first] - at[row.last]).to_numpy())[1])
    spread = f"interval of ± {min(halves):.0f} to {max(halves):.0f} points, from five seeds"
    pairs = rates.equal_pairs()
    pairs = pairs[pairs["place"].isin(digits["place"])]
    equal = f"for {sum(pairs['verdict'] == 'equal')} of the {len(pairs)} pairs"
    verdicts = pd.read_csv(results / "claims.csv")["verdict"].value_counts()
    limits = pd.read_csv(results / "claims.csv").groupby("verdict")["high_together"].max()
    ruled_out = math.ceil(100 * limits["no difference of that size"])
    holds, *refuted = verdicts[["holds", "opposite", "no difference of that size"]]
    decided = f"decide {holds + sum(refuted)}"
    undecided = verdicts[["cannot tell", "no gain to see here", "not measured here"]].sum()
    tuned = pd.read_csv(results / "digits-example.csv")
    fedlora = tuned.query("method == 'fedlora' and epsilon == 8")
    gaps = tuned.pivot(index=["epsilon", "seed"], columns="method", values="accuracy")
    exact = 100 * (gaps["fedex-lora"] - gaps["fedlora"]).dropna()
    leads = amplification.lead_table(runner.read_studies()).groupby("pair", sort=False)
    ahead, behind = (
        leads[end].agg(lambda x, sign=sign: (sign * x > 0).sum())
        for end, sign in (("low", 1), ("high", -1))
    )
    assert [*ahead[1:]] == [6, 6] and [*behind[1:]] == [1, 0] and leads.size().eq(12).all()
    base = pd.read_csv(results / "baselines.csv")
    free = base.query("epsilon.isna() and method == 'local'")["accuracy"].mean()
    base = base.query("epsilon == 8").groupby("method").mean(True)
    audits = pd.read_csv(results / "audit.csv")
    assert (
        audits["holds"].all() and {*audits["target"]} == {1, 3} and {*audits["canaries"]} == {500}
    )
    runs = pd.read_csv(results / "ends.csv").query("cell != 'no privacy'")
    found = ends.with_measured(runs)["found"]
    off = [f"{2**error:.2g}" for error in ends.judge(runs)["error"]]
    assert [*ends.RULES] == ["v", "u", "curvature"]
    many = {12: "twelve"}[runs["cell"].nunique()]
    numbers = [
        spread,
        equal,
        f"In {many} settings of digits with every example protected, eleven of them at ε = 8",
        f"v is off by a factor of {off[0]} (root mean square), the earlier rule by {off[1]}",
        f"the curvature by {off[2]}.",
        f"rates from {found.min():.2f} to {found.max():.1f}",
        f"Where four seeds choose for the fifth it is {chosen} points",
        f"within {math.ceil(digits['apart_tuned'].max())} points",
        *(apart, f"Of {verdicts.sum()} claims", decided, f"{holds} hold, {refuted[0]} come"),
        f"for {refuted[1]} a lead above {ruled_out} % of what training can gain",
        f"Another {verdicts['true by construction']} are true by construction",
        f"{verdicts['the setting does not carry the claim']} were measured at another ε",
        f"The other {undecided} were not decided",
        f"{100 * fedlora['deviation'].mean():.0f} % from the mean",
        *(rates.with_interval(exact[epsilon]).split(" ", 1)[1] for epsilon in (1, 3, 8)),
        f"reach {fedlora['accuracy'].mean():.3f} by FedLoRA",
        *(f"{x:.3f}" for x in (*base.accuracy, base.before_accuracy.mean(), free)),
        f"{len(audits):,} audits of {audits.method.nunique()} methods",
        f"proved is {audits.epsilon_lower.max():.2f}.",
        f"at most {audits.ceiling.max():.1f},",
    ]
    page = " ".join((ROOT / "studies" / "logbook.md").read_text(encoding="utf-8").split())
    assert [number for number in numbers if number not in page] == []
    sentences = found_by_readme()
    assert apart in sentences[0]
    rows = {name: [] for name in protocol.SETTINGS}
    for card in table.load_cards():
        if card["method"] in {*rate["first"], *rate["last"]} | {*table.KNOWN}:
            for name, found in card["settings"].items():
                rows[name].append(100 * found["accuracy"])
    by_validation = max(np.ptp(rows[name]) for name in rows if name.startswith("digits"))
    half = (pairs["high"] - pairs["low"]) / 2 * t.ppf(0.975, 4) / t.ppf(0.95, 4)
    differ = f"{(pairs['mean'].abs() > half).sum()} of the {len(pairs)} differences"
    open_pairs = pairs[pairs["verdict"] != "equal"]
    assert open_pairs["place"].str.startswith("client").all()
    assert f"{differ} are significant at 5 % each, two after Bonferroni's" in page
    assert f"the other {len(open_pairs)}, all with whole clients protected, are open" in page
    of_gain = []
    for place in protocol.SETTINGS:
        six = [c["settings"][place] for c in table.load_cards() if c["method"] in table.KNOWN]
        ends_of_six = [found["accuracy"] for found in six]
        of_gain.append(100 * np.ptp(ends_of_six) / (max(ends_of_six) - six[0]["start"]))
    *apart_on_digits, apart_on_sentences = [np.ptp(rows[name]) for name in protocol.SETTINGS]
    said = f"{min(apart_on_digits):.1f} to {by_validation:.1f} points on digits, and"
    assert f"{said} {apart_on_sentences:.1f} on sentences." in page
    of_gain = f"{min(of_gain):.0f} to {max(of_gain):.0f} %"
    shares = 100 * digits["apart_tuned"] / digits["gained"]
    assert f"{shares.min():.0f} to {shares.max():.0f} % of what training gains" in page
    assert near in page
    best = f"within [{digits['apart_tuned'].max():.1f} points]"
    assert best in sentences[1] and f"up to {shares.max():.0f} % of what training" in sentences[1]
    said = f"by validation and with three seeds, up to {by_validation:.1f}, and there the distance"
    assert f"{said} is {of_gain} of what training gains." in page
    # FFA-LoRA over α/r and rank: the nine ends that v had to follow over α/r.
    bound = runs["cell"].str.startswith("scaling") & (runs["method"] == "ffa-lora")
    nine = runs[bound].groupby("cell").ngroups
    rest = [2**error for error in ends.judge(runs[~bound])["error"]]
    assert (nine, runs.groupby(["cell", "method"]).ngroups) == (9, 48)
    assert f"they are off by {rest[0]:.2f} and {rest[1]:.2f}." in page
    centre = ("scaling 2, rank 4", "epsilon 1", "5 clients", "20 clients")
    there = [2**error for error in ends.judge(runs[runs["cell"].isin(centre)])["error"]]
    assert f"are off by {there[0]:.2f} and {there[1]:.2f}. The rule" in page
    judged = [table.ends_of(place, table.load_cards()) for place in protocol.SETTINGS]
    errors = [table.errors_of(found.query("not beyond")) for found in judged]
    *on_digits, on_sentences = (2**v for v, _ in errors)
    span = f"{min(on_digits):.1f} to {max(on_digits):.1f}"
    counted = {len(found.query("not beyond")) for found in judged[:4]}
    assert counted == {23, 24}
    # FedSA-LoRA as it was predicted first, beside the other rows.
    with_it = [
        2 ** float(np.sqrt((len(rows) * v**2 + gap**2) / (len(rows) + 1)))
        for found, (v, _), gap in zip(judged, errors, (1.43, 1.53, 0.95, -0.33))
        for rows in [found.query("not beyond")]
    ]
    wider = f"{min(with_it):.1f} to {max(with_it):.1f}"
    # The predictions of Local and of Fed-ZO as they were committed first, over the ends found.
    first = zip((1.43, 1.53, 0.95, -0.33), (2.35, 1.99, 2.05, 0.07), (1.36, 0.54, -2.57, -3.84))
    all_first = []
    for found, gaps in zip(judged, first):
        rows = found.query("not beyond").drop(index="local", errors="ignore")
        off_by = [*(rows["predicted"] - rows["found"]), *gaps]
        all_first.append(2 ** float(np.sqrt(np.mean(np.square(off_by)))))
    widest = f"{min(all_first):.1f} to {max(all_first):.1f}"
    assert f"it is {wider}, and {widest} with Local and Fed-ZO as first predicted, too" in page
    assert f"by a factor of {span} in its four settings of digits" in page
    one_rate = 2 ** errors[-1][1]
    assert f"off by {on_sentences:.1f}, where one rate for all rows would have been off by" in page
    assert f"would have been off by {one_rate:.1f}; which" in page and one_rate < on_sentences
    assert f"Of {verdicts.sum()} claims" in sentences[3] and decided + "]" in sentences[3].replace(
        "[", ""
    )
    assert holds == 3
    full = pd.read_csv(results / "full-model.csv").query("method == 'all-weights'")
    pair = full.merge(tuned.query("method == 'fedlora'"), on=["epsilon", "seed"])
    pair["gap"] = 100 * (pair["accuracy_x"] - pair["accuracy_y"])
    for _, part in pair.groupby("epsilon"):
        mean, half = t_interval(part["gap"].to_numpy())
        said = f"{mean:.1f} points [{mean - half:.1f}, {mean + half:.1f}]".replace("-", "−")
        assert said in page and len(part) == 3 and mean < half


def found_by_readme():
    """What we found: its items, each in one line."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (part,) = re.findall(r"## What we found\n(.*?)\n## ", readme, re.S)
    items = part.split("\n\n")[0]
    return [" ".join(item.split()) for item in f"\n{items}".split("\n- ")[1:]]


def test_three_pages_say_where_v_fails():
    """Fault: they said "off by up to three times", and one query layer was off by twenty-one."""
    said = (
        "with one adapted layer the predicted end comes up to three octaves too early, with all",
        "up to 1.6 octaves too late",
        "nearly one octave too late",
    )
    pages = [ROOT / "docs" / "rates.md", ROOT / "docs" / "table.md"]
    pages.append(ROOT / "notebooks" / "04_why_is_noise_amplified.ipynb")
    for page in pages:
        words = " ".join(page.read_text(encoding="utf-8").split()).lower()
        assert [part for part in said if part not in words] == [], page.name


def test_how_far_v_is_off_is_what_its_frame_says():
    late = v_elsewhere.octaves_late(pd.read_csv(v_elsewhere.FRAME))
    one, few = (
        [f"{abs(late[case, slug]):.1f}" for slug in ("ffa-lora", "fedlora")]
        for case in ("one layer", "few steps")
    )
    assert late["one layer", "fedlora"] < 0 < late["few steps", "ffa-lora"]
    page = " ".join((ROOT / "studies" / "logbook.md").read_text(encoding="utf-8").split())
    assert f"FFA-LoRA's end {one[0]} octaves too early and FedLoRA's {one[1]}" in page
    assert f"it puts them {few[0]} and {few[1]} octaves too late" in page
