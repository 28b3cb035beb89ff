"""A Gaussian process with a length scale for each parameter, fitted by its most probable hyperparameters.

n = observations, q = queries, d = columns, p = parameters (a category of several columns is one). Targets are
standardised, so mean 0 and variance 1 are the prior.

Observations of one training share its luck: the seed, the order of its rows. Taken for independent, its variants, which
all but agree, would say that nothing is chance, and the process would be far too sure of itself. Luck is what the
settings do not tell, but the trained model has it: it stays in what is believed of a training, and makes the next one
uncertain.
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
_LUCK_PRIOR = (-4.0, 3.0)
"""Wide: a table that a formula filled in has none, trainings on 144 rows have a third of all variance."""
_LUCK_STARTS = (-8.0, -1.0)
_SCALE_PRIOR = (np.sqrt(2.0) - 1.5, 1.2)
"""Mean and deviation of the logarithm; ½ log p is added to the mean, which keeps many parameters from all mattering at
once [Hvarfner2024]. Their mean is larger by 1.5: it is for parameters that all have a say, and here most are read by
one strategy alone."""


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """How fast the target changes along each parameter, and how much of it is chance."""

    log_scales: Vector
    """p length scales."""
    log_noise: float
    """Variance of what is chance in each observation."""
    log_luck: float
    """Variance of what is chance in each training."""

    @classmethod
    def prior(cls, num_parameters: int) -> "Hyperparameters":
        """The prior's centre."""
        scales = np.full(num_parameters, _scale_centre(num_parameters))
        return cls(log_scales=scales, log_noise=_NOISE_PRIOR[0], log_luck=_LUCK_PRIOR[0])


@dataclass(frozen=True, kw_only=True)
class Design:
    """Where n observations were made."""

    x: Matrix
    """n × d."""
    groups: NDArray[np.int64]
    """The parameter, from 0, of each of the d columns."""
    trainings: NDArray[np.int64]
    """n: equal for observations of one training."""

    @property
    def num_parameters(self) -> int:
        """p."""
        return int(self.groups.max(initial=-1)) + 1

    @property
    def shared(self) -> Matrix:
        """1 where two observations are of one training, 0 elsewhere: n × n."""
        return (self.trainings[:, None] == self.trainings[None, :]).astype(np.float64)

    def at(self, kept: NDArray[np.int64]) -> "Design":
        """Some of the observations."""
        return Design(x=self.x[kept], groups=self.groups, trainings=self.trainings[kept])


def fit(design: Design, y: Vector) -> Hyperparameters:
    """The most probable hyperparameters given observations ``y`` (n)."""
    scales = Hyperparameters.prior(design.num_parameters).log_scales - 1.5
    bounds = [(-4.0, 8.0)] * len(scales) + [(-13.0, 1.0)] * 2
    arguments = (design, design.shared, y)
    # All may look like luck from where there is much of it, and nothing from where there is none: the likelier wins.
    found = min(
        (
            minimize(
                _objective,
                np.concatenate([scales, [_NOISE_PRIOR[0], log_luck]]),
                args=arguments,
                jac=True,
                bounds=bounds,
                method="L-BFGS-B",
                options={"maxiter": _STEPS},
            )
            for log_luck in _LUCK_STARTS
        ),
        key=lambda end: float(end.fun),
    ).x
    return Hyperparameters(log_scales=found[:-2], log_noise=float(found[-2]), log_luck=float(found[-1]))


