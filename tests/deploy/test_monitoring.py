"""Dashboard, alerts and scrape configs name what the code exports, all of it, and are let in to nothing else.

The expressions are parsed, and the rules run over made-up series, by Prometheus' own promtool where it is
installed; elsewhere only their structure and the names in them are looked at.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from hssl_dist.jobs.pretrain_metrics import EXPORTED
from hssl_dist.training import health
from tests.deploy.manifests import CLUSTER, RAY, ROOT, Document, named, pods, ray_spec
from tests.deploy.test_network import all_policies, matches, ways_in

MONITORING = CLUSTER / "monitoring"
PREFIX = "ray_hssl_pretrain_"
LABELS = {"run", *(exported.label for exported in EXPORTED.values() if exported.label)}
NAME = re.compile(rf"\b{PREFIX}(\w+)")
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
RULES = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
GUIDE = (ROOT / "docs/deploy.md").read_text()


def names(expressions: list[str]) -> set[str]:
    return {name for expression in expressions for name in NAME.findall(expression)}


def shown() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


# ------------------------------------------------------------------------------------------------- the names


def test_the_dashboard_shows_what_is_exported_and_nothing_else() -> None:
    (variable,) = (found for found in DASHBOARD["templating"]["list"] if found["name"] == "run")
    assert names(shown()) == set(EXPORTED)
    assert names([variable["query"]["query"]]) <= set(EXPORTED)
    assert variable["definition"] == variable["query"]["query"]


def test_alerts_look_at_what_is_exported() -> None:
    assert ALERTS.keys() == set(re.findall(r"^\| `(Hssl\w+)`", GUIDE, re.MULTILINE))
    for rule in ALERTS.values():
        assert names([rule["expr"]]) <= set(EXPORTED)
        assert names([rule["expr"]])


@pytest.mark.parametrize("expression", [*shown(), *(rule["expr"] for rule in ALERTS.values())])
def test_labels_are_those_that_are_exported(expression: str) -> None:
    """And series are brought together by them: Ray's own labels change whenever a run is started again."""
    grouped = re.findall(r"\bby \(([^)]*)\)", expression)
    assert len(grouped) >= len(re.split(r"\bor\b", expression))
    used = {label.strip() for group in grouped for label in group.split(",")}
    used |= set(re.findall(r"[{,]\s*(\w+)\s*=", expression))
    assert used <= LABELS


def test_ray_is_asked_for_no_metric_that_the_guide_does_not_tell() -> None:
    listed = re.findall(rf"^\| `{PREFIX}(\w+)`", GUIDE, re.MULTILINE)
    assert listed == list(EXPORTED)


# ---------------------------------------------------------------------------------------------- the dashboard


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    """The fields of its JSON model that it needs; it was not loaded into a Grafana."""
    assert re.fullmatch(r"[a-z-]{1,40}", DASHBOARD["uid"])
    assert DASHBOARD["title"]
    assert isinstance(DASHBOARD["schemaVersion"], int)
    assert DASHBOARD["time"].keys() == {"from", "to"}
    variables = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource": "datasource", "run": "query"}
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    for panel in DASHBOARD["panels"]:
        assert panel["type"] in ("timeseries", "stat")
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert references == ["A", "B", "C"][: len(references)]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert target["expr"].count("$run") == len(NAME.findall(target["expr"]))


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


# ------------------------------------------------------------------------------------------------- the alerts


def test_rules_have_the_fields_of_prometheus() -> None:
    assert RULES.keys() == {"groups"}
    for group in RULES["groups"]:
        assert group.keys() == {"name", "rules"}
    for rule in ALERTS.values():
        assert {"alert", "expr", "labels", "annotations"} <= rule.keys()
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["expr"].count("(") == rule["expr"].count(")")


def test_alerts_lead_to_the_runbook() -> None:
    headings = re.findall(r"^#+ (.*)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for rule in ALERTS.values():
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert page == "docs/runbook.md"
        assert anchor in anchors


def test_collapse_is_what_training_warns_of() -> None:
    limits = re.findall(r"[<>]=? ([\d.]+)", ALERTS["HsslCollapsed"]["expr"])
    assert [float(limit) for limit in limits] == [health._LEAST_RANK, health._LEAST_STD]
    assert ALERTS["HsslNothingLearnt"]["expr"].endswith(f">= {health._AT_CHANCE}")


# --------------------------------------------------------------------------------------------------- promtool


def promtool(*words: str) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool, which evaluates rules (https://prometheus.io/download)")
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_config_and_the_rules() -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", str(MONITORING / "alerts.yaml"))
    promtool("check", "config", str(MONITORING / "prometheus.yaml"))


def test_prometheus_parses_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$run", ".*")}
        for number, expression in enumerate(shown())
    ]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(path))


