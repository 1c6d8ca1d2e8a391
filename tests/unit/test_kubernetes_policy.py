"""The Kubernetes sources against the code, and against what a restricted cluster asks for."""

from __future__ import annotations

import re
import subprocess
from inspect import signature
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import typer.main
import yaml
from pydantic import TypeAdapter
from starlette.routing import Route

from curfew_daemon.cli import app as commands
from curfew_daemon.config import VARIABLES, Settings
from curfew_daemon.http import create_app
from curfew_daemon.setting_types import InstanceName
from curfew_daemon.wait_bounds import HEALTHZ_STALENESS, MARGIN
from tests.system.image.dockerfile import PATH, stages
from tests.unit.kubernetes_sources import FOLDER, KUSTOMIZATIONS, ROOT, environment, load, objects, pod_specs

# What kustomize 2.0.3 (in kubectl 1.14 to 1.20) and 5 both know. Of the newer ways to name a folder or a patch
# the old one knows none; the new one has deprecated `bases` and `patchesStrategicMerge` and promises to keep them.
COMMON_FIELDS = {
    "apiVersion", "kind", "namespace", "bases", "resources", "images", "patchesStrategicMerge",
}  # fmt: skip

IDENTITY = {"app.kubernetes.io/name": "curfewd", "app.kubernetes.io/component": "daemon"}
PODS = pod_specs()
DEPLOYMENT = load("base/deployment.yaml")
DAEMON = DEPLOYMENT["spec"]["template"]["spec"]["containers"][0]
EXAMPLE = "examples/production"


def default(name: str) -> Any:
    """The default of a setting."""
    return Settings.model_fields[name].default


def routes() -> set[str]:
    """The paths that the daemon serves."""
    # Nothing is asked for here, so whatever the pages are made from may be anything.
    app = create_app(**{name: Mock() for name in signature(create_app).parameters})
    return {route.path for route in app.routes if isinstance(route, Route)}


def mounted(pod: dict[str, Any], container: dict[str, Any]) -> set[str]:
    """The paths of the files that a container's secrets show it."""
    secrets = {volume["name"]: volume["secret"] for volume in pod["volumes"]}
    return {
        f"{mount['mountPath']}/{item['path']}"
        for mount in container["volumeMounts"]
        for item in secrets[mount["name"]]["items"]
    }


def containers() -> list[Any]:
    """Every container of every pod, for parametrising."""
    return [pytest.param(pod, pod["containers"][0], id=name) for name, pod in PODS.items()]


def test_these_are_the_pods_and_each_has_one_container() -> None:
    """The tests of this module look at every pod and every container."""
    assert set(PODS) == {"base/deployment.yaml", "overlays/migrate/job.yaml"}
    for pod in PODS.values():
        assert len(pod["containers"]) == 1
        assert not {"initContainers", "ephemeralContainers"} & set(pod)


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.relative_to(FOLDER).as_posix())
def test_kustomizations_stay_with_what_old_and_new_know(path: Path) -> None:
    """Fields that kustomize 2.0.3 and 5 share; folders under bases, files under resources; no file unused."""
    content = load(path)
    assert set(content) <= COMMON_FIELDS
    assert (content["apiVersion"], content["kind"]) == ("kustomize.config.k8s.io/v1beta1", "Kustomization")
    assert all((path.parent / each / "kustomization.yaml").is_file() for each in content.get("bases", []))
    named = content.get("resources", []) + content.get("patchesStrategicMerge", [])
    assert {file.name for file in path.parent.glob("*.yaml")} == {path.name, *named}


