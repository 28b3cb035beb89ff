"""A study's findings for a terminal."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from search.simulation.comparison import FRACTIONS, Comparison, Score, SpeedUp, Spread
from search.simulation.findings import Findings
from search.simulation.study import Competitor

NOTE = (
    "Hypervolume is the share of what the whole table has, median over seeds ± half the distance of its quartiles, by "
    "the share of the cost. Rank: by hypervolume at the end. Stopped: share of the cost that went into trainings which "
    "were stopped or failed. Beaten: into complete ones which are not on the final front. Saved: cost of shared "
    "beginnings that were there already."
)
SPEED_NOTE = (
    "Speed-up: how many times less the one on the left spent until it had the hypervolume with which the one above "
    "ended, counted from when that one first had it; median over seeds, and how many of them never had it."
)
SHARES = (*(f"at {fraction:.0%}" for fraction in FRACTIONS), "rank")
SPENDING = ("cost", "stopped", "beaten", "saved", "ms a proposal", "trainings/s")


def render(findings: Findings) -> RenderableType:
    """Tables for each number of workers."""
    parts: list[RenderableType] = []
    for comparison in findings.comparisons:
        parts += [*_tables(headline(findings, comparison), comparison)]
    return Group(*parts, Text(NOTE, style="dim"), Text(SPEED_NOTE, style="dim"))


def _tables(title: str, comparison: Comparison) -> Iterator[RenderableType]:
    scores = comparison.scores
    yield _scores(f"{title}: hypervolume", SHARES, [(score.competitor, shares(score)) for score in scores])
    yield Text()
    yield _scores("Where the cost went", SPENDING, [(score.competitor, spending(score)) for score in scores])
    yield Text()
    if len(scores) > 1:
        names = [score.competitor.name for score in scores]
        yield _scores("Speed-up", names, [(score.competitor, _speed_ups(score, comparison)) for score in scores])
        yield Text()


def headline(findings: Findings, comparison: Comparison) -> str:
    """What a table is about."""
    workers = f"{comparison.workers} worker{'s' if comparison.workers > 1 else ''}"
    trials = findings.study.limits.trials
    until = f"{trials} trainings" if findings.budget is None else f"cost {findings.budget:g}"
    return f"{findings.name}, {workers}, {until}, {findings.study.num_seeds} seeds"


def shares(score: Score) -> list[str]:
    """What one competitor reached, under ``SHARES``."""
    return [*(_say_spread(score.shares[fraction]) for fraction in FRACTIONS), f"{score.rank:.1f}"]


def spending(score: Score) -> list[str]:
    """Where its cost went, and our own time, under ``SPENDING``."""
    ours = [f"{score.proposal_ms:.1f}", f"{score.results_per_s:.0f}"]
    return [f"{score.cost:.4g}", f"{score.stopped:.0%}", f"{score.beaten:.0%}", f"{score.saved:.4g}", *ours]


def _say_spread(spread: Spread) -> str:
    return f"{spread.median:.3f}±{(spread.high - spread.low) / 2:.3f}".replace("±0.", "±.")


def say_speed_up(speed_up: SpeedUp) -> str:
    """Its median, and how often there was none."""
    never = f" ({speed_up.num_never} never)" if speed_up.num_never else ""
    return f"{speed_up.median:.1f}×{never}" if speed_up.median else f"–{never}"


def _scores(title: str, heads: Sequence[str], rows: Sequence[tuple[Competitor, Sequence[str]]]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", overflow="fold")
    for competitor, cells in rows:
        table.add_row(*(Text(cell) for cell in (competitor.name, *cells)))
    return table


def _speed_ups(score: Score, comparison: Comparison) -> list[str]:
    found = [score.speed_ups.get(other.competitor) for other in comparison.scores]
    return ["" if one is None else say_speed_up(one) for one in found]
