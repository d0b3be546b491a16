"""Bad calls at every public entry: each is refused at the call, in one line that names value and range."""

# pyright: reportArgumentType=false
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from small import LORA, PLAN, examples, play, private, regression, tokens

import fedlora_lab as fl
from fedlora_lab import aggregate, mechanism, partition, rules, wire
from fedlora_lab.cli import main
from fedlora_lab.method import Cycle, Method
from fedlora_lab.privacy import Privacy

PAIR = examples(6, 1)
MODEL = tokens().model
OPEN = Privacy(delta=1e-3)  # no noise chosen yet
TUPLE = Privacy(noise_multiplier=(1.0, 1.0), delta=1e-3)


def run(**changes):
    """A sound call but for the changes; nothing is asked of the iterator."""
    call = {"task": tokens(), "method": "fedlora", "privacy": private("example"), "plan": PLAN, "lora": LORA, **changes}
    return fl.run(call.pop("task"), call.pop("method"), call.pop("privacy"), call.pop("plan"), **call)


def compare(**changes):
    call = {"task": tokens(), "which": ["fedlora"], "privacy": None, "plan": PLAN, "seeds": [0], **changes}
    return fl.compare(call.pop("task"), call.pop("which"), progress=False, **call)


def classification(**changes):
    call = {"model": MODEL, "clients": [PAIR], "test": PAIR, "targets": ["inner"], **changes}
    return fl.tasks.classification(**call)


def labelled(y):
    return [(PAIR[0], torch.as_tensor(y))]


