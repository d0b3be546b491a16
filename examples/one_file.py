"""Federated LoRA under differential privacy in one file: read it from top to bottom, then fork it.

    python examples/one_file.py

Eight clients adapt a frozen network to examples that they keep. In every step a client draws a
random batch, clips each example's gradient, adds Gaussian noise to the sum and moves its adapter.
After five steps it sends the adapter, and the server averages. Whoever sees all that is sent can
tell whether one example was there only as well as (epsilon, delta) allows.

Everything is PyTorch, but for the accounting, which is this package's: how much noise an epsilon
needs, and a ledger of what was spent. The package does the same for any model, with other ways to
average, checks of what cannot be private, and noise that nobody can draw again.
"""

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy

from fedlora_lab.privacy import Ledger, round_up
from fedlora_lab.privacy.accounting import noise_multiplier

# ---- What is promised, and what is public

EPSILON, DELTA = 8.0, 1e-5
CLIENTS, EXAMPLES = 8, 200  # of each client; the numbers are public, the examples are not
CLASSES, INPUTS, HIDDEN = 5, 32, 64
ROUNDS, STEPS, BATCH = 10, 5, 20
RANK, ALPHA = 4, 8.0
TRAINED = ("A", "B")  # of the adapter; ("B",) is FFA-LoRA, whose A stays as it was drawn
CLIP_NORM = 1.0
RATE = 0.5

# A seed repeats a run, for study. A release must draw its noise from a secure source.
random = torch.Generator().manual_seed(0)


# ---- Data: five clouds of points, which lie elsewhere for the clients than where the model learned

CENTRES = torch.randn(CLASSES, INPUTS, generator=random)
TURN = torch.linalg.qr(torch.randn(INPUTS, INPUTS, generator=random)).Q


def draw(count: int, turned: bool) -> tuple[Tensor, Tensor]:
    """Returns inputs (count, INPUTS) and labels (count,)."""
    labels = torch.randint(CLASSES, (count,), generator=random)
    inputs = CENTRES[labels] + torch.randn(count, INPUTS, generator=random)
    return (inputs @ TURN if turned else inputs), labels


# ---- The model: two layers, of which the first gets an adapter

Factors = dict[str, Tensor]  # "A" (RANK, INPUTS) and "B" (HIDDEN, RANK)


def pretrain(steps: int = 200) -> tuple[Tensor, Tensor]:
    """Trains both layers on public data; from here on they are frozen."""
    first = 0.2 * torch.randn(HIDDEN, INPUTS, generator=random)
    second = 0.2 * torch.randn(CLASSES, HIDDEN, generator=random)
    layers = [first.requires_grad_(), second.requires_grad_()]
    inputs, labels = draw(2000, turned=False)
    optimizer = torch.optim.SGD(layers, lr=0.2)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy((inputs @ first.T).relu() @ second.T, labels).backward()
        optimizer.step()
    return first.detach(), second.detach()


FIRST, SECOND = pretrain()


def logits(factors: Factors, inputs: Tensor) -> Tensor:
    """The frozen model with its adapter: the first weight is W + (alpha / rank) B A."""
    weight = FIRST + ALPHA / RANK * factors["B"] @ factors["A"]
    return (inputs @ weight.T).relu() @ SECOND.T


def new_adapter() -> Factors:
    """A is random and B is zero, so that training begins at the frozen model."""
    bound = INPUTS**-0.5
    a = torch.empty(RANK, INPUTS).uniform_(-bound, bound, generator=random)
    return {"A": a, "B": torch.zeros(HIDDEN, RANK)}


# ---- One private step of one client


def loss_of_one(factors: Factors, x: Tensor, y: Tensor) -> Tensor:
    """The loss of one example: of a mean over a batch nothing could be clipped any more."""
    return cross_entropy(logits(factors, x[None]), y[None])


# Maps the adapter and n examples to n gradients of it, one for each example.
gradients_of_each = vmap(grad(loss_of_one), in_dims=(None, 0, 0))


def private_gradient(factors: Factors, x: Tensor, y: Tensor, sigma: float) -> Factors:
    """Draws a batch and returns its clipped, noised mean gradient.

    Args: x, y: all examples of the client. sigma: noise in units of the clip norm.
    """
    # Each example is drawn on its own: this chance is what the ledger counts (Poisson sampling).
    drawn = torch.rand(len(x), generator=random) < BATCH / len(x)
    each = gradients_of_each(factors, x[drawn], y[drawn])
    each = {name: each[name] for name in TRAINED}  # the rest is neither clipped, noised nor moved
    # One norm over all that moves: an example can move the sum by at most CLIP_NORM.
    squares = sum((g.flatten(1) ** 2).sum(1) for g in each.values())
    scale = (CLIP_NORM / torch.as_tensor(squares).sqrt()).clamp(max=1.0)
    noised = {}
    for name, rows in each.items():
        clipped_sum = (rows * scale[:, None, None]).sum(0)
        noise = sigma * CLIP_NORM * torch.randn(factors[name].shape, generator=random)
        # Divided by the expected size: the true one depends on who was drawn.
        noised[name] = (clipped_sum + noise) / BATCH
    return noised


# ---- A round: clients train, the server averages


def train_client(sent: Factors, x: Tensor, y: Tensor, sigma: float) -> Factors:
    """Starts from what the server sent and returns what goes back to it."""
    factors = dict(sent)
    for _ in range(STEPS):
        gradient = private_gradient(factors, x, y, sigma)
        # From here on everything follows from noised values, and costs no privacy.
        factors |= {name: factors[name] - RATE * gradient[name] for name in TRAINED}
    return factors


def average(uploads: list[Factors]) -> Factors:
    """FedLoRA: the mean of each factor. Their product is not the mean of the products."""
    return {name: torch.stack([u[name] for u in uploads]).mean(0) for name in uploads[0]}


def accuracy(factors: Factors, x: Tensor, y: Tensor) -> float:
    """The share of public test examples that are told right."""
    return float((logits(factors, x).argmax(1) == y).float().mean())


def train() -> tuple[list[float], Ledger]:
    """Trains the federation; returns the accuracy before and after each round, and the ledger."""
    clients = [draw(EXAMPLES, turned=True) for _ in range(CLIENTS)]
    test = draw(2000, turned=True)
    # The least noise for which all steps of a client together spend no more than EPSILON.
    sample_rate = BATCH / EXAMPLES
    sigma = noise_multiplier(EPSILON, DELTA, sample_rate, steps=ROUNDS * STEPS)
    ledger = Ledger(unit="example", delta=DELTA)
    server = new_adapter()
    scores = [accuracy(server, *test)]
    for t in range(ROUNDS):
        # Written before any private value is read: a crash must not forget what was released.
        ledger.record(
            round=t + 1,
            clients=range(CLIENTS),
            count=STEPS,
            sample_rate=sample_rate,
            noise_multiplier=sigma,
        )
        server = average([train_client(server, x, y, sigma) for x, y in clients])
        scores.append(accuracy(server, *test))
    return scores, ledger


if __name__ == "__main__":
    scores, ledger = train()
    print(f"accuracy {scores[0]:.2f} before, {scores[-1]:.2f} after {ROUNDS} rounds")
    spent = round_up(ledger.epsilon(), ".3f")
    print(f"epsilon {spent} at delta {ledger.delta:g}, for one example of one client")
