"""The weights that ship with the package, their card, and the script that makes them."""

import runpy
import shutil

import pytest
from calls import refused
from places import ROOT

from fedlora_lab.tasks.digits import handwritten_digits, load_pretrained

DATA = ROOT / "fedlora_lab" / "tasks" / "data"


@pytest.mark.slow
def test_card_numbers_hold():
    """As the script that made the weights measures them."""
    model, card = load_pretrained()
    script = runpy.run_path(str(ROOT / card["script"]))
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    # One scan is 0.0006: another library version may round one borderline output the other way.
    handwritten = script["accuracy"](model, *handwritten_digits())
    assert handwritten == pytest.approx(card["accuracy_handwritten_before_tuning"], abs=0.0012)
    # Fonts are drawn anew, by whatever Pillow and Matplotlib are installed.
    printed = script["accuracy"](model, *script["printed"](2000, "held out"))
    assert printed == pytest.approx(card["accuracy_printed_held_out"], abs=0.005)


def test_changed_weights_are_refused(tmp_path):
    for name in ("digits_vit.json", "digits_vit.safetensors"):
        shutil.copy(DATA / name, tmp_path / name)
    path = tmp_path / "digits_vit.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    words = r"sha256 of digits_vit.safetensors='[0-9a-f]{64}': expected [0-9a-f]{64}"
    with refused(words):
        load_pretrained(tmp_path)
