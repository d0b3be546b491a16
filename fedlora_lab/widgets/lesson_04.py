"""Widget of notebook 04: what noise on the factors becomes in the product."""

from fedlora_lab.plots.amplifier import amplifier
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.dial import Dial, dial


def noise_amplifier() -> Dial:
    """Turn noise, rank, α, width and the size of B; see the three energies and where the quadratic one takes over."""
    stds = [0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0]
    return dial(
        amplifier,
        std=controls.steps("noise std", stds, 0.05, "standard deviation on every entry of both factors"),
        rank=controls.steps("rank r", [1, 2, 4, 8, 16, 32, 64], 4, "inner dimension of B A"),
        alpha=controls.steps("α", [1, 2, 4, 8, 16, 32], 8, "the product is multiplied by α / r"),
        width=controls.steps("layer width", [64, 256, 768, 4096], 64, "d_in = d_out of the layer"),
        size_B=controls.slider("size of B", 0.0, 0.0, 2.0, 0.1, "norm of B over norm of A; 0 before training"),
    )
