"""Images that an attack recovered, side by side."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedlora_lab.checks import check
from fedlora_lab.plots.style import SOFT, Picture, paper, picture


def recovered(images: Mapping[str, Any], title: str = "") -> Picture:
    """Grey images in a row, each under its own words; black is 0, white 1.

    Args: images: words -> (height, width), values clipped to [0, 1].
    Raises: ``ValueError`` without an image.
    Guarantees: test_the_recovered_images_are_drawn.
    """
    check(len(images) > 0, "images", images, "at least one")
    with paper():
        width = max(1.45 * len(images), 3.0)
        figure = picture(width, 2.15 if title else 1.85)
        for i, (words, image) in enumerate(images.items()):
            ax = figure.add_axes((i / len(images) + 0.012, 0.2, 1 / len(images) - 0.024, 0.62 if title else 0.74))
            ax.imshow(np.clip(np.asarray(image, float), 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(words, color=SOFT, fontsize=8.5)
            ax.grid(visible=False)
            if i == 0 and title:
                ax.set_title(title)
    return figure
