"""A picture of the results of ``methods.py``: each method's seeds and their mean, at equal steps and at equal seconds.

    python benchmarks/methods_plot.py RESULTS.json --png FILE

Needs Chromium.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

COLOURS = {"fp32": "#2b6cb0", "int8": "#dd6b20"}
TITLES = {"steps": "equal steps", "seconds": "equal device-seconds, teacher included"}
WIDTH, ROW_HEIGHT, EDGE = 1100, 26, 110


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--png", type=Path, required=True)
    options = parser.parse_args()
    screenshot(figure(json.loads(options.results.read_text())), options.png)


def figure(found: Mapping[str, Any]) -> go.Figure:
    """Methods from top to bottom by their mean at equal steps, those at the base's size above."""
    rows = found["rows"]
    best: dict[str, tuple[bool, float]] = {}
    for row in sorted(rows, key=lambda row: row["setting"]):
        best[row["method"]] = (not row["student"], statistics.mean(row["test"]["fp32"]))
    methods = sorted(best, key=lambda method: best[method])
    chart = make_subplots(cols=2, shared_yaxes=True, subplot_titles=list(TITLES.values()), horizontal_spacing=0.03)
    for column, setting in enumerate(TITLES, 1):
        for precision, colour in COLOURS.items():
            these = {row["method"]: row["test"][precision] for row in rows if row["setting"] == setting}
            legend = {"name": precision, "legendgroup": precision, "showlegend": column == 1}
            seeds = [(value, method) for method, values in these.items() for value in values]
            means = [(statistics.mean(values), method) for method, values in these.items()]
            for points, marker in (
                (seeds, {"size": 6, "opacity": 0.45}),
                (means, {"size": 15, "symbol": "line-ns-open"}),
            ):
                x, y = zip(*points, strict=True) if points else ((), ())
                dots = go.Scatter(x=x, y=y, mode="markers", marker={**marker, "color": colour}, **legend)
                chart.add_trace(dots, row=1, col=column)
                legend["showlegend"] = False
    chart.update_yaxes(categoryorder="array", categoryarray=methods, automargin=True)
    chart.update_xaxes(title=f"quality on test, {found['task']}: a dot a seed, a line their mean")
    chart.update_layout(
        template="plotly_white", margin={"t": 40, "b": 60}, width=WIDTH, height=EDGE + ROW_HEIGHT * len(methods)
    )
    return chart


def screenshot(chart: go.Figure, path: Path) -> None:
    """Write the figure to a PNG file."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no Chromium on this machine; install it, or look at the table")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        chart.write_html(page, include_plotlyjs=True, config={"displayModeBar": False})
        size = f"--window-size={WIDTH + 20},{int(chart.layout.height) + 20}"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size]
        subprocess.run([*command, f"--screenshot={path.absolute()}", page.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    main()
