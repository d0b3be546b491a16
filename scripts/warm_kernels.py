"""Run a command whose Jupyter kernels start from one process that has imported the libraries.

    python scripts/warm_kernels.py pytest --nbmake --nbmake-kernel=warm notebooks/*.ipynb

Loading torch, transformers, pandas and seaborn takes seconds of every new kernel. Here they are
loaded once: the kernel `warm` is a fork of a process that has done nothing but import them. What
`fl.compare` trains is kept in build/runs, or the folder FEDLORA_CACHE, under a digest of its data,
plan and seed and of all code that computes it: notebooks which compare the same runs train them
once, and so does the next call, until that code changes. `make clean` forgets it.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

LIBRARIES = (
    "matplotlib.pyplot", "pandas", "seaborn", "scipy.stats", "sklearn.datasets", "torch", "peft",
    "opacus", "dp_accounting", "transformers", "ipywidgets", "ipykernel.kernelapp",
)  # fmt: skip
WEEK = 7 * 24 * 3600
INLINE = "module://matplotlib_inline.backend_inline"  # as a kernel sets it before its first import


def serve(listener: socket.socket) -> None:
    """Import the libraries, then fork a kernel for every connection, for ever."""
    os.environ["MPLBACKEND"] = INLINE
    for library in LIBRARIES:
        importlib.import_module(library)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the kernels
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            kernel(connection)
        connection.close()


def kernel(connection: socket.socket) -> None:
    """Become the kernel that the other end asks for; end when the other end does."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, _, _ = socket.recv_fds(connection, 2**20, 2)
    asked = json.loads(message)
    for number, stream in zip((1, 2), streams, strict=True):
        os.dup2(stream, number)
    os.environ.clear()
    os.environ.update({"MPLBACKEND": INLINE} | asked["environment"])
    os.chdir(asked["folder"])
    connection.sendall(str(os.getpid()).encode())
    threading.Thread(target=lambda: (connection.recv(1), os._exit(1)), daemon=True).start()
    app = importlib.import_module("ipykernel.kernelapp").IPKernelApp
    app.launch_instance(argv=["-f", asked["file"]])
    os._exit(0)


def stand_in(place: str, file: str) -> None:
    """What Jupyter starts: asks for a kernel, passes interrupts on, and lives as long as it."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(place)
        asked = {"environment": dict(os.environ), "folder": os.getcwd(), "file": file}
        socket.send_fds(connection, [json.dumps(asked).encode()], [1, 2])
        number = int(connection.recv(32))
        signal.signal(signal.SIGINT, lambda *_: os.kill(number, signal.SIGINT))
        connection.recv(1)


def kept_runs(home: Path) -> Path:
    """A folder for the frames of runs; of what was written over a week ago nothing is left.

    Each release of Transformers has its own: the digest of a run knows that of the others.
    """
    for path in home.rglob("*"):
        if path.is_file() and path.stat().st_mtime < time.time() - WEEK:
            path.unlink(missing_ok=True)
    return home / f"transformers-{version('transformers')}"


def main(command: list[str]) -> int:
    """Run the command beside the process that kernels are forked from; gives its exit status."""
    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX) as listener:
        folder = Path(name)
        spec, place = folder / "kernels" / "warm", str(folder / "socket")
        spec.mkdir(parents=True)
        argv = [sys.executable, __file__, "--stand-in", place, "{connection_file}"]
        text = json.dumps({"argv": argv, "display_name": "warm", "language": "python"})
        (spec / "kernel.json").write_text(text, encoding="utf-8")
        listener.bind(place)
        listener.listen()
        server = os.fork()
        if server == 0:
            serve(listener)
        paths = os.pathsep.join(filter(None, [name, os.environ.get("JUPYTER_PATH")]))
        runs = kept_runs(Path(__file__).resolve().parents[1] / "build" / "runs")
        added = {"JUPYTER_PATH": paths, "FEDLORA_PROGRESS": str(folder / "progress.json")}
        added["FEDLORA_CACHE"] = os.environ.get("FEDLORA_CACHE", str(runs))
        try:
            return subprocess.run(command, env=os.environ | added, check=False).returncode
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stand-in"]:
        stand_in(*sys.argv[2:])
    else:
        sys.exit(main(sys.argv[1:]))
