"""A JupyterLab of one's own for a test: started on a free port, opened in headless Chromium, ended by process id."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat

TOKEN = "only-for-this-test"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "apputils-extension/themes": {"theme": "JupyterLab Light"},
    "docmanager-extension/plugin": {"autosave": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, also out of sight
}


def chromium() -> str:
    """Path of a Chromium; fails with the command that adds one."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    raise FileNotFoundError("no Chromium found: apt-get install chromium")


class Lab:
    """One JupyterLab server on the loopback address, with settings and notebooks in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notebooks = folder, folder / "notebooks"
        self.notebooks.mkdir(parents=True)
        for name, values in SETTINGS.items():
            path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = (folder / "server.log").open("w")
        self.process = subprocess.Popen(self._command(), env=self._environment(), stdout=self.log, stderr=self.log)
        self._wait()

    def _command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={self.port}", "--ServerApp.port_retries=0"),
            *(f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={self.notebooks}"),
            *("--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly", "--LabApp.news_url="),
            # Should the test's process be killed, the server ends itself.
            *("--ServerApp.shutdown_no_activity_timeout=900", "--MappingKernelManager.cull_idle_timeout=600"),
            "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
        ]

    def _environment(self) -> dict[str, str]:
        places = {f"JUPYTER_{kind.upper()}_DIR": kind for kind in ("config", "data", "runtime")}
        places |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
        places |= {"IPYTHONDIR": "ipython"}
        root = str(Path(__file__).parents[2])
        added = {name: str(self.folder / place) for name, place in places.items()}
        kept = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "PYTHONWARNINGS")}
        return kept | added | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}

    def _wait(self, seconds: float = 180) -> None:
        until = time.monotonic() + seconds
        while True:
            try:
                return self.ask("api")
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None, f"JupyterLab ended:\n{(self.folder / 'server.log').read_text()}"
                assert time.monotonic() < until, f"JupyterLab did not answer within {seconds:g} s"
                time.sleep(0.1)

    def ask(self, path: str, method: str = "GET") -> None:
        """One request to the server's interface."""
        address = f"{self.address}/{path}"
        request = urllib.request.Request(address, method=method, headers={"Authorization": f"token {TOKEN}"})
        urllib.request.urlopen(request, timeout=10).close()

    def close(self) -> None:
        """Ask the server to end, with its kernels; it is killed if it does not."""
        try:
            self.ask("api/shutdown", "POST")
            self.process.wait(15)
        except (subprocess.TimeoutExpired, urllib.error.URLError, OSError):
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(15)
        self.log.close()

    def write(self, name: str, cells: Iterable[str]) -> str:
        """A notebook with these code cells."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.notebooks / name)
        return name


def of_the_lab(error: Any) -> bool:
    """Whether JupyterLab's own code alone threw it: on a busy machine it removes a node twice when themes change."""
    frames = [line for line in (error.stack or "").splitlines() if line.strip().startswith("at ")]
    return bool(frames) and all("/static/lab/" in line for line in frames)


class Page:
    """A notebook open in the browser; ``errors`` holds what the console complained of."""

    def __init__(self, browser: Any, lab: Lab, name: str, width: int = 1280, height: int = 1100) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.errors: list[str] = []
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        self.page.on("pageerror", lambda error: None if of_the_lab(error) else self.errors.append(str(error)))
        self.page.set_default_timeout(120_000)
        self.page.goto(f"{lab.address}/lab/tree/{name}?token={TOKEN}&reset")
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        self.page.wait_for_function(
            """() => {
                const session = window.jupyterapp?.shell.currentWidget?.sessionContext;
                const kernel = session?.isReady && session.session?.kernel;
                return kernel && kernel.connectionStatus === 'connected' && kernel.status === 'idle';
            }"""
        )

    def command(self, name: str, arguments: dict[str, Any] | None = None) -> None:
        """Run one of JupyterLab's own commands."""
        self.page.evaluate(
            "([name, arguments]) => window.jupyterapp.commands.execute(name, arguments)", [name, arguments or {}]
        )

    def run(self, index: int) -> Any:
        """Run a code cell, wait until it has ended, and give its output area."""
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
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(index).locator(".jp-Cell-outputWrapper").first

    def dress(self, theme: str, width: int, height: int = 900) -> None:
        """Another theme, "Light" or "Dark", and another size of the page."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.command("apputils:change-theme", {"theme": f"JupyterLab {theme}"})
        self.page.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {theme}']", state="attached")

    def watch_layout(self) -> None:
        """Begin to note how far the notebook's content jumps; JupyterLab's own bars are not the widget's."""
        self.page.evaluate(
            """() => {
                window.jumps = [];
                const home = document.querySelector('.jp-Notebook');
                const at = rect => [rect.x, rect.y, rect.width, rect.height].map(Math.round).join(' ');
                const inside = ({node, previousRect, currentRect: now}) => {
                    if (at(previousRect) === at(now)) return false;  // fractions of a pixel: nobody sees them
                    if (node) return home.contains(node);
                    const box = home.getBoundingClientRect();  // the node is gone: where was it?
                    return now.x < box.right && now.right > box.x && now.y < box.bottom && now.bottom > box.y;
                };
                const name = node => (node?.outerHTML ?? node?.data ?? 'gone').slice(0, 80);
                const told = ({node, previousRect, currentRect}) =>
                    `${name(node)}: ${at(previousRect)} -> ${at(currentRect)}`;
                new PerformanceObserver(list => {
                    for (const entry of list.getEntries()) {
                        const moved = entry.sources.filter(inside);
                        if (moved.length || !entry.sources.length) window.jumps.push([entry.value, ...moved.map(told)]);
                    }
                }).observe({type: 'layout-shift', buffered: false});
            }"""
        )

    def jumps(self) -> list[list[float | str]]:
        """Layout shifts since `watch_layout`: how far, and what moved from where to where."""
        return self.page.evaluate("window.jumps")
