"""What a run did, measured by low-rank algebra: no (d_out, d_in) matrix is formed, except where a function says so."""

from fedlora_lab.measures.clients import Seen, angles, drift, signal_to_noise, watch
from fedlora_lab.measures.curvature import Flatness, flatness
from fedlora_lab.measures.ends import sharpness
from fedlora_lab.measures.layer import FirstSteps, Gradients, first_steps, full_updates, gradients
from fedlora_lab.measures.peers import peer_sizes, separation, worst_change
from fedlora_lab.measures.products import Deviation, deviation, noise_energies, product_norm
from fedlora_lab.measures.protection import protection
from fedlora_lab.measures.rounds import Exchange, frame_of, layer_rows
from fedlora_lab.measures.servers import mean_spectrum, served, sketched
from fedlora_lab.measures.spectra import gradient_spectra, spectrum

__all__ = [
    "Deviation",
    "Exchange",
    "FirstSteps",
    "Flatness",
    "Gradients",
    "Seen",
    "angles",
    "deviation",
    "drift",
    "first_steps",
    "flatness",
    "frame_of",
    "full_updates",
    "gradient_spectra",
    "gradients",
    "layer_rows",
    "mean_spectrum",
    "noise_energies",
    "peer_sizes",
    "product_norm",
    "protection",
    "separation",
    "served",
    "sharpness",
    "signal_to_noise",
    "sketched",
    "spectrum",
    "watch",
    "worst_change",
]
