"""Natural mistakes at the public interface: each is answered in one line by what to write."""

import inspect
import re
from dataclasses import fields
from typing import Any

import pandas as pd
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab._utils.keywords import KeywordError
from fedlora_lab.federated.run_options import RunOptions
from fedlora_lab.recipes import finetune as finetuning

TASK = fl.tasks.regression(clients=2, examples=40, d_in=3, d_out=3, rank=1, test=4)
PLAN = fl.Plan(rounds=1, local_steps=1, batch=8)
PRIVACY = fl.Privacy(noise_multiplier=1.0)
GIVEN = {"fl": fl, "task": TASK, "plan": PLAN, "privacy": PRIVACY, "m": fl.methods}
NOT_PASSED_ON = {
    "dataset", "public_test",
    "noise_multiplier", "sample_rate", "target_epsilon",
    "checkpoint", "resume",
}  # fmt: skip
"""Arguments of the parts of a run that `finetune` chooses."""
CALIBRATE = r"calibrate\(epsilon=8, task=task, plan=plan\)"
MISTAKES = {
    # What is typed first, with the words of PEFT, Opacus, optax, Flower and of papers.
    "fl.Privacy(epsilon=8)": rf"^epsilon=8: expected fl.Privacy\(...\).{CALIBRATE}",
    "fl.run(task, 'rolora', fl.Privacy(target_epsilon=8), plan)": (
        r"^noise_multiplier=None: expected .* call calibrate\(epsilon=8, task=..., plan=...\)$"
    ),
    "fl.Privacy(max_grad_norm=0.5)": "^max_grad_norm=0.5: expected clip_norm=0.5$",
    "fl.Privacy(noise=1.5)": "^noise=1.5: expected noise_multiplier=1.5$",
    "fl.Privacy(target_delta=1e-5)": "^target_delta=1e-05: expected delta=1e-05$",
    "fl.Privacy(8)": r"^Privacy\(...\): expected Privacy\(unit=..., clip_norm=..., .* too many",
    "fl.Privacy(unit='patient')": "^unit='patient': expected .*; did you mean 'person'",
    "fl.Privacy(unit='hospital')": "^unit='hospital': expected .*; did you mean 'client'",
    "fl.Privacy(accountant='PRV')": "^accountant='PRV': expected .*; did you mean 'pld'",
    "fl.Privacy(batch_size=4)": r"^batch_size=4: expected it in fl.Plan, as fl.Plan\(batch=4\)$",
    "fl.Lora(r=4)": "^r=4: expected rank=4$",
    "fl.Lora(rank=4, lora_alpha=8)": "^lora_alpha=8: expected alpha=8$",
    "fl.Lora(target_modules=['q'])": r"^target_modules=\['q'\]: expected targets=\['q'\]$",
    "fl.Lora(lora_dropout=0.1)": "^lora_dropout=0.1: expected none: adapters are trained without",
    "fl.Lora(rank=4).replace(r=2)": "^r=2: expected rank=2$",
    "fl.Plan(learning_rate=0.1)": "^learning_rate=0.1: expected lr=0.1$",
    "fl.Plan(epochs=3)": r"^epochs=3: expected rounds=... and local_steps=... of fl.Plan",
    "fl.Plan(momentum=0.9)": r"^momentum=0.9: expected optimizer=fl.SGD\(momentum=0.9\)",
    "fl.Plan(clip_norm=1)": r"^clip_norm=1: expected it in fl.Privacy, as fl.Privacy\(clip_norm=1",
    "fl.Plan(num_clients=9)": r"^num_clients=9: expected it in the task, as in fl.tasks.digits\(c",
    "fl.Plan(round=3)": "^round=3: expected a keyword of Plan: .*; did you mean 'rounds'",
    "plan.replace(local_step=3)": "^local_step=3: .*did you mean 'local_steps'",
    "fl.SGD(lr=0.1)": r"^lr=0.1: expected it in fl.Plan, as fl.Plan\(lr=0.1\)$",
    "fl.review.Claims(clip=1.0, noise_multiplier=1.0)": "^clip=1.0: expected clip_norm=1.0$",
    "privacy.calibrate(8)": r"^calibrate\(...\): expected calibrate\(epsilon=..., task=..., plan=",
    "privacy.calibrate(epsilon=8)": r"^calibrate\(...\): expected .*, but missing .* 'task'",
    "privacy.calibrate(target_epsilon=8, task=task, plan=plan)": "^target_epsilon=8: .* epsilon=8$",
    # Methods, their fields and their names.
    "fl.Cycle('B', 'A')": r'^Cycle\(...\): expected Cycle\(\("B", "A"\)\), but too many',
    "m.RoLoRA.replace(schedule='B')": r"^schedule='B': expected .* such as fl.Cycle\(\('B',\)\)",
    "m.RoLoRA.replace(schedule=('B', 'A'))": r"^schedule=.*: .* such as fl.Cycle\(\('B', 'A'\)\)$",
    "m.RoLoRA.replace(aggregate='mean')": "^aggregate='mean': .*such as fl.methods.aggregation.mea",
    "m.RoLoRA.replace(cycle='B')": "^cycle='B': expected schedule='B'$",
    "m.RoLoRA.replace(nmae='mine')": "^nmae='mine': .*did you mean 'name'",
    "m.FFALora2": "^module 'fedlora_lab.methods' .*'FFALora2'; did you mean 'FFA', 'ffa-lora'",
    "m.Rolra": "^module 'fedlora_lab.methods' .*'Rolra'; did you mean 'RoLoRA', 'rolora'",
    "m.get('FFA-LoRa2')": "^method='FFA-LoRa2': expected one of .*; did you mean 'ffa-lora'",
    "m.get('dp-lora')": r"^method='dp-lora': expected 'fedlora', or fl.methods.*by_factor\)$",
    "m.DPFedLoRA": r"'DPFedLoRA'; write 'fedlora', or fl.methods.FedLoRA.replace\(.*by_tensor",
    "fl.run(task, 'Split-Ranks', None, plan)": "^method='Split-Ranks': expected 'fedlora', or 'f",
    "fl.RoLoRA": "^module 'fedlora_lab' .*'RoLoRA'; did you mean 'fedlora_lab.methods.RoLoRA'",
    "fl.plot": "^module 'fedlora_lab' has no attribute 'plot'; did you mean 'plots'",
    "m.table('rolora')": r"^methods='rolora': expected a list, such as \[",
    "m.table(['rolra'])": "^method='rolra': expected .*; did you mean 'rolora'",
    # What things here were called, where no former keyword stands for them.
    "m.RoLoRA.replace(train=None, schedule=None)": "^train=None: expected a keyword of Method",
    "fl.Plan(alpha=0.5)": r"^alpha=0.5: expected dirichlet=0.5 .*, or fl.Lora\(alpha=0.5\)",
    "privacy.replace(target=None)": "^target=None: .*; did you mean 'target_epsilon'",
    "plan.replace(dropout=0.1)": r"^dropout=0.1: .*clients drop out by fl.Plan\(client_dropout=0.1",
    "plan.replace(weights='size')": "^weights='size': expected client_weights='size'$",
    "fl.ticks": "has no attribute 'ticks'; did you mean 'run_steps'",
    "fl.amplification": "has no attribute 'amplification'; did you mean 'noise_amplification'",
    "fl.experiments": "has no attribute 'experiments'; did you mean 'recipes'",
    "fl.audit.canaries": "has no attribute 'canaries'; did you mean 'run_audit'",
    # Packages, which are no functions.
    "fl.audit(task, 'rolora', privacy, plan)": r"^fl.audit\(...\): expected one of fl.audit.canar",
    "fl.report('runs/mine')": r"^fl.report\(...\): expected one of .*fl.report.report",
    "fl.partition([0, 1], clients=2)": r"^fl.partition\(...\): expected one of fl.partition.dirich",
    "fl.plots.curve": "has no attribute 'curve'; did you mean 'curves'",
    "fl.tasks.mnist": "has no attribute 'mnist'; it has: .*digits",
    # Tasks.
    "fl.tasks.digits(n_clients=3)": "^n_clients=3: expected clients=3$",
    "fl.tasks.digits(beta=0.1)": r"^beta=0.1: expected dirichlet=0.1$",
    "fl.tasks.regression(n_examples=9)": "^n_examples=9: .*; did you mean 'examples'",
    "fl.tasks.hub('model', [], text_column='t')": "^text_column='t': expected text='t'$",
    "fl.tasks.prompts('model', [], question='q')": "^question='q': expected a keyword of prompts",
    "fl.tasks.classification(None, [])": r"^classification\(...\): expected classification\(mod",
    "fl.tasks.tiny('bert')": r"^tiny\(...\): expected tiny\(kind, folder, ...\), but missing",
    "fl.partition.iid(10, n_clients=3)": "^n_clients=3: expected clients=3$",
    # Functions.
    "fl.run('digits', 'fedlora', None, plan)": r"^task='digits': expected .* fl.tasks.digits\(\)",
    "fl.run(task, 'fedlora', 8, plan)": rf"^privacy=8: expected .* fl.Privacy\(\).{CALIBRATE}, or",
    "fl.run(task, 'fedlora', plan, privacy)": "^privacy=Plan.*: expected the privacy before the pl",
    "fl.run(task, 'fedlora', fl.Privacy, plan)": "^privacy=<class .*: expected a Privacy, .* or",
    "fl.run(task, 'fedlora', None, 20)": r"^plan=20: expected a Plan, .* fl.Plan\(rounds=20\)$",
    "fl.suggest_lr('rolora', task, privacy, plan)": "^task='rolora': expected a Task",
    "fl.suggest_lr(task, 'rolora', plan, privacy)": "^privacy=Plan.*: expected the privacy before",
    "fl.noise_amplification(task, 'rolora', plan, None)": "^privacy=Plan.*: expected the privacy",
    "fl.audit.run_audit(task, 'rolora', plan, privacy)": "^privacy=Plan.*: expected the privacy",
    "fl.predict(task, [[1.0]])": r"^predict\(...\): expected predict\(task, record, x\), but m",
    "fl.compare(task, ['rolora'], None, plan, grid=[1])": r"^grid=\[1\]: expected a mapping, such",
    "fl.best(3)": "^frame=3: expected a frame that compare returned",
    "fl.report.paired_difference(3, 'a', 'b')": "^frame=3: expected a frame, such as fl.compare",
    "fl.review.step(print)": r"^step\(...\): expected step\(.*missing",
    "fl.flower.Participant.of('x', 'rolora', None, plan)": "^task='x': expected a Task",
    "fl.to_frame(3)": "^records=3: expected records as run",
    "fl.tuned_rate('digits', 'rolora', eps=8)": "^eps=8: expected epsilon=8$",
    "fl.run(task, 'fedlora', None, plan, sed=0)": "^sed=0: expected .*; did you mean 'seed'",
    "fl.run(task, 'fedlora', None, plan, n_jobs=4)": "^n_jobs=4: expected none: the clients of a ",
    "fl.run(task, 'fedlora', None, plan, rank=2)": r"^rank=2: expected it in fl.Lora, as fl.Lora\(",
    "fl.run(task, 'fedlora', None, plan, epsilon=8)": rf"^epsilon=8: expected .*{CALIBRATE}",
    "fl.run(task, 'fedlora', plan)": r"^run\(...\): expected run\(task, method, privacy, plan, ...",
    "fl.run_steps(task, 'fedlora', None, plan, lr=1)": r"^lr=1: expected it in fl.Plan",
    "fl.compare(task, ['rolora'], None, plan, seed=1)": "^seed=1: .*did you mean 'seeds'",
    "fl.compare(task, 'rolora', None, plan)": "^methods='rolora': expected a list, such as",
    "fl.suggest_lr(task, 'rolora', privacy, plan, rank=2)": r"^rank=2: expected it in fl.Lora",
    "fl.finetune('model', 'data.csv', epoch=3)": "^epoch=3: expected a keyword of finetune",
    "fl.finetune('model', 'data.csv', batch_size=4)": "^batch_size=4: expected batch=4$",
    "fl.audit.run_audit(task, 'rolora', privacy, plan, n_canaries=9)": "^n_canaries=9: .*canar",
    "privacy.calibrate(epsilon=8, task=task, plan=plan).resolve(task, plan.replace(batch=4))": (
        rf"^sample_rate=0.2.*: expected 0.1 = batch / n_k of this plan: {CALIBRATE} for this plan$"
    ),
}


