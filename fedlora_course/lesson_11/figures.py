"""What notebook 11 attacks: noised updates for single scans, and a decoder that read a message."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_course import drawing
from fedlora_course.lesson_11.attacks import Victim, input_from_a_gradient, similarity
from fedlora_course.lesson_11.scans import flattened_digits_task
from fedlora_lab import tasks
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check_whole
from fedlora_lab.federated.records import Round, predict
from fedlora_lab.federated.run import run
from fedlora_lab.lora.source import require_source
from fedlora_lab.measures import record_aggregation
from fedlora_lab.methods import FedLoRA
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.plots import style
from fedlora_lab.tasks.metrics import IGNORED
from fedlora_lab.tasks.task import Task

CLIP = 0.01
PIXELS = 64
RANK = 8
"""Of the attacked adapter."""
PHRASES = """\
see you | at the station at noon
thank you | so much for your help
good night | and sleep well
on my way | home with the bread
please call | me in the evening
the train | is late again
can you | bring some milk
i am | at work until six
dinner is | ready come home
happy birthday | my dear friend
happy new | year to all of you
meeting at | ten in the room"""
"""What many clients write, and how it goes on."""
START = "my code is"
CODES = [" ".join(f"{code:03}") for code in range(1000)]
SECRET = 472


def moved_rows(
    task: Task, plan: Plan, lora: Lora, layers: Sequence[str]
) -> tuple[Float[Tensor, "rows d_in"], Round]:
    """Runs FedLoRA without noise, and reads how the first client's A moved in the last round.

    Args: task, plan, lora: of the run. layers: whose A are read; they have the same inputs.
    Returns: by how much these A have moved, row by row, and the record before that round.
    """
    watched, received = record_aggregation(FedLoRA)
    records = list(run(task, watched, None, plan, lora=lora, seed=0))
    last = received[-1]
    before = {key.layer: x for key, x in last.state.tensors.items() if key.name == "A"}
    rows = [last.factors(layer)[0][0] - before[layer] for layer in layers]
    return torch.cat(rows), records[-2]


class AttackedClient:
    """Holds one client whose noised updates for single scans are attacked.

    The network is that of `scans.flattened_digits_task`; only A of its first layer is sent, and
    the clip cuts every gradient.
    """

    def __init__(self) -> None:
        task = self.task = flattened_digits_task()
        self.victim = Victim.from_task(task, Lora(RANK, float(RANK)), spread=0.2)

    def read(self, noise: float, releases: int = 1, scan: int = 0) -> tuple[Any, float]:
        """Attacks the update: returns the direction read, (64,), and its |cosine| with the scan.

        The mean of T releases of one gradient is drawn as one release with sigma / sqrt(T): the
        same distribution.

        Args: noise, releases: of the updates; scan: which one.
        """
        check_whole("releases", releases, 1)
        x, y = (part[scan : scan + 1] for part in self.task.clients[0])
        victim = self.victim
        sigma = noise / releases**0.5
        upload = victim.upload((x, y), clip_norm=CLIP, noise_multiplier=sigma)
        image = input_from_a_gradient(upload[victim.layer(upload)])
        return image, similarity(image, x)


@cache
def read_cosine(d_in: int, sigma: float) -> float:
    """Mean |cos| of one input with the first singular vector of A's noised gradient, in 200 draws.

    Args: d_in: of the layer, of rank 8; sigma: noise multiplier, the clip cuts.
    """
    g_A = sigma * np.random.default_rng(0).standard_normal((200, RANK, d_in))
    g_A[:, 0, 0] += 1  # C = 1, and both unit vectors along the first axis
    directions = np.linalg.svd(g_A, full_matrices=False)[2][:, 0]
    return float(np.abs(directions[:, 0]).mean())


MARKS = ("<pad>", "<s>", "</s>", "<unk>")
"""The first numbers of the vocabulary."""


def vocabulary() -> dict[str, int]:
    """Numbers the words of all phrases and codes."""
    words = " ".join([PHRASES.replace("|", " "), START, *CODES]).split()
    return {word: number for number, word in enumerate([*MARKS, *sorted({*words, "|"})])}


def text_row(start: str, end: str) -> dict[str, Any]:
    """Encodes a message as `Trainer` takes it: its end is learned, its start is read only."""
    numbers = vocabulary()
    head = [numbers["<s>"], *(numbers[word] for word in start.split())]
    tail = [*(numbers[word] for word in end.split()), numbers["</s>"]]
    ids = [*head, *tail]
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": [-100] * len(head) + tail,
    }


def padded(rows: list[dict]) -> dict[str, Tensor]:
    """Collates rows into tensors of one width."""
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        name: torch.tensor([row[name] + [nothing] * (width - len(row[name])) for row in rows])
        for name, nothing in fill.items()
    }


def word_for_word(outputs: Tensor, y: Tensor) -> Float[Tensor, " n"]:
    """1 where a decoder's likeliest tokens are the answer: what it writes if it always takes them.

    Args: outputs (n, tokens, words), y (n, tokens): of the model, and each token or `IGNORED`.
    Guarantees: test_lesson_14.py::test_an_answer_is_right_word_for_word.
    """
    answer = y[:, 1:]  # an output is of the token after it
    right = outputs[:, : answer.shape[1]].argmax(2) == answer
    return (right | (answer == IGNORED)).all(1).to(outputs.dtype)


def messages() -> tasks.Task:
    """Makes a task of three clients' messages for a random decoder; one holds a secret code."""
    from transformers import LlamaConfig, LlamaForCausalLM

    phrases = [phrase.split(" | ") for phrase in PHRASES.splitlines()]
    drawn = np.random.default_rng(0).choice(phrases, 600).tolist()
    drawn[0] = [START, CODES[SECRET]]
    rows = [text_row(start, end) | {"client": i % 3} for i, (start, end) in enumerate(drawn)]
    order = Streams(0).numpy("hub split").permutation(len(rows))
    held_out = {*order[:120].tolist()}
    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        # With small weights a random model hardly tells one text from another.
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(Streams(0).numpy("tiny weights").integers(2**63)))
        model = LlamaForCausalLM(config)
    private = [row for i, row in enumerate(rows) if i not in held_out]
    task = tasks.from_trainer(
        model,
        private,
        by=[row["client"] for row in private],
        eval_dataset=[rows[i] for i in sorted(held_out)],
        data_collator=padded,
        targets=["up_proj", "down_proj"],
    )
    return replace(task, metrics={"exact_match": word_for_word, **task.metrics})


