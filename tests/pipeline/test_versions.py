"""The constraints files agree with pyproject.toml."""

import importlib.metadata
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import rnn_runtime

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def read_pins(name: str) -> dict[str, Version]:
    """The version of each package in a constraints file, all of whose lines must read `package==version`."""
    lines = (ROOT / "constraints" / name).read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in pins}


def lower_bound(requirement: Requirement) -> Version:
    (bound,) = (clause.version for clause in requirement.specifier if clause.operator == ">=")
    return Version(bound)


def test_lowest_versions_are_a_deployments_lower_bounds() -> None:
    requirements = map(Requirement, [*PROJECT["dependencies"], *EXTRAS["cpu"], *EXTRAS["parquet"], *EXTRAS["serve"]])

    bounds = {canonicalize_name(requirement.name): lower_bound(requirement) for requirement in requirements}

    assert read_pins("lowest.txt") == bounds


@pytest.mark.parametrize("dependency", [*PROJECT["dependencies"], *chain(*EXTRAS.values())])
def test_every_direct_dependency_is_pinned_within_its_bounds(dependency: str) -> None:
    requirement = Requirement(dependency)

    assert read_pins("pinned.txt")[canonicalize_name(requirement.name)] in requirement.specifier


def test_pins_accept_builds_for_cpu_and_gpu_alike() -> None:
    # ==2.14.1 accepts 2.14.1+cpu, but not the other way round
    assert not [package for package, version in read_pins("pinned.txt").items() if version.local]


def test_the_version_in_the_code_is_the_packages() -> None:
    assert rnn_runtime.__version__ == importlib.metadata.version("rnn-onnx")
