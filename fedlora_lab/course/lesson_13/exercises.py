"""Right and wrong answers to the exercises of notebook 13: noise shares, masks, a lost client."""

from functools import partial

import numpy as np

from fedlora_lab.course.exercises import Calls, vary
from fedlora_lab.course.secagg_demo import pair_masks


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
    clipped = update * min(1, clip / max(np.linalg.norm(update), 1e-12))
    honest = uploads - colluding
    return clipped + sigma * clip / np.sqrt(honest) * z


# One client could move the sum by any length.
def not_clipped(update, clip, sigma, uploads, colluding, z):
    return update + sigma * clip / np.sqrt(uploads - colluding) * z


# Divides a short update by its norm as well.
def lengthened(update, clip, sigma, uploads, colluding, z):
    length = max(np.linalg.norm(update), 1e-12)
    return noised_upload(update * clip / length, clip, sigma, uploads, colluding, z)


# Variances of independent noises add up, not lengths.
def without_root(update, clip, sigma, uploads, colluding, z):
    return noised_upload(update, clip, sigma, (uploads - colluding) ** 2, 0, z)


# Numbers of at most clip may be a vector as long as √d clip.
def clips_each_number(update, clip, sigma, uploads, colluding, z):
    return np.clip(update, -clip, clip) + sigma * clip / np.sqrt(uploads - colluding) * z


# A clip that stands after the noise shortens the noise, too.
def clips_the_noised(update, clip, sigma, uploads, colluding, z):
    noised = not_clipped(update, clip, sigma, uploads, colluding, z)
    return noised * min(1, clip / np.linalg.norm(noised))


# Those who collude take their noise out again.
relies_on_all = vary(noised_upload, colluding=0)


# All of the noise less what the colluding know, and not one client's share of it.
def what_would_be_left(update, clip, sigma, uploads, colluding, z):
    left = sigma * np.sqrt((uploads - colluding) / uploads)
    return noised_upload(update, clip, left, 1, 0, z)


# Each client adds all the noise: as if nobody else did.
whole_noise = vary(noised_upload, uploads=1, colluding=0)


# A clip by the square is too hard above 1 and too loose below.
def by_the_square(update, clip, sigma, uploads, colluding, z):
    return not_clipped(
        update * min(1, clip / (update**2).sum()), clip, sigma, uploads, colluding, z
    )


# The noise of a loud client is shorter then.
def noise_clipped_along(update, clip, sigma, uploads, colluding, z):
    factor = min(1, clip / np.linalg.norm(update))
    return factor * not_clipped(update, clip, sigma, uploads, colluding, z)


# An update of zeros has no direction.
def nothing_over_nothing(update, clip, sigma, uploads, colluding, z):
    length = np.linalg.norm(update)
    return not_clipped(update / length * min(length, clip), clip, sigma, uploads, colluding, z)


# A share's variance in place of its standard deviation.
def share_of_the_variance(update, clip, sigma, uploads, colluding, z):
    clipped = noised_upload(update, clip, 0.0, uploads, colluding, z)
    return clipped + (sigma * clip) ** 2 / (uploads - colluding) * z


# The noise of those who collude is the one that does not count.
def over_the_colluding(update, clip, sigma, uploads, colluding, z):
    return noised_upload(update, clip, sigma, colluding, 0, z)


# A matrix is as long as all its directions together.
def spectral_norm(update, clip, sigma, uploads, colluding, z):
    largest = np.linalg.norm(update, 2)
    shorter = update * min(1, clip / max(largest, 1e-12))
    return not_clipped(shorter, clip, sigma, uploads, colluding, z)


# An update has one length, whatever its shape.
def clips_each_row(update, clip, sigma, uploads, colluding, z):
    lengths = np.linalg.norm(update, axis=-1, keepdims=True)
    clipped = update * np.minimum(1, clip / np.maximum(lengths, 1e-12))
    return not_clipped(clipped, clip, sigma, uploads, colluding, z)


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


# The masks add up in place of cancelling.
def same_sign(values, masks, modulus):
    return (values + masks.sum(1)) % modulus


