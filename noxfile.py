"""What every change is checked by: `nox` alone runs what CI runs."""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.4"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "tests"]


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
    """Run the tests that talk to real servers on the internet."""
    session.install(".[dev]")
    session.run("pytest", "-m", "live", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Run the tests that take minutes; they bound themselves."""
    session.install(".[dev]")
    session.run("pytest", "-m", "soak", "-o", "faulthandler_timeout=0", *session.posargs)
