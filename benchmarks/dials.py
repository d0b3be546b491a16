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
    """Prints median, 95th percentile and largest time of every dial, in milliseconds."""
    import lab
    from playwright.sync_api import sync_playwright
    from test_dials import DIALS, static

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=lab.chromium(), args=lab.FLAGS)
        page = static(browser, Path(folder), tuple(DIALS))
        page.evaluate(MOVE)  # once to warm up, as after the reader's first move
        for name, times in page.evaluate(MOVE):
            middle, late, worst = np.quantile(times, (0.5, 0.95, 1.0))
            print(f"{name:45s} median {middle:5.1f}  p95 {late:5.1f}  largest {worst:5.1f} ms")
        browser.close()


if __name__ == "__main__":
    main()
