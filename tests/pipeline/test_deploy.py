"""What `deploy/` and the guides give to systemd, Kubernetes, KServe and container builders."""

import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from rnn_runtime.serve.cli import main
from tests.support.commands import installed
from tests.support.pages import blocks

DEPLOY = Path(__file__).parents[2] / "deploy"
CONTAINERFILES = sorted(DEPLOY.glob("Containerfile.*"))


def manifests(text: str) -> dict[str, Any]:
    """Kubernetes' objects by their kind."""
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(text)}


def options(arguments: list[str]) -> dict[str, Any]:
    """What `rnn-serve` makes of arguments."""
    return main.make_context("rnn-serve", list(arguments)).params


@pytest.mark.parametrize("path", CONTAINERFILES, ids=lambda path: path.name)
def test_containerfiles_pass_hadolint_and_start_a_service(path: Path) -> None:
    result = subprocess.run([installed("hadolint"), path], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stdout) == (0, "")
    (command,) = re.findall(r"^ENTRYPOINT (\[.*\])$", path.read_text(), re.M)
    program, *arguments = yaml.safe_load(command)
    assert program == "rnn-serve"
    assert options(arguments)["host"] == "0.0.0.0"
    runtime = path.suffix[1:]
    assert options(arguments)["provider"] == ("cuda" if runtime == "cuda" else "auto")
    assert f"[{runtime},serve]" in path.read_text()
    assert re.search(r"^USER \d+:\d+$", path.read_text(), re.M)


def test_the_systemd_unit_gives_the_service_time_to_end() -> None:
    lines = (DEPLOY / "rnn-serve.service").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    program, *arguments = settings["ExecStart"].split()
    assert program.endswith("/rnn-serve")
    assert options(arguments)["host"] == "127.0.0.1"
    assert float(settings["TimeoutStopSec"]) > options(arguments)["grace"]
    assert settings["WorkingDirectory"] == "%t/" + settings["RuntimeDirectory"]  # made empty at each start


def test_the_kubernetes_manifest_asks_for_health_and_gives_the_service_time_to_end() -> None:
    found = manifests((DEPLOY / "kubernetes.yaml").read_text())
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert options(container["args"])["port"] == container["ports"][0]["containerPort"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > options(container["args"])["grace"] + pause
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert found["Service"]["spec"]["selector"] == found["Deployment"]["spec"]["selector"]["matchLabels"]
    assert found["Service"]["metadata"]["name"] in options(container["args"])["allowed_hosts"]


def test_the_indexed_job_runs_every_shard() -> None:
    from rnn_runtime.cli import main as infer

    (code,) = (block.code for block in blocks("guides/scaling.md") if block.language == "yaml")
    job = yaml.safe_load(code)["spec"]
    (container,) = job["template"]["spec"]["containers"]
    script = container["args"][0].replace("exec rnn-infer", "echo")

    shards = set()
    for index in range(job["completions"]):
        line = subprocess.run(
            [*container["command"], script],
            env={"JOB_COMPLETION_INDEX": str(index)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        shards.add(infer.make_context("rnn-infer", line).params["shard"])

    assert job["completionMode"] == "Indexed"
    assert shards == {f"{number}/{job['completions']}" for number in range(1, job["completions"] + 1)}


def test_the_inference_service_runs_triton() -> None:
    (code,) = (block.code for block in blocks("guides/serving.md") if block.language == "yaml")
    model = yaml.safe_load(code)["spec"]["predictor"]["model"]

    assert (model["modelFormat"]["name"], model["protocolVersion"]) == ("triton", "v2")
    assert model["storageUri"].startswith("pvc://")


def test_options_of_the_service_are_those_of_the_classifier() -> None:
    from rnn_runtime.cli import main as infer

    ours, theirs = ({param.name: param for param in command.params} for command in (main, infer))

    for name in ("model", "provider", "threads", "device_id", "gpu_memory_limit", "tf32"):
        assert isinstance(ours[name], click.Option)
        assert ours[name].opts == theirs[name].opts
        assert ours[name].default == theirs[name].default
