"""README.md and docs/first_steps.md: their code runs, what they show is the package's."""

import math
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
import toy_hubs
from calls import Options
from places import ROOT
from scipy.stats import t

import fedlora_lab as fl
from fedlora_lab._utils.statistics import t_interval
from fedlora_lab.cli.commands import commands
from fedlora_lab.recipes import protocol
from studies import amplification, ends, rates, runner, table

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "readme.py"))

STEPS = (ROOT / "docs" / "first_steps.md").read_text(encoding="utf-8")

(EIGHT_LINES,) = re.findall(r"```python\n(.*?)```", README, re.S)
*SENTENCES, TEN_LINES = re.findall(r"```python\n(.*?)```", STEPS, re.S)


@pytest.mark.further
@pytest.mark.slow
def test_the_eight_lines_print_what_stands_below_them(capsys):
    """Four kinds of arithmetic print the same digits. The ranges are wide, since a fifth may not:
    FedLoRA at the large rate ends anywhere below the untrained model."""
    assert len([line for line in EIGHT_LINES.splitlines() if line.strip()]) == 8
    (shown,) = re.findall(r"```text\n(.*?)```", README, re.S)
    exec(compile(EIGHT_LINES, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    pattern = r"^rate (\S+)  (\S+) +accuracy (\S+)$"
    runs = [re.findall(pattern, text, re.M) for text in (shown, printed)]
    assert [run[:2] for run in runs[0]] == [run[:2] for run in runs[1]] and len(runs[0]) == 4
    for _, method, accuracy in (run for text in runs for run in text if run[0] == "0.4"):
        assert 0.78 < float(accuracy) < 0.92, method
    for text in runs:
        broken, unbroken = (float(accuracy) for rate, _, accuracy in text if rate == "1.6")
        assert broken < 0.6 < 0.66 < 0.72 < unbroken


def test_the_page_is_short_and_fits_its_column():
    assert len(README.splitlines()) <= 140
    code = re.findall(r"```\w+\n(.*?)```", README, re.S)
    assert max(len(line) for block in code for line in block.splitlines()) <= 88
    assert (ROOT / "docs" / "figures" / "playground.gif").stat().st_size <= 1_500_000


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
    page = " ".join((ROOT / "docs" / "what_we_found.md").read_text(encoding="utf-8").split())
    assert [number for number in numbers if number not in page] == []
    sentences = findings_of_readme()
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
    for epsilon, part in pair.groupby("epsilon"):
        mean, half = t_interval(part["gap"].to_numpy())
        said = f"{mean:.1f} points [{mean - half:.1f}, {mean + half:.1f}]".replace("-", "−")
        assert said in page and len(part) == 3 and mean < half
        assert epsilon == 1 or f"[{mean:.1f} points]" in sentences[4]


def findings_of_readme():
    """What we found: its items, each in one line."""
    (part,) = re.findall(r"## What we found\n(.*?)\n## ", README, re.S)
    items = part.split("\n\n")[0]
    return [" ".join(item.split()) for item in f"\n{items}".split("\n- ")[1:]]


def test_readme_has_what_was_found_in_five_short_sentences():
    """Fault: four items of up to 260 words and 28 numbers, which nobody read to their end."""
    sentences = findings_of_readme()
    assert len(sentences) == 5
    for sentence in sentences:
        read = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", sentence)
        assert len(read.split()) <= 40, read
        numbers = re.findall(r"\d+(?:\.\d+)?", read.replace("34 to 52", "34"))
        assert len(numbers) <= 2, read
        assert len(re.findall(r"[.!?](?=\s|$)", read)) == 1, "one sentence"
    assert "no ε holds" not in README


# PEFT asks Transformers for it.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_ten_lines_on_your_own_model_run_as_written(tmp_path, monkeypatch, capsys):
    """With a toy BERT in the place of the reader's model."""
    assert len(TEN_LINES.splitlines()) <= 12 and "fl.tasks.hub(" in TEN_LINES
    monkeypatch.chdir(tmp_path)
    frame = toy_hubs.texts(160).rename(columns={"site": "hospital"})
    frame[:120].to_csv("reviews.csv", index=False)
    frame[120:].to_csv("public.csv", index=False)
    fl.tasks.tiny("bert", "my-model", frame["text"])
    names: Options = {}
    exec(compile(TEN_LINES, "first_steps.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    index, accuracy, epsilon = map(float, lines[-1].split())
    assert len(lines) == 11 and index == 10
    assert 0 <= accuracy <= 1, "judged on public rows"
    assert 7.9 < epsilon <= 8
    assert names["record"].ledger.mode == "release"
    assert Path("adapter/adapter_config.json").exists()


@pytest.mark.slow
def test_the_example_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: Options = {}
    # One seed in place of three, and fewer rounds: the others run the same code again.
    sentences = "".join(SENTENCES).replace("range(3)", "range(1)").replace("rounds=20", "rounds=3")
    exec(compile(sentences, "first_steps.md", "exec"), names)
    told = re.findall(r"^round (\d): accuracy (.+), ε (.+)$", capsys.readouterr().out, re.M)
    assert [index for index, *_ in told] == ["0", "1", "2", "3"]
    assert told[3][1] > told[0][1], "better than before training"
    assert 7.9 < float(told[3][2]) <= 8
    assert names["record"].deviation < 1e-6, "RoLoRA's mean is exact"
    assert set(names["frame"]["method"]) == {"fedlora", "ffa-lora", "rolora"}
    assert (tmp_path / "out" / "adapter_config.json").exists()


def test_every_question_of_the_course_is_linked():
    assert f"<!-- course -->\n{SCRIPT['course_table']()}\n<!-- /course -->" in README


def test_the_six_methods_are_described_as_they_are():
    table: Any = fl.methods.table()
    rows = re.findall(r"^\| (\S+) \| `(\S+)` \| .+ \| (yes|no) \|$", STEPS, re.M)
    assert len(rows) == 6
    for name, slug, exact in rows:
        assert (name, exact == "yes") == (table.loc[slug, "name"], table.loc[slug, "exact"])


def test_the_results_are_those_of_the_committed_table():
    table: Any = pd.read_csv(ROOT / "docs" / "figures" / "digits.csv")
    table.attrs["measure"] = "accuracy"
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert f"<!-- results -->\n{SCRIPT['results_table'](table)}\n<!-- /results -->" in page
    assert f"reaches {table['before'].mean():.3f}." in " ".join(page.split())
    assert (table["score"] > table["before"]).all() and (table["epsilon"] <= 8).all()


def test_commands_exist_and_the_version_is_stated():
    assert f"version {fl.__version__}" in README
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", README + STEPS, re.S)).splitlines()
    for line in shell:
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program == "make":
            assert arguments[0] in targets
        elif program == "fedlora-lab":
            command: Any = commands.get_command(click.Context(commands), arguments[0])
            if "--help" not in arguments:
                command.make_context(arguments[0], arguments[1:])  # parses, and runs nothing
        elif program == "python":
            # From a checkout, of which test_packaging.py builds and installs the wheel.
            assert arguments == ["-m", "pip", "install", "."]
        else:
            assert program == "", line
