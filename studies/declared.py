"""Declares the studies of the course: which methods run in which settings."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fedlora_lab import methods
from fedlora_lab.methods.method import Cycle, Method
from fedlora_lab.methods.published import rule_name

DESCRIPTIVE = ("name", "source", "exact", "note")
"""Fields that say something of a method and do nothing in a run."""
KEYED = {
    "schedule": "train",
    "initial_factors": "start",
    "uploaded_factors": "share",
    "dirichlet": "alpha",
}
"""Fields of a method and arguments of a task -> their names when the runs under results/ were made:
the digests by which these are found again hold them."""
RATES = (0.008, 0.02, 0.05, 0.125, 0.3, 0.8, 2.0, 5.0)
TUNE_SEEDS = (1001, 1002, 1003, 1004, 1005)
EXTENSIONS = 4


class Setting(NamedTuple):
    """The result of tuning: learning rate, and factors on the case's clip norm and A's rate."""

    lr: float
    clip: float = 1.0
    ratio: float = 1.0

    def __str__(self) -> str:
        return ",".join(f"{x:g}" for x in (self if self[1:] != (1.0, 1.0) else self[:1]))


@dataclass(frozen=True)
class Case:
    """One method in one setting."""

    method: Method  # a row, of the table or composed
    labels: Mapping[str, Any]  # what tells it from the others of its study: columns of the frame
    task: tuple[str, Mapping[str, Any]]  # name in `fedlora_lab.tasks`, and its arguments
    epsilon: float | None = None  # budget, calibrated for the case's own plan; None: no privacy
    # Fields of `Privacy`, of `Plan` without a learning rate, and of `Lora`.
    privacy: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    lora: Mapping[str, Any] = field(default_factory=dict)
    # Switches of speed, which change no number but by rounding and are no part of the key.
    compute: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Digests all that decides the case's numbers but learning rate, clip and seed.

        Of the method what differs from the default: a field that is added later changes no key.
        """
        default = Method("default", "")
        # A note or a source may be reworded without a run becoming another one.
        names = [name for name in Method.__dataclass_fields__ if name not in DESCRIPTIVE]
        row = {name: getattr(self.method, name) for name in names}
        row = {name: rule_name(x) for name, x in row.items() if x != getattr(default, name)}
        task, arguments = self.task
        named = [
            {KEYED.get(name, name): x for name, x in part.items()} for part in (row, arguments)
        ]
        body = [named[0], (task, named[1]), self.epsilon, self.privacy, self.plan, self.lora]
        text = json.dumps(body, sort_keys=True, default=dict)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def is_private(self) -> bool:
        """Whether noise is added, so that there is a clip to tune."""
        return self.epsilon is not None or bool(self.privacy.get("noise_multiplier"))

    @property
    def moves_both(self) -> bool:
        """Whether A and B move, so that they may have rates of their own."""
        steps = self.plan.get("local_steps", 1)
        moved = {factor for t in range(2) for factor in self.method.factors_in_round(t, steps)}
        return bool(moved & {"*"}) or moved >= {"A", "B"}


class Job(NamedTuple):
    """One run of a case."""

    case: Case
    setting: Setting
    seed: int
    tune: bool  # it chooses the setting, on validation data; else it is reported

    @property
    def key(self) -> str:
        """Returns the name of the job in the file of results."""
        return f"{self.case.key}/{'tune' if self.tune else 'report'}/{self.setting}/{self.seed}"


class Stage(NamedTuple):
    """One step of a search: the best settings so far, with a knob multiplied by each factor.

    Knobs: "lr"; "clip", the learning rate staying as it is; "clip, lr", the rate divided by what
    multiplies the clip, which keeps the noise of a step; "ratio". Where a knob does nothing (a clip
    without privacy, a ratio where one factor moves) ``instead`` multiplies the learning rate, so
    that every case has as many tries.
    """

    knob: str
    factors: tuple[float, ...]
    keep: int = 1  # how many of the best settings are taken further
    instead: tuple[float, ...] = ()

    def line(self, case: Case) -> tuple[str, tuple[float, ...]]:
        """Returns the knob that is turned for this case, and by which factors."""
        one_factor = self.knob == "ratio" and not case.moves_both
        if one_factor or (self.knob.startswith("clip") and not case.is_private):
            return "lr", self.instead
        return self.knob, self.factors


