"""How long a reader waits for a picture: python -m benchmarks.dials

Every control of every dial is moved through its range in headless Chromium; an input counts until
the frame after it is drawn is ready to be shown, without the wait for the screen. A workbench
trains in a JupyterLab; a record counts from the worker's hand to the picture that shows it.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedlora_lab._utils.files import write_atomically

ROOT = Path(__file__).parents[1]
OUT = Path(__file__).parent / "results"
sys.path[:0] = [
    str(ROOT / "tests" / "browser"),
    str(ROOT / "tests" / "course"),
    str(ROOT / "tests"),
]

MOVE = """() => [...document.querySelectorAll('.fl-dial')].map(dial => {
    const times = [];
    for (const knob of dial.querySelectorAll('.knob input[type=range], .knob select')) {
        const range = knob.type === 'range', count = range ? Number(knob.max) + 1 : knob.length;
        for (let i = 0; i < 40; i++) {
            const at = Math.floor(i * (count - 1) / 39);
            if (range) knob.value = at; else knob.selectedIndex = at;
            const start = performance.now();
            knob.dispatchEvent(new Event('input', {bubbles: true}));
            dial.getBoundingClientRect();  // style and layout too
            times.push(performance.now() - start);
        }
    }
    return [dial.getAttribute('aria-label'), times];
})"""
WORKBENCH = """
import time
import fedlora_lab as fl
task = fl.tasks.digits(clients=10, alpha=0.5, seed=0)
plan = fl.Plan(rounds=40, local_steps=5, batch=16)
run = fl.course.widgets.live(task, plan=plan, privacy=fl.Privacy(delta=1e-4))
taken, take = [], run._take
def timed(*record):
    taken.append(1000 * time.time())
    take(*record)
run._take = timed
run
"""
WATCH = """bench => {
    window.painted = [];
    new MutationObserver(() => window.painted.push(Date.now()))
        .observe(bench, {attributes: true, attributeFilter: ['data-lag']});
}"""
GOAL = {"dial": 16, "workbench": 100}


def dial_times(browser: Any, folder: Path) -> list[dict[str, Any]]:
    """Milliseconds of five rounds through every dial; the least of the five is what other work on
    the machine did not disturb."""
    from test_dials import DIALS, static

    page = static(browser, folder, tuple(DIALS))
    page.evaluate(MOVE)  # once to warm up, as after the reader's first move
    rounds = [page.evaluate(MOVE) for _ in range(5)]
    page.close()
    found = []
    for (name, _), *runs in zip(rounds[0], *rounds, strict=True):
        times = np.array([times for _, times in runs])
        found.append({"kind": "dial", "what": name, **shares(times, times.min(0))})
    return found


def record_times(browser: Any, folder: Path) -> dict[str, Any]:
    """Milliseconds from a record to the picture that shows it, for the records of one run."""
    import lab

    server = lab.Lab(folder / "lab")
    try:
        with lab.open_notebook(browser, server, "run.ipynb", [WORKBENCH, "print(taken)"]) as page:
            bench = page.page.locator(".fl-bench")
            bench.locator("dd").filter(has_text="each way").wait_for()
            bench.evaluate(WATCH)
            bench.get_by_role("button", name="Start").click()
            bench.locator(".state").filter(has_text="finished").wait_for(timeout=300_000)
            page.page.wait_for_timeout(1000)
            painted = np.array(page.page.evaluate("painted"))
            taken = np.array(json.loads(page.run(1).inner_text()))
    finally:
        server.close()
    times = np.array([painted[painted >= at].min() - at for at in taken[1:]])  # 0 is the start
    return {"kind": "workbench", "what": "a run of digits, 40 rounds", **shares(times)}


def shares(times: Any, undisturbed: Any = None) -> dict[str, Any]:
    """Count, median, 95th percentile, and that of the undisturbed times."""
    least = np.nan if undisturbed is None else np.quantile(undisturbed, 0.95)
    median, most = np.quantile(times, (0.5, 0.95))
    return {"times": np.size(times), "median": median, "p95": most, "p95 undisturbed": least}


def page_of(table: pd.DataFrame, load: float) -> str:
    """The table as a page."""
    rows = []
    for row in table.to_dict("records"):
        least = "" if np.isnan(row["p95 undisturbed"]) else f"{row['p95 undisturbed']:.1f}"
        numbers = f"{row['times']} | {row['median']:.1f} | {row['p95']:.1f} | {least}"
        rows.append(f"| {row['kind']} | {row['what']} | {numbers} | {GOAL[row['kind']]} |")
    table_rows = "\n".join(rows)
    return f"""# How long a reader waits for a picture

Rebuilt by `python -m benchmarks.dials`. Milliseconds in headless Chromium: for a dial from an input
to the picture, every control moved through its range five times; for a workbench from the record of
a round to the picture that shows it, through the kernel's messages and JupyterLab.

| kind | what | times | median | p95 | p95 undisturbed | asked |
|---|---|---|---|---|---|---|
{table_rows}

Undisturbed: each move's least of its five times. {os.cpu_count()} cores; the load average of the
last minute was {load:.1f}, so {"other programs shared them" if load > 1.5 else "they were free"}.
"""


def main() -> None:
    """Measures, prints the page, and writes dials.csv and dials.md."""
    import lab
    from playwright.sync_api import sync_playwright

    load = os.getloadavg()[0]
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=lab.chromium(), args=lab.FLAGS)
        rows = dial_times(browser, Path(folder)) + [record_times(browser, Path(folder))]
        browser.close()
    table = pd.DataFrame(rows)
    page = page_of(table, load)
    print(page)
    write_atomically(OUT / "dials.csv", table.to_csv(index=False, float_format="%.3g"), shared=True)
    write_atomically(OUT / "dials.md", page, shared=True)


if __name__ == "__main__":
    main()
