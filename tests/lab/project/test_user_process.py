"""A library is a guest: after it was imported and has trained, the process is as it was before."""

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from commands import PYTHON, succeeded
from places import ROOT

from fedlora_lab._utils.torch_state import SharedSetting

pytestmark = pytest.mark.slow
STATE = """
import gc, importlib, json, logging, os, random, signal, sys, threading, warnings
import numpy as np, torch
# What the libraries below do to a process when they are imported is their affair.
for library in {libraries}:
    importlib.import_module(library)
torch.set_num_threads(2)
asked = []
CONNECT = "connect getaddrinfo gethostbyname sendto".split()
EVENTS = {{"urllib.Request", *(f"socket.{{name}}" for name in CONNECT)}}
def refuse(event, given):
    if event in EVENTS and not str(given[-1]).startswith(("/", "b'/")):
        asked.append([event, str(given[-1])])
        raise OSError("no network here")
sys.addaudithook(refuse)

def state():
    names = (None, "flwr", "torch", "peft", "transformers", "fedlora_lab")
    loggers = [logging.getLogger(x) for x in names]
    os.umask(mask := os.umask(0o077))
    return {{
        "collector": [gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), gc.get_debug()],
        "callbacks": len(gc.callbacks),
        "signals": [str(signal.getsignal(number)) for number in signal.valid_signals()],
        "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "torch": [str(torch.get_default_dtype()), torch.is_grad_enabled(),
                  torch.are_deterministic_algorithms_enabled(),
                  torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32],
        "torch numbers": torch.get_rng_state().tolist(),
        "numpy numbers": [str(x) for x in np.random.get_state()],
        "numpy errors": np.geterr(),
        "numbers": str(random.getstate()),
        "environment": dict(os.environ),
        "loggers": [[x.level, x.propagate, x.disabled, len(x.handlers), len(x.filters)]
                    for x in loggers],
        "logging": logging.root.manager.disable,
        "warnings": [str(x) for x in warnings.filters],
        "hooks": [str(x) for x in (sys.excepthook, sys.displayhook, threading.excepthook)],
        "trace": str(sys.gettrace()),
        "place": [os.getcwd(), mask, sys.getrecursionlimit(), sys.getswitchinterval()],
        "path": sys.path,
    }}

before = state()
{act}
after = state()
assert before["collector"][2] == 0, "something was frozen already"
text = lambda x: json.dumps(x, sort_keys=True)
changed = [name for name in before if text(before[name]) != text(after[name])]
print(json.dumps([asked, {{name: [before[name], after[name]] for name in changed}}]))
"""
LIBRARIES = ("joblib", "matplotlib.pyplot", "pandas", "peft", "scipy.stats", "seaborn")
LIBRARIES += ("tqdm.auto", "transformers")
LIBRARIES += ("flwr.clientapp", "flwr.serverapp", "flwr.supercore.logger")
TRAIN = """
import pkgutil
import fedlora_course as course
import fedlora_lab as fl
for found in pkgutil.walk_packages(fl.__path__, "fedlora_lab."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
task, plan = fl.tasks.regression(clients=3), fl.Plan(rounds=1, local_steps=1, batch=8, lr=0.1)
privacy = fl.Privacy(noise_multiplier=1.0, delta=1e-4, accountant="rdp")
for record in fl.run(fl.tasks.digits(clients=3), "fedlora", privacy, plan):
    record.epsilon
for unit in ("example", "client"):
    other = privacy.replace(unit=unit, delta=1e-3)
    list(fl.run(task, "fedask", other, plan, seed=None))
frame = fl.compare(task, ["fedlora", "ffa-lora"], None, plan, seeds=[0, 1], progress=False)
fl.plots.curves(frame, measure="loss")
course.widgets
"""
FLOWER = """
import fedlora_lab as fl
privacy = fl.Privacy(noise_multiplier=1.0, delta=1e-3)
plan = fl.Plan(rounds=1, local_steps=1, batch=3, lr=0.1)
party = fl.flower.Participant.of(fl.tasks.regression(clients=2), "fedlora", privacy, plan)
"""
ENVIRONMENT = {name: x for name, x in os.environ.items() if not name.startswith("FLWR_")}
ENVIRONMENT["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT / "tests" / "helpers", ROOT)))
ENVIRONMENT["MPLBACKEND"] = "agg"
ENVIRONMENT["OMP_WAIT_POLICY"] = "passive"  # two threads on a busy machine: no waiting in a loop


def test_the_process_is_left_as_it_was_and_asks_no_network():
    """After every module was imported, after runs with and without a seed, a comparison, a figure
    and widgets in this process; and after Flower, whose telemetry is off only while it is imported.
    Each look-up and connection is refused and noted.
    """
    looks = STATE.format(libraries=LIBRARIES, act=TRAIN + FLOWER)
    done = succeeded(PYTHON, "-c", looks, env=ENVIRONMENT)
    assert json.loads(done.stdout.splitlines()[-1]) == [[], {}]


def test_threads_that_need_one_value_overlap_and_others_wait():
    """Fault: a lock, under which two runs in threads took as long as one after the other."""
    state = ["before"]

    def applied(value):
        before = state[0]
        state[0] = value
        return lambda: state.__setitem__(0, before)

    setting = SharedSetting(applied)
    together = threading.Barrier(2)

    def look(mine, other):
        with setting.at(mine):
            together.wait(60)
        seen = set()
        for _ in range(200):
            with setting.at(mine), setting.at(mine):
                seen.add(state[0])
                with setting.at(other):
                    seen.add(f"inner {state[0]}")
                seen.add(state[0])
        return seen == {mine, f"inner {other}"}

    with ThreadPoolExecutor(4) as pool:
        pairs = [("one", "two"), ("two", "one")] * 2
        assert all(pool.map(look, *zip(*pairs)))
    assert state == ["before"]


OPEN_AT_THE_END = """
import sys
import fedlora_lab as fl

task = fl.tasks.regression(clients=2)
runs = [
    fl.run(task, "fedlora", None, fl.Plan(rounds=3), out=folder)
    for folder in (None, sys.argv[1])
]
for run in runs:
    next(run), next(run)
"""


def test_a_run_that_is_open_when_python_ends_is_closed_without_a_word(tmp_path):
    done = succeeded(sys.executable, "-c", OPEN_AT_THE_END, tmp_path / "run")
    assert done.stderr == ""