POWERS = {"lr": (1, 0, 0), "clip": (0, 1, 0), "clip, lr": (-1, 1, 0), "ratio": (0, 0, 1)}
"""Knob of a `Stage` -> the powers of its factor in learning rate, clip and ratio."""


def scale_knob(setting: Setting, knob: str, factor: float) -> Setting:
    """Multiplies one knob of a setting by a factor; numbers are rounded to four digits.

    Args: setting: what was tried. knob: of `POWERS`. factor: > 0.
    """
    pairs = zip(setting, POWERS[knob], strict=True)
    return Setting(*(float(f"{x * factor**power:.4g}") for x, power in pairs))


@dataclass(frozen=True)
class Study:
    """Cases that are tuned alike, with seeds that report nothing.

    The first tuning seed tries all rates, then each stage from the best so far; the other tuning
    seeds try the best of all: one seed ranks settings well, but cannot choose among neighbours. The
    best mean validation score after the last round decides. With ``extends``, a stage whose best is
    at the end of its grid goes on by the grid's last step while that helps, at most `EXTENSIONS`
    times.

    A careful case is screened by two seeds, the four best that are at no end of what was tried meet
    all tuning seeds, and the mean less one standard error decides: the best may stand at a cliff.
    """

    name: str  # as on the command line
    note: str  # what is asked, in one line
    cases: tuple[Case, ...]
    seeds: tuple[int, ...] = tuple(range(10))  # of the reported runs, none of them a tuning seed
    rates: tuple[float, ...] = RATES  # at least four, ascending
    stages: tuple[Stage, ...] = ()  # after the rates
    tune_seeds: tuple[int, ...] = TUNE_SEEDS
    finalists: int = 3  # how many settings meet all tuning seeds
    # Noisy cases that had collapsed runs, or the best at an end of what was tried, under the plain
    # rule: method and labels.
    careful: Collection[Any] = ()
    extends: bool = False  # grids go on where the best is at their end
    is_federated: bool = True  # else no claim is measured by what its rows reach
    # Key of a case -> the settings that it is reported at, where nothing is tuned.
    settings: Mapping[str, tuple[Setting, ...]] | None = None

    def is_careful(self, case: Case) -> bool:
        """Whether the case is tuned by the careful rule: all without noise, and those named."""
        # Without noise the best rate is at a cliff, over which 2 of 20 runs of FedLoRA fell.
        named = (case.method.slug, *case.labels.values()) in self.careful
        return named or not case.is_private

    def finalists_of(self, case: Case) -> int:
        """Counts the settings that meet all tuning seeds."""
        return 4 if self.is_careful(case) else self.finalists

    def screening_jobs(self, case: Case, settings: Iterable[Setting] | None = None) -> list[Job]:
        """Lists the jobs of every rate, or of these settings, with the first tuning seed, of a
        careful case with the first two.
        """
        tried = map(Setting, self.rates) if settings is None else settings
        seeds = self.tune_seeds[: 1 + self.is_careful(case)]
        return [Job(case, setting, seed, True) for setting in tried for seed in seeds]

    def final_jobs(self, case: Case, settings: Iterable[Setting]) -> Iterator[Job]:
        """Lists jobs of the best settings with the seeds that are left."""
        seeds = self.tune_seeds[1 + self.is_careful(case) :]
        return (Job(case, setting, seed, True) for setting in settings for seed in seeds)

    def report_jobs(self, case: Case, setting: Setting) -> Iterator[Job]:
        """Lists the runs that are reported."""
        return (Job(case, setting, seed, False) for seed in self.seeds)


