"""The manifests of `cluster/`, built as `kubectl apply -k` builds them."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
RAY_CLUSTERS = ("kuberay/overlays/on-premises/cluster", "kuberay/overlays/cloud/cluster")
RAY_JOBS = ("kuberay/overlays/on-premises/job", "kuberay/overlays/cloud/job")
RAY = RAY_CLUSTERS + RAY_JOBS
MLFLOW = ("mlflow/overlays/on-premises", "mlflow/overlays/cloud")
TARGETS = ("namespace", *RAY, *MLFLOW, "monitoring")
"""What a user applies."""

Document = dict[str, Any]


@functools.cache
def build(target: str) -> tuple[Document, ...]:
    """The documents of a folder of `cluster/`. They are shared: copy what you change."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl, which builds the manifests (https://kubernetes.io/docs/tasks/tools/)")
    made = subprocess.run(
        [kubectl, "kustomize", str(CLUSTER / target)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert made.returncode == 0, made.stderr
    return tuple(yaml.safe_load_all(made.stdout))


def named(target: str, kind: str) -> dict[str, Document]:
    """The documents of a kind, by name."""
    return {document["metadata"]["name"]: document for document in build(target) if document["kind"] == kind}


def ray_spec(target: str) -> Document:
    """The spec of the one Ray cluster that a target makes."""
    (document,) = (found for found in build(target) if found["kind"] in ("RayCluster", "RayJob"))
    spec: Document = document["spec"]
    return spec["rayClusterSpec"] if document["kind"] == "RayJob" else spec


@dataclass(frozen=True)
class Pod:
    """A pod that something makes: whose it is, its labels and annotations, its spec."""

    owner: str
    metadata: Document
    spec: Document

    @property
    def labels(self) -> dict[str, str]:
        return self.metadata.get("labels", {})

    @property
    def container(self) -> Document:
        """The first container; nothing here has more."""
        (container,) = self.spec["containers"]
        return container

    @property
    def environment(self) -> dict[str, str]:
        """The variables with values of their own."""
        return {entry["name"]: entry["value"] for entry in self.container.get("env", []) if "value" in entry}


def pods(target: str) -> list[Pod]:
    """All pods of a target. The head's and workers' have the label by which KubeRay tells them apart."""
    return [pod for document in build(target) for pod in _templates(document)]


def _templates(document: Document) -> Iterator[Pod]:
    kind, spec = document["kind"], document.get("spec", {})
    if kind in ("Deployment", "StatefulSet"):
        yield _pod(f"{kind} {document['metadata']['name']}", spec["template"])
    if kind == "RayJob":
        yield _pod("RayJob's submitter", spec["submitterPodTemplate"])
        spec = spec["rayClusterSpec"]
    if kind in ("RayCluster", "RayJob"):
        yield _pod("Ray head", spec["headGroupSpec"]["template"], {"ray.io/node-type": "head"})
        for group in spec["workerGroupSpecs"]:
            yield _pod("Ray worker", group["template"], {"ray.io/node-type": "worker"})


def _pod(owner: str, template: Document, labels: dict[str, str] | None = None) -> Pod:
    metadata = template.get("metadata", {})
    all_labels = {**metadata.get("labels", {}), **(labels or {})}
    return Pod(owner, {**metadata, "labels": all_labels}, template["spec"])


def quantity(text: str | float) -> float:
    """A quantity of Kubernetes in its unit: CPUs, or bytes."""
    factors = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 1e3, "M": 1e6, "G": 1e9}
    number = str(text)
    for suffix, factor in factors.items():
        if number.endswith(suffix):
            return float(number.removesuffix(suffix)) * factor
    return float(number)
