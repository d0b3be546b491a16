"""Bad calls as an impatient user makes them, of Python, of the command line and of the files that
they read: each is refused in one line that names the thing, its value and what to do, and no file
is lost or left behind. More of the command line: test_mistakes_are_one_line.
"""

# pyrefly: ignore-errors[bad-argument-type, unexpected-keyword]
import math
import os
import re
import shlex

import pandas as pd
import pytest
import torch
import toy_hubs
from commands import call as command
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
    (lambda: run(task="digits"), "task='digits': expected a Task"),
    (lambda: run(method=trains("C")), r"train\(1, 0\)='C': expected"),
    (lambda: run(method=Method("m", "x", precondition=lambda gram: gram)), NEEDS_RULE),
    (lambda: run(method=Method("m", "x", filter=lambda x, side: None)), "filter.*None: expected a"),
    (lambda: run(method=Method("m", "x", filter=lambda x, side: x[:1])), r"filter.*=\(1, 16\): "),
    (
        lambda: list(run(method=Method("m", "x", aggregate=lambda *_: None))),
        "aggregate.*'NoneType'",
    ),
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


# ---- calls that read files, in a folder of one's own

NET, WIDE, TANH = torch.nn.Linear(2, 2), torch.nn.Linear(5, 2), torch.nn.Tanh()
NORM = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
ROWS = pd.DataFrame({"a": [0.0, 1.0] * 30, "y": ["no", "yes"] * 30, "at": ["p", "q"] * 30})
ROWS["b"] = 1.0
DOUBLED = pd.DataFrame([["a", "b", 0]] * 9, columns=["text", "text", "label"])
FILES = {
    "empty.csv": b"",
    "head.csv": b"text,label\n",
    "ragged.csv": b"text,label\na,b\nc,d,e,f\n",
    "latin.csv": "text,label\njörg,a\n".encode("latin-1"),
    "semicolon.csv": b"text;label\na;b\n",
    "note.txt": b"hello",
    "data.xlsx": b"PK\x03\x04",
    "broken.json": b"{",
    "null.json": b"null",
    "file": b"mine",
    "full/mine.txt": b"mine",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with tables, damaged files, a full folder and a dead link; one works in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    toy_hubs.texts(60).to_csv("data.csv", index=False)
    os.symlink("nowhere", "link.json")
    return tmp_path


def contents(folder):
    """Every file, folder and link in it, but locks, which begin with a dot."""
    paths = [path for path in folder.rglob("*") if not path.name.startswith(".")]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def tuned(frame=ROWS, model=NET, **options):
    """`fl.finetune` on numbers."""
    given = {"label": "y", "rounds": 1, "local_steps": 1, "accountant": "rdp", "out": "never"}
    return fl.finetune(model, frame, **({"say": None} | given | options))


def texts(frame=None, **options):
    """`fl.finetune` on texts."""
    given = {"text": "text", "label": "label", "by": "site", "model": toy_hubs.folder("bert")}
    return tuned(toy_hubs.texts(60) if frame is None else frame, **given | options)


def gap(column):
    """The texts, of which the first lacks this."""
    frame = toy_hubs.texts(60)
    return frame.assign(**{column: [None, *frame[column][1:]]})


def prompts(**options):
    given = {"prompt": "text", "answer": "label"} | options
    return fl.tasks.prompts(toy_hubs.folder("bert"), toy_hubs.texts(60), **given)


def calibrate(epsilon=8, task=None, plan=PLAN):
    return OPEN.calibrate(epsilon=epsilon, task=tokens() if task is None else task, plan=plan)


def last():
    return play(regression(), "rolora", None)[-1]


CALLS = [
    # fl.finetune: the model and the data
    (lambda: texts(model=3), "model=3: expected a Transformers model, a name or a folder"),
    (lambda: texts(model="full"), "model='full': expected a name or folder that AutoModel"),
    (lambda: texts(model=(NET, 1, 2)), "model='3 things': expected a pair"),
    (lambda: tuned(text="y"), "model='Linear': expected a Hugging Face model, since text="),
    (
        lambda: tuned(by="at", model=torch.nn.Linear(5, 2)),
        "model='Sequential': expected to accept the test",
    ),
    (lambda: tuned(by="at", model=NORM), "model.1='BatchNorm1d': expected evaluation mode"),
    (lambda: tuned(by="at", model=TANH), r"targets=\[\]: expected one or more module names"),
    (lambda: texts(text=None), "text, image=None: expected the column that the model reads"),
    (lambda: texts(text="txt"), "text='txt': expected one of .*did you mean 'text'"),
    (lambda: texts(label="labels"), "label='labels': expected one of .*did you mean 'label'"),
    (lambda: texts(by="hospital"), "by='hospital': expected one of the columns text, label, site"),
    (lambda: texts(text=3), "text=3: expected one of the columns text, label, site"),
    (lambda: texts(label=["label"]), r"label=\['label'\]: expected one of the columns"),
    (lambda: texts(text="label"), r"columns=\['label'\]: expected each once: what the model reads"),
    (lambda: texts(toy_hubs.texts(60)["text"]), "dataset='Series': expected a pandas DataFrame"),
    (lambda: texts(DOUBLED), r"columns=\['text'\]: expected each name once"),
    (lambda: texts(person="who"), "person='who': expected one of the columns text, label, site"),
    (lambda: tuned(label=None), "label=None: expected a column's name"),
    (lambda: tuned(features=["a", "c"]), "features='c': expected one of the columns a, y, at, b"),
    (lambda: tuned(features=[]), r"features=\[\]: expected one or more columns of numbers"),
    (lambda: tuned(features=["a", "a"]), r"columns=\['a'\]: expected each once"),
    (lambda: tuned(by="at", test=ROWS[["a", "b"]]), "label='y': expected a column: a, b"),
    (
        lambda: tuned(by="at", test=ROWS.assign(y="so")),
        "label 'y' of the test data='so': expected labels that private rows have: no, yes",
    ),
    (lambda: tuned(by="at", labels=["no"]), r"labels=\['no'\]: expected two or more classes"),
    (lambda: tuned(by="at", labels=["no", "no "]), "labels=.*: expected each class once"),
    (
        lambda: tuned(by="at", labels=["no", "so"]),
        "label 'y'='yes in row 1': expected one of the classes that labels= has: no, so",
    ),
    (lambda: texts(label=None, labels=["a", "b"]), "labels=.*: expected none without label="),
    (lambda: tuned(ROWS.assign(a=math.inf), by="at"), "feature 'a'='no finite number in row 0'"),
    (lambda: tuned(ROWS.assign(a="x"), by="at"), "feature 'a'=.*: expected a column of numbers"),
    (lambda: tuned(ROWS.assign(a=math.nan), by="at"), "feature 'a'='nothing in row 0'"),
    (lambda: tuned(ROWS.assign(y="no"), by="at"), r"label 'y'=\['no'\]: expected at least two"),
    (lambda: tuned(ROWS.assign(y=0.5), by="at"), "label 'y'=0.5: expected words, or whole"),
    (lambda: tuned(ROWS.assign(y=[7, 10**6] * 30)), "label 'y'=1000000: expected classes counted"),
    (lambda: texts(gap("label")), "label 'label'='nothing in row 0': expected a label"),
    (lambda: texts(gap("site")), "by 'site'='nothing in row 0': expected an owner"),
    (lambda: texts(gap("text")), "text.*: expected text in every row"),
    (lambda: texts("nowhere.csv"), "dataset='nowhere.csv': expected a file that exists"),
    (lambda: texts([1, 2]), "dataset='list': expected a pandas DataFrame"),
    (lambda: texts(toy_hubs.texts(4).head(0)), "dataset='0 rows': expected at least one row"),
    (lambda: texts("empty.csv"), "dataset='empty.csv': expected a CSV file .*No columns"),
    (lambda: texts("head.csv"), "dataset='0 rows': expected at least one row"),
    (lambda: texts("ragged.csv"), "dataset='ragged.csv': expected a CSV file in UTF-8.*line 3"),
    (lambda: texts("latin.csv"), "dataset='latin.csv': expected a CSV file in UTF-8"),
    (lambda: texts("note.txt"), "dataset='note.txt': expected a pandas DataFrame"),
    (lambda: texts("data.xlsx"), "dataset='data.xlsx': expected a pandas DataFrame"),
    (lambda: texts("full"), "dataset='full': expected a folder for each class"),
    # what is scored
    (
        lambda: tuned(by="at", test=ROWS),
        "test='60 of 60 rows equal private rows': expected public rows",
    ),
    (lambda: texts(test=0.9), r"test=0.9: expected a number in \(0, 0.5\]"),
    (lambda: texts(test="nowhere.csv"), "dataset='nowhere.csv': expected a file that exists"),
    (lambda: texts(test="validation"), "test='validation': expected a share, a data set, a file"),
    (lambda: texts(test={"a": ROWS, "b": ROWS}), r"test=\['a', 'b'\]: expected one table"),
    (lambda: texts(test=pd.DataFrame({"x": [1]})), "(label|text)=.*: expected a column: x"),
    # settings
    (lambda: texts(epsilon=-1), r"epsilon=-1: expected a number in \(0, 1e\+09\]"),
    (lambda: texts(epsilon="8"), "epsilon='8': expected a number in"),
    (
        lambda: texts(unit="patient"),
        "unit='patient': expected one of 'example', 'person'",
    ),
    (lambda: texts(unit="person"), "unit='person': expected with person="),
    (lambda: texts(delta=0.5), "delta=0.5: expected < 0.0167 = 1 / 60 examples"),
    (lambda: texts(method="rolorra"), "method='rolorra': expected .*did you mean 'rolora'"),
    (lambda: texts(rounds=0), "rounds=0: expected a whole number >= 1"),
    (lambda: texts(batch="many"), """batch='many': expected a whole number >= 1, or "all\""""),
    (lambda: texts(lr="fast"), "lr='fast': expected a number in"),
    (lambda: texts(clip_norm=math.inf), "clip_norm=inf: expected a finite number"),
    (lambda: texts(lora=8), "lora=8: expected a Lora, or a peft.LoraConfig"),
    (lambda: texts(seed="x"), "seed='x': expected a whole number >= 0 and below 2"),
    (lambda: texts(seed=2**63), "seed=9223372036854775808: expected a whole number >= 0 and below"),
    (lambda: texts(clients=3), "clients=3: expected none with by="),
    (lambda: texts(by=None, clients=0), "clients=0: expected a whole number >= 1"),
    (lambda: texts(by=None, clients=99), "clients=99: expected at most 60: 60 to deal, 1 each"),
    (lambda: texts(progress="yes"), "progress='yes': expected True, False or None"),
    (lambda: tuned(say="loud"), "say='loud': expected a function of a line, or None"),
    (lambda: texts(targets=["nope"]), "targets='nope': expected the end of a module's name"),
    (lambda: texts(head="nope"), "head='nope': expected the full name of a module"),
    (lambda: texts(max_length=1000), r"max_length=1000: expected a whole number in \[2, 64\]"),
    (lambda: texts(optimizer="sdg"), "optimizer='sdg': expected one of 'sgd', 'adamw'"),
    (lambda: texts(trust="central"), "trust='central': expected 'local' for unit='example'"),
    (lambda: texts(stop_at=-1), "stop_at=-1: expected a number > 0"),
    (lambda: texts(device="gpu0"), "device='gpu0': expected a device that torch finds here"),
    (lambda: texts(out=5), "out=5: expected a folder's path"),
    (lambda: texts(out="file"), "out='file': expected a folder, not a file"),
    (lambda: texts(out="full"), "out='full': expected an empty or new folder"),
    # names of other libraries, and names mistyped
    (lambda: texts(rank=8), r"rank=8: .*did you mean lora=fl.Lora\(rank=...\)"),
    (lambda: texts(learning_rate=0.1), "learning_rate=0.1: .*did you mean lr"),
    (lambda: texts(num_train_epochs=3), "num_train_epochs=3: .*did you mean rounds"),
    (lambda: texts(max_grad_norm=1), "max_grad_norm=1: .*did you mean clip_norm"),
    (lambda: texts(noise_multiplier=1), "noise_multiplier=1: .*epsilon, which sets it"),
    (lambda: texts(zzz=1), "zzz=1: expected an option of fl.finetune"),
    (lambda: texts(checkpoint="x"), "checkpoint='x': expected an option of fl.finetune"),
    # tasks, prompts, plans
    (lambda: texts(text=None, prompt="{text}"), "prompt, answer=.*: expected both or none"),
    (lambda: prompts(), "model='.*bert': expected weights for all of BertLMHeadModel"),
    (lambda: prompts(max_new_tokens=0), "max_new_tokens=0: expected a whole number >= 1"),
    (lambda: fl.generate(tokens(), last(), ["x"]), "task='tokens': expected a task of"),
    (lambda: fl.predict(regression(), last(), [1]), "x='list': expected inputs as the model takes"),
    (
        lambda: fl.predict(regression(), last(), torch.zeros(2, 99).double()),
        r"x=\(2, 99\): expected inputs as the model takes them: .*; it says: ",
    ),
    (
        lambda: fl.predict(tokens(), last(), tokens().test[0]),
        "task='tokens': expected 'regression', of which the record is, or a task of the same",
    ),
    (lambda: fl.predict("digits", last(), torch.zeros(1)), "task='digits': expected a Task"),  # type: ignore[arg-type]
    (lambda: fl.to_frame([1]), "records=1: expected records"),
    (lambda: calibrate(epsilon=math.nan), "epsilon=nan: expected a number in"),
    (lambda: calibrate(task="digits"), "task='digits': expected a Task"),
    (lambda: calibrate(plan={}), "plan={}: expected a Plan"),
    (lambda: Privacy(delta="1e-5"), "delta='1e-5': expected a number in"),
    (lambda: Privacy(unit="row"), "unit='row': expected one of"),
    (lambda: Plan(participation=1e-300), "participation=1e-300: expected a number in"),
    (lambda: Plan(optimizer=fl.SGD(momentum=2)), "sgd momentum=2: expected a number in"),
    (
        lambda: Plan(local_steps=10**17),
        r"local_steps=10+: expected a whole number in \[1, 1000000\]",
    ),
    (lambda: compare(seeds=[2**63]), "seed=9223372036854775808: expected a whole number below"),
    (lambda: run(device="meta"), "device='meta': expected a device that torch finds here"),
    (lambda: run(lora=fl.Lora(rank=100_000)), "rank=100000: expected at most 96, 16 times"),
    (lambda: run(resume="nowhere"), "resume='nowhere': expected a folder with a whole checkpoint"),
    (lambda: run(privacy=None, stop_at=3), "stop_at=3: expected None without privacy"),
    (lambda: compare(store=3), "store=3: expected the path of a file of JSON lines"),
    (lambda: fl.tuned_rate("digitz", "rolora"), "task='digitz': expected one of"),
    (lambda: fl.suggest_lr(tokens(), "rolora", None, PLAN), "privacy=None: expected a Privacy"),
    (lambda: fl.tasks.tiny("bertt", "toy"), "kind='bertt': expected one of"),
    (lambda: fl.tasks.tiny("vit", "full"), "folder='full': expected a new folder"),
    (lambda: fl.course.lesson(99), r"number=99: expected a whole number in \[0, 15\]"),
    # ledgers
    (lambda: fl.Ledger.load("broken.json"), "broken.json: expected a whole file of format"),
    (lambda: fl.Ledger.compose(), r"ledgers=\(\): expected Ledgers, >= 1"),
    (lambda: fl.report.report("full"), "folder='full': expected a run folder"),
]


@pytest.mark.parametrize(
    ("call", "message"), CALLS, ids=[f"{i}: {text[:40]}" for i, (_, text) in enumerate(CALLS)]
)
def test_bad_calls_lose_and_leave_nothing(place, call, message):
    """In one line; every file there before is there afterwards, and no other."""
    before = contents(place)
    with pytest.raises(ValueError) as refusal:
        call()
    text = str(refusal.value)
    assert re.match(message, text), text
    assert "\n" not in text and len(text) < 500 and contents(place) == before


OWN = "finetune data.csv --model BERT --text text --label label"
COMMANDS = [
    ("finetune", "Missing argument 'DATA'"),
    ("finetune data.csv", "--model=None: expected a Hugging Face name, or a folder"),
    ("finetune nowhere.csv --model BERT --text text", "data='nowhere.csv': expected a CSV file"),
    (
        "finetune data.csv --model BERT",
        "text, image=None: expected the column that the model reads",
    ),
    (f"{OWN} --by hospital", "by='hospital': expected one of the columns"),
    ("finetune semicolon.csv --model BERT --text text", "text;label; cells must be separated by"),
    (f"{OWN} --epsilon x", "epsilon='x': expected a number"),
    (f"{OWN} --test nowhere.csv", "dataset='nowhere.csv': expected a file that exists"),
    (f"{OWN} --out full", "out='full': expected an empty or new folder"),
    (f"{OWN} --batch many", "batch='many': expected a whole number"),
    (f"{OWN} --lr fast", "lr='fast': expected a number"),
    (f"{OWN} --seed x", "seed='x': expected a whole number, or none"),
    (f"{OWN} --rank 0", "rank=0: expected a whole number >= 1"),
    ("finetune data.csv --modle BERT", "No such option '--modle'"),
    ("doctor extra", "Got unexpected extra argument (extra)"),
    ("compare digits --methods a,,a", "methods='a,,a': expected every name once"),
    ("compare digits --epsilon 8,3", "epsilon='8,3': expected a number"),
    ("compare digits --out file", "out='file': expected a folder, not a file"),
    ("compare digits --seeds two", "seeds='two': expected how many"),
    ("compare digits --stop-at 3 --epsilon none", "stop_at=3.0: expected not given with"),
    ("compare digits --participation 1e-300", "participation=1e-300: expected a number in"),
    ("compare digits --lr A=1", "lr['B']=None: expected a number"),
    ("run digits rolora --unit patient", "unit='patient': expected one of"),
    ("run digits rolora --accountant moments", "accountant='moments': expected one of"),
    (
        "run digits rolora --out ~nobody-of-this-name/x",
        "a path begins with ~name: expected the name",
    ),
    (
        "run digits rolora --rounds 9999999",
        "rounds=9999999: expected a whole number in [0, 1000000]",
    ),
    ("run digitz rolora", "task='digitz': expected one of"),
    ("run digits rolora --unit client --trust nobody", "trust='nobody': expected one of"),
    ("report file", "folder='file': expected a run folder"),
    ("audit full", "folder='full': expected a run folder"),
    ("comparee digits", "No such command 'comparee'. Did you mean 'compare'?"),
]


@pytest.mark.parametrize(("line", "words"), COMMANDS)
def test_bad_commands_lose_and_leave_nothing(place, capsys, line, words):
    """In one line on stderr, and status 2."""
    before = contents(place)
    assert command(*shlex.split(line.replace("BERT", str(toy_hubs.folder("bert"))))) == 2
    error = capsys.readouterr().err
    assert error.startswith("fedlora-lab: ") and error.count("\n") == 1 and words in error, error
    assert contents(place) == before


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
