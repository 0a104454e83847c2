"""`docker compose up`, for real: from nothing to a registered model, closed to strangers, kept for later.

`make compose-test` runs this with a Docker engine, and Swift for SeaweedFS (docker/compose.test.yaml).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from hssl_dist.config.parts import TrackingConfig
from hssl_dist.imaging import write_nifti
from hssl_dist.networks.weights import load_model
from hssl_dist.synthetic import write_task
from hssl_dist.tracking import fetch_model
from tests.compose.stack import ALL_PROFILES, FILES, ROOT, SHORT, Stack, basic, bearer, docker, etags

pytestmark = [pytest.mark.compose, pytest.mark.timeout(7200)]

OURS = ("secrets", "bucket", "mlflow", "ray-head-cpu", "pretrain")
LARGEST_IMAGE_BYTES = 2.2e9
# On two quiet cores, from `up` with the images there to the first logged step.
FIRST_STEP_S = float(os.environ.get("HSSL_FIRST_STEP_S", "180"))
_JOB_TIMEOUT_S = 600


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """All services, after their first `pretrain`."""
    running = Stack()
    running.down("--volumes")
    running.build()
    try:
        status, said = running.up()
        assert status == 0, said
        yield running
    finally:
        running.down("--volumes")


@pytest.fixture(scope="module")
def secrets(stack: Stack) -> dict[str, str]:
    """What the first start made."""
    return stack.secrets()


def test_up_ends_with_a_registered_model_and_says_where(
    stack: Stack, secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = stack.logs("pretrain")
    assert "registered as models:/hssl-unet/1 (hssl-unet@latest)" in said
    assert f"http://127.0.0.1:{stack.ports['MLFLOW']}" in said
    assert said.index("registered as") < said.index("Runs and models: ")

    # Any of the network's users gets it from the server, and needs no key of the storage.
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", secrets["mlflow/password"])
    tracking = TrackingConfig(uri=f"http://127.0.0.1:{stack.ports['MLFLOW']}")
    model = fetch_model(tracking, "models:/hssl-unet@latest")  # its folder is there as long as it is
    card, weights = load_model(model.folder)
    assert card.kind == "pretrained"
    assert sum(tensor.numel() for tensor in weights.values()) > 10_000


@pytest.mark.parametrize("profiles", ["cpu", "gpu", "gpu,postgres"])
def test_the_file_alone_is_what_compose_accepts(stack: Stack, profiles: str) -> None:
    said = docker("compose", "--file", str(ROOT / FILES[0]), "config", "--quiet", COMPOSE_PROFILES=profiles)
    assert said == ""


def test_the_first_step_comes_within_three_minutes(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\nfrom up to the first step: {stack.first_step_s:.0f} s\n")
    assert stack.first_step_s <= FIRST_STEP_S


def test_a_plain_s3_client_finds_volumes_checkpoints_and_artifacts(
    stack: Stack, secrets: dict[str, str]
) -> None:
    client = stack.storage(secrets["s3/access-key"], secrets["s3/secret-key"])
    keys = list(etags(client, ""))
    assert {key.partition("/")[0] for key in keys} == {"store", "runs", "mlflow"}
    arrays = [
        found
        for key in keys
        if key.startswith("store/") and key.endswith("/zarr.json")
        if (found := json.load(client.get_object(Bucket="hssl", Key=key)["Body"]))["node_type"] == "array"
    ]
    # Images of 48 cases (12 patients of three tasks, two phases of the heart), labels of most.
    assert len(arrays) > 48
    assert {array["zarr_format"] for array in arrays} == {3}
    assert {codec["name"] for array in arrays for codec in array["codecs"]} == {"sharding_indexed"}
    assert any(key.startswith("mlflow/") and key.endswith("model.safetensors") for key in keys)


@pytest.mark.parametrize("known", [True, False], ids=["wrong secret", "wrong key"])
def test_storage_refuses_a_stranger(stack: Stack, secrets: dict[str, str], known: bool) -> None:
    access = secrets["s3/access-key"] if known else "test:nobody"
    with pytest.raises(ClientError) as caught:
        stack.storage(access, "x" * 64).list_objects_v2(Bucket="hssl")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


@pytest.mark.parametrize("path", ["/api/jobs/", "/api/version", "/nodes?view=summary"])
def test_ray_lets_nobody_in_without_the_token(stack: Stack, secrets: dict[str, str], path: str) -> None:
    assert stack.ask("RAY", path)[0] == 401
    assert stack.ask("RAY", path, headers=bearer("0" * 64))[0] == 403
    assert stack.ask("RAY", path, headers=bearer(secrets["ray/token"]))[0] == 200


def test_jobs_are_taken_with_the_token_alone(stack: Stack, secrets: dict[str, str]) -> None:
    job = {"entrypoint": "hssl promote --model hssl-unet"}
    assert stack.ask("RAY", "/api/jobs/", body=job)[0] == 401
    champion = {"alias": "champion", "version": "1"}
    assert champion not in stack.registered(secrets["mlflow/password"])["aliases"]

    key = bearer(secrets["ray/token"])
    status, answer = stack.ask("RAY", "/api/jobs/", body=job, headers=key)
    assert status == 200, answer
    deadline_s = time.monotonic() + _JOB_TIMEOUT_S
    path = f"/api/jobs/{answer['submission_id']}"
    while (found := stack.ask("RAY", path, headers=key)[1])["status"] in ("PENDING", "RUNNING"):
        assert time.monotonic() < deadline_s, found
        time.sleep(1)
    assert found["status"] == "SUCCEEDED", stack.ask("RAY", f"{path}/logs", headers=key)
    assert champion in stack.registered(secrets["mlflow/password"])["aliases"]


@pytest.mark.parametrize(
    "path", ["/", "/api/2.0/mlflow/registered-models/search", "/api/2.0/mlflow-artifacts/artifacts"]
)
def test_mlflow_asks_for_the_password_and_for_its_own_name(
    stack: Stack, secrets: dict[str, str], path: str
) -> None:
    right = basic("admin", secrets["mlflow/password"])
    assert stack.ask("MLFLOW", path)[0] == 401
    assert stack.ask("MLFLOW", path, headers=basic("admin", "password1234"))[0] == 401
    assert stack.ask("MLFLOW", path, headers={**right, "Host": "evil.example"})[0] == 403
    assert stack.ask("MLFLOW", path, headers=right)[0] == 200


@pytest.mark.parametrize("service", OURS)
def test_containers_have_no_rights_they_do_not_need(stack: Stack, service: str) -> None:
    about = stack.inspect(service)
    assert about["Config"]["User"] == "1000"
    assert about["HostConfig"]["CapDrop"] == ["ALL"]
    assert "no-new-privileges:true" in about["HostConfig"]["SecurityOpt"]
    assert not about["HostConfig"]["Privileged"]
    writable = {mount["Destination"] for mount in about["Mounts"] if mount["RW"]}
    kept = {"mlflow": {"/var/lib/mlflow"}, "ray-head-cpu": {"/home/hssl/.cache"}}
    made = {f"/run/hssl/{name}" for name in ("s3", "mlflow", "postgres", "ray")}
    assert writable == (made if service == "secrets" else kept.get(service, set()))


def test_ports_are_on_loopback_alone(stack: Stack) -> None:
    published = {
        (service, binding["HostIp"])
        for service in stack.services()
        for bindings in (stack.inspect(service)["HostConfig"]["PortBindings"] or {}).values()
        for binding in bindings
    }
    assert published == {(service, "127.0.0.1") for service in ("mlflow", "ray-head-cpu", "s3")}


def test_ray_has_shared_memory_and_limits_that_suit_it(stack: Stack) -> None:
    assert stack.inspect("ray-head-cpu")["HostConfig"]["ShmSize"] == 4 << 30
    command = "ulimit -s; df --output=size -B1 /dev/shm | tail -1"
    limits = stack.inside("ray-head-cpu", "bash", "-c", command)
    assert limits.split() == [str(64 << 10), str(4 << 30)]


def test_no_secret_is_in_an_image_a_description_a_log_or_a_rays_files(
    stack: Stack, secrets: dict[str, str]
) -> None:
    words = [value for file, value in secrets.items() if file != "s3/access-key"]
    assert len(set(words)) == 5
    assert min(map(len, words)) >= 32
    image = stack.inspect("mlflow")["Image"]
    seen = [docker("history", "--no-trunc", image), docker("image", "inspect", image)]
    seen += [json.dumps(stack.inspect(service)) for service in stack.services()]
    seen += [stack.compose("logs", "--no-color")]
    assert "registered as" in seen[-1]
    for word in words:
        assert not any(word in text for text in seen)
        found = stack.inside("ray-head-cpu", "bash", "-c", f"grep -rlF -- '{word}' /tmp /srv/hssl || true")
        assert found.split() == []
    left = docker("run", "--rm", "--entrypoint", "find", image, "/run/hssl", "/var/lib/mlflow", "-type", "f")
    assert left.split() == []


@pytest.mark.parametrize("file", ["s3/secret-key", "mlflow/password", "ray/token"])
def test_secrets_are_their_owners_alone(stack: Stack, file: str) -> None:
    assert stack.inside("ray-head-cpu", "stat", "--format", "%a %u", f"/run/hssl/{file}").split() == [
        "600",
        "1000",
    ]
    refused = stack.compose(
        "exec", "--no-TTY", "ray-head-cpu", "bash", "-c", f"echo x > /run/hssl/{file}", check=False
    )
    assert "Read-only file system" in refused


def test_the_image_is_small_enough(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    size_bytes = int(docker("image", "inspect", "--format", "{{.Size}}", stack.inspect("mlflow")["Image"]))
    with capsys.disabled():
        sys.stdout.write(f"\nimage: {size_bytes / 1e9:.2f} GB\n")
    assert size_bytes <= LARGEST_IMAGE_BYTES


def test_down_and_up_again_keep_data_models_and_secrets(stack: Stack, secrets: dict[str, str]) -> None:
    client = stack.storage(secrets["s3/access-key"], secrets["s3/secret-key"])
    stored, model = etags(client, "store/"), stack.registered(secrets["mlflow/password"])
    stack.stop()
    assert stack.inspect("ray-head-cpu")["State"]["ExitCode"] != 128 + signal.SIGKILL
    stack.down()
    assert stack.services() == []
    status, said = stack.up()
    assert status == 0, said
    assert stack.secrets() == secrets
    assert etags(client, "store/") == stored
    again = stack.registered(secrets["mlflow/password"])
    assert again["latest_versions"][0]["version"] == model["latest_versions"][0]["version"] == "1"
    assert again["aliases"] == model["aliases"]
    assert "step 1 of" not in said
    assert "models:/hssl-unet/1" in said


def test_a_mounted_challenge_is_pretrained_on_and_cannot_be_written_to(
    stack: Stack, secrets: dict[str, str], tmp_path: Path
) -> None:
    write_task(tmp_path, "liver", 1, write_nifti, patients=6)
    source = next(path.parent for path in tmp_path.rglob("dataset.json"))
    # Anyone may read and write it: what refuses is the mount.
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o777)
    flags = f"{SHORT} --name mounted --global_batch 4 --workers 1 --sampling.patch_size [8,32,32]"
    status, said = stack.up(
        HSSL_DATA=str(source), HSSL_FLAGS=flags, HSSL_PRETRAIN="/srv/hssl/configs/pretrain/phantoms.yaml"
    )
    assert status == 0, said
    assert "phantoms of" not in said
    assert "registered as models:/hssl-unet/2" in said
    refused = stack.compose("exec", "--no-TTY", "ray-head-cpu", "touch", "/data/dataset.json", check=False)
    assert "Read-only file system" in refused


def test_runs_are_in_postgresql_with_its_profile(stack: Stack, secrets: dict[str, str]) -> None:
    stack.up_with_postgres()
    status, answer = stack.ask(
        "MLFLOW",
        "/api/2.0/mlflow/experiments/create",
        headers=basic("admin", secrets["mlflow/password"]),
        body={"name": "in-postgresql"},
    )
    assert status == 200, answer
    query = (
        "PGPASSWORD=$(cat /run/hssl/postgres/password) $(echo /usr/lib/postgresql/*/bin)/psql "
        "--host 127.0.0.1 --username mlflow --tuples-only --command 'SELECT name FROM experiments'"
    )
    words = ("exec", "--no-TTY", "postgres", "sh", "-c", query)
    assert "in-postgresql" in stack.compose(*words, COMPOSE_PROFILES=ALL_PROFILES).split()
