"""Natural mistakes at the public interface: each is answered in one line by what to write."""

import re
from typing import Any

import pandas as pd
import pytest
import torch

import fedlora_lab as fl

TASK = fl.tasks.regression(clients=2, examples=40, d_in=3, d_out=3, rank=1, test=4)
PLAN = fl.Plan(rounds=1, local_steps=1, batch=8)
PRIVACY = fl.Privacy(noise_multiplier=1.0)
GIVEN = {"fl": fl, "task": TASK, "plan": PLAN, "privacy": PRIVACY, "m": fl.methods}
CALIBRATE = r"calibrate\(epsilon=8, task=task, plan=plan\)"
MISTAKES = {
    # What is typed first, with the words of PEFT, Opacus, optax, Flower and of papers.
    "fl.run(task, 'rolora', fl.Privacy(target_epsilon=8), plan)": (
        r"^noise_multiplier=None: expected .* call calibrate\(epsilon=8, task=..., plan=...\)$"
    ),
    # Methods, their fields and their names.
    "m.RoLoRA.replace(schedule='B')": r"^schedule='B': expected .* such as fl.Cycle\(",
    "m.RoLoRA.replace(aggregate='mean')": "^aggregate='mean': .*such as fl.methods.aggregation.mea",
    "m.get('FFA-LoRa2')": "^method='FFA-LoRa2': expected one of .*; did you mean 'ffa-lora'",
    "m.table('rolora')": r"^methods='rolora': expected a list, such as \[",
    "m.table(['rolra'])": "^method='rolra': expected .*; did you mean 'rolora'",
    # Functions.
    "fl.run('digits', 'fedlora', None, plan)": r"^task='digits': expected .* fl.tasks.digits\(\)",
    "fl.run(task, 'fedlora', 8, plan)": rf"^privacy=8: expected .* fl.Privacy\(\).{CALIBRATE}, or",
    "fl.run(task, 'fedlora', plan, privacy)": "^plan=Privacy.*: expected a Plan, no subclass",
    "fl.run(task, 'fedlora', fl.Privacy, plan)": "^privacy=<class .*: expected a Privacy, .* or",
    "fl.run(task, 'fedlora', None, 20)": r"^plan=20: expected a Plan, .* fl.Plan\(rounds=20\)$",
    "fl.suggest_lr('rolora', task, privacy, plan)": "^task='rolora': expected a Task",
    "fl.best(3)": "^frame=3: expected a frame that compare returned",
    "fl.plots.curves(3)": "^frame='int': expected a pandas DataFrame",
    "fl.plots.lines(3)": "^frame='int': expected a pandas DataFrame",
    "fl.report.paired_difference(3, 'a', 'b')": "^frame=3: expected a frame, such as fl.compare",
    "fl.flower.Participant.of('x', 'rolora', None, plan)": "^task='x': expected a Task",
    "fl.to_frame(3)": "^records=3: expected records as run",
    "fl.compare(task, 'rolora', None, plan)": "^methods='rolora': expected a list, such as",
}


@pytest.mark.parametrize("code", MISTAKES)
def test_a_natural_mistake_is_answered_by_what_to_write(code):
    with pytest.raises((ValueError, AttributeError)) as error:
        eval(code, GIVEN)
    line = str(error.value)
    assert re.search(MISTAKES[code], line), line
    assert "\n" not in line


def test_no_message_shows_rows():
    """Fault: the line about an unknown keyword printed the first rows of a private table."""
    frame = pd.DataFrame({"text": ["a secret"] * 30, "label": [0, 1, 2] * 10})
    rows = frame.to_dict("records")
    run: Any = fl.run
    kinds = ((frame, r"DataFrame \(30, 2\)"), (rows, "list of 30"), (rows[:2], "list of 2"))
    for data, kind in kinds:
        with pytest.raises(ValueError, match=f"^task={kind}: expected a Task"):
            run(data, "rolora", None, PLAN)
    with pytest.raises(ValueError, match=r"^task={'x': Tensor \(5, 2\)}: expected a Task"):
        run({"x": torch.zeros(5, 2)}, "rolora", None, PLAN)