class Posterior:
    """The process given observations."""

    def __init__(self, design: Design, y: Vector, hyperparameters: Hyperparameters) -> None:
        self._scales = np.exp(hyperparameters.log_scales)[design.groups]
        self._x = design.x / self._scales
        noise, luck = np.exp(hyperparameters.log_noise), np.exp(hyperparameters.log_luck)
        chance = luck * design.shared
        chance[np.diag_indices_from(chance)] += noise
        kernel = _matern(_squared_distances(self._x, self._x)) + chance
        kernel[np.diag_indices_from(kernel)] += _JITTER
        self._factor = cholesky(kernel, lower=True)
        self._weights = cho_solve((self._factor, True), y)
        self.smoothed = y - noise * self._weights
        """What is believed of the observations' trainings, without what is chance in an observation: n."""
        self.chance_deviation = float(np.sqrt(noise + luck))
        self._luck = luck

    def __call__(self, queries: Matrix) -> tuple[Vector, Vector]:
        """Mean and standard deviation of a new training at each of the q ``queries``, as it would be without noise."""
        cross = _matern(_squared_distances(queries / self._scales, self._x))
        mean = cross @ self._weights
        explained = solve_triangular(self._factor, cross.T, lower=True, overwrite_b=True, check_finite=False)
        variance = 1.0 - np.einsum("ij,ij->j", explained, explained)
        return mean, np.sqrt(np.maximum(variance, 1e-10) + self._luck)

    def correlation(self, queries: Matrix) -> Matrix:
        """The prior's, of what is no chance at q ``queries``: q × q."""
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


def _objective(theta: Vector, design: Design, shared: Matrix, y: Vector) -> tuple[float, Vector]:
    """Negative log posterior of hyperparameters, and its gradient [Rasmussen2006, eq. 5.8 and 5.9]."""
    log_scales, (noise, luck) = theta[:-2], np.exp(theta[-2:])
    scaled = design.x / np.exp(log_scales)[design.groups]
    squared = _squared_distances(scaled, scaled)
    kernel = _matern(squared) + luck * shared
    kernel[np.diag_indices_from(kernel)] += noise + _JITTER
    try:
        factor = cholesky(kernel, lower=True)
    except np.linalg.LinAlgError:
        return 1e25, np.zeros_like(theta)
    weights = cho_solve((factor, True), y)
    value = 0.5 * y @ weights + np.log(np.diag(factor)).sum()
    excess = cho_solve((factor, True), np.eye(len(y))) - np.outer(weights, weights)
    by_scale = _scale_gradients(excess, scaled, squared, design.groups, num_parameters=len(log_scales))
    by_chance = [0.5 * noise * np.trace(excess), 0.5 * luck * np.vdot(excess, shared)]
    prior, prior_gradient = _log_prior(theta)
    return value - prior, np.concatenate([by_scale, by_chance]) - prior_gradient


def _scale_gradients(
    excess: Matrix, scaled: Matrix, squared: Matrix, groups: NDArray[np.int64], *, num_parameters: int
) -> Vector:
    """½ tr(excess · ∂K/∂log scale) for each parameter, without a matrix of distances for each of them."""
    distance = np.sqrt(5.0 * squared)
    slope = 5.0 / 3.0 * (1.0 + distance) * np.exp(-distance) * excess
    # Σᵢⱼ Wᵢⱼ (xᵢ - xⱼ)² = 2 (Σᵢ wᵢ xᵢ² - xᵀ W x) with w the sums of W's rows.
    columns = slope.sum(axis=1) @ scaled**2 - np.einsum("ij,ij->j", scaled, slope @ scaled)
    return np.bincount(groups, weights=columns, minlength=num_parameters).astype(np.float64)


def _log_prior(theta: Vector) -> tuple[float, Vector]:
    """Of normal priors, without their constants, and its gradient."""
    centre = np.full(len(theta), _scale_centre(len(theta) - 2))
    spread = np.full(len(theta), _SCALE_PRIOR[1])
    (centre[-2], spread[-2]), (centre[-1], spread[-1]) = _NOISE_PRIOR, _LUCK_PRIOR
    off = (theta - centre) / spread
    return float(-0.5 * off @ off), -off / spread


def _scale_centre(num_parameters: int) -> float:
    return float(_SCALE_PRIOR[0] + 0.5 * np.log(max(num_parameters, 1)))
