"""Small pieces of HTML that the sections are put together from. What comes in as text is escaped here."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from search.report.looks import Look, look


def section(title: str, body: str) -> str:
    """A headed part of the page; ``body`` is finished HTML."""
    return f"\n<section><h2>{escape(title)}</h2>{body}</section>"


def plot(name: str, plots: Mapping[str, Any]) -> str:
    """The place that the plot called ``name`` is drawn in; nothing where there is no such plot."""
    if name not in plots:
        return ""
    height = plots[name]["layout"]["height"]
    return f'<div class="plot" id="plot-{escape(name)}" style="height:{height}px"></div>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, chosen: Sequence[bool] = ()) -> str:
    """``rows`` of finished cells; a head that begins with # stands over numbers."""
    cells = [f'<th class="number">{escape(h[1:])}</th>' if h[:1] == "#" else f"<th>{escape(h)}</th>" for h in heads]
    marks = list(chosen) or [False] * len(rows)
    starts = ['<tr class="chosen">' if mark else "<tr>" for mark in marks]
    lines = [f"{start}{''.join(row)}</tr>" for start, row in zip(starts, rows, strict=True)]
    head, body = "".join(cells), "".join(lines)
    # Reached by keyboard, so that what does not fit can be scrolled into view.
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def variant(strategy: str, below: str) -> str:
    """A cell with a strategy behind its mark, and small text below. On a phone a name may break at its underscores."""
    return marked(strategy, below, look(strategy))


def marked(name: str, below: str, how: Look) -> str:
    """A cell with a name behind a mark of its colour and shape, and small text below."""
    dot = f'<span class="dot {how.shape}" style="background:{how.colour}"></span>'
    small = f"<br><small>{escape(below)}</small>" if below else ""
    return f'<td class="variant">{dot}{_breakable(name)}{small}</td>'


def named(name: str, below: str) -> str:
    """A cell with a name, and small text below."""
    return f'<td class="variant">{escape(name)}<br><small>{_breakable(below)}</small></td>'


def _breakable(text: str) -> str:
    return escape(text).replace("_", "_<wbr>")


def identity(record_id: str) -> str:
    """A cell with a record's name, as the commands take it."""
    return f'<td class="number"><small>{escape(record_id)}</small></td>'


def short(text: str) -> str:
    """A cell that stays on one line."""
    return f'<td class="short">{escape(text)}</td>'


def number(text: str, below: str = "") -> str:
    """A cell with a number, and its interval below."""
    small = f"<br><small>{escape(below)}</small>" if below else ""
    return f'<td class="number">{escape(text)}{small}</td>'
