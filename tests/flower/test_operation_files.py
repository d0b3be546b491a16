"""What a consortium's operators copy: the keys that the script makes are those that Flower reads,
and every command line of containers and units is one that the installed programs take.
"""

import argparse
import re
import shlex
import shutil
import ssl
import stat
import subprocess
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.supernode.register import try_load_public_key
from flwr.common.config import parse_config_args

import fedlora_lab

TEMPLATE = Path(fedlora_lab.__file__).parent / "flower" / "template"
PROGRAMS = {
    "flower-superlink": ("flwr.superlink.cli.flower_superlink", "_parse_args_run_superlink"),
    "flower-supernode": ("flwr.supernode.cli.flower_supernode", "_parse_args_run_supernode"),
}
ROOT = "/srv/fedlora"


def keys(*words: object) -> subprocess.CompletedProcess[str]:
    """A call of the script, as strict as a shell can be."""
    command = ["bash", "-eu", TEMPLATE / "keys.sh", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with all that the script makes."""
    folder = tmp_path_factory.mktemp("keys")
    for words in (("authority",), ("server", "coordinator.example.org", "10.0.0.7"), ("node", "a")):
        done = keys(words[0], folder, *words[1:])
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert done.stdout.startswith("made: ")
    return folder


@pytest.mark.slow
def test_made_keys_are_those_that_flower_and_tls_take(made):
    """Read by Flower's own loaders, verified by openssl in its strictest mode, by name and address;
    private keys are their owner's.
    """
    module = import_module(PROGRAMS["flower-supernode"][0])
    given = SimpleNamespace(
        auth_supernode_private_key=made / "a.key", auth_supernode_public_key=None
    )
    private, public = module._try_setup_client_authentication(given)
    assert isinstance(private.curve, ec.SECP384R1) and isinstance(public, ec.EllipticCurvePublicKey)
    assert b"PUBLIC KEY" in try_load_public_key(made / "a.pub")
    strict = [
        "openssl",
        "verify",
        "-x509_strict",
        "-purpose",
        "sslserver",
        "-CAfile",
        made / "ca.pem",
    ]
    for name in ("-verify_hostname localhost", "-verify_hostname coordinator.example.org",
                 "-verify_ip 127.0.0.1", "-verify_ip 10.0.0.7"):  # fmt: skip
        subprocess.run(
            [*strict, *name.split(), made / "server.pem"], check=True, capture_output=True
        )
    other = [*strict, "-verify_hostname", "example.org", made / "server.pem"]
    assert subprocess.run(other, check=False, capture_output=True).returncode
    context = ssl.create_default_context(cafile=str(made / "ca.pem"))
    context.load_cert_chain(made / "server.pem", made / "server.key")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()}
    assert modes == {
        "ca.key": 0o600, "ca.pem": 0o644, "server.key": 0o600, "server.pem": 0o644,
        "a.key": 0o600, "a.pub": 0o644,
    }  # fmt: skip


@pytest.mark.slow
def test_a_second_call_keeps_and_never_overwrites(made):
    """Called again, every file stays as it is, also where another name is asked for."""
    before = {path: path.read_bytes() for path in made.iterdir()}
    for words in (("authority",), ("server", "10.0.0.7"), ("node", "a"), ("check",)):
        done = keys(words[0], made, *words[1:])
        assert done.returncode == 0 and done.stdout.startswith("kept: ")
    refused = keys("server", made, "other.example.org")
    assert refused.returncode == 1 and "server.pem is not for other.example.org" in refused.stderr
    assert before == {path: path.read_bytes() for path in made.iterdir()}


BAD_KEYS = {
    "of another kind": ("-t ed25519 -N ''", "", "of the kind ssh-ed25519"),
    "of another format": ("-t ecdsa -b 384 -m PEM -N ''", "", "not in the format of OpenSSH"),
    "with a passphrase": ("-t ecdsa -N secret", "", "or the key has a passphrase"),
    "of somebody else": ("-t ecdsa -N ''", "cp a.pub b.key.pub", "b.pub does not belong to"),
    "for everybody": ("-t ecdsa -N ''", "chmod 644 b.key", "chmod 600"),
    "half gone": ("-t ecdsa -N ''", "rm b.key", "b.key is not"),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_a_wrong_key_is_one_line(made, tmp_path, case):
    """Found before Flower is started; nothing is changed."""
    kind, then, words = BAD_KEYS[case]
    shutil.copy(made / "a.pub", tmp_path)
    command = f"ssh-keygen -q {kind} -f b.key\n{then}"
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True)
    (tmp_path / "b.key.pub").rename(tmp_path / "b.pub")
    (tmp_path / "a.pub").unlink()
    for call in (("node", tmp_path, "b"), ("check", tmp_path)):
        done = keys(*call)
        assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (("server", "{}", "a"), "ca.pem is missing"),
        (("node", "{}", "../b"), "expected letters"),
        (("node", "{}", "ca"), "expected another name"),
        (("check", "{}"), "expected keys there"),
        (("check", "{}/gone"), "expected a folder"),
        (("frob", "{}"), "keys.sh authority DIR"),
        (("authority",), "keys.sh authority DIR"),
    ],
)
def test_a_bad_call_of_the_script_makes_nothing(tmp_path, call, words):
    done = keys(*(word.format(tmp_path) for word in call))
    assert done.returncode and words in done.stderr
    assert not list(tmp_path.iterdir())


def filled(text: str) -> str:
    """Variables replaced by env.example's values, as compose and systemd do it."""
    lines = (TEMPLATE / "env.example").read_text("utf-8").splitlines()
    values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    def value(found: re.Match[str]) -> str:
        known = found[1] in values or found[2] is not None
        assert known, f"{found[1]} is not in env.example"
        return values.get(found[1], found[3] or "")

    return re.sub(r"\$\{(\w+)((?:\:[-?])([^}]*))?\}", value, text)


def composed() -> dict:
    return yaml.safe_load(filled((TEMPLATE / "compose.yml").read_text("utf-8")))


def exec_line(name: str) -> list[str]:
    """The command of a unit, as systemd splits it."""
    text = (TEMPLATE / name).read_text("utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    return shlex.split(filled(line).replace("%i", "0"))


def commands() -> dict[str, list[str]]:
    own = {name: service["command"] for name, service in composed()["services"].items()}
    return {
        **own,
        **{name: exec_line(name) for name in ("superlink.service", "supernode@.service")},
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["superlink", "supernode", "superlink.service", "supernode@.service"]
)
def test_every_command_line_is_one_that_flower_takes(name):
    """By the programs' own parsers, without a deprecated flag; the node's configuration is what a
    client needs, its memory's path whole.
    """
    program, *words = commands()[name]
    module, builder = PROGRAMS[Path(program).name]
    parser: argparse.ArgumentParser = getattr(import_module(module), builder)()
    args = parser.parse_args(words)
    for action in parser._actions:
        old = "eprecated" in (action.help or "") or action.help == argparse.SUPPRESS
        used = {option.split("=")[0] for option in words} & set(action.option_strings)
        assert not (old and used), used
    assert not args.insecure
    if "node" not in name:
        assert args.enable_supernode_auth and args.database.startswith(f"{ROOT}/state/")
        return
    config = parse_config_args([args.node_config])
    data = f"{ROOT}/data/site-0.safetensors"
    paths = {"terms": f"{ROOT}/public/terms.json", "data": data, "memory": f"{ROOT}/memory"}
    assert config == {"client": 0, **paths}
    assert args.root_certificates == f"{ROOT}/keys/ca.pem"


def test_containers_may_do_little():
    """No root, no privilege, no capability; data, keys and public parts are mounted to be read, the
    memory lives on the machine, and a folder that is missing is not made up.
    """
    for name, service in composed()["services"].items():
        assert service["restart"] == "unless-stopped" and service["read_only"]
        assert (
            service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
        )
        assert not {"privileged", "network_mode", "pid", "ipc", "cap_add", "devices"} & set(service)
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
        mounts = {one["target"]: one for one in service["volumes"]}
        writable = {target for target, one in mounts.items() if not one.get("read_only")}
        own = "memory" if name == "supernode" else "out"
        assert writable == {f"{ROOT}/state", f"{ROOT}/{own}"}
        assert f"{ROOT}/keys" in mounts and all(
            one["type"] == "bind" and not one["bind"]["create_host_path"] for one in mounts.values()
        )
        assert (f"{ROOT}/data" in mounts) == (name == "supernode")
        assert bool(service.get("ports")) == (name == "superlink")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_the_units(tmp_path):
    """Checked by systemd itself, on a program that is there."""
    for name in ("superlink.service", "supernode@.service"):
        text = (TEMPLATE / name).read_text("utf-8")
        found = re.sub(rf"{ROOT}/venv/bin/flower-\w+", shutil.which("true") or "/bin/true", text)
        path = tmp_path / name
        path.write_text(found, "utf-8")
        done = subprocess.run(
            ["systemd-analyze", "verify", path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert "NoNewPrivileges=yes" in text and "ProtectSystem=strict" in text
        for folder in re.findall(r"^ReadWritePaths=(.*)$", text, re.MULTILINE)[0].split():
            assert folder.removeprefix(f"{ROOT}/") in ("state", "out", "memory")
