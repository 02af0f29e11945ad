"""requirements.lock, pyproject.toml and environment.yml say the same."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version

import yaml


def lock(repository) -> dict[str, str]:
    lines = (repository / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins)
    return {canonical(name): pin for name, pin in pins}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_direct_dependency_is_pinned_alike(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    pins = lock(repository)
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    for requirement in wanted:
        name, _, pin = requirement.partition("==")
        assert pins.get(canonical(name)) == pin, requirement


def test_conda_reads_the_lock_and_the_same_python(repository):
    environment = yaml.safe_load((repository / "environment.yml").read_text())
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    python = next(d for d in environment["dependencies"] if isinstance(d, str) and d.startswith("python="))
    assert project["requires-python"] == ">=" + python.partition("=")[2]
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["-r requirements.lock", "-e ."]


def test_the_environment_is_the_lock(repository):
    for name, pin in lock(repository).items():
        assert version(name).split("+")[0] == pin, name


def test_no_malicious_lightning(repository):
    assert lock(repository)["lightning"] not in ("2.6.2", "2.6.3")
