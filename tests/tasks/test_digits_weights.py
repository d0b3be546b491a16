"""The weights that ship with the package, their card, and the script that makes them."""

import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedlora_lab.tasks.digits import TinyViT, load_pretrained

ROOT = Path(__file__).parents[2]
DATA = ROOT / "fedlora_lab" / "tasks" / "data"


@pytest.fixture(scope="module")
def script() -> Any:
    """scripts/pretrain.py as a module."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "pretrain.py")))


@pytest.fixture(scope="module")
def card() -> dict:
    return json.loads((DATA / "digits_vit.json").read_text(encoding="utf-8"))


def test_card_names_these_files(card: dict, script: Any) -> None:
    assert (DATA / "digits_vit.safetensors").stat().st_size < 1_000_000
    assert (ROOT / card["script"]).is_file()
    assert card["parameters"] == sum(p.numel() for p in TinyViT().parameters()) == 136_010
    assert [Path(face).name for face in script.faces()] == card["faces"]


@pytest.mark.slow
def test_card_numbers_hold(card: dict, script: Any) -> None:
    model, shipped = load_pretrained()
    assert shipped == card
    # One scan is 0.0006: another library version may round one borderline output the other way.
    handwritten = script.accuracy(model, *script.handwritten())
    assert handwritten == pytest.approx(card["accuracy_handwritten_before_tuning"], abs=0.0012)
    assert 0.5 < handwritten < 0.75
    # Fonts are drawn anew, by whatever Pillow and Matplotlib are installed.
    printed = script.accuracy(model, *script.printed(2000, "held out"))
    assert printed == pytest.approx(card["accuracy_printed_held_out"], abs=0.005)


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    for name in ("digits_vit.json", "digits_vit.safetensors"):
        shutil.copy(DATA / name, tmp_path / name)
    path = tmp_path / "digits_vit.safetensors"
    whole = path.read_bytes()
    flipped = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    path.write_bytes(flipped)
    words = r"sha256 of digits_vit.safetensors='[0-9a-f]{64}': expected [0-9a-f]{64}"
    with pytest.raises(ValueError, match=words):
        load_pretrained(tmp_path)