MAIN = ("fedlora", "ffa-lora", "rolora", "deer", "la-lora", "fedlpp", "fedsvd", "fedex-lora")
COMPARED = ("fedlora", "ffa-lora", "rolora", "deer", "la-lora", "la-lora-unfiltered", "fedlpp")
COMPARED += ("fedsvd", "balanced-lora")
ON_MNIST = tuple(slug for slug in COMPARED if slug != "fedlpp")
ON_TEXTS = ("fedlora", "ffa-lora", "rolora", "la-lora", "fedsvd", "balanced-lora")
BUDGETS = (1.0, 3.0, 8.0, None)
CLIENT_BUDGETS = (3.0, 8.0, 20.0)
Fields = Mapping[str, Any]
WORK: Fields = {"rounds": 20, "local_steps": 5, "batch": 16}
CLIP: Fields = {"clip_norm": 1.0, "delta": 1e-4}
RANK4: Fields = {"rank": 4, "alpha": 8.0}
WIDE: Fields = {"rank": 16, "alpha": 16.0}
CROWD: dict[str, Any] = {
    "clients": 100,
    "plan": {"rounds": 40, "local_steps": 2, "batch": None, "participation": 0.2},
    "privacy": {"unit": "client", "clip_norm": 0.5, "delta": 1e-3},
}


def digits(
    rows: Iterable[str | Method],
    budgets: Iterable[float | None] = (None,),
    labels: Fields = MappingProxyType({}),
    *,
    task: str = "digits",
    clients: int = 10,
    dirichlet: float = 0.5,
    privacy: Fields = CLIP,
    plan: Fields = WORK,
    lora: Fields = RANK4,
) -> tuple[Case, ...]:
    """Makes the cases of a setting on handwritten digits, at each budget one for each row."""
    where = (task, {"clients": clients, "dirichlet": dirichlet, "seed": 0})
    return tuple(
        Case(methods.get(row), {**labels, "epsilon": e}, where, e, privacy, plan, lora)
        for e in budgets
        for row in rows
    )


def sentiment(
    rows: Iterable[str], budgets: Iterable[float | None], labels: Fields = MappingProxyType({})
) -> tuple[Case, ...]:
    """Makes the cases of the setting on texts, at each budget one for each row."""
    places = tuple(f"layer.{i}.attention.self.{x}" for i in (4, 5) for x in ("query", "value"))
    where = ("sentiment", {"targets": places})
    privacy = {"clip_norm": 1.0, "delta": 1e-5}
    plan = {"rounds": 5, "local_steps": 5, "batch": 32}
    setting: Any = privacy, plan, RANK4, {"matmul_precision": "bfloat16"}
    return tuple(
        Case(methods.get(row), {**labels, "epsilon": e}, where, e, *setting)
        for e in budgets
        for row in rows
    )


# Rates by factors of two, then the clip, then the rates of A and B apart: neighbours differ by less
# than the intervals of twenty seeds. In the client unit the noise of a round hangs on the clip and
# not on the rate, so there the clip has more values.
LARGE: dict[str, Any] = {"seeds": tuple(range(20)), "finalists": 2, "extends": True}
EXAMPLE_SEARCH: dict[str, Any] = LARGE | {
    "rates": (0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56),
    "stages": (
        Stage("clip, lr", (0.1, 0.32, 3.2), 1, (0.8, 1.25, 1.6)),
        Stage("ratio", (0.25, 0.5, 2.0), 1, (0.7, 0.87, 1.15)),
    ),
}
CLIENT_SEARCH: dict[str, Any] = LARGE | {
    "rates": (0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28),
    "stages": (
        Stage("clip", (0.25, 0.5, 2.0), 2, (0.7, 1.15, 1.5)),
        Stage("lr", (0.5, 2.0)),
        Stage("ratio", (0.25, 0.5, 2.0), 1, (0.7, 0.87, 1.15)),
    ),
}
TEXT_SEARCH: dict[str, Any] = LARGE | {"rates": (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)}
HOME_SEARCH: dict[str, Any] = {
    "seeds": tuple(range(12)),
    "finalists": 2,
    "extends": True,
    "rates": (0.02, 0.05, 0.125, 0.2, 0.3, 0.5, 0.8),
    "stages": (Stage("clip", (0.4, 2.5), 1), Stage("ratio", (0.5, 2.0), 1, (0.7, 1.4))),
}
CAUSES_SEARCH: dict[str, Any] = {
    "rates": (0.01, 0.02, 0.04, 0.08, 0.16, 0.32),
    "extends": True,
    "tune_seeds": TUNE_SEEDS[:3],
    "finalists": 2,
}

