"""Bad calls at public entries: each is refused at the call, in one line that names value and range.
Of plans of privacy, ledgers, tasks and splits: the tests of those; of the command line:
test_mistakes_are_one_line."""

# pyrefly: ignore-errors[bad-argument-type]
import math
import re

import pytest
from toy_tasks import LORA, PLAN, play, private, regression, tokens

import fedlora_lab as fl
from fedlora_lab.methods import filters, quantization

Cycle, Method, Plan, Privacy = fl.Cycle, fl.Method, fl.Plan, fl.Privacy
OPEN = Privacy(delta=1e-3)  # no noise chosen yet
SOUND = private("example")


def run(task=None, method="fedlora", privacy=SOUND, plan=PLAN, lora=LORA, **more):
    """A sound call but for the changes; nothing is asked of the iterator."""
    return fl.run(tokens() if task is None else task, method, privacy, plan, lora=lora, **more)


def compare(which=("fedlora",), task=None, privacy=None, plan=PLAN, seeds=(0,), **more):
    task = tokens() if task is None else task
    return fl.compare(task, which, privacy, plan, seeds, progress=False, **more)


def trains(word):
    """A row that trains this from the second round on."""
    return Method("m", "x", train=lambda t, s: "A" if t < 1 else word)


RULES = {
    "train": ("B", "expected a function"),
    "share": ("C", "expected"),
    "broadcast": (abs, "expected a rule with bits"),
    "exact": ("yes", "expected True or False"),
}
PLANS = {
    "batch": ("all", "a whole number >= 1"),
    "lr": (math.inf, "a number in"),
    "server_lr": (-1, "a number in"),
    "dropout": (1, "a number in"),
}
NEEDS_RULE = "precondition=.*: expected a rule that gives a Preconditioner"
BY_SIZE = PLAN.replace(weights="size")
TABLE = [
    *(
        (lambda name=name, bad=bad: Method("m", "x", **{name: bad}), f"{name}=.*: {words}")
        for name, (bad, words) in RULES.items()
    ),
    *(
        (lambda name=name, bad=bad: Plan(**{name: bad}), f"{name}={bad!r}: expected {words}")
        for name, (bad, words) in PLANS.items()
    ),
    (lambda: fl.Lora(rank=True), "rank=True: expected a whole number >= 1"),
    (lambda: fl.Lora(alpha="8"), r"alpha='8': expected a number in \(0, 1e\+09\]"),
    (lambda: Plan(lr={"A": 1, "C": 1}), "lr={'A': 1, 'C': 1}: expected keys among A, B, head"),
    (lambda: Cycle("BA"), "rounds='BA': expected a tuple of strings"),
    (lambda: Cycle(("B C",)), "word='C': expected"),
    (lambda: fl.methods.get(["fedlora"]), r"method=\['fedlora'\]: expected one of"),
    (lambda: fl.methods.get("RoLoRA"), r"method='RoLoRA': .*; did you mean 'rolora'\?"),
    (lambda: run(rank=8), r"rank=8: expected lora=fl\.Lora\(rank=8\)"),
    (lambda: run(task="digits"), "task='digits': expected a Task"),
    (lambda: run(method=trains("C")), r"train\(1, 0\)='C': expected"),
    (lambda: run(method=Method("m", "x", precondition=lambda gram: gram)), NEEDS_RULE),
    (lambda: run(privacy=8), "privacy=8: expected a Privacy"),
    (lambda: run(privacy=OPEN), "noise_multiplier=None: expected a number >= 0, or call calibrate"),
    (lambda: run(privacy=private("client"), plan=BY_SIZE), "weights='size': expected 'uniform' in"),
    (lambda: run(checkpoint=__file__), "checkpoint='.*_input.py': expected a folder, not a file"),
    (lambda: compare("fedlora"), "methods='fedlora': expected a list"),
    (lambda: compare(seeds=3), r"seeds=3: expected a list, such as range\(3\)"),
    (lambda: compare(seeds=[None, None]), r"seeds=\[None, None\]: expected each once"),
    (lambda: compare(plan={"rolora": PLAN}), r"plan=\['rolora'\]: expected a plan for 'fedlora'"),
    (lambda: compare(["central"], privacy=SOUND), "privacy='without a target': expected one from"),
    (lambda: quantization.normal_float(reach=1), "reach=1: expected a number between 0.5 and 1"),
    (lambda: quantization.normal_float(head=1), "head=1: expected True or False"),
    (lambda: quantization.normal_float(width=9), r"width=9: expected a whole number in \[1, 8\]"),
    (lambda: filters.binomial(4), "taps=4: expected an odd number"),
]


@pytest.mark.parametrize(
    ("call", "message"), TABLE, ids=[f"{i}: {text[:40]}" for i, (_, text) in enumerate(TABLE)]
)
def test_bad_calls_are_refused_in_one_line(call, message):
    """At the call itself: what is not iterated is refused all the same."""
    with pytest.raises(ValueError) as refusal:
        call()
    text = str(refusal.value)
    assert re.match(message, text), text
    assert "\n" not in text and len(text) < 400


def test_saving_needs_a_record_and_a_place(tmp_path):
    last, (x, _) = play(regression(), "fedlora", None)[-1], regression().test
    (tmp_path / "file").write_text("mine")
    place = "path='.*file': expected a new folder, or one with an adapter and nothing else"
    for call, line in (
        (lambda: fl.save_adapter(last, tmp_path / "file"), place),
        (lambda: fl.save_adapter(last, 5), "path=5: expected a path"),
        (lambda: fl.save_adapter(3, tmp_path / "out"), "record=3: expected a record as run.* it"),
        (lambda: fl.predict(regression(), None, x), "record=None: expected a record as run.* it"),
    ):
        with pytest.raises(ValueError, match=f"^{line}$"):
            call()


def test_a_call_trains_nothing_before_its_iterator_is_read():
    """A sound call returns at once and leaves training to the iterator."""
    seen = []
    rule = fl.methods.FedLoRA.aggregate
    row = fl.methods.FedLoRA.replace(aggregate=lambda *given: seen.append(1) or rule(*given))
    records = run(method=row)
    next(records)
    assert not seen
    next(records)
    assert seen
