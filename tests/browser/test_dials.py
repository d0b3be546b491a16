"""Every dial of the course in a real JupyterLab, turned by keyboard: what it says, how quickly, and how it looks."""

import pytest
from dials import PLAIN, Repaints, cut_off, note, picture_bytes, wait_for_bytes
from journeys import JOURNEYS

CELLS = {
    "setup": """
import numpy as np
import pandas as pd
import fedlora_lab as fl
rng = np.random.default_rng(0)
left, right = (np.linalg.qr(rng.standard_normal((64, 64)))[0] for _ in range(2))
change = left * 0.55 * 0.9 ** np.arange(64) @ right.T
rows = rng.standard_normal((600, 50)) * np.exp(1.5 * rng.standard_normal((600, 1))) / 7 + 0.02
three = [("fedlora", 0.7), ("ffa-lora", 0.8), ("deer", 0.75)]
cells = [("made", slug, e, 0.1, s, rng.normal(m, 0.02)) for slug, m in three for e in (1.0, 3.0) for s in range(5)]
scores = pd.DataFrame(cells, columns=["study", "method", "epsilon", "lr", "seed", "accuracy"])
""",
    "plain": PLAIN,
    "reach": "fl.widgets.reach(change)",
    "explorer": "fl.widgets.explorer()",
    "planner": "fl.widgets.privacy_planner()",
    "clip": "fl.widgets.clip_explorer(rows)",
    "amplifier": "fl.widgets.noise_amplifier()",
    "regulator": "fl.widgets.regulator()",
    "schedule": "fl.widgets.schedule()",
    "filter": "fl.widgets.filter_explorer()",
    "quantiser": "fl.widgets.quantiser_explorer()",
    "audit": "fl.widgets.audit_dial()",
    "trust": "fl.widgets.trust_picker()",
    "results": "fl.widgets.results_explorer(scores)",
    "bytes_map": "fl.widgets.bytes_map()",
    "attack": "fl.widgets.attack_dial()",
}
DIALS = list(CELLS)[2:]


@pytest.mark.parametrize("name", DIALS)
def test_it_follows_the_keyboard_and_comes_back(notebook, show, plain, name):
    dial = Repaints(notebook, show(name))
    notebook.page.wait_for_timeout(300)  # the page has come to rest
    notebook.watch_layout()
    start, picture = dial.sentence, picture_bytes(dial.image)
    JOURNEYS[name](dial)
    assert len(dial.waits) >= 20
    assert picture_bytes(dial.image) != picture
    dial.output.get_by_role("button", name="Reset").click()
    wait_for_bytes(dial.image, picture)
    dial.output.get_by_text(start).wait_for()
    assert notebook.jumps() == []
    note(name, dial.waits, plain())


def test_what_is_typed_wrong_is_one_line(notebook, show):
    dial = Repaints(notebook, show("schedule"))
    first = picture_bytes(dial.image)
    typed = dial.output.locator("input[type=text]")
    typed.fill("B | Q")
    line = dial.output.get_by_role("alert")
    line.wait_for()
    assert line.inner_text().startswith('word=\'Q\': expected "A", "B"')
    typed.fill("")
    dial.output.get_by_role("status").wait_for()
    wait_for_bytes(dial.image, first)


@pytest.mark.parametrize("name", DIALS)
def test_nothing_is_cut_off_at_1024(notebook, show, screenshots, name):
    notebook.dress("Light", width=1024)
    output = show(name)
    for theme in ("Light", "Dark"):
        notebook.dress(theme, width=1024)
        output.locator("img").wait_for()
        output.scroll_into_view_if_needed()
        notebook.page.screenshot(path=screenshots / f"{name}-{theme.lower()}-1024.png")
        assert cut_off(output) == []
