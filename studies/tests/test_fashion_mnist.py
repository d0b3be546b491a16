"""Fashion-MNIST from files of the reader: here from small ones that the test writes."""

import gzip
from typing import Any

import numpy as np
import pytest
import torch
from calls import refused

from fedlora_lab.tasks.digits import load_pretrained
from studies import ROOT
from studies.fashion_mnist import FOLDER, PUBLIC, VALIDATION, fashion_mnist, load_images, read_idx

PRIVATE = 600


def write_idx(path, values):
    """Writes bytes in the format IDX, packed where the name says so."""
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    content = head + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


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
        # Of the test labels no packed file, as some mirrors have it.
        packed = ".gz" if name == "train" else ""
        write_idx(place / f"{name}-labels-idx1-ubyte{packed}", np.arange(count) % 10)
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


def test_files_that_are_missing_or_broken_are_told_in_one_line(tmp_path):
    with refused(r"^folder='.*': expected a folder with train-images-idx3-ubyte.gz: apt install"):
        fashion_mnist(folder=tmp_path)
    for content in (b"", b"\0\0\x08", b"\0\0\x0d\x01\0\0\0\x01\0", b"\0\0\x08\x01\0\0\0\x02\0"):
        (tmp_path / "a").write_bytes(content)
        with refused(r"bytes'?: expected a file of bytes in the format IDX"):
            read_idx(tmp_path, "a")
    (tmp_path / "b.gz").write_bytes(b"no gzip")
    with refused("expected a file of bytes"):
        read_idx(tmp_path, "b")


def test_images_of_another_size_are_refused(tmp_path):
    for name in ("train", "t10k"):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", np.zeros((20, 8, 8)))
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", np.zeros(20))
    with refused(r"^train files='\(20, 8, 8\) and \(20,\)': expected images"):
        fashion_mnist(folder=tmp_path)


@pytest.mark.skipif(not FOLDER.exists(), reason="the images are not part of the library")
def test_the_card_of_fashion_mnist_holds():
    model, card = load_pretrained(ROOT / "studies", "fashion_vit")
    x, y = load_images(FOLDER).test
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        answers = torch.cat([model(part).argmax(1) for part in x.split(1000)])
    found = float((answers == y).double().mean())
    assert found == pytest.approx(card["accuracy_test_before_tuning"], abs=0.001)
