"""Pictures of what ``search_quality.py`` found: the share of a table's hypervolume against the cost of training.

    python benchmarks/search_plot.py RESULTS.json --to FOLDER

One PNG a problem, ``search_PROBLEM.png``, with a column for each number of workers: the median of each competitor's
seeds, and their quartiles as a band. Both axes go by factors, the upward one by those of what is missing. Dots are for
one training a variant (``:single``). Ours without one idea are left out. Needs Chromium.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from methods_plot import WIDTH, screenshot
from plotly.colors import hex_to_rgb, qualitative
from plotly.subplots import make_subplots

from search.simulation.study import SINGLE

OURS = "#c53030"
HEIGHT = 620
LEAST_MISSING = 1e-3
"""Whoever misses less is drawn as missing this."""
SHARES = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    rows = sorted(json.loads(options.results.read_text())["rows"], key=itemgetter("problem", "workers"))
    for problem, of_problem in groupby(rows, key=itemgetter("problem")):
        screenshot(figure(list(of_problem)), options.to / f"search_{problem}.png")


def figure(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """One problem, a row for each number of workers."""
    titles = [f"{row['workers']} worker{'s' if row['workers'] > 1 else ''}" for row in rows]
    chart = make_subplots(cols=len(rows), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.03)
    for column, row in enumerate(rows, 1):
        colours = colours_of(row)
        for name in drawn(row):
            colour, dash = colours[name.replace(SINGLE, "")], "dot" if SINGLE in name else "solid"
            width = 3.5 if name == row["ours"] else 1.5
            median, band = curve(row, name)
            line = {"color": colour, "width": width, "dash": dash}
            legend = {"legendgroup": name, "showlegend": column == 1, "name": name}
            chart.add_trace(go.Scatter(**band, fillcolor=_pale(colour), **_BAND), row=1, col=column)
            chart.add_trace(go.Scatter(**median, mode="lines", line=line, **legend), row=1, col=column)
    chart.update_xaxes(type="log", title="spent, in mean trainings", tickvals=[1, 2, 5, 10, 20, 50, 100, 200, 500])
    ticks = {"tickvals": [missing(share) for share in SHARES], "ticktext": [f"{share:g}" for share in SHARES]}
    chart.update_yaxes(type="log", autorange="reversed", **ticks)
    chart.update_yaxes(title="share of the table's hypervolume", col=1)
    return chart.update_layout(template="plotly_white", width=WIDTH, height=HEIGHT, margin={"t": 40, "b": 60})


_BAND = {"fill": "toself", "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}


def drawn(row: Mapping[str, Any]) -> list[str]:
    """Competitors, ours with all ideas last and on top; without those that lack one."""
    less = set(row["ablations"].values())
    return [*(name for name in row["scores"] if name not in less | {row["ours"]}), row["ours"]]


def missing(share: float) -> float:
    """What is drawn upward for a share of the hypervolume."""
    return max(LEAST_MISSING, 1 - share)


def curve(row: Mapping[str, Any], name: str) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Median and the outline of the quartiles, both as x and y of what is missing."""
    spent = [cost / row["training_cost"] for cost in row["costs"]]
    low, median, high = ([missing(at) for at in column] for column in zip(*row["scores"][name]["curve"], strict=True))
    return {"x": spent, "y": median}, {"x": [*spent, *spent[::-1]], "y": [*high, *low[::-1]]}


def colours_of(row: Mapping[str, Any]) -> dict[str, str]:
    """By name without the kind; of both kinds the same."""
    names = dict.fromkeys(name.replace(SINGLE, "") for name in drawn(row))
    others = [name for name in names if name != row["ours"]]
    return {**dict(zip(others, _OTHERS * len(others), strict=False)), row["ours"]: OURS}


_OTHERS = [colour for colour in qualitative.D3 if colour != "#D62728"]


def _pale(colour: str) -> str:
    return "rgba({}, {}, {}, 0.12)".format(*hex_to_rgb(colour))


if __name__ == "__main__":
    main()
