"""The house's rules for manifests: nothing secret, nobody root, and resources that suffice."""

import re

import pytest
import yaml

import hssl_dist
from tests.deploy.manifests import (
    CLUSTER,
    MLFLOW,
    RAY,
    ROOT,
    TARGETS,
    Pod,
    build,
    named,
    pods,
    quantity,
    ray_spec,
)

SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
SECRET_VALUE = re.compile(r"://[^/\s:@]+:[^/\s@]+@|AKIA[0-9A-Z]{16}|-----BEGIN|\b[0-9a-f]{32,}\b")
GUIDE = (ROOT / "docs/deploy.md").read_text()
WORKLOADS = (*RAY, *MLFLOW)


# -------------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize("target", TARGETS)
def test_there_are_no_secrets(target: str) -> None:
    assert not named(target, "Secret")
    assert not SECRET_VALUE.search(yaml.safe_dump_all(build(target)))
    for name, document in named(target, "ConfigMap").items():
        assert not [key for key in document["data"] if SECRET_NAME.search(key)], name
    for pod in pods(target):
        assert not [name for name in pod.environment if SECRET_NAME.search(name)], pod.owner


def secrets_of(pod: Pod) -> set[tuple[str, str | None]]:
    """Secrets that a pod reads, with the key; None if all of them."""
    container = pod.container
    keys = [entry["valueFrom"]["secretKeyRef"] for entry in container.get("env", []) if "valueFrom" in entry]
    whole = [entry["secretRef"] for entry in container.get("envFrom", []) if "secretRef" in entry]
    assert not [volume for volume in pod.spec.get("volumes", []) if "secret" in volume], pod.owner
    return {(key["name"], key["key"]) for key in keys} | {(reference["name"], None) for reference in whole}


@pytest.mark.parametrize("target", WORKLOADS)
def test_the_guide_says_how_to_make_each_secret(target: str) -> None:
    wanted = set().union(*(secrets_of(pod) for pod in pods(target)))
    if target in RAY:
        wanted.add((ray_spec(target)["authOptions"]["secretName"], "auth_token"))
    commands = re.findall(r"create secret generic ([a-z-]+)((?:.*\\\n)*.*)", GUIDE)
    made = {name: re.findall(r"--from-file=([a-z_-]+)=", options) for name, options in commands}
    for name, key in wanted:
        assert name in made, f"docs/deploy.md does not make the secret {name}"
        assert key is None or key in made[name], f"docs/deploy.md does not make the key {key} of {name}"


@pytest.mark.parametrize("target", [target for target in WORKLOADS if "cloud" in target])
def test_in_a_cloud_there_are_roles_and_no_storage_keys(target: str) -> None:
    for pod in pods(target):
        assert "hssl-storage-keys" not in {name for name, _ in secrets_of(pod)}
        account = named(target, "ServiceAccount").get(pod.spec.get("serviceAccountName", ""))
        if pod.container["image"].partition(":")[0].endswith("/hssl-dist") and "submitter" not in pod.owner:
            assert account is not None, pod.owner
            role = account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]
            assert role.startswith("arn:aws:iam::"), pod.owner


# ---------------------------------------------------------------------------------------------------- users


@pytest.mark.parametrize("target", WORKLOADS)
def test_pods_run_as_somebody_without_rights(target: str) -> None:
    for pod in pods(target):
        whole, own = pod.spec["securityContext"], pod.container["securityContext"]
        assert whole["runAsNonRoot"] is True, pod.owner
        assert whole["runAsUser"] == whole["runAsGroup"] == whole["fsGroup"] != 0, pod.owner
        assert whole["seccompProfile"] == {"type": "RuntimeDefault"}, pod.owner
        assert own == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, pod.owner
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys(), pod.owner
        assert not [volume for volume in pod.spec.get("volumes", []) if "hostPath" in volume], pod.owner
        # Variables of Kubernetes for a service `mlflow` would be settings of MLflow: MLFLOW_PORT.
        assert pod.spec["enableServiceLinks"] is False, pod.owner


