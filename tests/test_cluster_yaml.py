"""``cluster.yaml`` as Ray reads it: against the schema of the installed Ray, and with Ray's own defaults filled in."""

import copy
import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

CLUSTER = Path(__file__).parent.parent / "cluster.yaml"


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """The file as it is."""
    return dict(yaml.safe_load(CLUSTER.read_text()))


@pytest.fixture(scope="module")
def effective(written: dict[str, Any]) -> dict[str, Any]:
    """The file with Ray's defaults for what it leaves out: they open the dashboard and install a nightly wheel."""
    from ray.autoscaler._private.util import prepare_config

    return dict(prepare_config(copy.deepcopy(written)))


def _schema() -> dict[str, Any]:
    spec = importlib.util.find_spec("ray")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations)))
    return dict(json.loads((folder / "autoscaler" / "ray-schema.json").read_text()))


def _workers(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]]


def test_rays_schema_takes_the_file(written: dict[str, Any], effective: dict[str, Any]) -> None:
    validator = jsonschema.Draft7Validator(_schema())
    assert [error.message for error in validator.iter_errors(written)] == []
    assert [error.message for error in validator.iter_errors(effective)] == []


def test_the_schema_refuses_what_it_does_not_know(written: dict[str, Any]) -> None:
    # Otherwise the test above would prove nothing.
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**written, "min_worker": 1}, _schema())


def test_a_cpu_head_on_aws_that_is_not_scaled(effective: dict[str, Any]) -> None:
    assert effective["provider"]["type"] == "aws"
    head = effective["available_node_types"][effective["head_node_type"]]
    assert "GPU" not in head["resources"]
    assert head["max_workers"] == 0
    assert "InstanceMarketOptions" not in head["node_config"], "a head on spot would lose the driver"


def test_gpu_workers_on_spot_that_come_and_go(effective: dict[str, Any]) -> None:
    assert 0 < effective["idle_timeout_minutes"] <= 10
    workers = _workers(effective)
    assert workers
    for worker in workers:
        assert worker["resources"]["GPU"] >= 1
        assert worker["min_workers"] == 0
        assert 0 < worker["max_workers"] <= effective["max_workers"]
        assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_node_asks_for_the_token(effective: dict[str, Any], commands: str) -> None:
    starts = [command for command in effective[commands] if "ray start" in command]
    assert starts
    assert all(command.startswith("export RAY_AUTH_MODE=token;") for command in starts)
    assert "--env RAY_AUTH_MODE=token" in effective["docker"]["run_options"]
    assert "/home/ray/.ray/auth_token" in effective["file_mounts"]


def test_nothing_is_open_to_the_outside(effective: dict[str, Any]) -> None:
    (start,) = (command for command in effective["head_start_ray_commands"] if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in start.split()
    assert "0.0.0.0" not in json.dumps(effective)


def test_every_node_runs_this_ray(effective: dict[str, Any]) -> None:
    version = importlib.metadata.version("ray")
    for image in ("head_image", "worker_image"):
        assert effective["docker"][image].startswith(f"rayproject/ray:{version}-py3")
    assert "ray-wheels" not in json.dumps(effective), "no nightly build"
    assert "--constraint" in effective["setup_commands"][0]
