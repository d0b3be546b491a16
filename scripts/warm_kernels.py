"""Run a command whose Jupyter kernels and pytest workers start from one process that has imported
the libraries.

    python scripts/warm_kernels.py pytest --nbmake --nbmake-kernel=warm notebooks/*.ipynb
    python scripts/warm_kernels.py pytest --tx 2*popen//python={warm} --dist worksteal tests

Loading torch, transformers, pandas and seaborn takes ten seconds of every new process. Here they
are loaded once: the kernel `warm`, and the interpreter that stands for `{warm}` in the command,
are forks of a process that has done nothing but import them. What
`fl.compare` trains is kept in build/runs, or the folder FEDLORA_CACHE, under a digest of its data,
plan and seed and of all code that computes it: notebooks which compare the same runs train them
once, and so does the next call, until that code changes. `make clean` forgets it.
"""

import importlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

LIBRARIES = (
    "matplotlib.pyplot", "pandas", "seaborn", "scipy.stats", "sklearn.datasets", "torch", "peft",
    "opacus", "dp_accounting", "transformers", "ipywidgets", "ipykernel.kernelapp",
)  # fmt: skip
WEEK = 7 * 24 * 3600
INLINE = "module://matplotlib_inline.backend_inline"  # as a kernel sets it before its first import


def serve(listener: socket.socket) -> None:
    """Import the libraries, then fork a process for every connection, for ever."""
    os.environ["MPLBACKEND"] = INLINE
    for library in LIBRARIES:
        importlib.import_module(library)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            become(connection)
        connection.close()


def become(connection: socket.socket) -> None:
    """Become the process that the other end asks for; end when the other end does."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, _, _ = socket.recv_fds(connection, 2**20, 3)
    asked = json.loads(message)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update({"MPLBACKEND": INLINE if "file" in asked else "agg"} | asked["environment"])
    os.chdir(asked["folder"])
    connection.sendall(str(os.getpid()).encode())
    threading.Thread(target=lambda: (connection.recv(1), os._exit(1)), daemon=True).start()
    if "file" in asked:
        app = importlib.import_module("ipykernel.kernelapp").IPKernelApp
        app.launch_instance(argv=["-f", asked["file"]])
    else:
        interpret(asked["code"])
    os._exit(0)


def interpret(code: str) -> None:
    """Do as ``python -c code`` does."""
    importlib.import_module("matplotlib").use(os.environ["MPLBACKEND"])
    main = sys.modules["__main__"] = ModuleType("__main__")
    sys.argv, sys.stdin = ["-c"], os.fdopen(0, closefd=False)
    exec(code, vars(main))
    sys.stdout.flush()
    sys.stderr.flush()


def stand_in(place: str, **asked: str) -> None:
    """What Jupyter or pytest-xdist starts: asks for a process, passes interrupts on, and lives as
    long as it."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(place)
        body = {"environment": dict(os.environ), "folder": os.getcwd(), **asked}
        socket.send_fds(connection, [json.dumps(body).encode()], [0, 1, 2])
        number = int(connection.recv(32))
        for stream in (0, 1, 2):
            os.close(stream)
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
        argv = [sys.executable, "-S", __file__, "--stand-in", place, "{connection_file}"]
        text = json.dumps({"argv": argv, "display_name": "warm", "language": "python"})
        (spec / "kernel.json").write_text(text, encoding="utf-8")
        warm = folder / "python"
        words = shlex.join([sys.executable, "-S", __file__, "--interpret", place])
        warm.write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
        warm.chmod(0o700)
        command = [word.replace("{warm}", str(warm)) for word in command]
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
        stand_in(sys.argv[2], file=sys.argv[3])
    elif sys.argv[1:2] == ["--interpret"]:  # -u, what execnet adds, and -c with its code
        stand_in(sys.argv[2], code=sys.argv[-1])
    else:
        sys.exit(main(sys.argv[1:]))
