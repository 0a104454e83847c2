"""Scripts and YAML of `cluster/`, and the scripts of tests and CI, are well-formed, and a head ends right."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.deploy.manifests import CLUSTER, ROOT

SCRIPTS = sorted((*CLUSTER.rglob("*.sh"), *CLUSTER.rglob("*.sbatch")))
OTHERS = [ROOT / path for path in (".ci/run", "tests/compose/run", "tests/compose/postgres/start.sh")]
STOP_JOBS = CLUSTER / "kuberay/base/stop-jobs.sh"
SBATCH = CLUSTER / "slurm/pretrain.sbatch"
JOB = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True) or time.sleep({delay_s}) or sys.exit(3))
print("ready", flush=True)
time.sleep({life_s})
"""


def installed(name: str) -> str:
    """A program of `pip install`, or of the machine."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}: make setup")
    return found


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=240)


def test_there_are_scripts() -> None:
    assert [path.name for path in SCRIPTS] == ["stop-jobs.sh", "pretrain.sbatch"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script: Path) -> None:
    parsed = run("bash", "-n", str(script))
    assert (parsed.returncode, parsed.stderr) == (0, "")


def test_shellcheck_has_nothing_to_say() -> None:
    checked = run(installed("shellcheck"), *map(str, (*SCRIPTS, *OTHERS)))
    assert (checked.returncode, checked.stdout) == (0, "")


def test_yamllint_has_nothing_to_say() -> None:
    rules = str(CLUSTER / ".yamllint")
    checked = run(installed("yamllint"), "--strict", "--config-file", rules, str(CLUSTER))
    assert (checked.returncode, checked.stdout) == (0, "")


def test_slurm_is_asked_for_what_the_script_relies_on() -> None:
    """A signal to the script in time for a checkpoint, a job that may queue again, one log, whole nodes."""
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", SBATCH.read_text(), re.MULTILINE))
    assert options.keys() >= {"requeue", "exclusive"}
    assert options["open-mode"] == "append"
    assert options["ntasks-per-node"] == "1"
    whom, name, seconds = re.split("[:@]", options["signal"])
    assert (whom, name) == ("B", "USR1")
    assert int(seconds) >= 300  # checkpoint.timeout_s


def test_variables_of_the_slurm_script_are_in_the_guide() -> None:
    used = set(re.findall(r"\bHSSL_[A-Z_]+", SBATCH.read_text()))
    guide = (ROOT / "docs/deploy.md").read_text().partition("\n## Slurm\n")[2]
    assert used == set(re.findall(r"^\| `(HSSL_[A-Z_]+)`", guide, re.MULTILINE))


# ------------------------------------------------------------------------- before a head ends: stop-jobs.sh


@pytest.fixture
def pod(tmp_path: Path) -> list[str]:
    """Words that give a command processes of its own, as in a pod: the script signals all that it sees."""
    words = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if shutil.which("unshare") is None or run(*words, "true").returncode:
        pytest.skip("needs unshare, and namespaces that this user may make")
    package = tmp_path / "hssl_dist"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "pretrain.py").write_text(JOB.format(delay_s=1, life_s=120))
    (package / "stubborn.py").write_text(JOB.format(delay_s=120, life_s=120))
    (tmp_path / "other.py").write_text(JOB.format(delay_s=0, life_s=8))
    return words


def in_pod(pod: list[str], folder: Path, script: str) -> str:
    """What a shell script says that has the pod to itself."""
    made = subprocess.run(
        [*pod, "bash", "-euc", script],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(folder)},
    )
    assert made.returncode == 0, made.stderr
    return made.stdout


def test_a_head_asks_its_jobs_and_waits_until_they_have_ended(pod: list[str], tmp_path: Path) -> None:
    """The shell of `ray job submit` and other processes are left alone."""
    said = in_pod(
        pod,
        tmp_path,
        f"""
        sh -c 'python -m hssl_dist.pretrain --config a; echo "status $?"' >log & job=$!
        python other.py >other-log & other=$!
        until grep -q ready log && grep -q ready other-log; do sleep 0.1; done
        bash {STOP_JOBS} 100
        grep -c asked log other-log || true
        wait $job; cat log
        wait $other; cat other-log
        """,
    )
    assert said.split() == ["log:1", "other-log:0", "ready", "asked", "status", "3", "ready"]


def test_a_head_waits_only_so_long(pod: list[str], tmp_path: Path) -> None:
    start_s = time.monotonic()
    said = in_pod(
        pod,
        tmp_path,
        f"""
        python -m hssl_dist.stubborn >log &
        until grep -q ready log; do sleep 0.1; done
        bash {STOP_JOBS} 2
        cat log
        """,
    )
    assert said.split() == ["ready", "asked"]
    assert time.monotonic() - start_s < 100


def test_a_head_without_jobs_ends_at_once(pod: list[str], tmp_path: Path) -> None:
    start_s = time.monotonic()
    assert in_pod(pod, tmp_path, f"bash {STOP_JOBS} 200") == ""
    assert time.monotonic() - start_s < 100
