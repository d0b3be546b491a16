"""How long a dial takes from an input to its picture: python -m benchmarks.dials

Every control of every dial is moved through its range in headless Chromium; an input counts until
the frame after it is drawn is ready to be shown, without the wait for the screen.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
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


def main() -> None:
    """Prints median and 95th percentile for every dial, and that of the least of five repeats,
    which other work on the machine does not disturb.
    """
    import lab
    from playwright.sync_api import sync_playwright
    from test_dials import DIALS, static

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=lab.chromium(), args=lab.FLAGS)
        page = static(browser, Path(folder), tuple(DIALS))
        page.evaluate(MOVE)  # once to warm up, as after the reader's first move
        rounds = [page.evaluate(MOVE) for _ in range(5)]
        for (name, _), *runs in zip(rounds[0], *rounds, strict=True):
            times = np.array([times for _, times in runs])
            shares = *np.quantile(times, (0.5, 0.95)), np.quantile(times.min(0), 0.95)
            words = "median {:5.1f}  p95 {:5.1f}  p95 undisturbed {:5.1f} ms".format(*shares)
            print(f"{name:45s} {words}")
        browser.close()


if __name__ == "__main__":
    main()
