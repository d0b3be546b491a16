"""Options of PEFT's LoraConfig: exact for each example or refused in a line, private, and saved."""

import copy
import re
import warnings
from itertools import islice, product
from pathlib import Path
from typing import Any

import lora_cases
import pytest
import torch
import toy_hubs
from flower_runs import apart, by_messages, state
from peft import LoraConfig, PeftModel
from toy_tasks import play, private

import fedlora_lab as fl
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.federated import local_training, uploads
from fedlora_lab.federated.records import require_source
from fedlora_lab.federated.simulation import Federation
from fedlora_lab.lora import peft as adapters
from fedlora_lab.lora import per_example
from fedlora_lab.privacy.mechanism import row_norms

pytestmark = pytest.mark.filterwarnings(toy_hubs.NO_PAD)
PAGE = Path(__file__).parents[2] / "docs" / "lora_options.md"
SHORT = fl.Plan(rounds=1, local_steps=2, batch=4, lr=0.5)
READ_BACK = ("bert", "gpt2", "swin")
ALL = {"use_dora": True, "lora_dropout": 0.3, "bias": "all", "target_modules": "all-linear"}


def written() -> dict[tuple[str, str], str]:
    """Option and architecture -> what the page says."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines()]
    kinds = next(row[1:] for row in rows if row[0] == "option")
    named = {row[0].strip("`"): row[1:] for row in rows if len(row) == len(kinds) + 1}
    return {(o, kind): word for o in lora_cases.OPTIONS for kind, word in zip(kinds, named[o])}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "option"), list(product(lora_cases.ARCHITECTURES, lora_cases.OPTIONS))
)
def test_each_option_is_exact_or_refused(kind, option):
    """Beside plain PEFT on one example at a time, with its masks; and the page says the same."""
    found = lora_cases.measure(kind, option)
    if isinstance(found, str):
        assert "expected" in found and "\n" not in found
    else:
        assert found <= lora_cases.LIMIT
    word = "refused" if isinstance(found, str) else "exact"
    assert written()[option, kind].startswith(word)


def test_a_config_is_read_and_written_back(tmp_path):
    """From PEFT to `Lora`, to JSON and back, to a folder and from it; defaults change nothing."""
    config = LoraConfig(
        r=3, lora_alpha=6, target_modules=["query"], rank_pattern={"layer.1.*query": 2},
        alpha_pattern={"query": 4}, use_rslora=True, lora_dropout=0.1, bias="lora_only",
        layers_to_transform=[0, 1], modules_to_save=["classifier"], use_dora=True,
    )  # fmt: skip
    lora = fl.Lora.from_peft(config)
    assert fl.Lora(**lora.settings()) == lora and isinstance(hash(lora), int)
    assert (lora.rank_of("a.layer.1.b.query"), lora.rank_of("layer.0.query")) == (2, 3)
    assert lora.scaling_of("layer.1.x.query") == pytest.approx(4 / 2**0.5)
    *_, last = fl.run(lora_cases.task_of("bert"), "fedlora", None, SHORT, lora=config)
    folder = fl.save_adapter(last, tmp_path / "adapter")
    assert fl.Lora.from_peft(folder) == lora
    assert fl.Lora.from_peft(LoraConfig(r=4)) == fl.Lora() and "peft" not in fl.Lora().settings()


def test_the_config_that_peft_stores_for_a_classifier_is_read_back():
    """It names both of PEFT's usual heads, of which a model has one."""
    stored = {"target_modules": ["query"], "modules_to_save": ["classifier", "score"]}
    task = lora_cases.task_of("bert")
    record = next(fl.run(task, "fedlora", None, SHORT, lora=LoraConfig(r=2, **stored)))
    assert {name.split(".")[0] for name in record.head} == {"classifier"}


BAD = {
    "use_dora=1": {"use_dora": 1},
    "lora_dropout=1.0": {"lora_dropout": 1.0},
    "lora_dropout='half'": {"lora_dropout": "half"},
    "bias='some'": {"bias": "some"},
    "rank_pattern['q']=0": {"rank_pattern": {"q": 0}},
    "alpha_pattern['q']=-1": {"alpha_pattern": {"q": -1}},
    "target_modules=[]": {"target_modules": []},
    "target_modules=[3]": {"target_modules": [3]},
    "target_modules=['no_such']": {"target_modules": ["no_such"]},
    "target_modules='v_proj'": {"target_modules": ["query", "v_proj"]},
    "target_modules='((('": {"target_modules": "((("},
    "layers_to_transform=-1": {"layers_to_transform": -1},
    "target_modules='.*query'": {"target_modules": ".*query", "layers_to_transform": 0},
    "modules_to_save='classifier'": {"modules_to_save": "classifier"},
    "modules_to_save='no_such'": {"modules_to_save": ["no_such"]},
    "init_lora_weights='loftq'": {"init_lora_weights": "loftq"},
    "rank=40": {"init_lora_weights": "pissa"},
    "rank_pattern='(('": {"rank_pattern": {"((": 3}},
    "rank_pattern={'query': 3, 'layer.1.*query': 2}": {
        "rank_pattern": {"query": 3, "layer.1.*query": 2}  # PEFT would read it back with rank 2
    },
    "task_type='CAUSAL_LM'": {"task_type": "CAUSAL_LM"},
    "peft={'use_moe'": {"use_moe": True},
}


