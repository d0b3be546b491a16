"""The benchmarks at toy size: what they compare is the same work, and each command runs."""

import copy
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import gpu, peers
from benchmarks.__main__ import page
from fedlora_lab._utils.files import read_lines

pytestmark = pytest.mark.filterwarnings("ignore")  # Opacus warns of every hook


@pytest.mark.parametrize("ghost", [False, True])
def test_opacus_clips_each_example_as_a_batch_of_one(ghost):
    """By hooks and by ghost clipping: else its times would be those of other work."""
    task = gpu.random_task("decoder of 1 B", 1, tiny=True)
    x, y = peers.examples(task, 4)[0]
    base = peers.peft_model(task, 2, peers.USUAL)
    torch.manual_seed(0)
    for p in peers.moving(base):
        torch.nn.init.normal_(p, std=0.3)

    # Losses so large that some gradients are longer than the clip norm.
    def losses(model, inputs, labels):
        return 6 * task.loss(task.forward(model, inputs), labels)

    expected = [torch.zeros_like(p) for p in peers.moving(base)]
    longest = 0.0
    for i in range(4):
        example = {name: value[i : i + 1] for name, value in x.items()}
        loss = losses(base, example, y[i : i + 1]).sum()
        gradients = torch.autograd.grad(loss, peers.moving(base))
        norm = float(torch.cat([g.flatten() for g in gradients]).norm())
        longest = max(longest, norm)
        for total, gradient in zip(expected, gradients, strict=True):
            total += gradient / max(1.0, norm)
    assert longest > 1.2  # else nothing is clipped
    model = peers.with_hooks(copy.deepcopy(base), ghost)
    peers.clip_and_sum(model, losses(model, x, y), ghost)
    for p, total in zip(peers.moving(model), expected, strict=True):
        torch.testing.assert_close(p.grad, total, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_every_peer_is_measured_on_a_device(tmp_path, monkeypatch):
    """In bfloat16; what is there is not measured again."""
    few = [job for job in gpu.jobs(tiny=True) if job["what"] == "decoder of 1 B"][:4]
    monkeypatch.setattr(gpu, "jobs", lambda tiny: iter(few))
    path = tmp_path / "gpu.jsonl"
    gpu.measure_all("cpu", 10, True, path)
    measured = read_lines(path)
    assert [line["peer"] for line in measured] == list(peers.PEERS)
    assert not any("refused" in line for line in measured)
    gpu.measure_all("cpu", 10, True, path)
    assert read_lines(path) == measured
    assert "| decoder of 1 B | 1 | ghost |" in gpu.page(measured, "a processor")


def test_the_committed_page_is_that_of_the_committed_turns():
    folder = Path(__file__).parents[2] / "benchmarks" / "results"
    kept = (folder / "README.md").read_text(encoding="utf-8")
    machine = kept.split("\n\n")[2]
    assert page(pd.read_csv(folder / "turns.csv"), machine) == kept
