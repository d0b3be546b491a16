"""The MNIST task, its weights, their card, and the script that makes them.

The scans (1.1 MB) are fetched once. Where they cannot be, the tests that read them fail;
FEDLORA_LAB_OFFLINE=1 says that this is expected and skips them.
"""

import hashlib
import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import fedlora_lab as fl
from fedlora_lab.tasks.digits import load_pretrained, mnist, scans
from fedlora_lab.tasks.downloads import is_offline

ROOT = Path(__file__).parents[2]
DATA = ROOT / "fedlora_lab" / "tasks" / "data"


@pytest.fixture(scope="module")
def script() -> Any:
    """scripts/pretrain_mnist.py as a module; it imports the script of the digits task."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        return SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "pretrain_mnist.py")))


@pytest.fixture(scope="module")
def card() -> dict:
    return json.loads((DATA / "mnist_vit.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def real() -> tuple[Tensor, Tensor]:
    try:
        return scans()
    except FileNotFoundError as error:
        if is_offline():
            pytest.skip(str(error))
        raise


@pytest.mark.slow
def test_mnist_uses_every_scan_once(real: tuple[Tensor, Tensor]) -> None:
    task = mnist()
    assert task.validation is not None
    assert (len(task.clients), sum(task.sizes), len(task.test[1])) == (100, 3500, 1000)
    assert len(task.validation[1]) == 500 and min(task.sizes) >= 8
    parts = [*task.clients, task.test, task.validation]

    def rows(x: Tensor, y: Tensor) -> list[bytes]:
        return [row.tobytes() for row in torch.cat([x.flatten(1), y[:, None]], 1).numpy()]

    assert sorted(row for part in parts for row in rows(*part)) == sorted(rows(*real))
    info = json.loads(json.dumps(dict(task.info), allow_nan=False))
    assert fl.tasks.build("mnist", **info["arguments"]).fingerprint == task.fingerprint


def test_card_names_the_files_of_mnist(card: dict, script: Any) -> None:
    path = DATA / "mnist_vit.safetensors"
    assert path.stat().st_size < 1_000_000
    for name, digest in card["script_sha256"].items():
        assert hashlib.sha256((ROOT / "scripts" / name).read_bytes()).hexdigest() == digest
    model, shipped = load_pretrained(name="mnist_vit")
    assert shipped == card and card["sizes"] == script.SIZES
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with safe_open(path, "pt") as stored:
        kept = stored.get_tensor("patch.weight")
    assert kept.dtype == torch.float16 and kept.shape == (128, 14 * 14)
    assert torch.equal(kept.float(), model.get_parameter("patch.weight"))


@pytest.mark.slow
def test_the_card_of_mnist_holds(card: dict, script: Any, real: tuple[Tensor, Tensor]) -> None:
    model, _ = load_pretrained(name="mnist_vit")
    # One scan is 0.0002: another library version may round a few borderline outputs otherwise.
    handwritten = script.accuracy(model, *real)
    assert handwritten == pytest.approx(card["accuracy_handwritten_before_tuning"], abs=0.001)
    # Fonts are drawn anew, by whatever Pillow and Matplotlib are installed.
    printed = script.accuracy(model, *script.held_out(card["settings"]["seed"], 500))
    assert printed == pytest.approx(card["accuracy_printed_held_out"], abs=0.01)


def test_print_is_stored_as_mnist_stores_scans(script: Any) -> None:
    """A box of 20 pixels that keeps proportions, the centre of mass in the middle."""
    bar = script.scan(np.ones((40, 10), dtype=bool))
    assert bar[4:24, 12:17].sum() == bar.sum() == 20 * 5
    corner = np.zeros((20, 20), dtype=bool)
    corner[:, :4] = corner[16:] = True
    image = script.scan(corner)
    rows, columns = image.sum(1), image.sum(0)
    centre = [float(mass @ np.arange(28) / mass.sum()) for mass in (rows, columns)]
    assert centre == pytest.approx([13.5, 13.5], abs=0.51) and image.sum() == corner.sum()