@pytest.mark.parametrize("code", MISTAKES)
def test_a_natural_mistake_is_answered_by_what_to_write(code):
    with pytest.raises((ValueError, AttributeError)) as error:
        eval(code, GIVEN)
    line = str(error.value)
    assert re.search(MISTAKES[code], line), line
    assert "\n" not in line
    # Python's own kind of error too, for whoever catches that.
    assert isinstance(error.value, KeywordError) == isinstance(error.value, TypeError)


def test_a_keyword_of_an_earlier_version_still_works_and_says_its_new_name():
    schedule = fl.Cycle(("B",))
    method: Any = fl.methods.Method
    privacy_of: Any = fl.Privacy
    digits: Any = fl.tasks.digits
    start = fl.methods.filters.principal
    privacy = fl.Privacy(unit="client", trust="secagg", delta=1e-3)
    for call, today in (
        (lambda: fl.methods.RoLoRA.replace(train=schedule).schedule, schedule),
        (lambda: method("Earlier", "none", train=schedule).schedule, schedule),
        (lambda: fl.methods.RoLoRA.replace(start=start).initial_factors, start),
        (lambda: fl.methods.RoLoRA.replace(share="A").uploaded_factors, "A"),
        (lambda: privacy.replace(honest=7).honest_clients, 7),
        (lambda: privacy_of(unit="client", trust="secagg", colluding=1).colluding_clients, 1),
        (lambda: digits(alpha=0.1).info["arguments"]["dirichlet"], 0.1),
    ):
        with pytest.warns(
            FutureWarning, match="^[A-Za-z]+: [a-z]+= is called [a-z_]+= now$"
        ) as told:
            assert call() == today
        assert len(told) == 1


