"""Fashion-MNIST from files of the reader: here from small ones that the test writes."""

import gzip
from typing import Any

import numpy as np
import pytest
import torch

from fedlora_lab.tasks.digits import load_pretrained
from studies import ROOT
from studies.fashion_mnist import FOLDER, PUBLIC, VALIDATION, fashion_mnist, load_images

PRIVATE = 600


def write_idx(path, values):
    """Writes bytes in the format IDX, packed."""
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes(), 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As many images as are needed; the number of each stands in its first three pixels."""
    place = tmp_path_factory.mktemp("fashion")
    counts = {"train": PUBLIC + VALIDATION + PRIVATE, "t10k": 50}
    for name, count in counts.items():
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, 0] = np.arange(count) % 256
        images[:, 0, 1] = np.arange(count) // 256
        write_idx(place / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(place / f"{name}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return place


def numbers(x):
    """The number that `folder` wrote into each image."""
    return (x[:, 0, 0] * 255 + 256 * 255 * x[:, 0, 1]).round().long()


def test_every_image_is_used_once(folder):
    task: Any = fashion_mnist(clients=5, folder=folder)
    clients = torch.cat([numbers(x) for x, _ in task.clients])
    public = numbers(load_images(folder).public[0])
    everything = torch.cat([clients, public, numbers(task.validation[0])])
    assert torch.equal(everything.sort()[0], torch.arange(PUBLIC + VALIDATION + PRIVATE))
    assert len(clients) == PRIVATE and len(task.test[1]) == 50
    for x, y in [*task.clients, task.validation, task.test]:
        assert torch.equal(numbers(x) % 10, y)


def test_what_the_weights_have_read_is_public_at_every_seed(folder):
    """A seed draws who gets which image, and no more."""
    made: Any = (fashion_mnist(5, seed=seed, folder=folder) for seed in (0, 1))
    first, second = made
    assert torch.equal(first.validation[0], second.validation[0])
    assert not torch.equal(first.clients[0][0], second.clients[0][0])


@pytest.mark.skipif(not FOLDER.exists(), reason="the images are not part of the library")
def test_the_card_of_fashion_mnist_holds():
    model, card = load_pretrained(ROOT / "studies", "fashion_vit")
    x, y = load_images(FOLDER).test
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        answers = torch.cat([model(part).argmax(1) for part in x.split(1000)])
    found = float((answers == y).double().mean())
    assert found == pytest.approx(card["accuracy_test_before_tuning"], abs=0.001)
