"""What docker/ says, read: pinned images, loopback, no secret by default, the demo's pretraining."""

from __future__ import annotations

import importlib.util
import re
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from hssl_dist.config.demo import DemoConfig
from hssl_dist.config.preprocess import PreprocessConfig
from hssl_dist.config.pretrain import PretrainConfig
from hssl_dist.datasets import discover
from hssl_dist.imaging import write_nifti
from hssl_dist.jobs.demo_plan import Plan
from hssl_dist.synthetic import write_task
from hssl_dist.synthetic.layouts import Layout

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, about in SERVICES.items() if about["image"].startswith("${HSSL_IMAGE")]
SERVERS = ("s3", "postgres", "mlflow", "ray-head", "ray-head-cpu")
PLACES = {"store", "cache", "runs", "tracking", "ray"}


@pytest.fixture(scope="module")
def job() -> ModuleType:
    """docker/pretrain_job.py as a module."""
    spec = importlib.util.spec_from_file_location("pretrain_job", DOCKER / "pretrain_job.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_phantoms_pretraining_is_the_demos() -> None:
    ours = PretrainConfig.model_validate(
        yaml.safe_load((ROOT / "configs/pretrain/phantoms.yaml").read_text())
    )
    demos = Plan.of(DemoConfig()).pretrain(ours.name)
    assert ours.workers == (1, demos.workers[1])
    assert ours.model_dump(exclude=PLACES | {"workers"}) == demos.model_dump(exclude=PLACES | {"workers"})


@pytest.mark.parametrize("service", SERVICES)
def test_images_are_pinned_and_ports_are_on_loopback(service: str) -> None:
    about = SERVICES[service]
    assert re.search(r":[\w.-]*\d+\.\d+", about["image"])
    assert "latest" not in about["image"]
    assert all(port.startswith("127.0.0.1:") for port in about.get("ports", ()))
    assert "no-new-privileges:true" in about["security_opt"]


@pytest.mark.parametrize("service", OURS)
def test_what_is_ours_keeps_no_capability(service: str) -> None:
    assert SERVICES[service]["cap_drop"] == ["ALL"]


def test_our_image_is_built_once_and_nowhere_asked_for() -> None:
    assert len(OURS) == 6
    assert [name for name, about in SERVICES.items() if "build" in about] == ["secrets"]
    assert {SERVICES[name]["pull_policy"] for name in OURS} == {"never"}
    assert len({SERVICES[name]["image"] for name in OURS}) == 1


def test_both_heads_differ_in_their_gpus_alone() -> None:
    heads = {name: dict(SERVICES[name]) for name in ("ray-head", "ray-head-cpu")}
    assert heads["ray-head"].pop("deploy")["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    ]
    assert [heads[name].pop("profiles") for name in heads] == [["gpu"], ["cpu"]]
    assert heads["ray-head"] == heads["ray-head-cpu"]
    assert heads["ray-head"]["ulimits"] == {"memlock": -1, "stack": 64 << 20}


def test_servers_alone_come_back_by_themselves() -> None:
    assert {name for name, about in SERVICES.items() if about["restart"] != "no"} == set(SERVERS)


def test_nothing_that_looks_like_a_secret_has_a_value() -> None:
    names = re.compile(r"password|secret|token|access_key", re.IGNORECASE)
    places = re.compile(r"/run/hssl/(s3|mlflow|postgres|ray)/[a-z-]+|token|\$\{HSSL_S3_ACCESS_KEY:-\}")
    given = {
        (name, value)
        for about in SERVICES.values()
        for name, value in about.get("environment", {}).items()
        if names.search(name)
    }
    assert len(given) >= 6
    assert all(places.fullmatch(value) for _, value in given), given


def test_secrets_are_made_once_readable_by_their_owner_alone(tmp_path: Path) -> None:
    source = (DOCKER / "make_secrets.py").read_text().replace("/run/hssl", str(tmp_path))
    for folder in ("s3", "mlflow", "postgres", "ray"):
        (tmp_path / folder).mkdir()
    contents = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
        files = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
        assert not any(value in done.stdout for value in files.values())
        contents.append(files)
        next(iter(files)).with_name(".password.part").write_text("a write that was cut off")
        next(iter(files)).with_name(".password.part").unlink()
    assert contents[0] == contents[1]
    assert len(set(contents[0].values())) == 6
    assert min(map(len, contents[0].values())) >= 16


def test_a_command_gets_secrets_from_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("of a file")
    command = [sys.executable, str(DOCKER / "with_secrets.py"), "sh", "-c", 'echo "$KEY"']
    environment = {"PATH": "/usr/bin:/bin", "SECRET_KEY": str(tmp_path / "key")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "of a file\n")
    (tmp_path / "key").unlink()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"SECRET_KEY is '{tmp_path}/key', which cannot be read: No such file" in done.stderr


@pytest.mark.parametrize("layout", ["msd", "nnunet"])
@pytest.mark.parametrize("several", [False, True], ids=["itself", "in a folder"])
def test_a_challenge_is_known_by_its_description(
    job: ModuleType, tmp_path: Path, layout: Layout, several: bool
) -> None:
    made = write_task(tmp_path, "liver", 0, write_nifti, patients=2, layout=layout)
    root = tmp_path if several else tmp_path / made.source
    found = job.described(root)
    assert [dataset["layout"] for dataset in found] == [layout]
    config = PreprocessConfig.model_validate({"datasets": found, "source_root": str(root)})
    cases = discover(config.datasets[0], str(root)).cases
    assert [case.id for case in cases] == [case.id for case in discover(made, str(tmp_path)).cases]


def test_a_folder_that_says_nothing_is_no_challenge(job: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.nii.gz").write_bytes(b"")
    assert job.described(tmp_path) == []
