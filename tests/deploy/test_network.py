"""Who may reach what: Ray's ports its own pods, MLflow Ray, the database MLflow, and nobody from outside."""

import ipaddress

import pytest

from tests.deploy.manifests import MLFLOW, RAY, TARGETS, Document, build, named, pods, ray_spec


def matches(selector: Document, labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def ways_in(labels: dict[str, str], policies: list[Document]) -> list[Document]:
    """What may come in to a pod. Fails if no policy closes it."""
    chosen = [policy["spec"] for policy in policies if matches(policy["spec"]["podSelector"], labels)]
    assert [spec for spec in chosen if "Ingress" in spec["policyTypes"]], labels
    return [rule for spec in chosen for rule in spec.get("ingress", [])]


def all_policies(target: str) -> list[Document]:
    return [found for place in ("namespace", target) for found in named(place, "NetworkPolicy").values()]


@pytest.mark.parametrize("target", RAY)
def test_ray_is_open_to_its_own_pods_and_the_operator(target: str) -> None:
    own = {"app.kubernetes.io/part-of": "hssl-dist", "app.kubernetes.io/component": "ray"}
    among_themselves = {"from": [{"podSelector": {"matchLabels": own}}]}
    operator = {
        "from": [
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}},
                "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}},
            }
        ],
        "ports": [{"protocol": "TCP", "port": 8265}],
    }
    for pod in pods(target):
        assert own.items() <= pod.labels.items(), pod.owner
        expected = [among_themselves, operator] if pod.owner == "Ray head" else [among_themselves]
        assert ways_in(pod.labels, all_policies(target)) == expected, pod.owner


@pytest.mark.parametrize("target", MLFLOW)
def test_mlflow_is_open_to_ray_and_its_database_to_mlflow(target: str) -> None:
    expected = {"Deployment mlflow": ("ray", 5000), "StatefulSet mlflow-postgres": ("mlflow", 5432)}
    for pod in pods(target):
        component, port = expected[pod.owner]
        ((peers, ports),) = (
            (rule["from"], rule["ports"]) for rule in ways_in(pod.labels, all_policies(target))
        )
        assert peers == [
            {
                "podSelector": {
                    "matchLabels": {
                        "app.kubernetes.io/part-of": "hssl-dist",
                        "app.kubernetes.io/component": component,
                    }
                }
            }
        ]
        assert ports == [{"protocol": "TCP", "port": port}]


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_open_to_the_outside(target: str) -> None:
    assert not named(target, "Ingress")
    for name, service in named(target, "Service").items():
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP", name
    if target in RAY:
        head = ray_spec(target)["headGroupSpec"]
        assert head["serviceType"] == "ClusterIP"
        assert not {"enableIngress", "ingressOptions"} & head.keys()
        assert ray_spec(target)["authOptions"]["mode"] == "token"


@pytest.mark.parametrize("target", TARGETS)
def test_no_pod_gets_at_its_machines_credentials(target: str) -> None:
    metadata = ipaddress.ip_address("169.254.169.254")
    for policy in named(target, "NetworkPolicy").values():
        for rule in policy["spec"].get("egress", []):
            for block in (peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer):
                inside = metadata in ipaddress.ip_network(block["cidr"])
                outside = any(metadata in ipaddress.ip_network(part) for part in block.get("except", []))
                assert not inside or outside, policy["metadata"]["name"]


@pytest.mark.parametrize("target", TARGETS)
def test_all_is_in_the_namespace_that_is_restricted(target: str) -> None:
    (namespace,) = named("namespace", "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    places = {document["metadata"].get("namespace") for document in build(target)}
    assert places == ({None, "hssl"} if target == "namespace" else {namespace["metadata"]["name"]})
