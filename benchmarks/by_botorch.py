"""BoTorch's qLogNEHVI [Daulton2021, Ament2023] as a sampler of simulated searches, by its own tutorial.

A Gaussian process for each objective, known or not: that is what its user has. The first 2 (d + 1) plans are Sobol
points; then the acquisition is asked about the trainings that are nearest to Sobol points, which is all that a table
can answer, so that nothing is lost between optimum and answer. Where a training yields several variants, what is
weighed is the gain of all of them together (its q), the variant being one more category.

Conditions between parameters have no place in its model.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from botorch import fit_gpytorch_mll, manual_seed
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.models import MixedSingleTaskGP, ModelListGP, SingleTaskGP
from botorch.sampling import SobolQMCNormalSampler
from botorch.utils.multi_objective.hypervolume import infer_reference_point
from botorch.utils.multi_objective.pareto import is_non_dominated
from gpytorch.mlls import SumMarginalLogLikelihood
from torch import Tensor
from torch.quasirandom import SobolEngine

from search.history import Outcome
from search.simulation.nearest import Coordinate
from search.simulation.simulate import Given
from spaces.choosers import Value
from spaces.draw import Draw

_CANDIDATES = 2048
"""Sobol points a proposal; its documents have 512 to 1,024 to begin a gradient's way from."""
_SAMPLES = 128
"""Of the posterior, as in the tutorial."""
_AT_ONCE = 256
_FIT_STEPS = 100
"""Of L-BFGS, for the processes' hyperparameters. Without a limit a proposal on HW-GPT-S took 14 s after 20 trainings,
its costs being free of noise; with 50 the search had 0.978 of the hypervolume after 40 trainings, with 200 0.984."""


class PointChooser:
    """Picks what lies at a point of the unit cube."""

    def __init__(self, places: Mapping[str, float]) -> None:
        self._places = places

    def categorical(self, name: str, choices: Sequence[Value]) -> Value:
        """Each choice has an equal part of the edge."""
        return choices[min(int(self._places[name] * len(choices)), len(choices) - 1)]

    def integer(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """The whole number that is nearest to the place."""
        return round(self.real(name, low, high, log=log))

    def real(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """The number at the place, in the logarithm where said."""
        place = self._places[name]
        found = low * (high / low) ** place if log else low + (high - low) * place
        return min(high, max(low, found))


@dataclass
class QLogNehvi:
    """Asked for one training at a time; those under way are pending points."""

    given: Given

    def __post_init__(self) -> None:
        conditional = [axis.name for axis in self.given.table.axes if axis.param.when]
        assert not conditional, f"qLogNEHVI reads every parameter always, but some hang on others: {conditional}"
        torch.set_num_threads(1)

    def __call__(self, outcomes: Sequence[Outcome], running: Sequence[Draw], number: int) -> Draw:
        """A Sobol point, or the training with the largest expected gain."""
        told = [outcome for outcome in outcomes if outcome.values is not None]
        if number < 2 * (self._num_inputs + 1) or len(told) < 2:
            return self._sobol(number + 1, seed=self.given.seed)[number]
        with warnings.catch_warnings(), manual_seed(self._seed(number)):
            # What its fit says of a first try that it repeats.
            warnings.simplefilter("ignore")
            return self._best(told, running, number)

    def _best(self, told: Sequence[Outcome], running: Sequence[Draw], number: int) -> Draw:
        points = self._points([outcome.draw for outcome in told])
        variants = self.given.table.variants
        rows = torch.tensor([variants.index(outcome.precision) for outcome in told])
        inputs = points[torch.arange(len(told)), rows]
        values = -torch.tensor([outcome.values for outcome in told], dtype=torch.double) * torch.tensor(self._signs)
        candidates = self.given.answers.settle(self._sobol(_CANDIDATES, seed=self._seed(number)))
        distinct = list({draw.plan.shape: draw for draw in candidates}.values())
        gain = qLogNoisyExpectedHypervolumeImprovement(
            self._fitted(inputs, values),
            self._reference(values),
            inputs,
            sampler=SobolQMCNormalSampler(torch.Size([_SAMPLES]), seed=self._seed(number)),
            X_pending=self._points(running).flatten(0, 1) if running else None,
            prune_baseline=True,
        )
        with torch.no_grad():
            gains = torch.cat([gain(some) for some in self._points(distinct).split(_AT_ONCE)])
        return distinct[int(gains.argmax())]

    def _fitted(self, inputs: Tensor, values: Tensor) -> ModelListGP:
        categories = self._categories
        model = ModelListGP(
            *(
                MixedSingleTaskGP(inputs, column, cat_dims=categories) if categories else SingleTaskGP(inputs, column)
                for column in values.split(1, dim=1)
            )
        )
        likelihood = SumMarginalLogLikelihood(model.likelihood, model)
        fit_gpytorch_mll(likelihood, optimizer_kwargs={"options": {"maxiter": _FIT_STEPS}})
        return model

    def _reference(self, values: Tensor) -> list[float]:
        """The problem's, or what BoTorch infers from the front."""
        given, goals = self.given.table.problem.reference, self.given.goals
        if given:
            return (-np.array([given[name] for name in goals.objectives]) * self._signs).tolist()
        return infer_reference_point(values[is_non_dominated(values)]).tolist()

    def _points(self, draws: Sequence[Draw]) -> Tensor:
        """draws × variants × inputs."""
        variants = self.given.table.variants
        columns = [c.of(np.array([c.of_pick(draw.params) for draw in draws])) for c in self._coordinates]
        plain = torch.tensor(np.column_stack(columns), dtype=torch.double)
        points = plain[:, None].expand(-1, len(variants), -1)
        if len(variants) == 1:
            return points
        option = torch.arange(len(variants), dtype=torch.double)[None, :, None].expand(len(draws), -1, 1)
        return torch.cat([points, option], dim=2)

    def _seed(self, number: int) -> int:
        return 1_000_003 * self.given.seed + number

    def _sobol(self, count: int, *, seed: int) -> list[Draw]:
        names = [axis.name for axis in self.given.table.axes]
        points = SobolEngine(len(names), scramble=True, seed=seed).draw(count).tolist()
        return [self.given.table.draw(PointChooser(dict(zip(names, point, strict=True)))) for point in points]

    @cached_property
    def _coordinates(self) -> list[Coordinate]:
        return [Coordinate(axis=axis) for axis in self.given.table.axes]

    @property
    def _num_inputs(self) -> int:
        return len(self._coordinates) + (len(self.given.table.variants) > 1)

    @property
    def _categories(self) -> list[int]:
        """Of the inputs, those that are no numbers."""
        of_params = [index for index, c in enumerate(self._coordinates) if c.axis.options]
        return [*of_params, *range(len(self._coordinates), self._num_inputs)]

    @property
    def _signs(self) -> tuple[float, ...]:
        return self.given.goals.signs