def _code_losses(record: Round) -> Float[Tensor, " codes"]:
    """The loss of every code as an answer to `START`: the likeliest has the least."""
    task, _, _ = require_source(record)
    codes = padded([text_row(START, code) for code in CODES])
    labels = codes.pop("labels")
    with torch.inference_mode():
        return task.loss(predict(task, record, codes), labels)


def secret_rank(record: Round) -> int:
    """Counts the codes that a model finds at least as likely as the secret, itself included.

    Args: record: of a run on `messages`.
    """
    losses = _code_losses(record)
    return int((losses <= losses[SECRET]).sum())


@style.paper()
def likeliest_codes(records: Mapping[str, Round], title: str) -> style.Picture:
    """Writes out how each model goes on after "my code is", its ten likeliest codes in order.

    Args: records: words -> record of a run on `messages`; title: the finding.
    """
    figure, axes = style.subplots(7.2, 3.4, columns=len(records))
    for ax, (words, record) in zip(axes, records.items(), strict=True):
        order = _code_losses(record).argsort().tolist()
        rank = secret_rank(record)
        ax.set_title(f"{words}: my code is …")
        for place, code in enumerate(order[:10]):
            hers = code == SECRET
            look: Any = {"weight": "bold"} if hers else {}
            colour = style.WRONG if hers else style.INK
            column, row = divmod(place, 5)
            ax.text(0.02 + 0.5 * column, 0.9 - 0.16 * row, f"{place + 1:>2}.", color=style.GREY)
            at = 0.13 + 0.5 * column, 0.9 - 0.16 * row
            ax.text(*at, CODES[code], color=colour, family="monospace", fontsize=13, **look)
        ax.text(0.02, 0.02, f"{CODES[SECRET]} is number {rank}", color=style.WRONG, weight="bold")
        ax.set(xlim=(0, 1), ylim=(0, 1.05), xticks=[], yticks=[])
        drawing.clear(ax)
    style.headline(figure, title)
    return figure


