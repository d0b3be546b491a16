"""The adapter (`Lora`) and the work (`Plan`): what is trained, and for how long."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from fedlora_lab._utils.validation import (
    check,
    check_keys,
    check_number,
    check_one_of,
    check_whole,
    error_text,
    is_number,
)
from fedlora_lab.methods.optimizers import SERVER_OPTIMIZERS, SGD, optimizer_of

PEFT_OPTIONS: dict[str, Any] = {
    "target_modules": None, "exclude_modules": None, "layers_to_transform": None,
    "layers_pattern": None, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
    "use_rslora": False, "init_lora_weights": True, "lora_dropout": 0.0, "bias": "none",
    "use_dora": False, "task_type": None,
}  # fmt: skip
"""The fields of PEFT's LoraConfig that `Lora` takes beside r and lora_alpha, and their defaults."""
_LIBRARY_FIELDS = {"peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"}
_LIBRARY_FIELDS |= {"revision", "inference_mode", "runtime_config", "fan_in_fan_out", "r"}
_LIBRARY_FIELDS |= {"lora_alpha", "megatron_core", "eva_config", "corda_config", "loftq_config"}
_LIBRARY_FIELDS |= {"lora_ga_config"}
"""Fields that say where an adapter came from, what PEFT finds out by itself, and settings of
initialisations that are refused by name."""
RESIDUAL_STARTS = r"olora|pissa(_niter_\d+)?"
"""Initialisations that take the start of B A out of the frozen weight."""
_NO_START = {
    **dict.fromkeys(("eva", "corda", "lora_ga"), "it is computed from data, and no epsilon counts"),
    "loftq": "it quantises the base: fl.run(..., quantize='nf4') does, with any start",
}


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter W0 + (alpha / rank / start_scale) B A.

    Args:
        rank: r, the inner dimension, a whole number >= 1.
        alpha: the numerator of the scale, > 0.
        ranks: one rank in [1, rank] for each client, in their order: client k holds the first
            ranks of each factor. ``None``: all hold all.
        start_scale: c > 0: A starts c times as large, and the scale is divided by c. B's gradient
            and what B's noise does to the model stay as they are; A's own noise counts c^2 times
            less beside A. See ``Method.balance``, which chooses it.
        peft: further fields of PEFT's LoraConfig by their names (`PEFT_OPTIONS`), such as
            ``{"target_modules": "all-linear", "use_rslora": True}``. Its target_modules and
            modules_to_save take the place of the task's targets and head.

    Raises: ``ValueError`` (name, value, range), also for a field that cannot be trained example by
        example; it says why.
    Guarantees: tests/lora/test_lora_options.py::test_a_config_is_read_and_written_back.
    Source: Hu et al., arXiv:2106.09685, section 4.1; start_scale: this project.

    >>> Lora(rank=4, alpha=8).scaling
    2.0
    """

    rank: int = 4
    alpha: float = 8.0
    ranks: tuple[int, ...] | None = None
    start_scale: float = 1.0
    peft: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        check_whole("rank", self.rank, 1)
        if self.ranks is not None:
            ok = isinstance(self.ranks, (tuple, list))
            check(ok, "ranks", self.ranks, "None or one rank for each client")
            for k, rank in enumerate(self.ranks):
                check_whole(f"ranks[{k}]", rank, 1, self.rank)
            object.__setattr__(self, "ranks", tuple(self.ranks))
        check_number("alpha", self.alpha, 0, 1e9, open_low=True)
        check_number("start_scale", self.start_scale, 0, 1e9, open_low=True)
        if self.peft is not None:
            check_keys("peft", self.peft, tuple(PEFT_OPTIONS))
            options = {name: _plain(value) for name, value in self.peft.items()}
            changed = {k: x for k, x in options.items() if x != PEFT_OPTIONS[k]}
            _check_options({**PEFT_OPTIONS, **changed})
            object.__setattr__(self, "peft", dict(sorted(changed.items())) or None)
            alike = self.ranks is None or not self.option("rank_pattern")
            words = "None beside rank_pattern: a rank for each client, or one for each layer"
            check(alike, "ranks", self.ranks, words)

    @classmethod
    def from_peft(cls, config: Any) -> "Lora":
        """Reads PEFT's LoraConfig, or the folder or ``adapter_config.json`` of an adapter.

        Fields that are as PEFT has them by default change nothing: ``LoraConfig(r=4)`` is
        ``Lora(4, 8)``.

        Args:
            config: a `peft.LoraConfig`, or a path.

        Raises: ``ValueError`` for another kind of adapter, and for a field that is not supported.
        Guarantees: tests/lora/test_lora_options.py::test_a_config_is_read_and_written_back.

        >>> import peft
        >>> Lora.from_peft(peft.LoraConfig(r=4, lora_alpha=8, use_rslora=True)).scaling
        4.0
        """
        import peft

        if isinstance(config, (str, Path)):
            config = _read_config(Path(config))
        words = "a peft.LoraConfig, or the folder of an adapter"
        check(type(config) is peft.LoraConfig, "config", type(config).__name__, words)
        options = {name: getattr(config, name) for name in PEFT_OPTIONS}
        made = cls(config.r, float(config.lora_alpha), peft=options)
        for name, default in vars(peft.LoraConfig()).items():
            ours = name in PEFT_OPTIONS or name in _LIBRARY_FIELDS
            value = getattr(config, name)
            words = f"{default!r}: no exact gradient of each example alone is known for it here"
            check(ours or value == default, name, value, words)
        return made

    def option(self, name: str) -> Any:
        """Returns a field of PEFT's LoraConfig, as given or by default.

        Args: name: one of `PEFT_OPTIONS`.
        """
        return (self.peft or {}).get(name, PEFT_OPTIONS[name])

    @property
    def scaling(self) -> float:
        """alpha / rank / start_scale, the factor before B A; rslora: alpha / sqrt(rank) / ..."""
        return self._scaling(self.alpha, self.rank)

    def _scaling(self, alpha: float, rank: int) -> float:
        return alpha / (math.sqrt(rank) if self.option("use_rslora") else rank) / self.start_scale

    def rank_of(self, layer: str) -> int:
        """The rank of a layer: that of the first pattern which its name ends with, else ``rank``.

        Args: layer: its full name.
        """
        return self._of(layer, "rank_pattern", self.rank)

    def scaling_of(self, layer: str) -> float:
        """The factor before B A of a layer. Args: layer: its full name."""
        alpha = self._of(layer, "alpha_pattern", self.alpha)
        return self._scaling(alpha, self.rank_of(layer))

    def _of(self, layer: str, patterns: str, otherwise: Any) -> Any:
        if not self.option(patterns):
            return otherwise
        from peft.utils.other import get_pattern_key

        given = self.option(patterns)
        first, stored = (given.get(get_pattern_key(x, layer)) for x in (given, sorted(given)))
        words = (
            f"at most one that matches {layer}: stored patterns are sorted, and the first counts"
        )
        check(first == stored, patterns, given, words)
        return otherwise if first is None else first

    @property
    def largest_rank(self) -> int:
        """The largest rank that a layer may have."""
        return max(self.rank, *self.option("rank_pattern").values(), 1)

    @property
    def residual_start(self) -> bool:
        """Whether the start of B A is taken out of the frozen weight, as PiSSA and OLoRA do."""
        return bool(re.fullmatch(RESIDUAL_STARTS, str(self.option("init_lora_weights"))))

    def settings(self) -> dict[str, Any]:
        """The fields as JSON values, from which ``Lora(**settings)`` makes it again; without
        ``peft`` where it is not given, as settings were stored before there was such a field.
        """
        found = asdict(self)
        return found if self.peft else {k: x for k, x in found.items() if k != "peft"}


def lora_of(value: Any) -> Lora:
    """The adapter that an argument ``lora=`` stands for.

    Args: value: a `Lora`, a `peft.LoraConfig`, or ``None`` for ``Lora()``.
    Raises: ``ValueError`` for anything else.
    """
    if value is None or isinstance(value, Lora):
        return value or Lora()
    check(hasattr(value, "peft_type"), "lora", value, "a Lora, or a peft.LoraConfig")
    return Lora.from_peft(value)


def _read_config(path: Path) -> Any:
    """A stored LoraConfig."""
    import peft

    file = path / "adapter_config.json" if path.is_dir() else path
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        known = vars(peft.LoraConfig())
        odd = sorted(set(fields) - set(known))
        check(not odd, "config", odd, f"fields that PEFT {peft.__version__} knows")
        return peft.LoraConfig(**fields)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        text = error_text(error)
        raise ValueError(f"config={str(path)!r}: expected a LoraConfig of PEFT: {text}") from None


def _plain(value: Any) -> Any:
    """A field of PEFT as JSON has it; sets are sorted."""
    if isinstance(value, Mapping):
        return {str(key): _plain(x) for key, x in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuses a value of PEFT's fields that is out of range or not supported."""
    for name in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
        value, words = options[name], "one or more names of modules"
        text = isinstance(value, str) and name != "modules_to_save"
        some = bool(value) or name == "modules_to_save"
        listed = isinstance(value, list) and all(isinstance(x, str) and x for x in value)
        words += ", or a regular expression" if name != "modules_to_save" else " in a list"
        check(value is None or (some and (text or listed)), name, value, words)
    if options["layers_to_transform"] is not None:
        layers = options["layers_to_transform"]
        for number in layers if isinstance(layers, list) else [layers]:
            check_whole("layers_to_transform", number, 0)
        listed = options["target_modules"] is None or isinstance(options["target_modules"], list)
        words = "names in a list beside layers_to_transform"
        check(listed, "target_modules", options["target_modules"], words)
    for name in ("rank_pattern", "alpha_pattern"):
        check(isinstance(options[name], Mapping), name, options[name], "a mapping from names")
        for key, value in options[name].items():
            try:
                re.compile(key)
            except re.error as error:
                check(False, name, key, f"names of layers, or regular expressions ({error})")
            if name == "rank_pattern":
                check_whole(f"rank_pattern[{key!r}]", value, 1)
            else:
                check_number(f"alpha_pattern[{key!r}]", value, 0, 1e9, open_low=True)
    for name in ("use_rslora", "use_dora"):
        check(isinstance(options[name], bool), name, options[name], "True or False")
    share = options["lora_dropout"]
    check(is_number(share) and 0 <= share < 1, "lora_dropout", share, "a number in [0, 1)")
    check_one_of("bias", options["bias"], ("none", "all", "lora_only"))
    kind = options["task_type"]
    check(kind is None or isinstance(kind, str), "task_type", kind, "None or a name of PEFT's")
    start = options["init_lora_weights"]
    known = start in (True, False, "gaussian") or re.fullmatch(RESIDUAL_STARTS, str(start))
    words = "True, False, 'gaussian', 'pissa', 'pissa_niter_N' or 'olora'"
    why = f"; {_NO_START[start]}" if start in _NO_START else ""
    check(bool(known), "init_lora_weights", start, words + why)