def test_signatures_name_the_options_that_are_taken():
    """With the types and defaults of the parts that they are passed on to, and nothing besides."""
    every = {one.name: one for one in fields(RunOptions)}
    taken: dict[Any, set[str]] = {
        fl.run: set(every),
        fl.run_steps: set(every),
        fl.compare: every.keys() - {"seed", "checkpoint", "resume"},
        fl.audit.run_audit: {"chunk_clients", "chunk_examples", "device", "matmul_precision"},
    }
    for function, names in taken.items():
        shown = inspect.signature(function).parameters
        assert all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in shown.values())
        assert names <= shown.keys()
        assert all(one.annotation is not one.empty for one in shown.values())
        assert all(shown[name].default == every[name].default for name in names)
    shown = inspect.signature(fl.finetune).parameters
    passed_on = {name for name in shown if name not in finetuning.OWN}
    parts = [{one.name for one in fields(part)} for part in (fl.Plan, fl.Privacy, RunOptions)]
    parts += [inspect.signature(part).parameters for part in (fl.tasks.hub, fl.tasks.prompts)]
    assert passed_on == set().union(*parts) - NOT_PASSED_ON - {*finetuning.OWN}


PACKAGES = [getattr(fl, name) for name in fl.__all__ if inspect.ismodule(getattr(fl, name))]
"""The packages that are public."""


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_a_package_that_is_called_names_its_functions(package):
    with pytest.raises(KeywordError, match=r"^fl\..*\(...\): expected one of fl\.[a-z]+\.[a-z]"):
        package("anything", of=3)