BALANCED = (
    methods.RoLoRA.replace(name="Balanced RoLoRA", balance=0.5),
    methods.LALoRAUnfiltered.replace(name="Balanced LA-LoRA", balance=0.5),
)


UNLIKE: Fields = {"dirichlet": 0.1, "seed": 0}
HOME_ROWS = ("fedlora", "ffa-lora", "rolora", "la-lora", "la-lora-unfiltered", "balanced-lora")


def la_lora_home(rows: Iterable[str], name: str, epsilon: float) -> tuple[Case, ...]:
    """Makes the cases of `at_home` where LA-LoRA's paper has it, one for each row."""
    maps = {"targets": ("query", "key", "value", "out"), "head": "head"}
    task = ("mnist", {"clients": 8, **UNLIKE, **maps})
    plan = {"rounds": 15, "local_steps": 20, "batch": 16, "participation": 0.5, "lr_decay": 0.99}
    labels = {"setting": name, "epsilon": epsilon}
    setting: Any = task, epsilon, CLIP, plan, WIDE
    return tuple(Case(methods.get(slug), labels, *setting) for slug in rows)


def at_home() -> tuple[Case, ...]:
    """DEeR and LA-LoRA as nearly as can be where their papers have them, at a scale of minutes.

    LA-LoRA: eight unlike clients, half of them in a round, 20 local steps, rank 16 on all maps of
    the attention, a trained head, decaying rates, at the epsilon of 1 that the paper states, and at
    24, which by our accounting is the noise that a repetition takes. DEeR: twelve unlike clients
    who all take part, SGD with momentum and weight decay, epochs of small batches, and the noise
    multiplier that the release computes for its epsilon of 3 by an accounting of another unit. In
    the setting "deer" a change is clipped as a whole for every row, so that all rows spend the
    same certified epsilon, 35.4. In "deer-ablation" every tensor of a change is clipped by itself,
    as the release does: there no epsilon is certified, for any row. FedLPP, which writes text
    and adds no noise, has its home in two_bits.py.
    """
    cases = [
        *la_lora_home(HOME_ROWS, "la-lora", 1.0),
        *la_lora_home(HOME_ROWS, "la-lora-noise", 24.0),
    ]
    plain = (methods.FedLoRA, methods.FFA, methods.RoLoRA)
    by_tensor = methods.DEeRLiteral.clip_groups
    apart = [row.replace(clip_groups=by_tensor) for row in plain]
    task = ("digits", {"clients": 12, **UNLIKE})
    plan = {"rounds": 20, "local_steps": 20, "batch": 10}
    plan |= {"optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0005}}
    privacy = {"unit": "client", "clip_norm": 0.2, "delta": 1e-3, "noise_multiplier": 0.75}
    lora = {"rank": 8, "alpha": 8.0}
    for setting, rows in (
        ("deer", (*plain, methods.DEeR)),
        ("deer-ablation", (*apart, methods.DEeRLiteral)),
    ):
        labels = {"setting": setting, "epsilon": 35.4 if setting == "deer" else None}
        for row in rows:
            cases.append(Case(row, labels, task, None, privacy, plan, lora))
    return tuple(cases)


SIX = ("fedlora", "ffa-lora", "rolora", "deer", "la-lora", "fedlpp")
GRID = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
CLIENT_GRID = tuple(rate / 2 for rate in GRID)
CLIP_PER_RATE = 2.0
"""Clip norm over learning rate of the client unit in the study `rates`."""


def every_rate(
    name: str, note: str, groups: Iterable[tuple[tuple[Case, ...], tuple[Setting, ...]]], seeds: int
) -> Study:
    """Reports each case at every setting of its grid, with nothing chosen."""
    cases = []
    settings = {}
    for group, grid in groups:
        cases += group
        settings |= {case.key: grid for case in group}
    return Study(name, note, tuple(cases), tuple(range(seeds)), settings=settings)


def half_octaves(first: float, count: int) -> tuple[Setting, ...]:
    """Makes rates by factors of the square root of two."""
    return tuple(Setting(float(f"{first * 2 ** (i / 2):.3g}")) for i in range(count))


def rates() -> Study:
    """Six methods over the learning rate, at the same rates for all.

    In the client unit neither the noise of a release nor ρ depends on the rate. There the clip norm
    goes with it, so that in both units a rate scales the update and its noise together.
    """
    crowd = CROWD | {"privacy": CROWD["privacy"] | {"clip_norm": CLIP_PER_RATE}}
    example_grid = tuple(map(Setting, GRID))
    client_grid = tuple(Setting(rate, clip=rate) for rate in CLIENT_GRID)
    groups = [
        (digits(SIX, (epsilon,), {"unit": unit}, **setting), grid)
        for unit, grid, setting in (("example", example_grid, {}), ("client", client_grid, crowd))
        for epsilon in (8.0, 1.0)
    ]
    return every_rate("rates", "digits: six methods at the same eight learning rates", groups, 5)


def rates_elsewhere() -> Study:
    """Six methods over the learning rate on texts, and where LA-LoRA's paper has it."""
    groups = (
        (sentiment(SIX, (8.0,), {"setting": "texts"}), tuple(Setting(4 * rate) for rate in GRID)),
        (la_lora_home(SIX, "LA-LoRA's home", 24.0), tuple(map(Setting, GRID))),
    )
    note = "texts, and LA-LoRA's home: six methods at the same eight learning rates"
    return every_rate("rates-elsewhere", note, groups, 5)


def rates_768() -> Study:
    """Six methods over the learning rate on layers of 768 inputs, at the same rates for all."""
    plan = {"rounds": 6, "local_steps": 4, "batch": 16}
    group = tuple(
        replace(case, task=("texts-768", {}), plan=plan) for case in sentiment(SIX, (8.0,))
    )
    grid = tuple(map(Setting, (0.2, 0.4, 0.8, 1.6, 3.2, 6.4)))
    note = "texts, layers of 768 inputs: six methods at the same six learning rates"
    return every_rate("rates-768", note, [(group, grid)], 2)


def widths() -> Study:
    """FedLoRA with smaller starts of A: what a wider layer of the same function does."""
    groups = []
    for epsilon, first in ((8.0, 0.07), (1.0, 0.014)):
        for start_scale in (1.0, 0.5, 0.25, 0.125):
            labels = {"start_scale": start_scale}
            group = digits(("fedlora",), (epsilon,), labels, lora={**RANK4, **labels})
            groups.append((group, half_octaves(first, 8)))
    return every_rate("widths", "digits: FedLoRA over the rate, A starting smaller", groups, 3)


def copies() -> Study:
    """FedLoRA over the rate where clients' own copies are noisier, at the same work and noise."""
    groups = []
    for clients, rounds in ((5, 50), (10, 20), (20, 20), (20, 10), (40, 20), (20, 4)):
        plan = {"rounds": rounds, "local_steps": 100 // rounds, "batch": 160 // clients}
        labels = {"clients": clients, "rounds": rounds}
        group = digits(("fedlora",), (8.0,), labels, clients=clients, dirichlet=1000.0, plan=plan)
        # As the variance of the noise goes with K, these make the same ρ everywhere.
        groups.append((group, half_octaves(0.509 / clients**0.5, 7)))
    return every_rate("copies", "digits: FedLoRA over the rate, by clients and rounds", groups, 3)


def cores() -> Study:
    """Rows that send alike: Fed-SB with a core of 7 x 7 numbers and RAVAN with two of 5 x 5; FedSVD
    and FedGSA."""
    groups = []
    for slug, rank in (("fed-sb", 7), ("ravan", 10), ("fedsvd", 4), ("fedgsa", 4)):
        lora = {"rank": rank, "alpha": 2.0 * rank}
        groups.append((digits((slug,), (8.0, None), lora=lora), tuple(map(Setting, GRID[2:]))))
    return every_rate(
        "cores", "digits: rows that send alike, Fed-SB and RAVAN, FedSVD and FedGSA", groups, 3
    )


def adamw() -> Study:
    """Three methods over the learning rate of AdamW, which every released script uses."""
    rows = ("fedlora", "ffa-lora", "rolora")
    group = digits(rows, (8.0,), plan={**WORK, "optimizer": "adamw"})
    groups = [(group, half_octaves(0.0125, 8))]
    return every_rate("adamw", "digits: three methods over the rate of AdamW", groups, 3)


def without_lora(name: str, *modules: str) -> tuple[Case, ...]:
    """Trains modules as a whole in place of adapters, by the same clip, noise and ledger.

    The adapter that every run has is put on the patches and scaled to nothing, so that it neither
    learns nor takes a part of the clip norm.
    """
    lora = {"rank": 1, "alpha": 1e-9, "targets": ("patch",), "head": modules}
    return digits((methods.FFA.replace(name=name),), (8.0, 1.0), lora=lora)


def full_model() -> Study:
    """Is LoRA worth its noise? The head alone, and all linear maps of the blocks with the head."""
    maps = ("query", "key", "value", "out", "up", "down")
    return Study(
        "full-model",
        "digits: the head alone, and all weights without LoRA",
        (
            *without_lora("Head only", "head"),
            *without_lora("All weights", *maps, "head"),
        ),
        seeds=tuple(range(3)),
        rates=(0.05, 0.1, 0.2, 0.4, 0.8),
        tune_seeds=TUNE_SEEDS[:1],
        extends=True,
        is_federated=False,
    )


STEPS: dict[float, Any] = {
    s: {"plan": {**WORK, "local_steps": s, "rounds": 100 // s}} for s in (1, 5, 20, 40)
}
DIRICHLETS = {a: {"dirichlet": a} for a in (0.05, 1000.0)}


def one_knob(
    rows: Iterable[str], knob: str, settings: Mapping[float, Fields], epsilon: float | None = None
) -> tuple[Case, ...]:
    """Makes the cases of rows at each value of a knob: value -> the setting of `digits`."""
    return tuple(
        case
        for value, setting in settings.items()
        for case in digits(rows, (epsilon,), {"knob": knob, "value": value}, **setting)
    )


def causes() -> tuple[Case, ...]:
    """What makes the mean of products differ from the product of means, without any noise."""
    return one_knob(SIX[:3], "local_steps", STEPS) + one_knob(SIX[:3], "alpha", DIRICHLETS)


CLIPS = {c: {"privacy": {**CLIP, "clip_norm": c}} for c in (0.1, 1.0, 10.0)}
SCALES = {s: {"lora": {"rank": 4, "alpha": 4.0 * s}} for s in (0.5, 8.0)}


def knobs() -> tuple[Case, ...]:
    """What a knob does to private training, at ε = 8; the split over clients at 3."""
    turns = ("fedlora", "rolora", "la-lora")
    frozen = ("ffa-lora",)
    return (
        *one_knob(turns, "local_steps", STEPS, 8.0),
        *one_knob(frozen, "clip_norm", CLIPS, 8.0),
        *one_knob(frozen, "alpha over rank", SCALES, 8.0),
        *one_knob(frozen, "alpha", {0.5: {}, 1000.0: {"dirichlet": 1000.0}}, 3.0),
    )


A_FIRST = methods.LALoRA.replace(name="LA-LoRA A first", schedule=Cycle(("A B",)))


def relatives() -> Iterator[Case]:
    """The rows that a claim or a notebook compares, each at the budget of that comparison."""
    for epsilon, rows in (
        (1.0, ("fedex-lora", "fedask")),
        (3.0, ("fedex-lora", "as-lora", A_FIRST)),
        (8.0, ("fedex-lora", "flexlora")),
        (None, ("flora",)),
    ):
        yield from digits(rows, (epsilon,))


POOLED = methods.FedLoRA.replace(name="Central")
AT_ONCE: Fields = {**WORK, "batch": 160}
"""As many examples in a step as ten clients take."""
MNIST: dict[str, Any] = {"task": "mnist", "clients": 20, "plan": {**WORK, "batch": 32}}

_DECLARED = (
    # Every family at its best: both units, twenty seeds, rate, clip and the rates of A and B.
    Study(
        "digits-example",
        "digits, every example protected; 10 clients, each noises for itself",
        (*digits(COMPARED, BUDGETS), *relatives()),
        careful=[
            *((slug, 1.0) for slug in ("fedlora", "deer", "la-lora", "la-lora-unfiltered")),
            ("fedex-lora", 1.0),
            *(("ffa-lora", epsilon) for epsilon in (1.0, 3.0)),
            ("fedlpp", 3.0),
            ("flexlora", 8.0),
        ],
        **EXAMPLE_SEARCH,
    ),
    Study(
        "digits-client",
        "digits, every client protected; 100 clients, 20 % of them in a round",
        digits((*COMPARED, *BALANCED), CLIENT_BUDGETS, **CROWD),
        careful=[
            *((slug, 3.0) for slug in ("ffa-lora", "deer", "la-lora", "fedsvd")),
            *((slug, 8.0) for slug in ("rolora", "balanced-rolora")),
            ("balanced-rolora", 20.0),
        ],
        **CLIENT_SEARCH,
    ),
    Study(
        "mnist-example",
        "MNIST, every example protected; 20 clients, each noises for itself",
        digits(ON_MNIST, (3.0, 8.0), **MNIST),
        **EXAMPLE_SEARCH,
    ),
    Study(
        "mnist-client",
        "MNIST, every client protected; 100 clients, 20 % of them in a round",
        digits(ON_MNIST, (3.0, 8.0), task="mnist", **CROWD),
        **CLIENT_SEARCH,
    ),
    Study(
        "sentiment-example",
        "texts, every example protected; one client for each of four domains",
        (*sentiment(ON_TEXTS, (1.0, 8.0, None)), *sentiment(("fedex-lora", "fedlpp"), (None,))),
        careful=[("fedlora", 1.0)],
        **TEXT_SEARCH,
    ),
    Study(
        "at-home",
        "DEeR and LA-LoRA where their papers have them, as nearly as can be",
        at_home(),
        careful=[
            *(
                (row, *place)
                for place in (("la-lora", 1.0), ("la-lora-noise", 24.0))
                for row in (*MAIN, "la-lora-unfiltered", "balanced-lora")
            ),
            ("deer", "deer", 35.4),
        ],
        **HOME_SEARCH,
    ),
    Study(
        "baselines",
        "digits: clients alone, and all data pooled",
        (*digits(("local",), BUDGETS), *digits((POOLED,), BUDGETS, clients=1, plan=AT_ONCE)),
        extends=True,
        is_federated=False,
    ),
    rates(),
    rates_elsewhere(),
    rates_768(),
    widths(),
    copies(),
    cores(),
    adamw(),
    full_model(),
    Study(
        "causes",
        "no privacy: local steps, heterogeneity",
        causes(),
        **CAUSES_SEARCH,
    ),
    Study(
        "knobs",
        "digits: local steps, clip norm, alpha over rank and unlike clients, one at a time",
        knobs(),
        rates=RATES[2:6],
        tune_seeds=TUNE_SEEDS[:2],
        finalists=2,
        careful=[
            *((slug, "local_steps", 1, 8.0) for slug in ("fedlora", "la-lora")),
            ("rolora", "local_steps", 5, 8.0),
            ("ffa-lora", "alpha over rank", 0.5, 8.0),
            ("ffa-lora", "alpha", 1000.0, 3.0),
        ],
        extends=True,
    ),
)
STUDIES: dict[str, Study] = {study.name: study for study in _DECLARED}

SUGGESTED_FILE = Path(__file__).parent / "suggested_settings.json"
"""Key of a case -> [rate, clip over its own], as `fl.suggest_lr` gave them before any run."""


def suggested() -> Study:
    """The main comparisons on tasks on which no limit was fitted, at what is suggested."""
    numbers = json.loads(SUGGESTED_FILE.read_text(encoding="utf-8"))
    cases = []
    for name in ("mnist-example", "mnist-client", "sentiment-example"):
        for case in STUDIES[name].cases:
            unit = case.privacy.get("unit", "example")
            if case.key in numbers:
                labels = {"task": case.task[0], "unit": unit, **case.labels}
                cases.append(replace(case, labels=labels))
    return Study(
        "suggested",
        "MNIST and texts at the rate or clip that public numbers suggest, nothing tuned",
        tuple(cases),
        settings={key: (Setting(lr, clip),) for key, (lr, clip) in numbers.items()},
    )


STUDIES["suggested"] = suggested()