@pytest.mark.parametrize("target", WORKLOADS)
def test_only_the_heads_autoscaler_speaks_to_kubernetes(target: str) -> None:
    with_token = [pod.owner for pod in pods(target) if pod.spec["automountServiceAccountToken"]]
    assert with_token == (["Ray head"] if target in RAY else [])


@pytest.mark.parametrize("target", RAY)
def test_the_autoscaler_has_no_rights_either(target: str) -> None:
    options = ray_spec(target)["autoscalerOptions"]
    (head,) = (pod for pod in pods(target) if pod.owner == "Ray head")
    assert options["securityContext"] == head.container["securityContext"]
    assert {mount["name"] for mount in options["volumeMounts"]} <= {
        volume["name"] for volume in head.spec["volumes"]
    }


# --------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("target", WORKLOADS)
def test_images_have_a_version(target: str) -> None:
    for pod in pods(target):
        image, _, tag = pod.container["image"].rpartition(":")
        assert "/" in image, pod.owner
        assert re.fullmatch(r"\d+(\.\d+)+[a-z0-9.-]*", tag), pod.owner
        if image.endswith("/hssl-dist"):
            assert tag.startswith(hssl_dist.__version__)


def test_versions_of_images_are_in_one_place() -> None:
    version = re.compile(r"newTag|newName|image: *\S+:")
    places = [path for path in CLUSTER.rglob("*.yaml") if version.search(path.read_text())]
    assert places == [CLUSTER / "images/kustomization.yaml"]


@pytest.mark.parametrize("target", RAY)
def test_ray_is_the_version_of_the_image(target: str) -> None:
    assert f"ray=={ray_spec(target)['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()


# ------------------------------------------------------------------------------------------------ resources


@pytest.mark.parametrize("target", WORKLOADS)
def test_resources_are_asked_for_and_suffice_for_the_volumes(target: str) -> None:
    for pod in pods(target):
        asked, most = (pod.container["resources"][kind] for kind in ("requests", "limits"))
        assert {"cpu", "memory"} <= asked.keys() & most.keys(), pod.owner
        # Memory cannot be taken back, and a GPU not be shared.
        for kind in ("memory", "nvidia.com/gpu"):
            assert asked.get(kind) == most.get(kind) or "submitter" in pod.owner, pod.owner
        empty = [volume["emptyDir"] for volume in pod.spec["volumes"] if "emptyDir" in volume]
        memory = sum(quantity(volume["sizeLimit"]) for volume in empty if volume.get("medium") == "Memory")
        disk = sum(quantity(volume["sizeLimit"]) for volume in empty if volume.get("medium") != "Memory")
        assert memory <= quantity(most["memory"]) / 2, pod.owner
        if "ephemeral-storage" in most:
            assert disk <= quantity(most["ephemeral-storage"]), pod.owner


@pytest.mark.parametrize("target", WORKLOADS)
def test_what_is_mounted_is_there(target: str) -> None:
    claims = {
        claim["metadata"]["name"]
        for document in named(target, "StatefulSet").values()
        for claim in document["spec"]["volumeClaimTemplates"]
    }
    for pod in pods(target):
        volumes = {volume["name"] for volume in pod.spec["volumes"]}
        mounted = {mount["name"] for mount in pod.container["volumeMounts"]}
        assert volumes <= mounted <= volumes | claims, pod.owner
        configs = [volume["configMap"]["name"] for volume in pod.spec["volumes"] if "configMap" in volume]
        configs += [
            entry["configMapRef"]["name"]
            for entry in pod.container.get("envFrom", [])
            if "configMapRef" in entry
        ]
        assert set(configs) <= named(target, "ConfigMap").keys(), pod.owner
        account = pod.spec.get("serviceAccountName")
        assert account is None or account in named(target, "ServiceAccount"), pod.owner
