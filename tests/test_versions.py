"""The environments of the Makefile: what `constraints/` holds, what the lower bounds are, and tests that need newer versions."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from tools import environment

from tests.versions import missing

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
SHARED = [extra for name, extra in EXTRAS.items() if name not in environment.APART]
LISTS = [PROJECT["build-system"]["requires"], PROJECT["project"]["dependencies"], *SHARED]
DIRECT = [Requirement(line) for lines in LISTS for line in lines if not line.startswith("sightline")]


@pytest.mark.parametrize("path", sorted(ROOT.glob("constraints/*.txt")), ids=lambda path: path.stem)
def test_constraints_name_one_version_of_every_dependency_and_nothing_else(path: Path) -> None:
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines)  # no address, no path, no local build
    versions = dict(line.split("==") for line in lines)
    assert len(versions) == len(lines)
    assert not [name for name in versions if name.startswith(("torch", "nvidia-", "cuda-", "triton"))]
    for requirement in DIRECT:
        if requirement.name != "torch":
            assert versions[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_oldest_environment_has_the_lower_bound_of_every_dependency() -> None:
    bounds = environment.lower_bounds()
    assert bounds.keys() == {requirement.name for requirement in DIRECT} - {"torch"}
    for requirement in DIRECT:
        if requirement.name != "torch":
            (least,) = (Version(each.version) for each in requirement.specifier if each.operator == ">=")
            assert Version(bounds[requirement.name]) == least
    exceptions = environment.OLDEST_WITHOUT_TORCHVISION
    assert all(Version(version) > Version(bounds[name]) for name, version in exceptions.items())


def test_a_test_that_needs_more_says_what() -> None:
    numpy = importlib.metadata.version("numpy")
    assert missing(numpy=numpy) == []
    assert missing(numpy="99", no_such_package="1") == ["numpy>=99", "no_such_package>=1"]
