"""A Gaussian process with a length scale for each parameter, fitted by its most probable hyperparameters.

n = observations, q = queries, d = columns, p = parameters (a category of several columns is one). Targets are
standardised, so mean 0 and variance 1 are the prior.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from search.known_cost.features import Matrix

Vector = NDArray[np.float64]

_JITTER = 1e-8
_STEPS = 40
"""Of L-BFGS: later ones change no prediction that matters."""
_NOISE_PRIOR = (-6.0, 1.0)
_SCALE_PRIOR = (np.sqrt(2.0), np.sqrt(3.0))
"""Mean and deviation of the logarithm; ½ log p is added to the mean, which keeps many parameters from all mattering at
once [Hvarfner2024]."""


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """How fast the target changes along each parameter, and how much of it is chance."""

    log_scales: Vector
    """p length scales."""
    log_noise: float
    """Variance of the noise."""

    @classmethod
    def prior(cls, num_parameters: int) -> "Hyperparameters":
        """The prior's centre."""
        centre = _SCALE_PRIOR[0] + 0.5 * np.log(max(num_parameters, 1))
        return cls(log_scales=np.full(num_parameters, centre), log_noise=_NOISE_PRIOR[0])


def fit(x: Matrix, y: Vector, groups: NDArray[np.int64]) -> Hyperparameters:
    """The most probable hyperparameters given observations ``x`` (n × d) and ``y`` (n).

    Args:
        groups: the parameter, from 0, of each column.
    """
    start = Hyperparameters.prior(int(groups.max(initial=-1)) + 1)
    first = np.append(start.log_scales - 1.5, start.log_noise)
    bounds = [(-4.0, 8.0)] * len(start.log_scales) + [(-13.0, 1.0)]
    found = minimize(
        _objective, first, args=(x, y, groups), jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": _STEPS}
    )
    return Hyperparameters(log_scales=found.x[:-1], log_noise=float(found.x[-1]))


class Posterior:
    """The process given observations."""

    def __init__(self, x: Matrix, y: Vector, groups: NDArray[np.int64], hyperparameters: Hyperparameters) -> None:
        self._scales = np.exp(hyperparameters.log_scales)[groups]
        self._x = x / self._scales
        noise = np.exp(hyperparameters.log_noise)
        kernel = _matern(_squared_distances(self._x, self._x))
        kernel[np.diag_indices_from(kernel)] += noise + _JITTER
        self._factor = cholesky(kernel, lower=True)
        self._weights = cho_solve((self._factor, True), y)
        self.smoothed = y - noise * self._weights
        """What is believed of the observations themselves, without their noise: n."""
        self.noise_deviation = float(np.sqrt(noise))

    def __call__(self, queries: Matrix) -> tuple[Vector, Vector]:
        """Mean and standard deviation, without noise, at each of the q ``queries``."""
        cross = _matern(_squared_distances(queries / self._scales, self._x))
        mean = cross @ self._weights
        explained = solve_triangular(self._factor, cross.T, lower=True, overwrite_b=True, check_finite=False)
        variance = 1.0 - np.einsum("ij,ij->j", explained, explained)
        return mean, np.sqrt(np.maximum(variance, 1e-10))

    def correlation(self, queries: Matrix) -> Matrix:
        """The prior's, of the values at q ``queries``: q × q."""
        scaled = queries / self._scales
        return _matern(_squared_distances(scaled, scaled))


def _squared_distances(one: Matrix, other: Matrix) -> Matrix:
    squared: Matrix = (-2.0 * one) @ other.T
    squared += (one**2).sum(axis=1)[:, None]
    squared += (other**2).sum(axis=1)[None, :]
    return np.maximum(squared, 0.0, out=squared)


def _matern(squared: Matrix) -> Matrix:
    """Smoothness 5/2 of squared distances [Rasmussen2006, eq. 4.17]."""
    # In place: half the time where there are many queries.
    distance = 5.0 * squared
    found: Matrix = distance / 3.0
    np.sqrt(distance, out=distance)
    found += distance
    found += 1.0
    found *= np.exp(np.negative(distance, out=distance), out=distance)
    return found


def _objective(theta: Vector, x: Matrix, y: Vector, groups: NDArray[np.int64]) -> tuple[float, Vector]:
    """Negative log posterior of hyperparameters, and its gradient [Rasmussen2006, eq. 5.8 and 5.9]."""
    log_scales, log_noise = theta[:-1], theta[-1]
    noise = np.exp(log_noise)
    scaled = x / np.exp(log_scales)[groups]
    squared = _squared_distances(scaled, scaled)
    kernel = _matern(squared)
    kernel[np.diag_indices_from(kernel)] += noise + _JITTER
    try:
        factor = cholesky(kernel, lower=True)
    except np.linalg.LinAlgError:
        return 1e25, np.zeros_like(theta)
    weights = cho_solve((factor, True), y)
    value = 0.5 * y @ weights + np.log(np.diag(factor)).sum()
    excess = cho_solve((factor, True), np.eye(len(y))) - np.outer(weights, weights)
    by_scale = _scale_gradients(excess, scaled, squared, groups, num_parameters=len(log_scales))
    gradient = np.append(by_scale, 0.5 * noise * np.trace(excess))
    prior, prior_gradient = _log_prior(log_scales, log_noise)
    return value - prior, gradient - prior_gradient


def _scale_gradients(
    excess: Matrix, scaled: Matrix, squared: Matrix, groups: NDArray[np.int64], *, num_parameters: int
) -> Vector:
    """½ tr(excess · ∂K/∂log scale) for each parameter, without a matrix of distances for each of them."""
    distance = np.sqrt(5.0 * squared)
    slope = 5.0 / 3.0 * (1.0 + distance) * np.exp(-distance) * excess
    # Σᵢⱼ Wᵢⱼ (xᵢ - xⱼ)² = 2 (Σᵢ wᵢ xᵢ² - xᵀ W x) with w the sums of W's rows.
    columns = slope.sum(axis=1) @ scaled**2 - np.einsum("ij,ij->j", scaled, slope @ scaled)
    return np.bincount(groups, weights=columns, minlength=num_parameters).astype(np.float64)


def _log_prior(log_scales: Vector, log_noise: float) -> tuple[float, Vector]:
    centre = _SCALE_PRIOR[0] + 0.5 * np.log(max(len(log_scales), 1))
    off_scale = (log_scales - centre) / _SCALE_PRIOR[1]
    off_noise = (log_noise - _NOISE_PRIOR[0]) / _NOISE_PRIOR[1]
    gradient = -np.append(off_scale / _SCALE_PRIOR[1], off_noise / _NOISE_PRIOR[1])
    return float(-0.5 * (off_scale @ off_scale + off_noise**2)), gradient