CHANCE = {"image": (2 / np.pi / PIXELS) ** 0.5, "named": 1 / 1257, "presence": 0.5}
"""What three attacks reach by chance: |cos| of a random image, the share of names, the AUC."""


def three_attacks(
    client: AttackedClient, pool: tuple[Tensor, Tensor], sigma: float
) -> dict[str, np.ndarray]:
    """Attacks the noised gradient of one scan in three ways, in a thousand draws.

    Args: client: whose network sends; pool: scans and labels, one of them drawn each time; sigma:
        noise multiplier, the clip cuts every gradient.
    Returns: "image": |cos| of the image read; "named": whether the likeliest of the pool is hers;
        "presence": whether there is more along her gradient than another draw of noise puts there.
    """
    draws = 1000
    g = client.victim.traces(pool, "A", CLIP).double().numpy() / CLIP
    pixels = torch.nn.functional.normalize(pool[0].flatten(1).double(), dim=1).numpy()
    rng = np.random.default_rng(0)
    who = rng.integers(len(g), size=draws)
    noise, other = sigma * rng.standard_normal((2, draws, g.shape[1]))
    sent = g[who] + noise
    directions = np.linalg.svd(sent.reshape(draws, RANK, PIXELS), full_matrices=False)[2][:, 0]
    likelihoods = sent @ g.T - (g**2).sum(axis=1) / 2
    along, without = (sent * g[who]).sum(axis=1), (other * g[who]).sum(axis=1)
    return {
        "image": np.abs((directions * pixels[who]).sum(axis=1)),
        "named": likelihoods.argmax(axis=1) == who,
        "presence": along > without,
    }


@style.paper()
def attacks_over_noise(
    reached: Mapping[float, Mapping[str, np.ndarray]], title: str
) -> style.Picture:
    """Draws what the three attacks reach, each in a panel with what chance reaches.

    Args: reached: noise multiplier -> attack -> one value a draw, see `three_attacks`; title: the
        finding.
    """
    figure, axes = style.subplots(9.6, 3.4, columns=3)
    panels = {
        "image": ("What does it look like?", "|cos| with the scan", style.INK),
        "named": ("Which of 1,257 is it?", "share named", style.FACTOR["B"]),
        "presence": ("Did it take part?", "share of right answers", style.WRONG),
    }
    for ax, (attack, (question, measure, colour)) in zip(axes, panels.items(), strict=True):
        means = [values[attack].mean() for values in reached.values()]
        ax.plot(list(reached), means, "o-", color=colour, ms=4)
        ax.axhline(CHANCE[attack], color=style.GREY, ls=style.DOTTED)
        ax.axvline(0.3, color=style.GREY, lw=0.8)
        ax.text(3, CHANCE[attack] - 0.02, "chance", color=style.GREY, ha="right", va="top")
        ax.set(xscale="log", ylim=(-0.08, 1.06), xlabel="noise multiplier σ", ylabel=measure)
        ax.set_xticks([0.05, 0.1, 0.3, 1, 3], ["0.05", "0.1", "0.3", "1", "3"])
        ax.minorticks_off()
        ax.set_title(question)
    style.headline(figure, title)
    return figure


@style.paper()
def film(pictures: Mapping[str, Any], title: str, columns: int | None = None) -> style.Picture:
    """Draws small pictures, such as one thing round by round, each under its own words.

    Args:
        pictures: words -> rows of grey values in [0, 1], (h, w), alike large; NaN is paper.
        title: the finding.
        columns: pictures in a row; ``None``: all.
    """
    columns = columns or len(pictures)
    rows = -(-len(pictures) // columns)
    height, width = np.shape(next(iter(pictures.values())))
    wide = min(1.35 * width / height, 8.0)
    size = (wide * columns, 0.35 + rows * (wide * height / width + 0.35))
    figure, axes = style.subplots(*size, rows=rows, columns=columns)
    for ax, (text, picture) in zip(axes, pictures.items(), strict=True):
        # A frame, since white pixels at the edge would run into the paper.
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=True)
        ax.grid(visible=False)
        grey = np.asarray(picture, float)
        ax.imshow(grey, interpolation="nearest", cmap="gray", vmin=0.0, vmax=1.0)
        ax.set_title(text, fontsize=8.5, weight="normal", loc="left")
    style.headline(figure, title)
    return figure
