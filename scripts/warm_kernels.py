"""Run a command whose Jupyter kernels, pytest workers and the processes that tests start begin as
copies of one process that has imported the libraries.

    python scripts/warm_kernels.py pytest --nbmake --nbmake-kernel=warm notebooks/*.ipynb
    python scripts/warm_kernels.py pytest --tx 2*popen//python={warm} --dist worksteal tests

Loading torch, transformers, pandas and seaborn takes ten seconds of every new process. Here they
are loaded once: the kernel `warm`, and the interpreter that stands for `{warm}` in the command,
are forks of a process that has done nothing but import them. Tests find that interpreter, and the
PROGRAMS run by it, in the folder FEDLORA_WARM; joblib's workers are
such forks wherever it is used in one.
"""

import atexit
import fcntl
import importlib
import json
import os
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

LIBRARIES = (
    "matplotlib.pyplot", "pandas", "seaborn", "scipy.stats", "torch", "peft",
    "opacus", "dp_accounting", "transformers", "ipywidgets", "ipykernel.kernelapp", "nbclient",
    "hypothesis", "flwr.supercore.cli",
)  # fmt: skip
PROGRAMS = (
    "fedlora-lab", "flwr", "flower-superlink", "flower-supernode", "flower-superexec",
    "flwr-clientapp", "flwr-serverapp", "flwr-simulation",
)  # fmt: skip
NUMBER_WIDTH = 32
"""Bytes in which a fork tells its process number, so that its status, which may be read together
with it, is not taken for a part of it."""
ABOVE = 512
"""No descriptor that a process is started with has so high a number."""
INLINE = "module://matplotlib_inline.backend_inline"  # as a kernel sets it before its first import


def serve(listener: socket.socket) -> None:
    """Import the libraries, then fork a process for every connection, for ever."""
    os.environ["MPLBACKEND"] = INLINE
    for library in LIBRARIES:
        importlib.import_module(library)
    loky: Any = importlib.import_module("joblib.externals.loky.backend.fork_exec")
    loky.fork_exec = partial(start_worker, loky.fork_exec)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            become(connection)
        connection.close()


def start_worker(
    start: Callable[..., int], command: list[str], *rest: object, **named: object
) -> int:
    """In place of joblib's own start of a process: what becomes a worker is a fork, too."""
    warm = str(Path(os.environ["FEDLORA_WARM"]) / "python")
    return start([warm, *command[1:]] if is_worker(command) else command, *rest, **named)


def is_worker(command: list[str]) -> bool:
    return "joblib.externals.loky.backend.popen_loky_posix" in command


