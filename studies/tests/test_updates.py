"""The study of updates: what notebook 08 says of its clients beside the frame."""

from statistics import fmean

import pytest

import fedlora_lab as fl
from studies.runner import job_arguments
from studies.updates import job_of


@pytest.mark.further
@pytest.mark.slow
@pytest.mark.trains
def test_the_cosine_of_turns_alone_is_that_of_the_text():
    """At FedLoRA's tuned rates, without privacy; three seeds stand in the text, one runs here."""
    task, method, privacy, plan, lora = job_arguments(job_of(fl.methods.FedLoRA, None, 0))
    alignments = []
    for row in (method, fl.methods.get("la-lora-unfiltered")):
        watched, received = fl.measures.record_aggregation(row)
        list(fl.run(task, watched, privacy, plan, lora=lora, seed=0, evaluate_every=20))
        alignments.append(fmean(map(fl.measures.alignment, received)))
    # Plain arithmetic moved the first to 0.0332 on one processor, and by 0.003 on another.
    assert alignments == pytest.approx([0.0246, 0.0206], abs=0.012)
