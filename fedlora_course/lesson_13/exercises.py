"""Right and wrong answers to the exercises of notebook 13: noise shares, masks, a lost client."""

import numpy as np

from fedlora_course.exercises import FunctionAnswer
from fedlora_course.secagg_demo import pair_masks


def _draw_share(rng):
    clip = rng.uniform(0.2, 2)
    uploads = int(rng.integers(12, 60))
    size = int(rng.integers(3, 9))
    update = rng.normal(size=size)
    z = rng.normal(size=size)
    # Longer than the clip norm, or shorter: then it must stay as it is.
    length = rng.choice([rng.uniform(0.2, 0.8), rng.uniform(1.5, 4)])
    update *= clip * length / np.linalg.norm(update)
    return update, clip, rng.uniform(0.7, 4), uploads, int(rng.integers(3, uploads // 2 - 1)), z


def _draw_masks(rng):
    """Small values, and one mask for each pair of clients; the modulus is no power of two.

    No client has a mask with itself: what stands in its place is not to be used.
    """
    clients = int(rng.integers(4, 8))
    size = int(rng.integers(3, 9))
    modulus = 2 * int(rng.integers(2**15, 2**23)) + 1
    masks = pair_masks(clients, size, modulus, rng)
    masks[range(clients), range(clients)] = rng.integers(1, modulus, (clients, size))
    return rng.integers(0, modulus // 10, (clients, size)), masks, modulus


def _draw_loss(rng):
    values, masks, modulus = _draw_masks(rng)
    order = rng.permutation(len(values))
    away = int(rng.integers(1, 4))
    return _lose(rng, values, masks, modulus, order[:away])


def _lose(rng, values, masks, modulus, lost):
    arrived = [k for k in range(len(values)) if k not in lost]
    uploads = masked(values, masks, modulus)[arrived]
    # A server that knew the masks of two who arrived could read their uploads: it gets others.
    unknown = rng.integers(0, modulus, masks.shape)
    unknown[lost], unknown[:, lost] = masks[lost], masks[:, lost]
    return uploads, unknown, modulus, arrived


# Three clients of one number each, which a difference is shown at. The first upload is 10, the
# largest there may be.
THREE = np.array([[1], [2], [4]]), np.array([[[5], [2], [7]], [[2], [8], [6]], [[7], [6], [9]]]), 11
# Four, of whom two are lost.
FOUR = (
    np.array([[1], [2], [4], [5]]),
    np.array(
        [
            [[0], [3], [7], [1]],
            [[3], [0], [6], [8]],
            [[7], [6], [0], [2]],
            [[1], [8], [2], [0]],
        ]
    ),
    13,
)
# One update of each kind is asked at every check, under two clips: one could be mistaken for 1.
SHORT = np.array([0.1, -0.2, 0.0, 0.1, 0.3]), 1.0, 1.5, 20, 4, np.ones(5)
LONG = np.array([1.1, -2.2, 0.0, 1.1, 3.3]), 2.0, 1.5, 20, 4, np.ones(5)
# An update that is zero, and one that is no vector.
NOTHING = np.zeros(2), 1.0, 1.5, 20, 4, np.array([0.5, -1.0])
TABLE = np.array([[3.0, 0.0, 1.0], [0.0, 4.0, -1.0]]), 2.0, 1.5, 20, 4, np.ones((2, 3))


# ---- 13.1: one client's upload with its share of the noise


def noised_upload(update, clip, sigma, uploads, colluding, z):
    """One client's upload with its share of the noise.

    Args:
        update: numbers of any shape; may be zero.
        clip: clip norm, > 0.
        sigma: noise multiplier of the sum, >= 0.
        uploads: how many clients take part.
        colluding: how many of them may tell the server their noise, < uploads.
        z: standard normal numbers in the shape of the update.
    Returns: as the update.
    """
    clipped = update * min(1, clip / max(np.linalg.norm(update), 1e-12))
    honest = uploads - colluding
    return clipped + sigma * clip / np.sqrt(honest) * z


# ---- 13.2: masks that cancel


def masked(values, masks, modulus):
    uploads = values.copy()
    for k in range(len(values)):
        for j in range(len(values)):
            if j > k:
                uploads[k] += masks[k, j]
            elif j < k:
                uploads[k] -= masks[k, j]
    return uploads % modulus


# ---- 13.3: a client is lost


def open_sum(uploads, masks, modulus, arrived):
    """The sum of the values of the clients that arrived.

    Args:
        uploads: masked values of the clients that arrived, one row each, in the order of `arrived`.
        masks: the mask of every pair of clients, (clients, clients, numbers).
        modulus: sums are taken modulo this whole number.
        arrived: the numbers of these clients.
    Returns: whole numbers in [0, modulus).
    """
    total = uploads.sum(0)
    lost = [j for j in range(len(masks)) if j not in arrived]
    for k in arrived:
        for j in lost:
            total = total - masks[k, j] if j > k else total + masks[k, j]
    return total % modulus


# ---- how they are called

ONE_LOST = _lose(np.random.default_rng(0), *THREE, [1])
TWO_LOST = _lose(np.random.default_rng(0), *FOUR, [0, 2])
CALLS = {
    "13.1": FunctionAnswer(
        "update, clip, sigma, uploads, colluding and z",
        NOTHING,
        SHORT,
        LONG,
        TABLE,
        draw=_draw_share,
    ),
    "13.2": FunctionAnswer("values, masks and modulus", THREE, draw=_draw_masks),
    "13.3": FunctionAnswer(
        "uploads, masks, modulus and arrived", ONE_LOST, TWO_LOST, draw=_draw_loss, times=25
    ),
}
