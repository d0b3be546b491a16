"""A federated LoRA method as one row of data.

Fields that are data stay data, fields that are rules are pure functions. Vary a method with
``method.replace(...)``, never by a subclass and never by a branch on its name.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from fedlora_lab._utils.method_names import NAMES
from fedlora_lab._utils.validation import check, check_number, in_one_line, refuse
from fedlora_lab.methods import aggregation, filters, quantization
from fedlora_lab.methods.directions import Differences
from fedlora_lab.methods.state import KINDS, ParamKey


def _letters() -> str:
    """The letters of a schedule's words, in canonical order: the kinds of tensors that it moves."""
    return "".join(name for name, kind in KINDS.items() if kind.scheduled)


def _check_word(name: str, word: object) -> None:
    """Refuses all but words of a schedule: letters, each once, "R" without "A" and "B"."""
    used = set(word) if isinstance(word, str) else set()
    spelled = bool(used) and used <= set(_letters()) and len(used) == len(str(word))
    # A core's gradient is taken at factors that rest: both at once would be another method.
    alone = "R" not in used or not used & set("AB")
    check(word == "*" or (spelled and alone), name, word, '"A", "B", "AB", "R" or "*"')


@dataclass(frozen=True)
class Cycle:
    """A schedule: which factors of an adapter move in which round and local step.

    It has one string for each round, and in a string one word for each local step. Both begin again
    when they end.

    ``Cycle(("AB",))`` moves both always, ``Cycle(("B", "A"))`` alternates between rounds,
    ``Cycle(("B A",))`` between the local steps of a round. "R" moves the core between the factors;
    "*" moves in every layer the factor that the layer's mode in the server's state names.

    Raises: ``ValueError`` unless every word is "A", "B", "AB" (or "BA"), "R" or "*".
    Guarantees: repeats with period ``len(rounds)`` (test_any_words_are_a_schedule_or_refused).

    >>> turns = Cycle(("B", "A"))
    >>> [turns(t, 0) for t in range(4)]
    ['B', 'A', 'B', 'A']
    """

    rounds: tuple[str, ...]

    def __post_init__(self) -> None:
        rounds = self.rounds if isinstance(self.rounds, tuple) else ()
        ok = bool(rounds) and all(isinstance(r, str) and r.split() for r in rounds)
        check(ok, "rounds", self.rounds, 'a tuple of strings such as ("B", "A") or ("B A",)')
        for word in " ".join(rounds).split():
            _check_word("word", word)

    def __call__(self, t: int, s: int) -> str:
        """Returns the factors that move in round t at local step s, both counted from 0."""
        words = self.rounds[t % len(self.rounds)].split()
        # By round and step alone: a schedule that read values would have to be noised.
        return words[s % len(words)]


_EXAMPLES = {
    "schedule": 'fl.Cycle(("B", "A"))',
    "filter": "fl.methods.filters.binomial(5)",
    "aggregate": "fl.methods.aggregation.mean",
    "broadcast": "fl.methods.normal_float(width=4, block=64)",
}
"""Field of `Method` -> a rule that it may hold."""


