"""Closed forms of the course, NumPy in and NumPy out; each names the test that holds it.

Convention: W = W0 + scaling B A with B (d_out, r), A (r, d_in); norms are Frobenius norms unless
another is named.
"""
# ruff: noqa: F401

from fedlora_lab.theory.alternation import (
    coupled_step,
    filter_gain,
    filter_response,
    filter_weights,
    filtered_energy,
    measured_band,
    regulated_energy,
    regulated_epsilon,
    regulated_mahalanobis,
    regulated_multiplier,
    two_number_descent,
    whiten,
)
from fedlora_lab.theory.factor_averaging import (
    DeviationTerms,
    deviation,
    deviation_covariance,
    deviation_pairs,
    noisy_deviation,
    sign_pairs,
    vanishes_for_every_weighting,
)
from fedlora_lab.theory.gaussian_dp import (
    ClipTerms,
    classical_sigma,
    clip_terms,
    clt_mu,
    gaussian_mu,
    gdp_delta,
    gdp_epsilon,
    gradient_overlap,
    membership_bound,
    rdp_to_epsilon,
    rdp_to_epsilon_classical,
    sampled_gaussian_rdp,
    vanishing_noise,
)
from fedlora_lab.theory.low_rank import (
    Band,
    Energy,
    FirstStep,
    descent_errors,
    energy_band,
    first_step,
    mean_band,
    reachable_error,
    row_space_share,
    start_energy,
)
from fedlora_lab.theory.noise_amplification import (
    CycleTerms,
    NoiseTerms,
    accumulated_std,
    alternation_total,
    crossover,
    factor_average_terms,
    linear_noise_norm,
    noise_terms,
    noise_terms_std,
    product_average_terms,
    quadratic_share,
    release_snr,
)
from fedlora_lab.theory.quantization_error import bits_per_number, normal_levels, quantiser_error
from fedlora_lab.theory.trust_levels import (
    TrustLevel,
    rounded_distribution,
    rounded_epsilon,
    surviving_multiplier,
    trust_level,
    weighted_sensitivity,
)