@pytest.mark.parametrize(("pod", "container"), containers())
def test_pods_are_restricted(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """No root, no capability, no escalation, the default seccomp profile, a read-only root, no token."""
    account = int(stages(PATH.read_text(encoding="utf-8"))[-1].last("USER")[0].partition(":")[0])
    context = pod["securityContext"]
    assert context.pop("seccompProfile") == {"type": "RuntimeDefault"}
    assert context == {"runAsNonRoot": True, "runAsUser": account, "runAsGroup": account, "fsGroup": account}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    accounts = {each["metadata"]["name"]: each for each in objects().values() if each["kind"] == "ServiceAccount"}
    assert accounts[pod["serviceAccountName"]]["automountServiceAccountToken"] is False


@pytest.mark.parametrize(("pod", "container"), containers())
def test_pods_bound_what_they_use(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """Processor time and memory are requested; memory is limited, processor time, which the sweep needs, is not."""
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}
    assert set(container["resources"]["limits"]) == {"memory"}


@pytest.mark.parametrize(("pod", "container"), containers())
def test_variables_are_settings_with_good_values(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """Every CURFEW_ variable is a setting, and its literal value is one that the setting takes."""
    fields = {variable: Settings.model_fields[name] for name, variable in VARIABLES.items()}
    for name, entry in environment(container).items():
        assert name in fields, name
        if "value" in entry:
            annotated = TypeAdapter(fields[name].rebuild_annotation())
            annotated.validate_python(entry["value"])
    assert VARIABLES["database_url"] not in environment(container), "a password in the environment"


@pytest.mark.parametrize(("pod", "container"), containers())
def test_database_url_is_a_mounted_file(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """The URL is read from a file that a Secret's volume shows, to the group alone, and changes with the Secret."""
    assert environment(container)[VARIABLES["database_url_file"]]["value"] in mounted(pod, container)
    for mount in container["volumeMounts"]:
        assert mount["readOnly"] is True
        assert "subPath" not in mount, "would not change with the Secret"
    for volume in pod["volumes"]:
        assert set(volume) == {"name", "secret"}
        assert volume["secret"]["defaultMode"] == 0o440


def test_daemon_and_migration_do_not_share_a_secret() -> None:
    """The daemons' pods cannot read the URL of the tables' owner."""
    names = [volume["secret"]["secretName"] for pod in PODS.values() for volume in pod["volumes"]]
    assert len(names) == len(set(names)) == 2


@pytest.mark.parametrize(("pod", "container"), containers())
def test_arguments_are_a_command_of_curfewd(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """The image's own entry point starts, with a command that there is."""
    known = typer.main.get_command(commands)
    assert "command" not in container
    assert len(container["args"]) == 1
    assert container["args"][0] in known.commands  # type: ignore[attr-defined]  # a group has commands


def test_daemon_names_itself_after_its_pod() -> None:
    """The instance is the pod's name, and a name as a Deployment makes it is one that the setting takes."""
    entry = environment(DAEMON)[VARIABLES["instance"]]
    assert entry["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    TypeAdapter(InstanceName).validate_python(f"{DEPLOYMENT['metadata']['name']}-7f9c6b5d4f-x2x8q")


def test_port_and_paths_are_the_daemons() -> None:
    """The container's port is the setting's default, and every path that is asked for is served."""
    assert DAEMON["ports"] == [{"name": "http", "containerPort": default("http_port")}]
    assert environment(DAEMON)[VARIABLES["http_host"]]["value"] == "0.0.0.0"
    assert VARIABLES["http_port"] not in environment(DAEMON)
    probes = {name: DAEMON[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {name: get["path"] for name, get in probes.items()} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",  # never readiness: an outage of the database would restart the fleet
        "readinessProbe": "/readyz",
    }
    asked = {get["path"] for get in probes.values()} | {endpoint()["path"]}
    assert asked == {"/healthz", "/readyz", "/metrics"}
    assert asked <= routes()
    assert {get["port"] for get in probes.values()} | {endpoint()["port"]} == {"http"}


def test_times_fit_the_daemons_own() -> None:
    """A pod is killed only after the daemon's grace; the kubelet does not give up before /healthz does."""
    pod = PODS["base/deployment.yaml"]
    stops_within = default("shutdown_grace") + MARGIN + 2.0  # the statement in hand, its cancelling, the server's end
    assert pod["terminationGracePeriodSeconds"] >= stops_within + 10
    start, live = DAEMON["startupProbe"], DAEMON["livenessProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= HEALTHZ_STALENESS
    assert live["periodSeconds"] * live["failureThreshold"] >= HEALTHZ_STALENESS
    assert all(DAEMON[name]["timeoutSeconds"] < DAEMON[name]["periodSeconds"] + 1 for name in DAEMON if "Probe" in name)


def test_two_daemons_are_kept_apart_and_replaced_one_by_one() -> None:
    """Two replicas, spread over nodes and zones; none goes before another is ready."""
    spec = DEPLOYMENT["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    spread = PODS["base/deployment.yaml"]["topologySpreadConstraints"]
    assert [each["topologyKey"] for each in spread] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]


def test_selectors_select_the_daemons() -> None:
    """Deployment, budget, spread and PodMonitor select by the labels that the pods have; the migration is no daemon."""
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    budget, monitor = load("base/disruption-budget.yaml"), load("overlays/podmonitor/podmonitor.yaml")
    spread = PODS["base/deployment.yaml"]["topologySpreadConstraints"]
    selectors = [DEPLOYMENT["spec"]["selector"], budget["spec"]["selector"], monitor["spec"]["selector"]]
    selectors += [each["labelSelector"] for each in spread]
    assert all(each == {"matchLabels": IDENTITY} for each in selectors)
    assert labels == IDENTITY
    assert all(each["metadata"]["labels"] == IDENTITY for each in (DEPLOYMENT, budget, monitor))
    migration = load("overlays/migrate/job.yaml")["spec"]["template"]["metadata"]["labels"]
    assert migration == IDENTITY | {"app.kubernetes.io/component": "migrate"}


def test_budget_lets_a_node_go_during_an_outage() -> None:
    """One daemon at a time; daemons that are not ready, as all are without a database, may go."""
    spec = load("base/disruption-budget.yaml")["spec"]
    assert (spec["maxUnavailable"], spec["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


@pytest.mark.parametrize("path", ["base/network-policy.yaml", f"{EXAMPLE}/network.yaml"])
def test_network_is_closed_but_for_what_is_needed(path: str) -> None:
    """In: the pages, from chosen namespaces. Out: names and PostgreSQL. Nothing else, for every pod of curfewd."""
    policy = load("base/network-policy.yaml")
    patch = load(path)
    assert policy["metadata"]["name"] == patch["metadata"]["name"]
    spec = policy["spec"] | patch["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": IDENTITY["app.kubernetes.io/name"]}}
    (pages,) = spec["ingress"]
    assert pages["ports"] == [{"protocol": "TCP", "port": "http"}]
    assert all("namespaceSelector" in each for each in pages["from"])
    opened = {(port["protocol"], port["port"]) for rule in spec["egress"] for port in rule["ports"]}
    assert opened == {("UDP", 53), ("TCP", 53), ("TCP", 5432)}


def test_migration_may_take_its_time_and_leaves_its_log() -> None:
    """The Job has no deadline, gives up after a few tries, and each try keeps its pod."""
    spec = load("overlays/migrate/job.yaml")["spec"]
    assert "activeDeadlineSeconds" not in spec
    assert 1 <= spec["backoffLimit"] <= 6
    assert PODS["overlays/migrate/job.yaml"]["restartPolicy"] == "Never"


def endpoint() -> dict[str, Any]:
    """What the PodMonitor scrapes."""
    (found,) = load("overlays/podmonitor/podmonitor.yaml")["spec"]["podMetricsEndpoints"]
    return dict(found)


def test_podmonitor_scrapes_under_a_name_that_the_rules_know() -> None:
    """Its job is <namespace>/<name>, one for each database, and the rules' pattern for jobs takes it."""
    monitor = load("overlays/podmonitor/podmonitor.yaml")
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert set(monitor["spec"]) == {"selector", "podMetricsEndpoints"}
    assert set(endpoint()) == {"port", "path", "interval", "scrapeTimeout"}
    assert int(endpoint()["scrapeTimeout"][:-1]) < int(endpoint()["interval"][:-1])
    alerts = (ROOT / "deploy" / "prometheus" / "rules" / "alerts.yml").read_text(encoding="utf-8")
    patterns = set(re.findall(r'job=~"([^"]+)"', alerts))
    assert patterns
    assert all(re.fullmatch(pattern, f"billing/{monitor['metadata']['name']}") for pattern in patterns)


def test_prometheusrule_is_the_prometheus_rules(tmp_path: Path) -> None:
    """Its groups are those of deploy/prometheus/rules, and the file is what generate.sh makes of them now."""
    overlay = FOLDER / "overlays" / "prometheusrule"
    rules = ROOT / "deploy" / "prometheus" / "rules"
    assert {path.name for path in rules.iterdir()} == {"recording.yml", "alerts.yml"}
    expected = [
        group
        for name in ("recording.yml", "alerts.yml")
        for group in yaml.safe_load((rules / name).read_text(encoding="utf-8"))["groups"]
    ]
    assert load(overlay / "prometheusrule.yaml")["spec"] == {"groups": expected}
    made = tmp_path / "made.yaml"
    subprocess.run([overlay / "generate.sh", made], check=True)
    assert (overlay / "prometheusrule.yaml").read_text() == made.read_text(), f"run {overlay}/generate.sh"
    known = {"name", "interval", "limit", "rules", "record", "alert", "expr", "for", "labels", "annotations"}
    assert {key for group in expected for each in (group, *group["rules"]) for key in each} <= known


def test_images_are_the_dockerfiles_version() -> None:
    """Every pod runs the version that the Dockerfile builds, and the example renames both of its images alike."""
    version = stages(PATH.read_text(encoding="utf-8"))[-1].merged("ARG")["VERSION"]
    assert {pod["containers"][0]["image"] for pod in PODS.values()} == {f"curfewd:{version}"}
    whole, migration = load(f"{EXAMPLE}/kustomization.yaml"), load(f"{EXAMPLE}/migrate/kustomization.yaml")
    assert whole["images"] == migration["images"]
    (image,) = whole["images"]
    assert (image["name"], image["newTag"]) == ("curfewd", version)
    assert whole["namespace"] == migration["namespace"] == load(f"{EXAMPLE}/namespace.yaml")["metadata"]["name"]


def test_example_settings_are_settings() -> None:
    """What the example sets are settings with values that they take, and the grace still fits."""
    (container,) = load(f"{EXAMPLE}/settings.yaml")["spec"]["template"]["spec"]["containers"]
    assert container["name"] == DAEMON["name"]
    given = {name: entry["value"] for name, entry in environment(container).items()}
    assert all(isinstance(value, str) for value in given.values())
    loaded = Settings.load(given | {"CURFEW_DATABASE_URL": "postgresql://curfewd@db.example.com/app"})
    assert loaded.shutdown_grace < PODS["base/deployment.yaml"]["terminationGracePeriodSeconds"] - 10


def test_readme_names_folders_that_can_be_applied() -> None:
    """Every path in a command of the README is there, and what is given to -k is a kustomization."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```sh\n([\s\S]*?)^```", text, re.MULTILINE))
    named = re.findall(r"(?<= )deploy/\S+", blocks)
    assert named
    assert not [each for each in named if not (ROOT / each).exists()]
    applied = re.findall(r"(?:-k|kustomize) (\S+)", blocks)
    assert applied
    assert all((ROOT / each / "kustomization.yaml").is_file() for each in applied)
