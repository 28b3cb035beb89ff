"""The report as one HTML file that asks the network for nothing.

Whatever comes from a user, a model or an error is escaped. Beyond that, the content security policy lets no script run
but the page's own two, which it names by their hash.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from plotly.offline import get_plotlyjs

from search.report.axes import Figure
from search.report.build import Report
from search.report.figures import figures
from search.report.header import header
from search.report.sections import front_table, sections
from search.report.style import SCRIPT, STYLE


def render_html(report: Report) -> str:
    """The whole page."""
    plots = figures(report)
    return page(f"{report.name}: distune report", [header(report), *sections(report, plots)], plots)


def page(title: str, body: Sequence[str], plots: Mapping[str, Figure]) -> str:
    """A page of the report's looks; ``body`` is HTML, with a place for each plot."""
    scripts = (get_plotlyjs(), SCRIPT) if plots else ()
    return "".join(
        [
            "<!doctype html>\n",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>",
            *body,
            "</main>\n",
            f'<script type="application/json" id="figures">{_json(plots)}</script>\n' if plots else "",
            *(f"<script>{script}</script>\n" for script in scripts),
            "</body></html>\n",
        ]
    )


def render_front(report: Report) -> str:
    """The fronts as tables alone, for a notebook."""
    return "".join(f"<h4>{escape(report.name)}, {escape(v.name)}</h4>{front_table(v, report)}" for v in report.targets)


def _policy(scripts: tuple[str, ...]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    # plotly sets styles on its elements while it draws.
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _json(value: Any) -> str:
    """JSON that no HTML parser can take for a tag."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
