"""The benchmarks at toy size: what they compare is the same work, and each command runs."""

import copy
import math
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
    norms = []
    for i in range(4):
        one = {name: value[i : i + 1] for name, value in x.items()}
        own = torch.autograd.grad(losses(base, one, y[i : i + 1]).sum(), peers.moving(base))
        norms.append(math.sqrt(sum(float(g.square().sum()) for g in own)))
        for total, g in zip(expected, own, strict=True):
            total += g / max(1.0, norms[-1])
    assert max(norms) > 1.2  # else nothing is clipped
    model = peers.with_hooks(copy.deepcopy(base), ghost)
    peers.clip_and_sum(model, losses(model, x, y), ghost)
    for p, total in zip(peers.moving(model), expected, strict=True):
        torch.testing.assert_close(p.grad, total, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_device_s_measurements_go_on_where_they_stopped(tmp_path, monkeypatch):
    """Every peer is measured in bfloat16, what is done is not done again, and nothing begins after
    the minutes are over."""
    few = [job for job in gpu.jobs(tiny=True) if job["what"] == "decoder of 1 B"][:4]
    monkeypatch.setattr(gpu, "jobs", lambda tiny: iter(few))
    path = tmp_path / "gpu.jsonl"
    gpu.measure_all("cpu", 10, True, path)
    whole = read_lines(path)
    assert [line["peer"] for line in whole] == list(peers.PEERS)
    assert not [line["refused"] for line in whole if "refused" in line]
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    cut = path.read_bytes()
    gpu.measure_all("cpu", -1, True, path)
    assert path.read_bytes() == cut
    gpu.measure_all("cpu", 10, True, path)
    assert [line["key"] for line in read_lines(path)] == [line["key"] for line in whole]
    assert "| decoder of 1 B | 1 | ghost |" in gpu.page(read_lines(path), "a processor")


def test_the_committed_page_is_that_of_the_committed_turns():
    folder = Path(__file__).parents[2] / "benchmarks" / "results"
    kept = (folder / "README.md").read_text(encoding="utf-8")
    machine = kept.split("\n\n")[2]
    assert page(pd.read_csv(folder / "turns.csv"), machine) == kept
