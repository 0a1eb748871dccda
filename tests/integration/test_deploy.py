"""Cluster files for others: against the schemas of KubeRay and Ray, and their commands against the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from gram.cli.main import check_command
from gram.distributed.access import QUIET

jsonschema = pytest.importorskip("jsonschema")
autoscaler = pytest.importorskip("ray.autoscaler")
scripts = pytest.importorskip("ray.scripts.scripts")
ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "distributed" / "deploy"
INLINE = "RAY_max_direct_call_object_size"
RAYJOB_SCHEMA = json.loads((ROOT / "tests" / "schemas" / "rayjob.json").read_text())
RAY_SCHEMA = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text())


def closed(schema: Any) -> Any:
    """A schema that refuses fields it does not name, as Kubernetes does with strict validation."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


def strict_rayjob() -> Any:
    schema = closed(RAYJOB_SCHEMA)
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def test_rayjob_is_what_kuberay_takes() -> None:
    jsonschema.validate(read("rayjob.yaml"), strict_rayjob())


def test_the_rayjob_schema_can_refuse() -> None:
    for change in ({"entryPoint": "gram"}, {"backoffLimit": "two"}):
        job = read("rayjob.yaml")
        job["spec"] |= change
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(job, strict_rayjob())


def test_rayjob_asks_for_a_token_and_its_command_can_be_read() -> None:
    spec = read("rayjob.yaml")["spec"]
    assert spec["rayClusterSpec"]["authOptions"]["mode"] == "token"
    program, *arguments = shlex.split(spec["entrypoint"])
    assert program == "gram"
    check_command(arguments)
    assert arguments[arguments.index("--ray") + 1] == "auto"


def test_workers_send_small_results_inline() -> None:
    (group,) = read("rayjob.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert {"name": INLINE, "value": QUIET[INLINE]} in container["env"]


def test_cluster_file_is_what_ray_takes() -> None:
    cluster = read("cluster.yaml")
    jsonschema.validate(cluster, RAY_SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"workers": 2}, RAY_SCHEMA)


@pytest.mark.parametrize("key", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_start_can_read_its_options(key: str) -> None:
    command = read("cluster.yaml")[key][-1]
    words = shlex.split(command)
    assert "RAY_AUTH_MODE=token" in words
    assert f"{INLINE}={QUIET[INLINE]}" in words
    scripts.start.make_context("start", words[words.index("start") + 1 :])
