"""What the known-cost sampler computes with, against references written by others or for the test."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.integrate import trapezoid
from scipy.optimize import approx_fprime
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, Matern, WhiteKernel
from sklearn.preprocessing import PowerTransformer

from search.known_cost import gaussian_process
from search.known_cost.features import Encoder
from search.known_cost.gain import expected_gain
from search.known_cost.gaussian_process import Design, Hyperparameters, Posterior, fit
from search.known_cost.surrogate import Fitted, Surrogate, Warp, fit_power
from search.pareto import free_boxes, hypervolume

_SCALES = np.array([0.4, 1.5, 3.0])


def _data(count=40, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    x = rng.random((count, 3))
    y = np.sin(6 * x[:, 0]) + x[:, 1] + noise * rng.standard_normal(count)
    return x, (y - y.mean()) / y.std()


def test_settings_become_columns_whatever_is_active():
    encode = Encoder(
        {
            "strategy": CategoricalDistribution(("full", "lora")),
            "rate": FloatDistribution(1e-4, 1e-2, log=True),
            "rank": CategoricalDistribution((4, 16, 8)),
            "epochs": IntDistribution(1, 5),
        }
    )
    found = encode([{"strategy": "lora", "rate": 1e-3, "rank": 8, "epochs": 5}, {"strategy": "full", "epochs": 1}])
    corner = math.sqrt(0.5)
    assert found == pytest.approx(np.array([[0, corner, 0.5, 0.5, 1.0], [corner, 0, 0.5, 0.5, 0.0]]))
    assert np.linalg.norm(found[0, :2] - found[1, :2]) == pytest.approx(1.0)
    assert list(encode.groups) == [0, 0, 1, 2, 3]
    assert encode([]).shape == (0, 5)


# The process ---------------------------------------------------------------------------------------------------------


def _design(x, groups=None, trainings=None):
    return Design(
        x=x,
        groups=np.arange(3) if groups is None else groups,
        trainings=np.arange(len(x)) if trainings is None else trainings,
    )


def _theirs(x, trainings, noise, luck):
    """Scikit-learn's process, the training as a column at which only luck looks, and that only for equality."""
    wide = [1e6] * 3
    kernel = Matern([*_SCALES, 1e6], nu=2.5) + luck * RBF([*wide, 1e-3]) + WhiteKernel(noise)
    return GaussianProcessRegressor(kernel, optimizer=None), np.column_stack([x, trainings])


