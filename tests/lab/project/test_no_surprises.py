"""What this package never does: unpickle, or run foreign code."""

import re

from places import ROOT

UNSAFE = re.compile(
    r"weights_only\s*=\s*False|allow_pickle\s*=\s*True|trust_remote_code\s*=\s*True"
)


def test_nothing_is_unpickled_and_no_foreign_code_is_run():
    """Modules of pickles, `eval`, `exec` and shells are found by ruff (pyproject.toml)."""
    for room in ("fedlora_lab", "scripts", "benchmarks", "studies"):
        for path in (ROOT / room).rglob("*.py"):
            assert UNSAFE.findall(path.read_text(encoding="utf-8")) == [], path