def alerts_of(tmp_path: Path, series: dict[str, str], at: str) -> set[tuple[str, str]]:
    """Which alerts fire for which runs after so long, of series with a sample each minute."""
    expected = [{"eval_time": at, "alertname": name, "exp_alerts": []} for name in ALERTS]
    inputs = [{"series": PREFIX + name, "values": values} for name, values in series.items()]
    path = tmp_path / "test.yaml"
    test = {"interval": "1m", "input_series": inputs, "alert_rule_test": expected}
    path.write_text(
        yaml.safe_dump({"rule_files": [str(MONITORING / "alerts.yaml")], "tests": [test]}, sort_keys=False)
    )
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool, which evaluates rules (https://prometheus.io/download)")
    done = subprocess.run(
        [program, "test", "rules", str(path)], capture_output=True, text=True, check=False, timeout=120
    )
    said = done.stdout + done.stderr
    assert "error" not in said.lower()
    assert (done.returncode == 0) == ("got:" not in said), said
    found = set()
    for part in said.split("alertname: ")[1:]:
        got = part.partition("got:")[2]
        found |= {(part.split(",")[0], run) for run in re.findall(r'run="([^"]*)"', got)}
    return found


HEALTHY: dict[str, str] = {
    'last_step_timestamp_seconds{run="a",WorkerId="1"}': "0+60x180",
    'checkpoint_timestamp_seconds{run="a",WorkerId="1"}': "0+60x180",
    'worker_starts{run="a",WorkerId="1"}': "1x180",
    'data_wait_ratio{run="a",WorkerId="1"}': "0.03x180",
    'effective_rank{run="a",WorkerId="1"}': "9x180",
    'embedding_std{run="a",WorkerId="1"}': "0.8x180",
    'image_over_chance{run="a",WorkerId="1"}': "0.6x180",
}


@pytest.mark.parametrize(
    ("name", "values", "alert"),
    [
        ("last_step_timestamp_seconds", "0+60x30 1800x150", "HsslRunStalled"),
        ("checkpoint_timestamp_seconds", "0x180", "HsslCheckpointOld"),
        ("worker_starts", "1x100 2x10 3x10 4x60", "HsslWorkersRestart"),
        ("data_wait_ratio", "0.03x100 0.5x80", "HsslDataWait"),
        ("effective_rank", "9x100 1.01x80", "HsslCollapsed"),
        ("embedding_std", "0.8x100 0.001x80", "HsslCollapsed"),
        ("image_over_chance", "1x180", "HsslNothingLearnt"),
        ('ends_total{how="not_finite"}', "_x140 1x40", "HsslNotFinite"),
        ('ends_total{how="failed"}', "_x140 1x40", "HsslRunFailed"),
        ('ends_total{how="failed"}', "1x180", ""),
        ('ends_total{how="interrupted"}', "_x140 1x40", ""),
        ('ends_total{how="done"}', "_x140 1x40", ""),
    ],
)
def test_an_alert_fires_for_the_run_that_is_not_well(
    tmp_path: Path, name: str, values: str, alert: str
) -> None:
    series = {**HEALTHY, **{key.replace('"a"', '"b"'): found for key, found in HEALTHY.items()}}
    metric, _, label = name.rstrip("}").partition("{")
    series[f'{metric}{{run="b",WorkerId="1"{label and f",{label}"}}}'] = values
    assert alerts_of(tmp_path, series, "2h30m") == ({(alert, "b")} if alert else set())


# --------------------------------------------------------------------------------------- who reads them where


@pytest.mark.parametrize("target", RAY)
def test_prometheus_reads_the_port_where_ray_serves_them(target: str) -> None:
    (monitor,) = named("monitoring", "PodMonitor").values()
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"].keys() == {"selector", "podTargetLabels", "podMetricsEndpoints"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint.keys() == {"port", "interval"}
    spec = ray_spec(target)
    groups = {"Ray head": spec["headGroupSpec"], "Ray worker": spec["workerGroupSpecs"][0]}
    for pod in pods(target):
        assert matches(monitor["spec"]["selector"], pod.labels)
        ports = {port["name"]: port["containerPort"] for port in pod.container.get("ports", [])}
        if pod.owner not in groups:
            assert endpoint["port"] not in ports  # nobody asks the submitter
            continue
        assert str(ports[endpoint["port"]]) == groups[pod.owner]["rayStartParams"]["metrics-export-port"]


def rule_of_prometheus() -> Document:
    (policy,) = named("monitoring", "NetworkPolicy").values()
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    (rule,) = policy["spec"]["ingress"]
    found: Document = rule
    return found


@pytest.mark.parametrize("target", RAY)
def test_prometheus_is_let_in_to_the_metrics_alone(target: str) -> None:
    rule = rule_of_prometheus()
    (peer,) = rule["from"]
    assert peer["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}
    assert peer["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    opened = [(port["protocol"], port["port"]) for port in rule["ports"]]
    policies = [*all_policies(target), *named("monitoring", "NetworkPolicy").values()]
    for pod in pods(target):
        assert rule in ways_in(pod.labels, policies)
        assert rule not in ways_in(pod.labels, all_policies(target))
    started = {
        group["rayStartParams"]["metrics-export-port"]
        for group in (ray_spec(target)["headGroupSpec"], *ray_spec(target)["workerGroupSpecs"])
    }
    assert opened == [("TCP", int(port)) for port in started]


def test_the_dashboard_is_where_grafana_looks_for_it() -> None:
    (found,) = named("monitoring", "ConfigMap").values()
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(found["data"]["dashboard.json"]) == DASHBOARD


def test_the_guides_command_makes_a_rule_of_the_alerts() -> None:
    """For Prometheus' operator the same rules are put into a document of its kind."""
    (command,) = re.findall(r"^(\{ printf .*) \| kubectl apply -f -$", GUIDE, re.MULTILINE)
    made = subprocess.run(["bash", "-euc", command], cwd=ROOT, capture_output=True, text=True, check=True)
    document: dict[str, Any] = yaml.safe_load(made.stdout)
    assert document == {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "hssl", "namespace": "hssl"},
        "spec": RULES,
    }