LORAS = [
    (lambda: fl.Lora(rank=0), "rank=0: expected a whole number >= 1"),
    (lambda: fl.Lora(rank=2.0), "rank=2.0: expected a whole number >= 1"),
    (lambda: fl.Lora(rank=True), "rank=True: expected"),
    (lambda: fl.Lora(alpha=0), r"alpha=0: expected a number in \(0, 1e\+09\]"),
    (lambda: fl.Lora(alpha=math.nan), "alpha=nan: expected"),
    (lambda: fl.Lora(alpha="8"), "alpha='8': expected"),
    (lambda: fl.Lora(alpha=10**400), r"alpha=1000.*\.\.\.: expected"),
]
PLANS = [
    (lambda: fl.Plan(rounds=-1), "rounds=-1: expected a whole number >= 0"),
    (lambda: fl.Plan(rounds=1.5), "rounds=1.5: expected a whole number >= 0"),
    (lambda: fl.Plan(local_steps=0), "local_steps=0: expected a whole number >= 1"),
    (lambda: fl.Plan(batch=0), "batch=0: expected a whole number >= 1"),
    (lambda: fl.Plan(batch="all"), "batch='all': expected a whole number >= 1"),
    (lambda: fl.Plan(lr=-0.1), "lr=-0.1: expected a number in"),
    (lambda: fl.Plan(lr=math.inf), "lr=inf: expected a number in"),
    (lambda: fl.Plan(lr=[0.1, 0.2]), r"lr=\[0.1, 0.2\]: expected"),
    (lambda: fl.Plan(lr={"A": 0.1}), r"lr\['B'\]=None: expected"),
    (lambda: fl.Plan(lr={"A": 0.1, "C": 0.1}), "lr={'A': 0.1, 'C': 0.1}: expected keys among A, B, head"),
    (lambda: fl.Plan(lr={"A": 0.1, "B": 0.1, "head": -1}), r"lr\['head'\]=-1.0: expected"),
    (lambda: fl.Plan(momentum=1), "momentum=1: expected a number in"),
    (lambda: fl.Plan(participation=0), r"participation=0: expected a number in \(0, 1\]"),
    (lambda: fl.Plan(participation=1.1), "participation=1.1: expected"),
    (lambda: fl.Plan(dropout=1), "dropout=1: expected"),
    (lambda: fl.Plan(weights="equal"), "weights='equal': expected one of 'uniform', 'size'"),
    (lambda: fl.Plan(lr_decay=0), "lr_decay=0: expected"),
    (lambda: PLAN.replace(rounds=None), "rounds=None: expected"),
]
METHODS = [
    (lambda: Cycle(()), r"rounds=\(\): expected a tuple of strings"),
    (lambda: Cycle("BA"), "rounds='BA': expected a tuple of strings"),
    (lambda: Cycle(("B", "")), r"rounds=\('B', ''\): expected a tuple of strings"),
    (lambda: Cycle(("B C",)), "word='C': expected"),
    (lambda: Cycle(("b",)), "word='b': expected"),
    (lambda: Method("", "x"), "name='': expected a name with a letter or digit"),
    (lambda: Method("m", None), "source=None: expected a string"),
    (lambda: Method("m", "x", train="B"), "train='B': expected a function"),
    (lambda: Method("m", "x", share="C"), "share='C': expected None"),
    (lambda: Method("m", "x", smooth=3), "smooth=3: expected a function"),
    (lambda: Method("m", "x", whiten=1.0), "whiten=1.0: expected None or a function"),
    (lambda: Method("m", "x", penalty="l2"), "penalty='l2': expected None or a function"),
    (lambda: Method("m", "x", aggregate=None), "aggregate=None: expected a function"),
    (lambda: Method("m", "x", broadcast=abs), "broadcast=.*: expected a rule with bits"),
    (lambda: Method("m", "x", exact="yes"), "exact='yes': expected True or False"),
    (lambda: fl.methods.get("fed-lora"), "method='fed-lora': expected one of fedlora, ffa-lora"),
    (lambda: fl.methods.get(["fedlora"]), r"method=\['fedlora'\]: expected one of"),
    (lambda: fl.show("nothing"), "method='nothing': expected one of"),
]
PRIVACIES = [
    (lambda: Privacy(unit="user"), "unit='user': expected one of 'example', 'client'"),
    (lambda: Privacy(clip_norm=-1), "clip_norm=-1: expected a number >= 0"),
    (lambda: Privacy(noise_multiplier=-1), "noise_multiplier=-1: expected a number >= 0"),
    (lambda: Privacy(clip_norm=math.inf, noise_multiplier=1), "clip_norm=inf: expected a finite number"),
    (lambda: Privacy(delta=0), r"delta=0: expected a number in \(0, 1\)"),
    (lambda: Privacy(accountant="gdp"), "accountant='gdp': expected one of 'prv', 'rdp'"),
    (lambda: Privacy(trust="central"), "trust='central': expected 'local' for unit='example'"),
    (lambda: Privacy(unit="client", honest=2), "honest=2: expected None unless trust='secagg'"),
    (lambda: Privacy(target=0), "target=0: expected"),
    (lambda: OPEN.calibrate(epsilon=0, task=tokens(), plan=PLAN), "epsilon=0: expected"),
    (lambda: OPEN.calibrate(epsilon=math.nan, task=tokens(), plan=PLAN), "epsilon=nan: expected"),
    (
        lambda: Privacy(delta=0.1).calibrate(epsilon=1, task=tokens(), plan=PLAN),
        "delta=0.1: expected < 0.0625 = 1 / 16",
    ),
    (lambda: OPEN.resolve(tokens(), PLAN), r"noise_multiplier=None: expected a number >= 0, or call calibrate"),
    (lambda: TUPLE.resolve(tokens(), PLAN), r"noise_multiplier=\(1.0, 1.0\): expected 3 numbers, one per client"),
    (
        lambda: private("example", sample_rate=0.5).resolve(tokens(), PLAN),
        "sample_rate=0.5: expected 0.6 = batch / n_k",
    ),
    (lambda: OPEN.ledger(releases=-1), "releases=-1: expected a whole number >= 0"),
    (lambda: OPEN.ledger(releases=3), "noise_multiplier=None: expected"),
    (lambda: fl.Ledger(unit="x"), "unit='x': expected one of"),
    (lambda: fl.Ledger().record(-1, None, sample_rate=1, noise_multiplier=1), "round=-1: expected"),
    (
        lambda: fl.Ledger().record(0, (0, 0), sample_rate=1, noise_multiplier=1),
        r"clients=\(0, 0\): expected every client",
    ),
    (lambda: fl.Ledger().record(0, None, sample_rate=2, noise_multiplier=1), "sample_rate=2.0: expected"),
    (lambda: fl.Ledger.from_json("{}"), "ledger: expected a whole file of format"),
]
RUNS = [
    (lambda: run(task=None), "task=None: expected a Task"),
    (lambda: run(task="digits"), "task='digits': expected a Task"),
    (lambda: run(method="sgd"), "method='sgd': expected one of fedlora"),
    (lambda: run(method=None), "method=None: expected one of fedlora"),
    (lambda: run(method=Method("m", "x", train=lambda t, s: "C")), r"train\(0, 0\)='C': expected"),
    (lambda: run(method=Method("m", "x", train=lambda t, s: "A" if t < 1 else None)), r"train\(1, 0\)=None: expected"),
    (
        lambda: run(method=Method("m", "x", whiten=lambda gram: gram)),
        "whiten=.*: expected a rule that gives a Whitening",
    ),
    (lambda: run(privacy=8), "privacy=8: expected a Privacy"),
    (lambda: run(privacy=OPEN), "noise_multiplier=None: expected a number >= 0, or call calibrate"),
    (lambda: run(privacy=TUPLE), r"noise_multiplier=\(1.0, 1.0\): expected 3 numbers"),
    (lambda: run(privacy=Privacy(noise_multiplier=1.0, delta=0.5)), "delta=0.5: expected < 0.0625"),
    (
        lambda: run(privacy=private("example", sample_rate=0.1)),
        "sample_rate=0.1: expected 0.6 = batch / n_k of this plan",
    ),
    (
        lambda: run(privacy=private("client"), plan=PLAN.replace(weights="size")),
        "weights='size': expected 'uniform' in the",
    ),
    (
        lambda: run(privacy=private("client", trust="secagg", honest=4)),
        r"honest=4: expected a whole number in \[1, 3\]",
    ),
    (lambda: run(plan={"rounds": 3}), "plan={'rounds': 3}: expected a Plan"),
    (lambda: run(lora=4), "lora=4: expected a Lora"),
    (lambda: run(seed=-1), "seed=-1: expected None or a whole number >= 0"),
    (lambda: run(seed="0"), "seed='0': expected None or a whole number >= 0"),
    (lambda: run(seed=True), "seed=True: expected None or a whole number >= 0"),
    (lambda: run(chunk_examples=0), "chunk_examples=0: expected a whole number >= 1"),
    (lambda: run(chunk_clients=1.5), "chunk_clients=1.5: expected a whole number >= 1"),
    (lambda: run(evaluate_every=0), "evaluate_every=0: expected a whole number >= 1"),
    (lambda: run(checkpoint=3), "checkpoint=3: expected a folder's path or None"),
    (lambda: run(checkpoint=__file__), "checkpoint='.*test_bad_input.py': expected a folder, not a file"),
    (lambda: run(resume=["a"]), r"resume=\['a'\]: expected a folder's path or None"),
    (lambda: run(resume="nowhere"), "resume='nowhere': expected a folder with a whole checkpoint"),
    (lambda: fl.ticks(tokens(), "x", None, PLAN), "method='x': expected one of"),
]
COMPARES = [
    (lambda: compare(which="fedlora"), "methods='fedlora': expected a list"),
    (lambda: compare(which=fl.methods.FFA), "methods=Method.*: expected a list"),
    (lambda: compare(which=3), "methods=3: expected a list"),
    (lambda: compare(which=[]), r"methods=\[\]: expected at least one"),
    (lambda: compare(which=["nope"]), "method='nope': expected one of"),
    (lambda: compare(which=[["fedlora"]]), r"method=\[.*\]: expected one of"),
    (lambda: compare(seeds=3), r"seeds=3: expected a list, such as range\(3\)"),
    (lambda: compare(seeds=[]), r"seeds=\[\]: expected at least one"),
    (lambda: compare(seeds=[0, -1]), "seed=-1: expected"),
    (lambda: compare(seeds=[None, None]), r"seeds=\[None, None\]: expected each once"),
    (lambda: compare(task=1), "task=1: expected a Task"),
    (lambda: compare(plan=5), "plan=5: expected a Plan, or a mapping"),
    (lambda: compare(plan={"rolora": PLAN}), r"plan=\['rolora'\]: expected a plan for 'fedlora'"),
    (lambda: compare(plan={"fedlora": 3}), "plan=3: expected a Plan"),
    (lambda: compare(lora="r4"), "lora='r4': expected a Lora"),
    (
        lambda: compare(which=["central"], privacy=private("example")),
        "privacy='without a target': expected one from calibrate",
    ),
]
TASKS = [
    (lambda: fl.tasks.digits(clients=0), "clients=0: expected"),
    (lambda: fl.tasks.digits(clients=10**4), "clients=10000: expected at most 157"),
    (lambda: fl.tasks.digits(alpha=0), "alpha=0: expected a number > 0"),
    (lambda: fl.tasks.digits(seed=-1), "seed=-1: expected a whole number >= 0"),
    (lambda: fl.tasks.digits(targets=()), r"targets=\(\): expected one or more module names"),
    (
        lambda: fl.tasks.digits(targets=("nothing",)),
        "targets='nothing': expected the end of a module's name; linear maps",
    ),
    (lambda: fl.tasks.digits(head="tail"), "head='tail': expected the full name of a module"),
    (lambda: fl.tasks.regression(rank=99), r"rank=99: expected a whole number in \[1, 16\]"),
    (lambda: fl.tasks.regression(heterogeneity=2), r"heterogeneity=2: expected a number in \[0, 1\]"),
    (lambda: fl.tasks.regression(noise=-1), "noise=-1: expected"),
    (lambda: fl.tasks.regression(dtype="float16"), "dtype='float16': expected one of float32, float64"),
    (lambda: classification(model="bert"), "model='str': expected a torch.nn.Module"),
    (lambda: classification(clients=[]), r"clients=\[\]: expected at least one pair"),
    (lambda: classification(test=None), "test='NoneType': expected a pair"),
    (lambda: classification(targets=["norm"]), "targets='norm': expected the end of a module's name"),
    (lambda: classification(targets="inner"), "targets='inner': expected one or more module names"),
    (lambda: classification(head="inner"), "targets='inner': expected a module outside the head 'inner'"),
    (lambda: classification(clients=labelled([0, 1, 2, 3, 0, 1])), r"clients\[0\] y=3: expected labels in \[0, 2\]"),
    (lambda: classification(clients=labelled([0, 1, 2, -1, 0, 1])), r"clients\[0\] y=-1: expected labels >= 0"),
    (
        lambda: classification(clients=labelled([0.0] * 6), test=labelled([0.0] * 6)[0]),
        r"clients\[0\] y='torch.float32 \(6,\)': expected one whole number per example",
    ),
    (lambda: classification(clients=labelled([0, 1])), r"clients\[0\] x='6 rows': expected 2 rows, as many as y"),
    (lambda: classification(clients=[(PAIR[0][:0], PAIR[1][:0])]), r"clients\[0\]='0 examples': expected at least one"),
    (lambda: classification(clients=2, pool=PAIR, alpha=-1), "alpha=-1: expected a number > 0"),
    (lambda: classification(clients=None, pool=PAIR, partition=[[0, 0]]), r"partition\[0\]='an index again': expected"),
    (lambda: tokens().only(3), r"client=3: expected a whole number in \[0, 2\]"),
    (lambda: tokens().to(torch.int64), "dtype=torch.int64: expected a floating torch.dtype"),
]
PARTS = [
    (lambda: partition.iid(3, 4), "clients=4: expected at most 3"),
    (lambda: partition.iid(0, 1), "count=0: expected a whole number >= 1"),
    (lambda: partition.dirichlet([0, 1], 2, math.nan), "alpha=nan: expected a number > 0"),
    (lambda: partition.dirichlet(np.zeros((2, 2)), 2, 1.0), r"labels=\(2, 2\): expected a vector"),
    (lambda: partition.by_group([0, 0, 1], parts=2), "parts=2: expected at most 1, the examples of group 1"),
    (lambda: partition.check_split([[0], [5]], 3), r"partition\[1\]=\(5, 5\): expected indices in \[0, 2\]"),
    (lambda: wire.normal_float(width=0), r"width=0: expected a whole number in \[1, 8\]"),
    (lambda: wire.normal_float(width=9), r"width=9: expected a whole number in \[1, 8\]"),
    (lambda: wire.normal_float(block=0), "block=0: expected a whole number >= 1"),
    (lambda: wire.bytes_of([3, -1]), r"numbers=\[3, -1\]: expected sizes >= 0"),
    (lambda: rules.binomial(4), "taps=4: expected an odd number"),
    (lambda: rules.binomial(0), r"taps=0: expected a whole number in \[1, 99\]"),
    (lambda: aggregate.straight_through(-1), "server_lr=-1: expected a number in"),
    (lambda: mechanism.uncertified(lambda gram: 3), "whiten=.*: expected a rule that gives a Whitening"),
    (lambda: fl.tuned("nothing", "fedlora"), "task='nothing': expected one of"),
    (lambda: fl.plots.curves(3), "frame='int': expected a pandas frame"),
    (lambda: fl.plots.deviation([1, 2]), "frame='list': expected a pandas frame"),
]
TABLE: list[tuple[Callable, str]] = [
    *LORAS, *PLANS, *METHODS, *PRIVACIES, *RUNS, *COMPARES, *TASKS, *PARTS,
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), TABLE, ids=[f"{i}: {text[:40]}" for i, (_, text) in enumerate(TABLE)])
def test_bad_calls_are_refused_in_one_line(call, message):
    """At the call itself: what is not iterated is refused all the same."""
    with pytest.raises(ValueError) as refusal:
        call()
    text = str(refusal.value)
    assert re.match(message, text), text
    assert "\n" not in text
    assert len(text) < 400