def test_every_public_name_explains_its_keywords():
    """Whoever adds one is reminded here: no bare TypeError of Python's reaches a user."""
    public: Any = [getattr(fl, name) for name in fl.__all__]
    public += [getattr(fl.tasks, name) for name in ("digits", "regression", "classification")]
    public += [fl.tasks.hub, fl.tasks.prompts, fl.tasks.Task, fl.partition.iid, fl.review.Claims]
    for one in public:
        if callable(one) and one is not fl.Ledger and not inspect.ismodule(one):
            with pytest.raises(KeywordError, match=r"^nonsense=1: expected a keyword of"):
                one(nonsense=1)


def test_no_message_shows_rows():
    """Fault: the line about an unknown keyword printed the first rows of a private table."""
    frame = pd.DataFrame({"text": ["a secret"] * 30, "label": [0, 1, 2] * 10})
    rows = frame.to_dict("records")
    finetune: Any = fl.finetune
    run: Any = fl.run
    kinds = ((frame, r"DataFrame \(30, 2\)"), (rows, "list of 30"), (rows[:2], "list of 2"))
    for data, kind in kinds:
        for name in ("data", "dataset"):
            with pytest.raises(KeywordError, match=rf"^{name}={kind}: expected frame={kind}$"):
                finetune("model", **{name: data})
        with pytest.raises(ValueError, match=f"^task={kind}: expected a Task"):
            run(data, "rolora", None, PLAN)
    with pytest.raises(ValueError, match=r"^task={'x': Tensor \(5, 2\)}: expected a Task"):
        run({"x": torch.zeros(5, 2)}, "rolora", None, PLAN)


def test_a_bound_that_cannot_be_written_is_refused_in_one_line():
    """Fault: swapped arguments and a format of another language gave Python's own errors."""
    round_up: Any = fl.privacy.round_up
    with pytest.raises(ValueError, match=r"^value='.3f': expected a number, and after it a format"):
        round_up(".3f", 3.1)
    for spec in ("%.2f", 2):
        with pytest.raises(ValueError, match=rf"^spec={spec!r}: expected a format of numbers"):
            round_up(3.1, spec)