@pytest.mark.parametrize(("line", "options"), BAD.items(), ids=BAD)
def test_a_bad_option_is_refused_in_one_line(line, options):
    task = lora_cases.task_of("bert")
    with pytest.raises(ValueError, match=re.escape(line)) as caught:
        next(fl.run(task, "fedlora", None, SHORT, lora=fl.Lora(40, peft=options)))
    assert "expected" in str(caught.value) and "\n" not in str(caught.value)


UNFIT = {
    ("fed-sb", "init_lora_weights"): {"init_lora_weights": "pissa"},
    ("balanced-lora", "init_lora_weights"): {"init_lora_weights": "gaussian"},
    ("fedex-lora", "use_dora"): {"use_dora": True},
    ("flora", "use_dora"): {"use_dora": True},
    ("deer", "use_dora"): {"use_dora": True},
    ("sdflora", "rank_pattern"): {"rank_pattern": {"query": 3}},
}


@pytest.mark.parametrize(("who", "options"), UNFIT.items(), ids=str)
def test_a_row_refuses_what_its_rule_cannot_hold(who, options):
    slug, name = who
    with pytest.raises(ValueError, match=rf"^{name}=.*: expected .*{slug}"):
        fl.run(lora_cases.task_of("bert"), slug, None, SHORT, lora=fl.Lora(2, peft=options))
    with pytest.raises(ValueError, match=r"^ranks=\(1, 2, 2\): expected None beside rank_pattern"):
        fl.Lora(2, ranks=(1, 2, 2), peft={"rank_pattern": {"query": 3}})


@pytest.mark.parametrize("slug", ["fedlora", "rolora", "flexlora", "fedex-lora", "fedask", "flora"])
def test_layers_of_unequal_rank_run_and_are_counted(slug):
    """The bytes of a round are those of each layer's own rank, and a residual's of its layer's."""
    task = lora_cases.task_of("bert")
    lora = fl.Lora(1, peft={"rank_pattern": {"layer.1.*": 5}, "alpha_pattern": {"layer.0.*": 2}})
    *_, last = fl.run(task, slug, private("example"), SHORT, lora=lora)
    server = require_source(last)[2]
    ranks = {layer: len(a) for layer, a in server.side("A").items()}
    assert {("layer.1" in layer): rank for layer, rank in ranks.items()} == {False: 1, True: 5}
    sent = sum(x.numel() for k, x in server.tensors.items() if k.side in ("A", "B", "head"))
    if slug == "fedlora":
        assert last.uploads.numbers_up == 3 * sent


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "option"), list(product(READ_BACK, lora_cases.OPTIONS)))
def test_a_saved_adapter_is_read_by_plain_peft(kind, option, tmp_path):
    """On the unchanged base, for values far from the start; of what is not refused."""
    task = lora_cases.task_of(kind)
    try:
        lora = fl.Lora.from_peft(lora_cases.config_of(task, option))
        adapted = adapters.adapt(task.model, task.targets, task.head, lora)
    except ValueError:
        return
    streams, (x, _) = Streams(1), task.test
    values = {
        key: value + 0.2 * streams.normal(tuple(value.shape), "change", i)
        for i, (key, value) in enumerate(adapters.initial_values(adapted, streams).items())
    }
    before = copy.deepcopy(task.model.state_dict())
    adapters.save(task.model, task.targets, task.head, lora, values, tmp_path / "adapter")
    ours = per_example.model_outputs(task, adapted, values, x)
    assert all(torch.equal(w, before[name]) for name, w in task.model.state_dict().items())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT, about a transposed Conv1D
        loaded = PeftModel.from_pretrained(copy.deepcopy(task.model), str(tmp_path / "adapter"))
    with torch.no_grad():
        theirs = task.forward(
            loaded.eval(), per_example.prepare_inputs(task, x, torch.device("cpu"))
        )
        start = task.forward(task.model, per_example.prepare_inputs(task, x, torch.device("cpu")))
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())
    assert float((start - theirs).abs().max()) > 1e-2 * float(theirs.abs().max())


