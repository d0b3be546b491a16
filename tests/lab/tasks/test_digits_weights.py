"""The weights that ship with the package are those of their card."""

import shutil

from calls import refused
from places import ROOT

from fedlora_lab.tasks.digits import load_pretrained

DATA = ROOT / "fedlora_lab" / "tasks" / "data"


def test_changed_weights_are_refused(tmp_path):
    for name in ("digits_vit.json", "digits_vit.safetensors"):
        shutil.copy(DATA / name, tmp_path / name)
    path = tmp_path / "digits_vit.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    words = r"sha256 of digits_vit.safetensors='[0-9a-f]{64}': expected [0-9a-f]{64}"
    with refused(words):
        load_pretrained(tmp_path)