@pytest.mark.parametrize("trainings", [np.arange(40), np.arange(40) // 2])
def test_the_posterior_is_scikit_learns(trainings):
    x, y = _data()
    queries = np.random.default_rng(1).random((50, 3))
    hyperparameters = Hyperparameters(log_scales=np.log(_SCALES), log_noise=math.log(0.05), log_luck=math.log(0.1))
    own = Posterior(_design(x, trainings=trainings), y, hyperparameters)
    process, places = _theirs(x, trainings, noise=0.05, luck=0.1)
    theirs = process.fit(places, y)
    mean, deviation = theirs.predict(np.column_stack([queries, 100 + np.arange(50)]), return_std=True)
    assert own(queries)[0] == pytest.approx(mean, abs=1e-6)
    # Theirs is of an observation, noise included.
    assert own(queries)[1] ** 2 + 0.05 == pytest.approx(deviation**2, abs=1e-6)
    assert own.smoothed == pytest.approx(theirs.predict(places), abs=1e-6)
    assert own.chance_deviation == pytest.approx(math.sqrt(0.15))


def test_the_fits_objective_is_scikit_learns_and_the_prior():
    x, y = _data()
    design = _design(x, trainings=np.arange(40) // 2)
    theta = np.append(np.log(_SCALES), [math.log(0.05), math.log(0.1)])

    def objective(at):
        return gaussian_process._objective(at, design, design.shared, y)

    value, gradient = objective(theta)
    assert gradient == pytest.approx(approx_fprime(theta, lambda t: objective(t)[0], 1e-6), rel=1e-3, abs=1e-3)
    process, places = _theirs(x, design.trainings, noise=0.05, luck=0.1)
    theirs = process.fit(places, y)
    likelihood = theirs.log_marginal_likelihood(theirs.kernel.theta) + len(y) / 2 * math.log(2 * math.pi)
    centre = math.sqrt(2) - 1.5 + 0.5 * math.log(3)
    prior = norm.logpdf(np.log(_SCALES), centre, 1.2).sum()
    prior += norm.logpdf(math.log(0.05), -6, 1) + norm.logpdf(math.log(0.1), -4, 3)
    constant = 3 * norm.logpdf(0, 0, 1.2) + norm.logpdf(0, 0, 1) + norm.logpdf(0, 0, 3)
    assert value == pytest.approx(-likelihood - (prior - constant), rel=1e-6)


def test_a_fit_finds_what_matters_and_what_is_chance():
    x, y = _data(count=150, noise=0.2)
    found = fit(_design(x), y)
    assert found.log_scales[2] > found.log_scales[0] + 1
    share = 0.2**2 / (np.var(np.sin(6 * x[:, 0]) + x[:, 1]) + 0.2**2)
    assert share / 3 < math.exp(found.log_noise) + math.exp(found.log_luck) < 3 * share


def test_what_observations_of_one_training_share_is_luck():
    rng = np.random.default_rng(0)
    x = np.repeat(rng.random((60, 3)), 2, axis=0)
    y = np.sin(6 * x[:, 0]) + np.repeat(0.3 * rng.standard_normal(60), 2) + 0.02 * rng.standard_normal(120)
    found = fit(_design(x, trainings=np.arange(120) // 2), (y - y.mean()) / y.std())
    assert math.exp(found.log_luck) * y.var() == pytest.approx(0.09, rel=0.5)
    assert math.exp(found.log_noise) * y.var() < 0.002


def test_columns_of_a_category_share_their_scale():
    x, y = _data()
    design, theta = _design(x, groups=np.array([0, 0, 1])), np.array([0.1, 0.2, -3.0, -2.0])

    def objective(at):
        return gaussian_process._objective(at, design, design.shared, y)

    assert objective(theta)[1] == pytest.approx(
        approx_fprime(theta, lambda t: objective(t)[0], 1e-6), rel=1e-3, abs=1e-3
    )


# One objective --------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_a_warp_is_monotone_and_goes_back(values):
    warp = Warp(np.array(values), fit_power(np.array(values)))
    line = np.linspace(min(values) - 10, max(values) + 10, 50)
    assert (np.diff(warp(line)) >= 0).all() and np.isfinite(warp(line)).all()
    assert warp.back(warp(np.array(values))) == pytest.approx(np.array(values), abs=1e-6 * (1 + max(map(abs, values))))


def test_a_warp_makes_skewed_values_normal():
    values = np.exp(np.random.default_rng(0).standard_normal(300))
    warped = Warp(values, fit_power(values))(values)
    assert abs(np.mean(warped**3)) < 0.5 < 2 < np.mean(((values - values.mean()) / values.std()) ** 3)


def test_a_warp_is_the_librarys_transformation():
    values = np.exp(np.random.default_rng(1).standard_normal(50)).round(1)
    even = ((values - values.mean()) / values.std()).reshape(-1, 1)
    assert Warp(values, fit_power(values))(values) == pytest.approx(PowerTransformer().fit_transform(even).ravel())


def _surrogate():
    x, y = _data()
    hyperparameters = Hyperparameters(log_scales=np.log(_SCALES), log_noise=math.log(0.02), log_luck=-13.0)
    fitted = Fitted(power=fit_power(np.exp(y)), hyperparameters=hyperparameters)
    return Surrogate(_design(x), np.exp(y), fitted), np.exp(y)


def test_shortfalls_are_integrals_of_the_distribution():
    surrogate, values = _surrogate()
    queries = np.random.default_rng(1).random((5, 3))
    thresholds = np.array([values.min() - 0.2, values.min(), np.median(values), values.max() + 1])
    found = surrogate.at(queries).shortfall(thresholds)
    mean, deviation = surrogate._posterior(queries)
    line = np.linspace(values.min() - 10, values.max() + 1, 400_001)
    below = norm.cdf((surrogate._warp(line) - mean[:, None]) / deviation[:, None])
    exact = [[trapezoid(row[line <= threshold], line[line <= threshold]) for threshold in thresholds] for row in below]
    assert found == pytest.approx(np.array(exact), rel=0.02, abs=2e-3)


def test_the_median_and_the_chance_agree():
    surrogate, values = _surrogate()
    queries = np.random.default_rng(2).random((4, 3))
    shifted = Surrogate(_design(_data()[0]), values - surrogate.at(queries).median()[0], surrogate.fitted)
    assert shifted.at(queries).below_zero()[0] == pytest.approx(0.5, abs=0.02)


# Gain -----------------------------------------------------------------------------------------------------------------


class _Normal:
    """Values that are normal at each candidate; queries hold mean and deviation."""

    def __init__(self, queries, column):
        self._moments = queries[:, 2 * column : 2 * column + 2].T

    def shortfall(self, thresholds):
        mean, deviation = self._moments
        z = (thresholds[None, :] - mean[:, None]) / deviation[:, None]
        return deviation[:, None] * (z * norm.cdf(z) + norm.pdf(z))


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(0, 8))
def test_the_expected_gain_is_that_of_many_draws(seed, num_objectives, size):
    rng = np.random.default_rng(seed)
    reference, front = np.ones(num_objectives), rng.random((size, num_objectives))
    learned = sorted(rng.choice(num_objectives, size=rng.integers(1, num_objectives + 1), replace=False))
    known = rng.random((1, num_objectives))
    queries = np.stack([rng.random(num_objectives), rng.uniform(0.05, 0.3, num_objectives)], axis=1).reshape(1, -1)
    predictions = {int(axis): _Normal(queries, axis) for axis in learned}
    found = expected_gain(free_boxes(front, reference), known=known, learned=predictions)
    points = np.repeat(known, 4000, axis=0)
    for axis in learned:
        points[:, axis] = rng.normal(queries[0, 2 * axis], queries[0, 2 * axis + 1], 4000)
    before = hypervolume(front, reference)
    gains = [hypervolume(np.vstack([front, point]), reference) - before for point in points[:600]]
    error = np.std(gains) / math.sqrt(len(gains))
    assert found[0] == pytest.approx(np.mean(gains), abs=5 * error + 1e-4)


def test_with_everything_known_the_gain_is_exact_and_what_is_ruled_out_gains_nothing():
    front, reference = np.array([[0.2, 0.8], [0.6, 0.3]]), np.ones(2)
    known = np.array([[0.4, 0.4], [0.7, 0.9], [np.inf, np.inf], [0.1, 0.1]])
    found = expected_gain(free_boxes(front, reference), known=known, learned={})
    before = hypervolume(front, reference)
    exact = [hypervolume(np.vstack([front, point]), reference) - before for point in known[[0, 1, 3]]]
    assert found == pytest.approx([exact[0], 0.0, 0.0, exact[2]])


def test_what_is_ruled_out_gains_nothing_where_all_objectives_are_learned():
    queries = np.array([[0.2, 0.1, 0.2, 0.1]] * 2)
    known = np.array([[np.nan, np.nan], [np.inf, np.inf]])
    predictions = {axis: _Normal(queries, axis) for axis in (0, 1)}
    found = expected_gain(free_boxes(np.zeros((0, 2)), np.ones(2)), known=known, learned=predictions)
    assert found[0] > 0.5 and found[1] == 0.0
