"""A victim whose updates an attacker sees, inputs found by search, and labels read from the head.

Source: arXiv:2003.14053 (search by cosine distance); arXiv:2001.02610 (labels).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.federated.records import Round, require_source
from fedlora_lab.lora import peft, per_example
from fedlora_lab.methods.plan import Lora
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy.mechanism import clip_sum, gaussian_noise
from fedlora_lab.tasks.task import Examples, Task

Upload = dict[ParamKey, Tensor]


@dataclass(frozen=True)
class Victim:
    """A model at values that the attacker knows: whoever receives the broadcast does.

    Args: values: key -> tensor, one for all examples.

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=1, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> victim = Victim.from_task(task, fl.Lora(rank=2))
    >>> [key.side for key in victim.upload(task.clients[0], "AB")]
    ['A', 'B']
    """

    task: Task
    adapted: peft.AdaptedModel
    values: Mapping[ParamKey, Tensor]

    @classmethod
    def from_task(
        cls, task: Task, lora: Lora | None = None, seed: int = 0, spread: float = 0.02
    ) -> "Victim":
        """Gives the task's model an adapter that has moved: A as it starts, B normal.

        Args:
            task, lora: what is trained, and with which adapter (default: `Lora()`).
            seed: of A and of B.
            spread: standard deviation of B, >= 0; at 0 the gradient of A is zero.
        """
        check_number("spread", spread, 0)
        adapted = peft.adapt(task.model, task.targets, task.head, lora or Lora())
        streams = Streams(seed)
        values = peft.initial_values(adapted, streams, start_scale=(lora or Lora()).start_scale)
        for number, (key, value) in enumerate(values.items()):
            if key.side == "B":
                drawn = streams.normal(value.shape, "attacked adapter", number)
                values[key] = value + (spread * drawn).to(value)
        return cls(task, adapted, values)

    @classmethod
    def from_record(cls, record: Round) -> "Victim":
        """Takes the server's model after a round of a run."""
        task, lora, state = require_source(record)
        return cls(task, peft.adapt(task.model, task.targets, task.head, lora), state.tensors)

    def upload(
        self,
        examples: Examples,
        sides: str = "A",
        *,
        clip_norm: float = math.inf,
        noise_multiplier: float = 0.0,
        draw: int = 0,
    ) -> Upload:
        """Returns one step's release: the sum of the examples' clipped gradients plus noise.

        Args:
            examples: (x, y).
            sides: which of "A", "B" and "head" is sent: "A", "AB", "AB head", ...
            clip_norm: C, over all that is sent; ``inf``: no clip.
            noise_multiplier: standard deviation of the noise in units of C.
            draw: another number draws other noise.
        """
        check_number("noise_multiplier", noise_multiplier, 0)
        bounded = noise_multiplier == 0 or clip_norm < math.inf
        check(bounded, "clip_norm", clip_norm, "finite where noise is added")
        owner = torch.zeros(len(examples[1]), dtype=torch.int64)
        sums, _ = clip_sum(self._rows(examples, sides), clip_norm, owner, 1)
        std = noise_multiplier * clip_norm if noise_multiplier else 0.0  # 0 * inf is no number
        shapes = {key: x.shape[1:] for key, x in sums.items()}
        xi = gaussian_noise(shapes, [std], Streams(draw), [(0, 0, 0)])
        return {key: (x + xi[key].to(x))[0] for key, x in sums.items()}

    def traces(
        self, examples: Examples, sides: str = "A", clip_norm: float = math.inf
    ) -> Float[Tensor, "n numbers"]:
        """Returns what each example alone adds to such an upload: its clipped gradient, flat.

        Args: examples, sides, clip_norm: as of `upload`.
        Guarantees: test_lesson_11.py::test_an_upload_is_the_sum_of_the_traces.
        """
        rows = torch.cat([x.flatten(1) for x in self._rows(examples, sides).values()], 1)
        return rows * (clip_norm / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)).clamp(max=1)

    def _rows(self, examples: Examples, sides: str) -> Upload:
        """Each example's gradient of the sides named, key -> (n, ...)."""
        words = sides.replace("head", " head ").split()
        wanted = {side for word in words for side in ((word,) if word == "head" else word)}
        keys = tuple(key for key in self.values if key.side in wanted)
        check(bool(keys), "sides", sides, 'some of "A", "B" and "head" that this model has')
        params = {key: value[None] for key, value in self.values.items()}
        owner = torch.zeros(len(examples[1]), dtype=torch.int64)
        parts = (self.task, self.adapted, params, keys, examples, owner)
        return per_example.per_example_gradients(*parts)

    def layer(self, upload: Upload, side: str = "A", name: str = "") -> ParamKey:
        """Finds the key of one side: the first layer's, or the one whose name ends so.

        Args: upload: in which to look. side: "A", "B" or "head". name: end of the layer's name.
        """
        found = [key for key in upload if key.side == side and key.layer.endswith(name)]
        check(bool(found), "layer", name, "the end of the name of a layer in this upload")
        return found[0]


