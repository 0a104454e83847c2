"""What Ray clusters run: valid configs, numbers that fit each other, nothing that KubeRay refuses later."""

import functools
import re
import tempfile
from typing import Any

import pytest

from hssl_dist.cli import VERBS
from hssl_dist.config.loading import load_config
from hssl_dist.config.preprocess import PreprocessConfig
from hssl_dist.config.pretrain import PretrainConfig
from tests.deploy.manifests import MLFLOW, RAY, RAY_JOBS, named, pods, quantity, ray_spec

SCHEMAS = {"preprocess": PreprocessConfig, "pretrain": PretrainConfig}


@functools.cache
def configs(target: str) -> dict[str, Any]:
    """The configs of the ConfigMap by verb, as the verb reads them."""
    found = {}
    for name, text in named(target, "ConfigMap")["hssl-configs"]["data"].items():
        verb = name.removesuffix(".yaml")
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as stream:
            stream.write(text)
            stream.flush()
            found[verb] = load_config(SCHEMAS[verb], f"hssl {verb}", ["--config", stream.name])
    return found


def pretraining(target: str) -> PretrainConfig:
    config: PretrainConfig = configs(target)["pretrain"]
    return config


@pytest.mark.parametrize("target", RAY)
def test_configs_are_valid(target: str) -> None:
    assert configs(target).keys() == SCHEMAS.keys()
    config = pretraining(target)
    assert config.runner == "ray"
    assert config.ray.address is None  # the job's own cluster
    assert config.store == configs(target)["preprocess"].store
    assert config.runs.startswith("s3://")


@pytest.mark.parametrize("target", RAY)
def test_the_cache_of_volumes_fits_its_disk(target: str) -> None:
    (worker,) = (pod for pod in pods(target) if pod.owner == "Ray worker")
    cache = pretraining(target).cache
    (name,) = (
        mount["name"] for mount in worker.container["volumeMounts"] if mount["mountPath"] == cache.folder
    )
    (volume,) = (found["emptyDir"] for found in worker.spec["volumes"] if found["name"] == name)
    assert volume.get("medium") is None
    assert cache.max_bytes < quantity(volume["sizeLimit"])


@pytest.mark.parametrize("target", RAY_JOBS)
def test_the_job_runs_a_verb_with_a_config_that_is_mounted(target: str) -> None:
    (job,) = named(target, "RayJob").values()
    python, flag, module, config, path, json = job["spec"]["entrypoint"].split()
    assert (python, flag, config, json) == ("python", "-m", "--config", "--json")
    assert module.removeprefix("hssl_dist.") in VERBS
    (head,) = (pod for pod in pods(target) if pod.owner == "Ray head")
    folder, _, name = path.rpartition("/")
    (mount,) = (found for found in head.container["volumeMounts"] if found["mountPath"] == folder)
    (volume,) = (found for found in head.spec["volumes"] if found["name"] == mount["name"])
    assert name in named(target, "ConfigMap")[volume["configMap"]["name"]]["data"]
    assert name == f"{module.removeprefix('hssl_dist.')}.yaml"


@pytest.mark.parametrize("target", RAY)
def test_runs_are_tracked_by_the_server_of_the_other_manifests(target: str) -> None:
    uri = pretraining(target).tracking.uri
    for other in MLFLOW:
        (service,) = (
            found for name, found in named(other, "Service").items() if uri == f"http://{name}:5000"
        )
        assert [port["port"] for port in service["spec"]["ports"]] == [5000]
        (server,) = (pod for pod in pods(other) if pod.owner == "Deployment mlflow")
        (hosts,) = (word for word in server.container["command"] if word.startswith("--allowed-hosts="))
        assert uri.removeprefix("http://") in hosts.partition("=")[2].split(",")
        assert "--app-name=basic-auth" in server.container["command"]


@pytest.mark.parametrize("target", RAY)
def test_the_head_steers_and_the_workers_have_a_gpu_each(target: str) -> None:
    spec = ray_spec(target)
    started = spec["headGroupSpec"]["rayStartParams"]
    assert (started["num-cpus"], started["num-gpus"]) == ("0", "0")
    (group,) = spec["workerGroupSpecs"]
    assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    config = pretraining(target)
    assert config.workers == (group["minReplicas"], group["maxReplicas"])
    assert config.threads_per_worker <= quantity(limits["cpu"])


# --------------------------------------------------------------------------------------------------- ending


@pytest.mark.parametrize("target", RAY)
def test_there_is_time_for_a_checkpoint_before_a_pod_ends(target: str) -> None:
    """Noticing takes up to 5 s, and what follows the checkpoint some more."""
    by_owner = {pod.owner: pod for pod in pods(target)}
    save_s = pretraining(target).checkpoint.timeout_s
    worker, head = by_owner["Ray worker"], by_owner["Ray head"]
    drain_s = float(worker.environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert save_s + 10 <= drain_s <= worker.spec["terminationGracePeriodSeconds"] - 10
    stop_s = float(head.container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert save_s + 10 <= stop_s <= head.spec["terminationGracePeriodSeconds"] - 10
    assert save_s + 10 <= float(head.environment["RAY_JOB_STOP_WAIT_TIME_S"])
    if "cloud" in target:
        assert worker.spec["terminationGracePeriodSeconds"] < 120  # the notice of a spot instance


# ----------------------------------------------------------------------------------- what KubeRay refuses


@pytest.mark.parametrize("target", RAY)
def test_nothing_that_the_operator_refuses_later(target: str) -> None:
    """It accepts these by their definition and then marks them invalid, or needs a feature gate for them."""
    spec = ray_spec(target)
    assert not {"networkPolicy", "tlsOptions", "historyServerOptions", "upgradeStrategy"} & spec.keys()
    assert spec["rayVersion"]  # token authentication needs to know it
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert not ("resources" in group and group["rayStartParams"])
        # Its autoscaler v2 sets `Never`, and takes nothing else.
        assert "restartPolicy" not in group["template"]["spec"]
        assert "RAY_AUTH_TOKEN" not in str(group)


@pytest.mark.parametrize("target", RAY_JOBS)
def test_the_job_is_retried_and_cleaned_up(target: str) -> None:
    ((name, job),) = named(target, "RayJob").items()
    spec = job["spec"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", name)
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert not {"deletionStrategy", "clusterSelector"} & spec.keys()
    assert spec["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"
    assert not named(target, "RayCluster")