@dataclass(frozen=True)
class Method:
    """A method of federated LoRA, which is a row of the table of methods.

    Each field is one thing in which methods differ; what is not given is as in FedLoRA.

    Args:
        name: as published.
        source: arXiv id, with the algorithm or equation where it is known.
        schedule: ``(t, s) -> word``, what moves in round t at local step s, counted from 0 (see
            `Cycle`).
        initial_factors: ``(weight, rank) -> {"A": ..., "B": ..., "R": ...}`` from a layer's frozen
            weight (d_out, d_in), also "gain"; ``None``: A as PEFT draws it, B zero, no core. The
            same at every call, and from no private example: no ledger can see that.
        balance: A starts c times as large and the scale is divided by c, so that the noise that A
            takes up over the whole run stays at ``balance`` times A's own energy: c = max(1,
            sqrt(rho / balance)), from public numbers (see `fl.noise_amplification`). ``None``: as
            PEFT draws it.
        uploaded_factors: the factors sent up; ``None``: those that moved in the round; "": nothing,
            a trained head included. What moved and was not sent stays with its client.
        clip_groups: ``key -> group``; tensors of one group are clipped together, each of p groups
            to C / sqrt(p), so that all of them are bounded by C. ``None``: one group. Where the
            rule has a false ``shares_bound`` each is clipped to C: no epsilon is certified.
        differences: ``None``: automatic differentiation computes an example's gradient. Else its
            loss is measured along random public directions (see `Differences`), and these few
            numbers are clipped, noised and sent in the gradient's place. They are one group in
            coordinates of their own: without ``clip_groups`` and ``precondition``.
        precondition: ``gram -> Preconditioner``: maps applied to a factor before the clip and after
            the noise, from the peer factor's Gram matrix (see `preconditioners.product_space`). A
            rule may have other maps of a change than of a gradient, and keep B's move out of B's
            own columns (see `preconditioners.TangentSpace`).
        filter: ``(tensor, name) -> tensor``, linear, of what was noised and so free of privacy
            cost: each step's gradient where steps are released (and without privacy), the update in
            the client unit. The noise passes it by itself and is reported as what comes out.
        aggregate: ``(state, broadcast, uploads, weights) -> state``, the server's rule (see
            `aggregation`).
        broadcast: what clients receive of the factors; a rule with ``__call__(tensor)`` and
            ``bits(numbers)``. A trained head goes down in full.
        exact: the claim that the server's product is the mean of the clients' products, where the
            server's rule is given single uploads. A run warns in the first round in which it is
            not.
        note: one line of meaning for tables and diagrams.

    Guarantees: every row of the table passes tests/lab/methods/test_contract.py.

    >>> from fedlora_lab import methods
    >>> slow = methods.RoLoRA.replace(name="Slow turns", schedule=Cycle(("B", "B", "A", "A")))
    >>> slow.slug, slow.factors_at_step(2, 0)
    ('slow-turns', 'A')
    """

    name: str
    source: str
    schedule: Callable[[int, int], str] = field(default=Cycle(("AB",)))
    initial_factors: Callable | None = None
    balance: float | None = None
    uploaded_factors: str | None = None
    clip_groups: Callable[[ParamKey], Any] | None = None
    differences: Differences | None = None
    precondition: Callable | None = None
    filter: Callable = filters.identity
    aggregate: Callable = aggregation.mean
    broadcast: Any = quantization.full
    exact: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        named = isinstance(self.name, str) and bool(self.slug)
        check(named, "name", self.name, "a name with a letter or digit")
        check(isinstance(self.source, str), "source", self.source, "a string")
        sent = self.uploaded_factors
        if sent not in (None, ""):
            check(sent != "*", "uploaded_factors", sent, 'None, "", "A", "B", "AB" or "R"')
            _check_word("uploaded_factors", sent)
        if self.balance is not None:
            check_number("balance", self.balance, 0, 1e9, open_low=True)
            expected = "None, since initial_factors decides how large A is"
            check(self.initial_factors is None, "balance", self.balance, expected)
        check(isinstance(self.exact, bool), "exact", self.exact, "True or False")
        measured = self.differences
        known = measured is None or type(measured) is Differences
        expected = "None or fl.methods.Differences(directions=8)"
        check(known, "differences", measured, expected)
        expected = "None: differences say in which coordinates a row is clipped and noised"
        for name in ("precondition", "clip_groups"):
            rule = getattr(self, name)
            check(measured is None or rule is None, name, rule, expected)
        # Rules are called in the middle of a round: what cannot be called is refused here.
        for name in ("schedule", "filter", "aggregate", "broadcast"):
            rule = getattr(self, name)
            check(callable(rule), name, rule, f"a function, such as {_EXAMPLES[name]}")
        # What was found out about a rule is kept under it.
        for name in ("filter", "precondition", "aggregate", "broadcast"):
            rule = getattr(self, name)
            try:
                hash(rule)
            except TypeError:
                refuse(name, rule, "a function, or a frozen dataclass of fields that are hashable")
        for name in ("initial_factors", "clip_groups", "precondition"):
            rule = getattr(self, name)
            check(rule is None or callable(rule), name, rule, "None or a function")
        counted = hasattr(self.broadcast, "bits")
        check(counted, "broadcast", self.broadcast, "a rule with bits(numbers)")
        self._check_schedule()
        NAMES[self.slug] = self.name

    def _check_schedule(self) -> None:
        """Refuses a schedule that moves what neither initial factors nor the server's rule make."""
        if not isinstance(self.schedule, Cycle):
            return  # a function's words are checked when it is asked
        words = " ".join(self.schedule.rounds)
        # Modes must come from the server's rule, which sees released values only.
        chooses = "mode" in getattr(self.aggregate, "writes", ())
        expected = "no '*' unless the server's rule chooses, as by_layer does"
        check("*" not in words or chooses, "schedule", words, expected)
        # Every model has A and B; a core is there only where a row's initial_factors makes one.
        for factor in set(words) - set("AB* "):
            expected = f"no {factor!r} unless initial_factors makes it"
            check(self.initial_factors is not None, "schedule", words, expected)

    @cached_property
    def slug(self) -> str:
        """The name used in tables, frames and on the command line."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def replace(self, **changes: Any) -> "Method":
        """Returns the same row with some fields changed.

        A row with another name or another rule is no longer the one that was published: unless they
        are given, its source is empty, its note says which row it was derived from, and it claims
        no exactness.

        >>> from fedlora_lab import methods
        >>> mine = methods.RoLoRA.replace(name="mine", schedule=Cycle(("A", "B")))
        >>> mine.source, mine.note, mine.exact
        ('', 'derived from RoLoRA', False)
        """
        claims = {"source": "", "note": f"derived from {self.name}", "exact": False}
        others = {name: x for name, x in changes.items() if name not in claims}
        # A name that no field has is refused by the class.
        if any(getattr(self, name, None) != x for name, x in others.items()):
            changes = claims | changes
        return replace(self, **changes)

    def factors_at_step(self, t: int, s: int) -> str:
        """Returns what moves in round t at local step s, checked and in canonical order."""
        # Asked for round and step alone: no value of a client decides what moves and is noised.
        with in_one_line(f"schedule({t}, {s}): expected letters of what moves, but"):
            word = self.schedule(t, s)
        _check_word(f"schedule({t}, {s})", word)
        return "".join(factor for factor in _letters() + "*" if factor in word)

    def factors_in_round(self, t: int, local_steps: int) -> str:
        """Returns what moves at some step of round t."""
        words = "".join({self.factors_at_step(t, s) for s in range(local_steps)})
        # In canonical order: the steps of a round may name the same factors in another one.
        return "".join(factor for factor in _letters() + "*" if factor in words)

    def is_uploaded(self, key: ParamKey) -> bool:
        """Tells whether clients send this tensor up when it has moved."""
        sent = _letters() if self.uploaded_factors is None else self.uploaded_factors
        # What no schedule moves, a head or a gain, goes up with the factors, or not at all.
        return key.kind.sent_up and (key.name in sent or (bool(sent) and not key.kind.scheduled))


def check_names(rows: "Iterable[tuple[str, Method]]") -> None:
    """Refuses a name that occurs twice: frames, tables and folders would take both for one method.

    Args: rows: each name with its row.
    Raises: ``ValueError`` that says how to name a row that was changed.
    Guarantees: no frame, table or folder holds two rows under one name
        (test_compare.py::test_two_rows_of_one_name_are_refused_wherever_names_meet).

    >>> from fedlora_lab import methods
    >>> slow = methods.RoLoRA.replace(schedule=Cycle(("B", "B", "A", "A")))
    >>> check_names([("rolora", methods.RoLoRA), (slow.slug, slow)])
    Traceback (most recent call last):
    ValueError: methods='rolora': expected a name for each row, as by row.replace(name="...")
    """
    seen: dict[str, Method] = {}
    for name, row in rows:
        unique = seen.setdefault(name, row) == row
        check(unique, "methods", name, 'a name for each row, as by row.replace(name="...")')