# Signs that are turned for both cancel as well, but 13.3 and the others count on the rule.
signs_exchanged = vary(masked, masks=np.negative)


# Only one of each pair masks: nothing cancels.
def one_end_only(values, masks, modulus):
    first = np.triu(np.ones(masks.shape[:2], int), 1)
    return (values + (first[..., None] * masks).sum(1)) % modulus


def _with_own_mask(values, masks, modulus, sign):
    own = masks[range(len(values)), range(len(values))]
    return (masked(values, masks, modulus) + sign * own) % modulus


# Nobody takes away again what a client has added or subtracted for itself.
own_mask_added = partial(_with_own_mask, sign=1)
own_mask_subtracted = partial(_with_own_mask, sign=-1)


# Masked numbers that can be small or large tell about the value.
without_modulus = vary(masked, modulus=10**18, then=lambda sums: (sums + 10**17) % 10**18 - 10**17)


# ---- 13.3: a client is lost


def open_sum(uploads, masks, modulus, arrived):
    total = uploads.sum(0)
    lost = [j for j in range(len(masks)) if j not in arrived]
    for k in arrived:
        for j in lost:
            total = total - masks[k, j] if j > k else total + masks[k, j]
    return total % modulus


# Masks between two that arrived have cancelled, and nobody tells the server these.
def all_masks_removed(uploads, masks, modulus, arrived):
    everybody = range(len(masks))
    signs = np.sign(np.subtract.outer(arrived, everybody))
    return (uploads.sum(0) + np.einsum("kj,kji->i", signs, masks[arrived])) % modulus


# A row's place says nothing of which of a pair has the smaller number.
def position_for_number(uploads, masks, modulus, arrived):
    total = uploads.sum(0)
    lost = [j for j in range(len(masks)) if j not in arrived]
    for i, k in enumerate(arrived):
        for j in lost:
            total = total - masks[k, j] if j > i else total + masks[k, j]
    return total % modulus


def position_for_both(uploads, masks, modulus, arrived):
    total = uploads.sum(0)
    lost = [j for j in range(len(masks)) if j not in arrived]
    for i in range(len(arrived)):
        for j in lost:
            total = total - masks[i, j] if j > i else total + masks[i, j]
    return total % modulus


# Masks shared with the lost stay in the sum.
def masks_left_in(uploads, masks, modulus, arrived):
    return uploads.sum(0) % modulus


# The signs of both kinds of masks are exchanged.
masks_added_again = vary(open_sum, masks=np.negative)


# Of each pair one added the mask and one took it away.
def signs_forgotten_added(uploads, masks, modulus, arrived):
    lost = [j for j in range(len(masks)) if j not in arrived]
    return (uploads.sum(0) + masks[arrived][:, lost].sum((0, 1))) % modulus


# Each lost client has left a mask with everyone who arrived.
def first_lost_only(uploads, masks, modulus, arrived):
    lost = [j for j in range(len(masks)) if j not in arrived]
    total = uploads.sum(0)
    for k in arrived:
        total = total + (masks[k, lost[0]] if lost[0] < k else -masks[k, lost[0]])
    return total % modulus


# Of each pair one added the mask and one took it away.
def signs_forgotten(uploads, masks, modulus, arrived):
    lost = [j for j in range(len(masks)) if j not in arrived]
    return (uploads.sum(0) - masks[arrived][:, lost].sum((0, 1))) % modulus


# ---- how they are called

ONE_LOST = _lose(np.random.default_rng(0), *THREE, [1])
TWO_LOST = _lose(np.random.default_rng(0), *FOUR, [0, 2])
CALLS = {
    "13.1": Calls(
        "update, clip, sigma, uploads, colluding and z",
        NOTHING,
        SHORT,
        LONG,
        TABLE,
        draw=_draw_share,
    ),
    "13.2": Calls("values, masks and modulus", THREE, draw=_draw_masks),
    "13.3": Calls(
        "uploads, masks, modulus and arrived", ONE_LOST, TWO_LOST, draw=_draw_loss, times=25
    ),
}
