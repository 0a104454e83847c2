"""Every document is what Kubernetes and KubeRay accept, and no field is one they do not know."""

import copy
import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.manifests import RAY, TARGETS, Document, build, pods

CRDS = Path(__file__).parents[3] / "shared/kuberay-crds"
KUBERNETES = "1.34"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def closed(schema: Any) -> Any:
    """A schema of Kubernetes in which fields that it does not name are errors, instead of being dropped."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        made["properties"] = {name: closed(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    return made


@functools.cache
def ray_validator(kind: str) -> jsonschema.Draft7Validator:
    """What KubeRay accepts as a RayCluster or a RayJob."""
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip(f"needs KubeRay's definitions: {path} is not there")
    with path.open() as stream:
        definition = yaml.load(stream, LOADER)
    (version,) = (found for found in definition["spec"]["versions"] if found["name"] == "v1")
    return jsonschema.Draft7Validator(closed(version["schema"]["openAPIV3Schema"]))


def problems(document: Document) -> list[str]:
    """What a custom resource has that its definition does not allow."""
    found = ray_validator(document["kind"]).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]


def check_built_in(document: Document) -> None:
    """Raise if a document of Kubernetes' own kinds is wrong, or has unknown fields."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("target", RAY)
def test_ray_documents_are_what_kuberay_defines(target: str) -> None:
    (document,) = (found for found in build(target) if found["apiVersion"] == "ray.io/v1")
    assert problems(document) == []


@pytest.mark.parametrize("target", TARGETS)
def test_other_documents_are_what_kubernetes_defines(target: str) -> None:
    """But for the one of Prometheus' operator, see `test_monitoring.py`."""
    custom = ("ray.io/v1", "monitoring.coreos.com/v1")
    others = [document for document in build(target) if document["apiVersion"] not in custom]
    assert others
    for document in others:
        check_built_in(document)


@pytest.mark.parametrize("target", RAY)
def test_ray_pods_are_what_kubernetes_defines(target: str) -> None:
    """KubeRay's definitions leave out what Kubernetes checks of pods: values from a list, for example."""
    for pod in pods(target):
        check_built_in(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {**pod.metadata, "name": "pod"}, "spec": pod.spec}
        )


def test_a_misspelt_field_is_found() -> None:
    (document,) = (found for found in build(RAY[0]) if found["kind"] == "RayCluster")
    changed = copy.deepcopy(document)
    container = changed["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["securityContext"]["readonlyRootFilesystem"] = True
    changed["spec"]["authOptions"]["mode"] = "tokens"
    assert sorted(problems(changed)) == [
        "$.spec.authOptions.mode: 'tokens' is not one of ['disabled', 'token']",
        "$.spec.headGroupSpec.template.spec.containers[0].securityContext: Additional properties are not "
        "allowed ('readonlyRootFilesystem' was unexpected)",
    ]


def test_a_misspelt_field_of_kubernetes_is_found() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    policy = next(document for document in build("namespace") if document["kind"] == "NetworkPolicy")
    changed = json.loads(json.dumps(policy))
    changed["spec"]["policyType"] = changed["spec"].pop("policyTypes")
    with pytest.raises(kubernetes_validate.ValidationError, match="policyType"):
        check_built_in(changed)