@pytest.mark.slow
def test_dropout_is_each_example_s_own(tmp_path):
    """One mask for an example whatever goes through the model with it: the run in pieces, in one
    batch, over messages and resumed is one run; scores are those without dropout.
    """
    task, plan = lora_cases.task_of("bert"), SHORT.replace(rounds=2)
    parts = task, "fedlora", private("example"), plan
    lora = fl.Lora(2, peft={"lora_dropout": 0.5})
    whole = play(*parts, lora=lora)
    list(islice(fl.run(*parts, lora=lora, checkpoint=tmp_path), 2))
    for options in ({"chunk_examples": 1}, {"chunk_clients": 1}):
        assert apart(whole, play(*parts, lora=lora, **options)) <= 1e-5
    assert apart(whole, by_messages(*parts, lora=lora)) <= 1e-5
    kept = play(*parts, lora=lora, resume=tmp_path)
    assert apart(whole[-1:], kept[-1:]) == 0
    plain = play(*parts, lora=fl.Lora(2))
    assert apart(whole[-1:], plain[-1:]) > 1e-3
    assert whole[0].metrics == plain[0].metrics


OPENED: dict[str, Any] = {
    "what moves beside the factors": ALL,
    "dropout": {"lora_dropout": 0.5, "target_modules": "all-linear"},
    "biases": {"bias": "all"},
    "magnitudes": {"use_dora": True, "init_lora_weights": "pissa"},
}


@pytest.mark.slow
@pytest.mark.attack
@pytest.mark.parametrize("options", OPENED.values(), ids=OPENED)
@pytest.mark.parametrize("unit", ["example", "client"])
def test_one_more_of_a_unit_moves_all_that_is_released_by_at_most_the_clip(unit, options):
    """Jointly over factors, head, biases and magnitudes: a kind clipped by itself, or not at all,
    would move the whole by more. Without noise, at a clip far below the gradients.
    """
    task, clip = lora_cases.task_of("bert"), 1e-4
    plan, lora = fl.Plan(rounds=1, local_steps=1, batch=None, lr=1.0), fl.Lora(2, peft=options)
    privacy = private(unit, sigma=1e-9, clip=clip)
    run = Federation.open(task, "fedlora", privacy, plan, lora=lora)
    opened = run.begin_round()
    keys = uploads.round_keys(run.context, opened.before.tensors, 0)
    kinds = {"bias": options.get("bias"), "magnitude": options.get("use_dora")}
    assert {key.side for key in keys.moved} >= {"A", "B", "head"} | {
        k for k, on in kinds.items() if on
    }
    if unit == "example":
        clients = run.start_clients((0,), opened.sent)

        def released(drawn: list[int]) -> Any:
            which = [torch.tensor(drawn)]
            parts = keys.moved, {}, which, 0, 0
            return local_training._clipped_sums(run.context, clients, *parts)[0]

        both, one, bound = released([0, 1, 2]), released([0, 2]), clip
    else:
        clients = run.start_clients(opened.ids, opened.sent)
        local_training.local_step(run.context, clients, 0, 0)
        everyone = uploads.stack_clients(run.context, [clients], keys.moved, opened.sent)

        def released(who: list[int]) -> Any:
            parts = torch.tensor(who), keys.sent, opened.sent, 0
            return uploads.release_round(run.context, everyone, *parts).uploads

        both, one, bound = released([0, 1, 2]), released([0, 2]), clip / 3
    gap = float(row_norms({key: both[key] - one[key] for key in both}).double())
    assert 0.9 * bound <= gap <= bound * (1 + 1e-3)


@pytest.mark.slow
def test_a_config_stands_wherever_an_adapter_is_taken(tmp_path):
    """In `run`, `compare` and `amplification`."""
    task, privacy = lora_cases.task_of("bert"), private("example")
    config = LoraConfig(r=2, lora_alpha=3, target_modules="all-linear", task_type="SEQ_CLS")
    lora = fl.Lora.from_peft(config)
    ours = play(task, "fedlora", privacy, SHORT, lora=lora)
    assert apart(ours, play(task, "fedlora", privacy, SHORT, lora=config)) == 0
    frame = fl.compare(task, ["fedlora"], privacy, SHORT, [0], lora=config, progress=False)
    values = frame.query("measure == 'loss'")["value"].tolist()
    assert values == [record.metrics["loss"] for record in ours]
    noise = fl.amplification(task, "fedlora", privacy, SHORT, config)
    assert len(noise.layers) == len({key.layer for key in state(ours[0]) if key.side == "A"})
    with pytest.raises(ValueError, match=r"^lora=8: expected a Lora, or a peft.LoraConfig$"):
        fl.run(task, "fedlora", privacy, SHORT, lora=8)
