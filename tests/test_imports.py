"""What starts at once imports nothing heavy."""

import subprocess
import sys

import pytest

_HEAVY = ("torch", "transformers", "ray", "peft", "sklearn", "onnxruntime", "onnx")


def _run(code, *, cwd):
    script = f"{code}\nimport sys\nprint('HEAVY', *(name for name in {_HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "module",
    [
        *("spaces.draw", "spaces.catalogue", "spaces.task", "trainers.storage", "trainers.artifacts"),
        *("trainers.context", "search", "search.run", "search.cli", "search.spec", "search.sampler"),
        *("search.conductor", "search.cluster", "search.report.build", "search.ablation", "search.simulation.command"),
    ],
)
def test_importing_it_imports_nothing_heavy(module, tmp_path):
    assert _run(f"import {module}", cwd=tmp_path) == "HEAVY\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["select", "--help"], ["ablate", "--help"], ["strategies"], ["spec", "--schema"]]
)
def test_a_quick_command_imports_nothing_heavy(arguments, tmp_path):
    code = f"""
import sys
sys.argv = ["distune", *{arguments!r}]
from search.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    output = _run(code, cwd=tmp_path)
    assert output.splitlines()[-1] == "HEAVY"
    assert len(output) > len("HEAVY\n")
