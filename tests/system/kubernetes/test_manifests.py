"""What kustomize, old and new, makes of the sources, and what the API's schemas and promtool say to it."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.system.kubernetes.builders import Builder
from tests.system.kubernetes.validator import Validator
from tests.unit.kubernetes_sources import FOLDER, KUSTOMIZATIONS, ROOT

pytestmark = pytest.mark.system

FOLDERS = [path.parent for path in KUSTOMIZATIONS]
EXAMPLE = FOLDER / "examples" / "production"
CUSTOM = "monitoring.coreos.com/v1"  # resources that only the Prometheus operator brings

each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.relative_to(FOLDER).as_posix())


def documents(text: str) -> list[dict[str, Any]]:
    """Every object in a stream of YAML."""
    return [each for each in yaml.safe_load_all(text) if each]


def only(found: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The one object of that kind."""
    (one,) = [each for each in found if each["kind"] == kind]
    return one


@each_folder
def test_every_kustomize_builds_the_same(folder: Path, builder: Builder, reference: Builder) -> None:
    """A folder builds with each version, and to the same objects as with the oldest."""
    built = documents(builder.build(folder))
    assert built
    assert built == documents(reference.build(folder))


@each_folder
def test_schemas_of_the_newest_versions_accept_it(
    folder: Path, reference: Builder, validator: Validator, tmp_path: Path
) -> None:
    """Strictly valid for the three newest versions of Kubernetes; custom resources have no schema there.

    Built by the oldest kustomize: the test above holds the others equal.
    """
    built = documents(reference.build(folder))
    known = [each for each in built if each["apiVersion"] != CUSTOM]
    if not known:
        assert {each["kind"] for each in built} <= {"PodMonitor", "PrometheusRule"}
        return
    path = tmp_path / "built.yaml"
    path.write_text(yaml.safe_dump_all(known), encoding="utf-8")
    versions = validator.newest(3)
    assert len(versions) == 3
    for version in versions:
        code, said = validator.check(path, version)
        assert code == 0, said
        assert said.count(f"against version {version}") == len(known), said


@pytest.mark.parametrize("mistake", [{"replica": 2}, {"replicas": "two"}])
def test_validator_sees_a_mistake(
    mistake: dict[str, Any], reference: Builder, validator: Validator, tmp_path: Path
) -> None:
    """A field that does not exist and a value of the wrong type are refused: the tests above can fail."""
    deployment = only(documents(reference.build(FOLDER / "base")), "Deployment")
    deployment["spec"] |= mistake
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(deployment), encoding="utf-8")
    code, said = validator.check(path, validator.newest(1)[0])
    assert code != 0, said


def test_example_is_whole(builder: Builder) -> None:
    """The example has two daemons, what surrounds them, its own settings and image, all in its namespace."""
    built = documents(builder.build(EXAMPLE))
    kinds = {each["kind"] for each in built}
    assert kinds == {
        "Namespace", "ServiceAccount", "Deployment", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor",
        "PrometheusRule",
    }  # fmt: skip
    name = only(built, "Namespace")["metadata"]["name"]
    assert {each["metadata"].get("namespace") for each in built if each["kind"] != "Namespace"} == {name}
    (container,) = only(built, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"].startswith("registry.example.com/curfewd:")
    variables = {each["name"] for each in container["env"]}
    assert {"CURFEW_DATABASE_URL_FILE", "CURFEW_HTTP_HOST", "CURFEW_INSTANCE", "CURFEW_STATUS_RUNS"} <= variables
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"  # the patch replaced nothing else
    egress = only(built, "NetworkPolicy")["spec"]["egress"]
    assert [each["to"] for each in egress if {"protocol": "TCP", "port": 5432} in each["ports"]] == [
        [{"ipBlock": {"cidr": "192.0.2.0/24"}}]
    ]


def test_examples_migration_runs_the_same_image(builder: Builder) -> None:
    """The migration is of the example's namespace and image, with an account of its own."""
    built = documents(builder.build(EXAMPLE / "migrate"))
    assert {each["kind"] for each in built} == {"ServiceAccount", "Job"}
    whole = only(documents(builder.build(EXAMPLE)), "Deployment")
    job = only(built, "Job")
    assert job["metadata"]["namespace"] == whole["metadata"]["namespace"]
    images = {each["spec"]["template"]["spec"]["containers"][0]["image"] for each in (job, whole)}
    assert len(images) == 1


def test_built_prometheusrule_passes_promtool(builder: Builder, tmp_path: Path) -> None:
    """The built rules equal the rules of deploy/prometheus, and promtool accepts them."""
    spec = only(documents(builder.build(FOLDER / "overlays" / "prometheusrule")), "PrometheusRule")["spec"]
    rules = ROOT / "deploy" / "prometheus" / "rules"
    source = [
        group
        for name in ("recording.yml", "alerts.yml")
        for group in yaml.safe_load((rules / name).read_text(encoding="utf-8"))["groups"]
    ]
    assert spec["groups"] == source
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    done = subprocess.run(["promtool", "check", "rules", path], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_makes_the_secrets_that_the_pods_mount(builder: Builder) -> None:
    """The README's commands make, from what is typed in, the Secrets with the keys that the pods ask for."""
    kubectl = builder.kubectl()
    if kubectl is None:
        assert builder.version[0] == 4  # a kustomize alone makes no Secrets
        return
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    commands = [line for line in readme.splitlines() if " create secret generic " in line]
    made = {}
    for command in commands:
        words = [kubectl, *command.split()[1:], "--dry-run=client", "--output=yaml"]
        url = "postgresql://curfewd@db.example.com/app\n"
        done = subprocess.run(words, check=True, capture_output=True, text=True, input=url, timeout=60)
        secret = yaml.safe_load(done.stdout)
        made[secret["metadata"]["name"]] = secret
        assert {key: base64.b64decode(value).decode() for key, value in secret["data"].items()} == {"url": url}
    whole, migration = documents(builder.build(EXAMPLE)), documents(builder.build(EXAMPLE / "migrate"))
    pods = [only(whole, "Deployment"), only(migration, "Job")]
    volumes = [volume for pod in pods for volume in pod["spec"]["template"]["spec"]["volumes"]]
    assert {volume["secret"]["secretName"] for volume in volumes} == set(made)
    assert {secret["metadata"]["namespace"] for secret in made.values()} == {pods[0]["metadata"]["namespace"]}
