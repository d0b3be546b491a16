"""What server and sites agree on before they start: the model, the method and the privacy.

Everything here is public. Choose it on public data: a choice made by looking at private examples is
a release that no ledger counts.
"""

from functools import cache

import fedlora_lab as fl

SIZES = (270, 987)
"""How many examples each site has. The sample rate follows from it, so it is public."""
SEED = None
"""The noise comes from each site's operating system. A number is for rehearsals: whoever knows it
can subtract the noise."""


@cache
def participant() -> fl.flower.Participant:
    """The terms, prepared once in a process; the sites' examples are not part of them."""
    digits = fl.tasks.digits(clients=1)
    task = fl.tasks.classification(
        digits.model,
        fl.flower.placeholder_examples(SIZES, digits.test),
        test=digits.test,
        targets=["query", "value"],  # linear maps that get adapters
        name="flower-app",
    )
    plan = fl.Plan(rounds=3, local_steps=4, batch=16, lr=0.3)
    # A delta below 1 / the number of all examples.
    privacy = fl.Privacy(unit="example", clip_norm=1.0, delta=1e-4)
    privacy = privacy.calibrate(epsilon=8, task=task, plan=plan)
    lora = fl.Lora(rank=4, alpha=8)
    return fl.flower.Participant.of(task, "ffa-lora", privacy, plan, lora=lora, seed=SEED)
