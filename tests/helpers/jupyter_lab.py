"""A JupyterLab for the browser tests: started on a free port, opened in headless Chromium."""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from axe_playwright_python.sync_playwright import Axe
from jupyter_client.kernelspec import find_kernel_specs
from places import ROOT
from wait_for_thread import until

TOKEN = "only-for-this-test"
QUIET = "--disable-background-networking --disable-component-update --disable-sync --no-first-run"
FLAGS = ["--no-sandbox", "--disable-gpu", *QUIET.split()]
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "apputils-extension/themes": {"theme": "JupyterLab Light"},
    "docmanager-extension/plugin": {"autosave": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are in the page
}


def chromium() -> str:
    """Path of a Chromium; fails with the command that adds one."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    raise FileNotFoundError("no Chromium found: apt-get install chromium")


@contextmanager
def served_notebook(folder: Path, cells: Iterable[str]) -> Iterator[str]:
    """The address of a notebook of these code cells, the only one of a JupyterLab of its own."""
    places = {"IPYTHONDIR": "ipython", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    places |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTER_CONFIG_DIR": "config"}
    places |= {"JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    env = os.environ | {name: str(folder / place) for name, place in places.items()}
    for name in ("MPLBACKEND", "PYTHONWARNINGS"):
        env.pop(name, None)
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name, values in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, cells)])
    # Under scripts/warm_kernels.py a kernel is there at once; else it loads the libraries.
    kernel = "warm" if "warm" in find_kernel_specs() else "python3"
    notebook.metadata["kernelspec"] = {"name": kernel, "display_name": "Python 3"}
    (folder / "notebooks").mkdir()
    nbformat.write(notebook, folder / "notebooks" / "widgets.ipynb")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": folder / "notebooks",
        "IdentityProvider.token": TOKEN,
        "LabApp.expose_app_in_browser": True,
        "LabApp.extension_manager": "readonly",
        # Should the test's process be killed, the server ends itself.
        "ServerApp.shutdown_no_activity_timeout": 3600,
        "MappingKernelManager.cull_idle_timeout": 3600,
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{name}={value}" for name, value in options.items()]
    address = f"http://127.0.0.1:{port}"
    log = folder / "server.log"
    with log.open("w") as stream:
        server = subprocess.Popen(command, env=env, stdout=stream, stderr=stream)
        try:
            until(lambda: answers(server, address, log), 900)
            yield f"{address}/lab/tree/widgets.ipynb?token={TOKEN}&reset"
        finally:
            server.terminate()  # it ends its kernels
            server.wait(60)


def answers(server: subprocess.Popen, address: str, log: Path) -> bool:
    assert server.poll() is None, f"JupyterLab ended:\n{log.read_text()}"
    try:
        urllib.request.urlopen(f"{address}/api", timeout=10).close()
    except OSError:
        return False
    return True


def of_the_lab(error: Any) -> bool:
    """Whether JupyterLab's own code alone threw it: it may remove a node twice as themes change."""
    frames = [line for line in (error.stack or "").splitlines() if line.strip().startswith("at ")]
    return bool(frames) and all("/static/lab/" in line for line in frames)


