"""The tuned rates, which every study below takes as they are."""

import json

from studies.suggested_rates import FILE, collected


def test_the_rates_of_the_file_are_those_of_the_committed_searches():
    assert json.loads(FILE.read_text(encoding="utf-8")) == collected()
