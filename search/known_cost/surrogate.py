"""What is believed of one objective that only training tells: its distribution at any settings.

n = observations, q = queries, t = thresholds. Values are minimised.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import yeojohnson

from search.known_cost.features import Matrix
from search.known_cost.gaussian_process import Design, Hyperparameters, Posterior, Vector, fit

_STEPS = 48
"""Of the numerical integral over the observed range."""


_MAX_FITTED = 200
"""Observations of a fit, those that are spread evenly over all of them: its time rises with the cube."""
_LEAST_NOISE = 0.03
"""Standard deviation, as a share of that of all values."""


def fit_power(values: Vector) -> float:
    """The most probable parameter of the transformation that makes ``values`` look normal [Yeo2000]."""
    from sklearn.preprocessing import PowerTransformer  # Takes a second, and --help should not.

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(PowerTransformer(standardize=False).fit(_standard(values).reshape(-1, 1)).lambdas_[0])


class Warp:
    """A monotone map that makes values look normal [Yeo2000]; straight on beyond the values that it was made from."""

    def __init__(self, values: Vector, power: float) -> None:
        """``power``: as ``fit_power`` found it for these values, or for most of them."""
        self._knots, counts = np.unique(values, return_counts=True)
        even = (self._knots - values.mean()) / (values.std() or 1.0)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            bent = yeojohnson(even, lmbda=power)
            mean = np.average(bent, weights=counts)
            bent = (bent - mean) / np.sqrt(np.average((bent - mean) ** 2, weights=counts))
        usable = np.isfinite(bent).all() and len(self._knots) > 2 and (np.diff(bent) > 0).all()
        self._warped = bent if usable else even
        self._slopes = self._end_slopes()

    def __call__(self, values: Vector) -> Vector:
        """Warped, mean 0 and variance 1 over the values that it was made from."""
        low, high = self._knots[0], self._knots[-1]
        inside = np.interp(values, self._knots, self._warped)
        return (
            inside + np.minimum(values - low, 0.0) * self._slopes[0] + np.maximum(values - high, 0.0) * self._slopes[1]
        )

    def back(self, warped: Vector) -> Vector:
        """The inverse; what lies beyond the values that the map was made from becomes their end."""
        return np.interp(warped, self._warped, self._knots)

    @property
    def low(self) -> float:
        """The smallest of the values that it was made from."""
        return float(self._knots[0])

    @property
    def low_slope(self) -> float:
        """Of the map below ``low``."""
        return float(self._slopes[0])

    def _end_slopes(self) -> tuple[float, float]:
        """Over the outer tenth at each end: two values that all but coincide say nothing of the map."""
        if len(self._knots) < 2:
            return 1.0, 1.0
        tenth = max(1, len(self._knots) // 10)
        rise, run = (self._warped, self._knots)
        return (
            float((rise[tenth] - rise[0]) / (run[tenth] - run[0])),
            float((rise[-1] - rise[-1 - tenth]) / (run[-1] - run[-1 - tenth])),
        )


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What takes long to find out about an objective, and changes little with a few observations more."""

    power: float
    """Of the warp."""
    hyperparameters: Hyperparameters

    @classmethod
    def to(cls, design: Design, values: Vector) -> "Fitted":
        """Observations ``values`` (n)."""
        if len(np.unique(values)) < 3:
            return cls(power=1.0, hyperparameters=Hyperparameters.prior(design.num_parameters))
        power = fit_power(values)
        kept = np.unique(np.linspace(0, len(values) - 1, _MAX_FITTED).astype(int))
        return cls(power=power, hyperparameters=fit(design.at(kept), Warp(values, power)(values)[kept]))


class Surrogate:
    """One objective, learned from n observations."""

    def __init__(self, design: Design, values: Vector, fitted: Fitted) -> None:
        """``values``: n."""
        self.fitted = fitted
        self._warp = Warp(values, fitted.power)
        self._posterior = Posterior(design, self._warp(values), fitted.hyperparameters)
        self.smoothed = self._warp.back(self._posterior.smoothed)
        """What is believed of the observations' trainings: n."""

    def correlation(self, queries: Matrix) -> Matrix:
        """Of the values at q queries, before anything was observed: q × q."""
        return self._posterior.correlation(queries)

    def at(self, queries: Matrix) -> "Prediction":
        """What is believed at each of the q ``queries``."""
        mean, deviation = self._posterior(queries)
        noise = max(self._posterior.chance_deviation, _LEAST_NOISE)
        return Prediction(mean=mean, deviation=deviation, noise=noise, warp=self._warp)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The distribution of one objective at q queries: normal, once warped."""

    mean: Vector
    deviation: Vector
    noise: float
    """Standard deviation of what is chance in an observation, the luck of its training among it."""
    warp: Warp

    def median(self) -> Vector:
        """At each query: q."""
        return self.warp.back(self.mean)

    def novelty(self) -> Vector:
        """How much of what another observation tells is news, from 0 to 1: q.

        1 - τ / √(σ² + τ²) for noise τ and uncertainty σ [Huang2006]: where all but noise is known, there is nothing to
        be had. The least noise that is reckoned with keeps a search from polishing digits that no test split shows.
        """
        found: Vector = 1.0 - self.noise / np.sqrt(self.deviation**2 + self.noise**2)
        return found

    def below_zero(self) -> Vector:
        """The chance of a value of at most 0: q."""
        found: Vector = ndtr((self.warp(np.zeros(1)) - self.mean) / self.deviation)
        return found

    def shortfall(self, thresholds: Vector) -> Matrix:
        """E max(threshold - value, 0), the integral of the distribution function: q × t.

        Exact below the smallest observation, where the map is straight; the trapezoid rule above it.
        """
        mean, deviation = self.mean, self.deviation
        low, slope = self.warp.low, self.warp.low_slope
        grid = self._grid(thresholds)
        below = ndtr((self.warp(grid)[None, :] - mean[:, None]) / deviation[:, None])
        tail = deviation / slope * _partial_expectation((self.warp(np.array([low]))[0] - mean) / deviation)
        areas = np.diff(grid)[None, :] * (below[:, 1:] + below[:, :-1]) / 2.0
        above = tail[:, None] + np.concatenate([np.zeros((len(mean), 1)), np.cumsum(areas, axis=1)], axis=1)
        found = above[:, np.searchsorted(grid, np.maximum(thresholds, low))]
        under = thresholds < low
        if under.any():
            z_under = (self.warp(thresholds[under])[None, :] - mean[:, None]) / deviation[:, None]
            found[:, under] = (deviation / slope)[:, None] * _partial_expectation(z_under)
        return found

    def _grid(self, thresholds: Vector) -> Vector:
        low, high = self.warp.low, max(float(thresholds.max()), self.warp.low)
        even = np.linspace(low, high, _STEPS)
        return np.unique(np.concatenate([[low], even, thresholds[thresholds > low]]))


def _standard(values: Vector) -> Vector:
    """Mean 0 and variance 1."""
    found: Vector = (values - values.mean()) / (values.std() or 1.0)
    return found


def _partial_expectation(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """∫ Φ from -∞ to z."""
    return z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi)
