"""The report in a real browser: nothing in the console, nothing injected runs, and it fits a phone."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from ledgers import RunSettings, add_ablation, make_run

from search.run import load_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")

_HOSTILE = (
    "<script>window.pwned=1</script></script><script>window.pwned=1</script>"
    '<img src="https://example.org/x.png" onerror="window.pwned=1">'
)
# A headless window is at least 500 pixels wide, so a phone is a frame in it.
_PHONE = """<!doctype html><body>
<iframe src="report.html" style="width: {width}px; height: 900px; border: 0"></iframe>
<script>
document.querySelector("iframe").addEventListener("load", (event) => {{
  const frame = event.target.contentWindow, page = frame.document;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const measure = () => {{
    document.body.textContent = JSON.stringify({{
      width: frame.innerWidth,
      needs: page.documentElement.scrollWidth,
      pwned: frame.pwned ?? 0,
      plots: [...page.querySelectorAll(".plot")].map((plot) => plot.querySelectorAll("svg.main-svg").length),
      points: page.querySelectorAll(".scatterlayer .point").length,
      requests: frame.performance.getEntriesByType("resource").map((entry) => entry.name),
      tables: page.querySelectorAll("table").length,
    }});
  }};
  setTimeout(measure, 1500);
}});
</script>"""


@pytest.fixture(scope="module", params=[390, 1280])
def seen(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    storage = make_run(folder, RunSettings(trials=20, space=True, hostile=_HOSTILE))
    add_ablation(storage, hostile=_HOSTILE)
    load_run(storage.location).report()
    (folder / "phone.html").write_text(_PHONE.format(width=request.param))
    dom, log = _open(folder / "phone.html", folder / "profile")
    return json.loads(unescape(re.search(r"<body>(\{.*\})", dom)[1])) | {"log": log, "asked": request.param}


def _open(page: Path, profile: Path) -> tuple[str, str]:
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files",
        "--enable-logging=stderr", "--virtual-time-budget=10000", "--window-size=1400,1000",
    ]  # fmt: skip
    command = [CHROMIUM, *flags, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def test_the_console_stays_empty(seen):
    assert [line for line in seen["log"].splitlines() if "CONSOLE" in line] == []


def test_nothing_injected_runs_and_nothing_is_fetched(seen):
    assert seen["pwned"] == 0
    assert seen["requests"] == []


def test_every_plot_is_drawn(seen):
    assert len(seen["plots"]) == 8
    assert min(seen["plots"]) > 0
    assert seen["points"] > 60


def test_nothing_sticks_out_at_the_side(seen):
    assert seen["width"] == seen["asked"]
    assert seen["needs"] <= seen["width"]
    assert seen["tables"] >= 7
