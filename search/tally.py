"""What a conductor has at hand of its ledger, kept up to date, so that no decision has to read all of it.

Nothing here is new: a tally that is made of a ledger equals one that was there when the ledger was written.
"""

from collections.abc import Sequence

from search.aside import Aside
from search.budget import seconds_spent
from search.clerk import Standing
from search.goals import CostTable, Goals, baseline_quality
from search.history import History, Outcome
from search.memory_ledger import MemoryLedger, Proposal
from search.race import Race
from search.standings import Standings


class Tally:
    """Outcomes, seconds and the race of a search's plans."""

    def __init__(self, ledger: MemoryLedger, goals: Goals, *, costs: CostTable, baseline: str) -> None:
        """``baseline``: fingerprint of the plan that constraints are relative to."""
        self._ledger, self._goals = ledger, goals
        self._baseline_plan = baseline
        self._baseline = baseline_quality(ledger.records, baseline)
        self._standings, self._history, self._aside = Standings(goals, costs), History(goals), Aside()
        self._resumed: set[int] = set()
        self._first: dict[str, int] = {}
        self._recorded: dict[int, float] = {}
        self._live: dict[int, float] = {}
        self._recorded_total = self._live_total = 0.0
        for proposal in ledger.proposals:
            self.propose(proposal)
        self._look_back()
        for number in dict.fromkeys(record.number for record in ledger.records):
            self._count(number)

    @property
    def outcomes(self) -> Sequence[Outcome]:
        """Of every plan that is finished, by number and precision."""
        return self._history

    @property
    def race(self) -> Race:
        """Every plan that has reported, and what came of those that are finished."""
        return self._standings.race

    @property
    def stopped(self) -> Sequence[Proposal]:
        """The stopped plans that came nearest to the front, of those that nothing goes on with."""
        return self._aside.nearest

    @property
    def seconds(self) -> float:
        """Training time that was really spent, of plans under way as well."""
        return self._recorded_total + self._live_total

    def is_first_of_strategy(self, proposal: Proposal) -> bool:
        """Whether no plan of its strategy was proposed before it."""
        return self._first[proposal.draw.strategy] == proposal.number

    def propose(self, proposal: Proposal) -> None:
        """A proposal is in the ledger. They come by number."""
        self._first.setdefault(proposal.draw.strategy, proposal.number)
        if proposal.resumes is not None:
            self._resumed.add(proposal.resumes)
            self._history.drop(proposal.resumes)
            self._standings.forget(proposal.resumes)
            self._aside.take(proposal.resumes)

    def hear(self, proposal: Proposal, standing: Standing) -> None:
        """A plan under way has reported this much so far."""
        self._live_total += standing.spent_s - self._live.get(proposal.number, 0.0)
        self._live[proposal.number] = standing.spent_s
        self._standings.hear(proposal, standing)

    def settle(self, proposal: Proposal) -> None:
        """A plan that is under way no more has come to its end, and its records are in the ledger."""
        self._count(proposal.number)
        if self._baseline is None and proposal.draw.plan.fingerprint == self._baseline_plan:
            self._baseline = baseline_quality(self._ledger.records_of(proposal.number), self._baseline_plan)
            # What is relative to it is known of earlier plans as well, from now on.
            self._look_back()
        else:
            self._remember(proposal)

    def forget(self, number: int) -> None:
        """A plan is under way no more."""
        self._live_total -= self._live.pop(number, 0.0)
        if not self._live:
            self._live_total = 0.0  # whatever rounding has left
        self._standings.forget(number)

    def _count(self, number: int) -> None:
        seconds = seconds_spent(self._ledger.records_of(number))
        self._recorded_total += seconds - self._recorded.get(number, 0.0)
        self._recorded[number] = seconds

    def _look_back(self) -> None:
        self._history, self._aside = History(self._goals), Aside()
        self._standings.measure_by(self._baseline)
        for proposal in self._ledger.proposals:
            if self._ledger.is_finished(proposal) and proposal.number not in self._resumed:
                self._remember(proposal)

    def _remember(self, proposal: Proposal) -> None:
        records = self._ledger.records_of(proposal.number)
        self._history.add(proposal, records, baseline=self._baseline)
        self._standings.settle(proposal, records)
        if records[0].reach is not None:
            self._aside.put(proposal, reach=records[0].reach)
