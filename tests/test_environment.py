"""The environments: conda's file, the constraints and pyproject agree; CI runs the tests and nothing else."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version

import pytest
import yaml
from helpers.commands import CHECKOUT
from helpers.packages import OPTIONAL, is_installed
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def test_environment_yml_installs_this_checkout_with_a_python_that_fits() -> None:
    environment = yaml.safe_load((CHECKOUT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    python = next(entry.removeprefix("python=") for entry in plain if entry.startswith("python="))
    assert python == "3.13" and SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.0")
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert "-e .[app,cu12,s3]" in pip
    assert "pip" in plain


def test_constraints_pin_every_dependency_within_its_bounds() -> None:
    lines = [line for line in (CHECKOUT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines), "names and versions, no addresses"
    pins = dict(line.split("==") for line in lines)
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *(text for name in extras if name != "cu13" for text in extras[name])]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:  # an extra that takes in others
            continue
        assert requirement.specifier.contains(pins[requirement.name]), text


def test_dali_is_in_no_environment_twice() -> None:
    assert not any("dali" in text for text in PROJECT["dependencies"])
    assert [text.partition("=")[0] for text in PROJECT["optional-dependencies"]["cu12"]] == ["nvidia-dali-cuda120"]
    assert [text.partition("=")[0] for text in PROJECT["optional-dependencies"]["cu13"]] == ["nvidia-dali-cuda130"]


def test_ci_runs_the_targets_of_the_makefile_alone() -> None:
    lines = (CHECKOUT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith(("#", "set "))] == ["make test"]
    jobs = yaml.safe_load((CHECKOUT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    for name, job in jobs.items():
        assert [step["run"] for step in job["steps"] if "run" in step] == ["make env", f"make {name}"]


def test_an_installed_checkout_lacks_nothing_for_which_tests_are_skipped() -> None:
    try:
        version(PROJECT["name"])
    except PackageNotFoundError:
        pytest.skip("needs an installed checkout: this one is on PYTHONPATH alone")
    assert [package for package in sorted(OPTIONAL) if not is_installed(package)] == []
