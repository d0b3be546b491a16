"""Starts a server and two sites as processes of this machine, plays the run, and ends them all.

    python examples/flower_app/local.py FOLDER

FOLDER gets the made-up private notes, both sites' memories, the logs, and in ``out`` the server's
ledger and the adapter. Everything listens on 127.0.0.1 alone, and without TLS for that reason.
"""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

APP = Path(__file__).resolve().parent
sys.path.insert(0, str(APP))
PROGRAMS = Path(sys.executable).parent


class Federation:
    """The processes of a federation: leaving it ends them.

    Args: folder: for all that they write.
    """

    def __init__(self, folder: Path) -> None:
        from flower_app import notes

        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        notes.write(self.folder)
        self.started: list[psutil.Popen] = []
        self.server, *self.sites = _free_ports(3)
        home = self.folder / "flower"
        home.mkdir(exist_ok=True)
        address = f'address = "127.0.0.1:{self.server}"\ninsecure = true\n'
        (home / "config.toml").write_text(f"[superlink.local]\n{address}", "utf-8")
        path = os.pathsep.join([str(PROGRAMS), os.environ["PATH"]])
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        self.environment = {**os.environ, **quiet, "FLWR_HOME": str(home), "PATH": path}

    def start(self, *command: str, log: str) -> psutil.Popen:
        """Starts a program with a log in the folder."""
        with open(self.folder / log, "ab") as file:
            options = {"cwd": APP, "env": self.environment, "stdout": file, "stderr": file}
            process = psutil.Popen(command, **options)
        self.started.append(process)
        return process

    def start_server(self) -> None:
        """Starts the SuperLink, and waits until it answers."""
        where = ("--host", "127.0.0.1", "--port", str(self.server))
        flags = ("--insecure", "--disable-runtime-dependency-installation")
        self.start("flower-superlink", *flags, *where, log="server.log")
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.server), timeout=1).close()
                return
            except OSError:
                time.sleep(0.2)

    def start_site(self, k: int) -> psutil.Popen:
        """Starts a site's SuperNode."""
        own = f"data='{self.folder}/site-{k}.csv' memory='{self.folder}/memory-{k}'"
        where = ("--superlink", f"127.0.0.1:{self.server}", "--port", str(self.sites[k]))
        node = ("--insecure", *where, "--node-config", f"site={k} {own}")
        return self.start("flower-supernode", *node, log=f"site-{k}.log")

    def play(self) -> bool:
        """Plays the run, or goes on with it; returns whether it came to its end."""
        config = f"out='{self.folder}/out'"
        command = ("flwr", "run", ".", "local", "--stream", "--run-config", config)
        told = subprocess.run(
            command, cwd=APP, env=self.environment, stdout=subprocess.PIPE, text=True, check=False
        )
        print(told.stdout)
        return "finished: " in told.stdout

    def __enter__(self) -> "Federation":
        return self

    def __exit__(self, *reason: object) -> None:
        for process in reversed(self.started):
            kill(process)


def kill(process: psutil.Popen) -> None:
    """Kills a program and all that it has started."""
    with suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family)


def _free_ports(count: int) -> list[int]:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def main() -> None:
    """Plays one run from its start to its end."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "federation")
    with Federation(folder) as federation:
        federation.start_server()
        for k in range(2):
            federation.start_site(k)
        finished = federation.play()
    sys.exit(0 if finished else f"the run did not finish: see the logs in {folder}")


if __name__ == "__main__":
    main()