class Page:
    """A notebook open in the browser; ``errors`` holds what the console complained of.

    Args: browser: of Playwright. address: of the notebook. names: of its cells.
    """

    def __init__(self, browser: Any, address: str, names: Iterable[str]) -> None:
        self.names = [*names]
        self.page = browser.new_page(viewport={"width": 1280, "height": 1100})
        self.errors: list[str] = []
        self.page.on("console", lambda m: m.type == "error" and self.errors.append(m.text))
        self.page.on("pageerror", lambda e: None if of_the_lab(e) else self.errors.append(str(e)))
        self.page.set_default_timeout(240_000)  # a busy machine is slow, not wrong
        self.page.goto(address)
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        self.page.wait_for_function(
            """() => {
                const session = window.jupyterapp?.shell.currentWidget?.sessionContext;
                const kernel = session?.isReady && session.session?.kernel;
                return kernel?.connectionStatus === 'connected' && kernel.status === 'idle';
            }"""
        )

    def command(self, name, **arguments):
        """Run one of JupyterLab's own commands."""
        run = "([name, arguments]) => window.jupyterapp.commands.execute(name, arguments)"
        self.page.evaluate(run, [name, arguments])

    def run(self, name):
        """Run the cell of this name, wait until it has ended, and give its output area."""
        index = self.names.index(name)
        before = self.page.evaluate(
            """index => {
                const notebook = window.jupyterapp.shell.currentWidget.content;
                const cell = notebook.widgets.filter(one => one.model.type === 'code')[index];
                const before = cell.model.executionCount;
                notebook.activeCellIndex = notebook.widgets.indexOf(cell);
                window.jupyterapp.commands.execute('notebook:run-cell');
                return before;
            }""",
            index,
        )
        self.page.wait_for_function(
            """([index, before]) => {
                const notebook = window.jupyterapp.shell.currentWidget.content;
                const cell = notebook.widgets.filter(one => one.model.type === 'code')[index];
                const prompt = cell.node.querySelector('.jp-InputArea-prompt').innerText;
                return /[0-9]/.test(prompt) && cell.model.executionCount !== before;
            }""",
            arg=[index, before],
        )
        cell = self.page.locator(".jp-Notebook .jp-CodeCell").nth(index)
        return cell.locator(".jp-Cell-outputWrapper").first

    def dress(self, theme, width, height=900):
        """Another theme, "Light" or "Dark", and another size of the page."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.command("apputils:change-theme", theme=f"JupyterLab {theme}")
        body = f"body[data-jp-theme-name='JupyterLab {theme}']"
        self.page.wait_for_selector(body, state="attached")

    def watch_layout(self):
        """Begin to note how far the notebook's content jumps; JupyterLab's own bars may."""
        self.page.evaluate(
            """() => {
                window.jumps = [];
                const home = document.querySelector('.jp-Notebook');
                const at = r => [r.x, r.y, r.width, r.height].map(Math.round).join(' ');
                const inside = ({node, previousRect, currentRect: now}) => {
                    if (at(previousRect) === at(now)) return false;  // fractions of a pixel
                    if (node) return home.contains(node);
                    const box = home.getBoundingClientRect();  // the node is gone: where was it?
                    return now.x < box.right && now.right > box.x
                        && now.y < box.bottom && now.bottom > box.y;
                };
                const name = node => (node?.outerHTML ?? node?.data ?? 'gone').slice(0, 80);
                const move = ({node, previousRect, currentRect}) =>
                    `${name(node)}: ${at(previousRect)} -> ${at(currentRect)}`;
                new PerformanceObserver(list => {
                    for (const entry of list.getEntries()) {
                        const moved = entry.sources.filter(inside);
                        if (moved.length || !entry.sources.length)
                            window.jumps.push([entry.value, ...moved.map(move)]);
                    }
                }).observe({type: 'layout-shift', buffered: false});
            }"""
        )

    def jumps(self):
        """Layout shifts since `watch_layout`: how far, and what moved from where to where."""
        return self.page.evaluate("window.jumps")


def cut_off(output: Any) -> list[str]:
    """Parts of a widget that stick out at the right, or text that does not fit its place."""
    return output.evaluate(
        """area => {
            const right = area.getBoundingClientRect().right + 1;
            const parts = 'button, select, img, .progress, .widget-slider, '
                + '.widget-html-content';
            return [...area.querySelectorAll(parts)]
                .filter(e => !e.closest('[role=region]'))  // what scrolls is not cut off
                .filter(e => e.getBoundingClientRect().right > right
                    || e.scrollHeight > e.clientHeight + 4)
                .map(e => e.outerHTML.slice(0, 90));
        }"""
    )


#: A theme fades its colours in: half-way, black text may stand on a dark ground already.
FADES_END = """() => Promise.allSettled(document.getAnimations()
    .filter(fade => fade.effect.getComputedTiming().endTime !== Infinity)
    .map(fade => fade.finished))"""


#: axe-core takes milliseconds to measure the contrast of one text. This marks what need not be
#: looked at: a plain text that looks like three before it, in colours and letters, and stands on
#: the ground of its parents, as a positioned box or a drawing may not.
MARK_REPEATED = """() => {
    const grounds = new Map([[null, '']]);
    const ground = element => {
        if (!grounds.has(element)) {
            const {position, opacity, backgroundColor, backgroundImage} = getComputedStyle(element);
            const place = /absolute|fixed|sticky/.test(position) ? grounds.size : '';
            const own = [place, opacity, backgroundColor, backgroundImage].join();
            const plain = own === ',1,rgba(0, 0, 0, 0),none';
            grounds.set(element, ground(element.parentElement) + (plain ? '' : `|${own}`));
        }
        return grounds.get(element);
    };
    const shown = {visibilityProperty: true, opacityProperty: true};
    const plain = 'span, p, code, em, strong, td';
    const counts = new Map();
    for (const text of document.querySelectorAll(plain)) {
        const named = [...text.attributes].some(({name}) => !/^(class|style|data-.*)$/.test(name));
        const empty = !text.textContent.trim() || !text.offsetWidth || !text.checkVisibility(shown);
        if (text.childElementCount || named || empty) continue;
        const {color, fontSize, fontWeight} = getComputedStyle(text);
        const look = [color, fontSize, fontWeight, ground(text)].join();
        counts.set(look, (counts.get(look) ?? 0) + 1);
        text.toggleAttribute('data-repeated', counts.get(look) > 3);
    }
}"""
#: Lines are no text, so axe-core does not look at them. A canvas knows every way to write a colour.
LINES = """part => {
    const context = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
    const luminance = (...colours) => {
        context.globalAlpha = 1;
        for (const [colour, opacity] of colours) {
            context.globalAlpha = opacity;
            context.fillStyle = colour;
            context.fillRect(0, 0, 1, 1);
        }
        const parts = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map(x => x / 255);
        const [r, g, b] = parts.map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
    };
    const contrast = line => {
        const {stroke, opacity} = getComputedStyle(line);
        const ground = [getComputedStyle(line.closest('.fl-dial')).backgroundColor, 1];
        const both = [luminance(ground), luminance(ground, [stroke, opacity])];
        return Math.max(...both) / Math.min(...both);
    };
    return [...document.querySelectorAll(`${part} polyline`)].map(contrast);
}"""
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
COLOURS = {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}
THEMES = {"Light": WCAG, "Dark": COLOURS}
"""Theme -> the rules against which a page is held that was held to those of the theme before."""


def faintest_line(page: Any, part: str) -> float:
    """The least contrast of a line of a widget with the ground on which it is drawn."""
    return min(page.evaluate(LINES, part))


def accessibility_faults(page: Any, part: str = "html", rules: Any = WCAG) -> list[str]:
    """What axe-core finds in a page at rest, or in one part of it.

    Args: page: of Playwright. part: a selector. rules: against WCAG 2.1 AA; of a page that was
    looked at in another theme only the `COLOURS`.
    """
    page.evaluate(FADES_END)
    page.evaluate(MARK_REPEATED)
    context = {"include": [part], "exclude": ["[data-repeated]"]}
    options = {"runOnly": rules, "resultTypes": ["violations"]}
    report = Axe().run(page, context=context, options=options)
    return [report.generate_report()] if report.violations_count else []
