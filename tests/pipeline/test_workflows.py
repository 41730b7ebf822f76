"""Workflows, hooks and the issue form name what exists."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def commands(workflow: Path) -> list[str]:
    """Each line that a workflow's steps run."""
    jobs = load(workflow)["jobs"].values()
    return [line for job in jobs for step in job["steps"] for line in step.get("run", "").splitlines()]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_can_be_read_and_have_steps(workflow: Path) -> None:
    content = load(workflow)

    assert {"name", True, "permissions", "jobs"} <= content.keys()  # YAML 1.1 reads the key `on` as True
    for job in content["jobs"].values():
        assert job["runs-on"] == "ubuntu-latest"
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
        assert set(job.get("needs", "").split()) <= content["jobs"].keys()


def test_make_targets_in_workflows_and_documents_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    in_workflows = {line.split()[1] for path in WORKFLOWS for line in commands(path) if line.startswith("make ")}
    in_documents = {
        target
        for path in documents
        for target in re.findall(r"(?:^|`)make (?:[A-Z]+=\S* )*([a-z][a-z-]*)", path.read_text(), re.M)
    }

    assert {"lint", "docs", "test", "test-lowest", "demo"} <= in_workflows
    assert in_workflows | in_documents <= targets


def test_modules_and_commands_in_workflows_are_installed_by_the_project_or_by_a_step_before() -> None:
    scripts = set(PROJECT["scripts"])
    development = {re.split(r"[\[<>=]", name)[0] for name in PROJECT["optional-dependencies"]["dev"]}

    for line in (line for path in WORKFLOWS for line in commands(path)):
        program, *words = line.split()
        match Path(program).name:
            case "make" | "test" | "cp" | "docker" | "curl":
                continue
            case "python":
                assert words[0] == "-m"
                assert words[1] in development | {"venv"}
            case "pip":
                assert words[0] in ("install", "wheel")
            case name:
                assert name in scripts


def test_tests_run_on_every_python_that_the_project_says_it_supports() -> None:
    (matrix,) = (job["strategy"]["matrix"] for job in load(WORKFLOWS[-1])["jobs"].values() if "strategy" in job)
    prefix = "Programming Language :: Python :: 3."

    assert WORKFLOWS[-1].name == "test.yml"
    assert matrix["python"] == [
        name.removeprefix("Programming Language :: Python :: ") for name in PROJECT["classifiers"] if prefix in name
    ]


def test_publishing_needs_a_tag_and_no_password() -> None:
    publish = load(ROOT / ".github" / "workflows" / "publish.yml")

    assert publish[True] == {"push": {"tags": ["v*"]}}
    assert publish["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in (ROOT / ".github" / "workflows" / "publish.yml").read_text()


def test_hooks_are_the_checks_of_make_lint() -> None:
    (repository,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    hooks = {" ".join(hook["entry"].removeprefix(".venv/bin/").split()[:1]) for hook in repository["hooks"]}
    recipe = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]

    assert hooks == set(re.findall(r"\$\(BIN\)/([\w-]+)", recipe))


def test_issue_form_asks_for_the_doctors_output() -> None:
    form = load(ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml")
    fields = {field["id"]: field for field in form["body"] if "id" in field}

    assert fields["doctor"]["attributes"]["label"] == "Output of rnn-onnx doctor"
    assert fields["doctor"]["validations"]["required"]