def test_the_table_is_long_enough():
    assert len(TABLE) >= 60
    assert len({message for _, message in TABLE}) > 0.8 * len(TABLE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "nothing"], "task='nothing': expected one of"),
        (["compare", "digits", "--methods", "fedlora,nope", "--epsilon", "none"], "method='nope': expected one of"),
        (["compare", "digits", "--epsilon", "much"], "epsilon='much': expected a number"),
        (["compare", "digits", "--rounds", "-3"], "rounds=-3: expected"),
        (["compare", "digits", "--seeds", "zero"], "seeds='zero': expected"),
        (["run", "digits", "fedlora", "--lr", "A="], r"lr\['A'\]='': expected a number"),
        (["run", "regression", "fedlora", "--alpha", "3"], "--alpha=3.0: expected not given"),
        (["report", "nowhere-at-all"], "nowhere-at-all"),
    ],
)
def test_bad_commands_are_one_line_and_status_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(words)
    lines = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]


def test_unknown_options_are_refused_by_python():
    with pytest.raises(TypeError, match="sead"):
        run(sead=1)
    with pytest.raises(TypeError, match="lerning_rate"):
        fl.Plan(lerning_rate=0.1)  # type: ignore[call-arg]


def test_saving_needs_a_record_and_a_place(tmp_path):
    record = play(regression(), "fedlora", None)[-1]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        ValueError, match=r"^path='.*file': expected a new folder, or one with an adapter and nothing else$"
    ):
        fl.save_adapter(record, tmp_path / "file")
    with pytest.raises(ValueError, match=r"^record=3: expected a record as run\(\) yields it$"):
        fl.save_adapter(3, tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^record=None: expected a record as run\(\) yields it$"):
        fl.predict(regression(), None, regression().test[0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^path=5: expected a path$"):
        fl.save_adapter(record, 5)  # type: ignore[arg-type]


def test_only_the_first_look_trains():
    """A sound call returns at once and leaves training to the iterator."""
    task = tokens()
    seen = []
    row = fl.methods.FedLoRA.replace(smooth=lambda tensor, side: seen.append(side) or tensor)
    records = run(task=task, method=row)
    assert not seen
    next(records)
    assert not seen
    next(records)
    assert seen