def similarity(one: Any, other: Any) -> float:
    """|cosine| of two tensors, 1 where they differ by a factor only.

    >>> similarity(torch.tensor([3.0, 4.0]), torch.tensor([-3.0, -4.0]))
    1.0
    """
    one, other = one.flatten().double(), other.flatten().double()
    return float((one @ other).abs() / (one.norm() * other.norm()).clamp(min=1e-300))


class Inversion(NamedTuple):
    """Inputs (n, ...) that a search found, and 1 - cosine of their gradient with the upload."""

    x: Tensor
    distance: float


def _distance(victim: Victim, upload: Upload, x: Tensor, y: Tensor) -> Tensor:
    """1 - cosine of the gradient of the summed loss with the upload; differentiable in x."""
    leaves = {key: victim.values[key].detach().requires_grad_() for key in upload}
    for key in victim.adapted.select_keys(victim.values):
        victim.adapted.set_tensor(key, leaves.get(key, victim.values[key]))
    loss = victim.task.loss(victim.task.forward(victim.adapted.model, x), y).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    products: Any = sum((a * b).sum() for a, b in zip(found, upload.values(), strict=True))
    sizes: Any = [sum(x.square().sum() for x in part) for part in (found, upload.values())]
    return 1 - products / (sizes[0] * sizes[1]).sqrt().clamp(min=1e-30)


def invert(
    victim: Victim,
    upload: Upload,
    y: Tensor,
    *,
    steps: int = 300,
    lr: float = 0.1,
    smoothness: float = 0.01,
    seed: int = 0,
) -> Inversion:
    """Searches for inputs in [0, 1] with labels y whose gradient points where the upload does.

    Args:
        victim, upload: the model, and its release for as many examples as there are labels.
        y: (n,) labels, known or recovered by `infer_label`.
        steps: of Adam; its learning rate ``lr`` falls to a tenth after 3/8, 5/8 and 7/8 of them.
        smoothness: weight of the total variation, for inputs with a height and a width.
        seed: of the images from which the search sets out.

    Guarantees: test_an_image_is_found_by_search_and_noise_hides_it.
    """
    check_whole("steps", steps, 1)
    check_number("lr", lr, 0, open_low=True)
    check_number("smoothness", smoothness, 0)
    public = victim.task.test[0]
    numbers = isinstance(public, Tensor) and public.is_floating_point()
    check(numbers, "task", victim.task.name, "inputs that are numbers")
    drawn = Streams(seed).normal((len(y), *public.shape[1:]), "inversion")
    x = (0.5 + 0.1 * drawn).to(public).requires_grad_()
    search = torch.optim.Adam([x], lr=lr)
    milestones = [round(steps * i / 8) for i in (3, 5, 7)]
    decay = torch.optim.lr_scheduler.MultiStepLR(search, milestones, gamma=0.1)
    best = Inversion(x.detach().clone(), math.inf)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        for _ in range(steps):
            loss = distance = _distance(victim, upload, x, y)
            if float(distance.detach()) < best.distance:
                best = Inversion(x.detach().clone(), float(distance.detach()))
            if x.dim() > 2:
                total_variation = x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()
                loss = distance + smoothness * total_variation
            (x.grad,) = torch.autograd.grad(loss, x)
            search.step()
            decay.step()
            with torch.no_grad():
                x.clamp_(0, 1)
    return best


def infer_label(upload: Upload) -> int:
    """Reads the label of a single example from the head's gradient: only the true class is raised.

    Args: upload: with a trained head: its bias' gradient, or the sums over rows of its weights'.
    Guarantees: test_labels_are_read_and_noise_hides_them.

    >>> infer_label({ParamKey("head", "bias"): torch.tensor([0.2, -0.9, 0.7])})
    1
    """
    head = [key for key in upload if key.side == "head"]
    check(bool(head), "upload", [str(key) for key in upload], "one with a trained head")
    bias = [key for key in head if key.layer.endswith("bias")]
    scores = upload[bias[-1]] if bias else upload[head[-1]].double().flatten(1).sum(1)
    return int(scores.double().argmin())
