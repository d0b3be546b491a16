"""Closed forms, NumPy in and NumPy out; each is tested by a test of its name (`test_<function>`), and figures draw it.

Convention: W = W0 + scaling B A with B (d_out, r), A (r, d_in); norms are Frobenius norms unless said otherwise.
"""

from fedlora_lab.theory.accounting import (
    classical_sigma,
    clt_mu,
    gaussian_mu,
    gaussian_rdp,
    gdp_delta,
    gdp_epsilon,
    privacy_loss_cdf,
    rdp_to_epsilon,
    rdp_to_epsilon_classical,
    sampled_gaussian_rdp,
)
from fedlora_lab.theory.bands import Band, mean_band
from fedlora_lab.theory.deviation import (
    DeviationTerms,
    deviation,
    deviation_covariance,
    deviation_pairs,
    noisy_deviation,
    sign_pairs,
    vanishes_for_every_weighting,
)
from fedlora_lab.theory.leak import overlap, vanishing_noise
from fedlora_lab.theory.lora import FirstStep, approach, first_step, reachable_error
from fedlora_lab.theory.noise import (
    CycleTerms,
    NoiseTerms,
    accumulated_std,
    alternation_total,
    crossover,
    factor_average_terms,
    linear_noise_norm,
    noise_terms,
    product_average_terms,
    quadratic_share,
    release_snr,
)
from fedlora_lab.theory.peers import measured_band, regulated_epsilon
from fedlora_lab.theory.promise import ClipTerms, clip_terms, membership_bound
from fedlora_lab.theory.quantiser import bits_per_number, normal_levels, quantiser_error
from fedlora_lab.theory.regulated import (
    filter_gain,
    filter_weights,
    regulated_energy,
    regulated_mahalanobis,
    regulated_multiplier,
    whitened,
)
from fedlora_lab.theory.rounded import rounded_epsilon, rounded_law
from fedlora_lab.theory.spread import noise_spread
from fedlora_lab.theory.start import Energy, energy_band, random_reach, start_energy
from fedlora_lab.theory.trust import (
    TrustLevel,
    joint_sensitivity,
    surviving_multiplier,
    trust_level,
    weighted_sensitivity,
)
from fedlora_lab.theory.turns import coupled_step, filter_response, kept_energy, two_number_descent

__all__ = [
    "Band",
    "ClipTerms",
    "CycleTerms",
    "DeviationTerms",
    "Energy",
    "FirstStep",
    "NoiseTerms",
    "TrustLevel",
    "accumulated_std",
    "alternation_total",
    "approach",
    "bits_per_number",
    "classical_sigma",
    "clip_terms",
    "clt_mu",
    "coupled_step",
    "crossover",
    "deviation",
    "deviation_covariance",
    "deviation_pairs",
    "energy_band",
    "factor_average_terms",
    "filter_gain",
    "filter_response",
    "filter_weights",
    "first_step",
    "gaussian_mu",
    "gaussian_rdp",
    "gdp_delta",
    "gdp_epsilon",
    "joint_sensitivity",
    "kept_energy",
    "linear_noise_norm",
    "mean_band",
    "measured_band",
    "membership_bound",
    "noise_spread",
    "noise_terms",
    "noisy_deviation",
    "normal_levels",
    "overlap",
    "privacy_loss_cdf",
    "product_average_terms",
    "quadratic_share",
    "quantiser_error",
    "random_reach",
    "rdp_to_epsilon",
    "rdp_to_epsilon_classical",
    "reachable_error",
    "regulated_energy",
    "regulated_epsilon",
    "regulated_mahalanobis",
    "regulated_multiplier",
    "release_snr",
    "rounded_epsilon",
    "rounded_law",
    "sampled_gaussian_rdp",
    "sign_pairs",
    "start_energy",
    "surviving_multiplier",
    "trust_level",
    "two_number_descent",
    "vanishes_for_every_weighting",
    "vanishing_noise",
    "weighted_sensitivity",
    "whitened",
]
