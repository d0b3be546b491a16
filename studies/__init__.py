"""Declared studies, the runner that goes on after a kill, and the claims judged by them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