def become(connection: socket.socket) -> None:
    """Become the process that the other end asks for; end when the other end does."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, _, _ = socket.recv_fds(connection, 2**20, 250)
    asked = json.loads(message)
    # First above all numbers that are asked for, so that none takes the place of another.
    handles = [connection.detach(), *streams]
    raised = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, ABOVE) for one in handles]
    for handle in handles:
        os.close(handle)
    connection = socket.socket(fileno=raised[0])
    for handle, number in zip(raised[1:], asked["streams"], strict=True):
        os.dup2(handle, number)
        os.close(handle)
    os.environ.clear()
    os.environ.update({"MPLBACKEND": INLINE if "file" in asked else "agg"} | asked["environment"])
    os.chdir(asked["folder"])
    connection.sendall(str(os.getpid()).ljust(NUMBER_WIDTH).encode())
    threading.Thread(target=lambda: (connection.recv(1), os._exit(1)), daemon=True).start()
    status = 0
    if "file" in asked:
        app = importlib.import_module("ipykernel.kernelapp").IPKernelApp
        app.launch_instance(argv=["-f", asked["file"]])
    else:
        if is_worker(asked["words"]):
            # It says at its end which process it is, and joblib knows the one that it has started.
            loky: Any = importlib.import_module("joblib.externals.loky.process_executor")
            loky.os = SimpleNamespace(**vars(os) | {"getpid": lambda: asked["number"]})
        status = interpret(asked["words"])
    connection.sendall(str(status).encode())
    os._exit(status)


def interpret(words: list[str]) -> int:
    """Do as ``python words`` does, and give the status with which it ends."""
    importlib.import_module("matplotlib").use(os.environ["MPLBACKEND"])
    main = sys.modules["__main__"] = ModuleType("__main__")
    sys.stdin = os.fdopen(0, closefd=False)
    added = os.environ.get("PYTHONPATH", "")
    sys.path[:1] = [path for path in added.split(os.pathsep) if path]  # in place of this folder
    while words[:1] in (["-u"], ["-B"]):  # which execnet and multiprocessing add
        words = words[1:]
    first, status = (words or ["-"])[0], 0
    sys.argv = words[1:] if first in ("-c", "-m") else words
    try:
        if first == "-m":
            sys.path.insert(0, os.getcwd())
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif first in ("-c", "-"):
            sys.path.insert(0, "")
            code = words[1] if first == "-c" else sys.stdin.read()
            sys.argv = [first, *sys.argv[1:]]
            exec(code, vars(main))
        else:
            sys.path.insert(0, os.path.dirname(first))
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def inherited() -> list[int]:
    """The descriptors that were given to this process: standard ones, and pipes of joblib's."""
    found = []
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # that of the listing is gone
            if os.get_inheritable(int(name)):
                found.append(int(name))
    return sorted(found)


def stand_in(place: str, **asked: str | list[str]) -> int:
    """What others start as a process: asks for a fork, passes signals on, lives as long as it and
    ends as it does."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(place)
        streams = inherited()
        body = {"environment": dict(os.environ), "folder": os.getcwd(), "number": os.getpid()}
        body |= {"streams": streams, **asked}
        socket.send_fds(connection, [json.dumps(body).encode()], streams)
        number = int(connection.recv(NUMBER_WIDTH, socket.MSG_WAITALL))
        for stream in streams:
            os.close(stream)
        for passed in (signal.SIGINT, signal.SIGTERM):
            signal.signal(passed, lambda which, _: os.kill(number, which))
        return int(connection.recv(4) or 1)  # nothing comes from a fork that was killed


def main(command: list[str]) -> int:
    """Run the command beside the process that kernels are forked from; gives its exit status."""
    folder = Path(tempfile.mkdtemp())  # which no fork takes away as it ends
    with socket.socket(socket.AF_UNIX) as listener:
        spec, place = folder / "kernels" / "warm", str(folder / "socket")
        spec.mkdir(parents=True)
        argv = [sys.executable, "-S", __file__, "--stand-in", place, "{connection_file}"]
        text = json.dumps({"argv": argv, "display_name": "warm", "language": "python"})
        (spec / "kernel.json").write_text(text, encoding="utf-8")
        programs = folder / "bin"
        programs.mkdir()
        for name in ("python", *PROGRAMS):
            own = [] if name == "python" else [str(Path(sys.executable).with_name(name))]
            words = shlex.join([sys.executable, "-S", __file__, "--interpret", place, *own])
            (programs / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
            (programs / name).chmod(0o700)
        command = [word.replace("{warm}", str(programs / "python")) for word in command]
        listener.bind(place)
        listener.listen()
        server = os.fork()
        if server == 0:
            serve(listener)
        paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("JUPYTER_PATH")]))
        added = {"JUPYTER_PATH": paths, "FEDLORA_WARM": str(programs)}
        try:
            return subprocess.run(command, env=os.environ | added, check=False).returncode
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
            shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stand-in"]:
        sys.exit(stand_in(sys.argv[2], file=sys.argv[3]))
    elif sys.argv[1:2] == ["--interpret"]:
        sys.exit(stand_in(sys.argv[2], words=sys.argv[3:]))
    else:
        sys.exit(main(sys.argv[1:]))