@dataclass(frozen=True)
class Plan:
    """How much work is done and how it is spread.

    Args:
        rounds: communication rounds, 0 to a million.
        local_steps: steps of every participating client in a round, 1 to a million.
        batch: expected number of examples in a client's step (each example is drawn on its own,
            with probability batch / n_k); ``None`` takes all of them in every step. Where persons
            are protected: of persons, with all their examples.
        lr: learning rate, one number >= 0, or one for each of "A", "B" and, where a head is
            trained, "head" (which follows "B" when it is not given).
        optimizer: how a client steps: `SGD`, `AdamW` or `DPAdam`, or a text such as
            "sgd:momentum=0.9". Its state begins anew in every round.
        server_optimizer: what the server does with the aggregate: `SGD` or `Adam`, or a text. Its
            state lasts over the run.
        server_lr: learning rate of the server's optimiser, >= 0. Plain "sgd" at rate 1 takes the
            aggregate as it is.
        participation: probability with which a client takes part in a round, drawn on its own, in
            [1e-9, 1].
        dropout: probability that a participating client's upload is lost, in [0, 1).
        weights: "uniform", every client counts alike, or "size", by its number of examples
            (where persons are protected: of persons), taken as public.
        lr_decay: factor on the learning rate after each round, in (0, 1].

    >>> plan = Plan(rounds=5, lr={"A": 0.1, "B": 0.2}, lr_decay=0.5)
    >>> plan.rate("A", round=1), plan.replace(rounds=3).rounds
    (0.05, 3)
    """

    rounds: int = 20
    local_steps: int = 5
    batch: int | None = 16
    lr: float | Mapping[str, float] = 0.3
    optimizer: Any = field(default=SGD())
    server_optimizer: Any = field(default=SGD())
    server_lr: float = 1.0
    participation: float = 1.0
    dropout: float = 0.0
    weights: str = "uniform"
    lr_decay: float = 1.0

    def __post_init__(self) -> None:
        check_whole("rounds", self.rounds, 0, 10**6)
        check_whole("local_steps", self.local_steps, 1, 10**6)
        if self.batch is not None:
            check_whole("batch", self.batch, 1)
        if isinstance(self.lr, Mapping):
            check_keys("lr", self.lr, ("A", "B", "head"))
            for side in ("A", "B"):
                check_number(f"lr[{side!r}]", self.lr.get(side), 0, 1e9)
            check_number("lr['head']", self.rate("head"), 0, 1e9)
        else:
            check_number("lr", self.lr, 0, 1e9)
        server = optimizer_of(self.server_optimizer, "server_optimizer", SERVER_OPTIMIZERS)
        object.__setattr__(self, "optimizer", optimizer_of(self.optimizer))
        object.__setattr__(self, "server_optimizer", server)
        check_number("server_lr", self.server_lr, 0, 1e9)
        # Not 0: the mean of the uploads is divided by it.
        check_number("participation", self.participation, 1e-9, 1)
        check_number("dropout", self.dropout, 0, 1 - 1e-9)
        check_one_of("weights", self.weights, ("uniform", "size"))
        check_number("lr_decay", self.lr_decay, 0, 1, open_low=True)

    def rate(self, side: str, round: int = 0) -> float:
        """Returns the learning rate of "A", "B" or "head" in a round counted from 0."""
        lr = self.lr.get(side, self.lr["B"]) if isinstance(self.lr, Mapping) else self.lr
        return lr * self.lr_decay**round

    def replace(self, **changes: Any) -> "Plan":
        """Returns the same plan with some fields changed."""
        return replace(self, **changes)
