"""The files in deploy/ are valid for their tools and schemas, and agree with each other and with the docs."""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import compose_spec
import jsonpatch
import kubernetes_validate  # type: ignore[import-untyped] # it ships no types
import pytest
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard

from mcp_server.config import load_config
from mcp_server.scope.policy import ScopePolicy
from tests.support.image_recipe import instructions
from tests.support.processes import binary
from tests.support.prometheus import promtool

ROOT: Final = Path(__file__).resolve().parents[2]
DEPLOY: Final = ROOT / "deploy"
K8S: Final = DEPLOY / "kubernetes"
MANIFESTS: Final = yaml.safe_load((K8S / "kustomization.yaml").read_text())["resources"]
KUBERNETES: Final = "1.37"
PAGES: Final = (ROOT / "docs/deployment.md", ROOT / "docs/deployment-checklist.md")
EXPOSURE: Final = {"mcp-network-tools": 4.2, "mcp-network-tools-argument": 1.2}
"""The highest allowed exposure of each unit, 0 to 10, as `systemd-analyze security` computes it."""


def document(name: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((K8S / name).read_text())
    return read


def kernel(name: str) -> dict[str, Any]:
    """Return a manifest with the JSON patch of the overlay, which kustomize applies by the same standard (RFC 6902)."""
    patched: dict[str, Any] = jsonpatch.apply_patch(
        document(f"{name}.yaml"), json.loads((K8S / "kernel" / f"{name}.json").read_text())
    )
    return patched


def composed() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())
    return read


# The Dockerfile.


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    lint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([lint, DEPLOY / "docker/Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hadolint_finds_a_fault_that_is_added(tmp_path: Path) -> None:
    text = (DEPLOY / "docker/Dockerfile").read_text()
    (tmp_path / "Dockerfile").write_text(
        text.replace("# hadolint ignore=DL3008", "#").replace("-slim AS build", " AS build")
    )
    lint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([lint, tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "DL3008" in done.stdout


def test_the_dockerfile_installs_only_by_hash_and_runs_without_privileges() -> None:
    steps = instructions(DEPLOY / "docker/Dockerfile")
    pip = [part for word, text in steps if word == "RUN" for part in text.split("&&") if "pip install" in part]
    assert pip, "no step of the Dockerfile calls pip"
    assert [part for part in pip if "--require-hashes" not in part and "--no-index" not in part] == []
    last = max(number for number, (word, _) in enumerate(steps) if word == "FROM")
    final = dict(steps[last + 1 :])
    assert final["USER"] == "10001:10001"
    assert "/livez" in final["HEALTHCHECK"]
    assert json.loads(final["ENTRYPOINT"]) == ["mcp-network-tools", "serve", "--transport", "http"]
    assert not [text for word, text in steps if re.search(r"(?i)password|secret|token", text)]
    assert not [text for word, text in steps if word == "ADD"]


# Compose.


@pytest.mark.parametrize("name", ["compose.yaml", "compose.kernel.yaml"])
def test_compose_files_are_valid(name: str) -> None:
    text = (DEPLOY / "compose" / name).read_text()
    compose_spec.PyCompose.from_yaml(text).validate()
    with pytest.raises(ValueError, match="heathcheck"):
        compose_spec.PyCompose.from_yaml(text.replace("  server:\n", "  server:\n    heathcheck: {}\n", 1))


def test_every_service_of_compose_is_confined() -> None:
    services = composed()["services"]
    assert set(services) == {"server", "prometheus", "grafana"}
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["user"].partition(":")[0]) > 0, name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert "healthcheck" in service or name == "server", (
            f"{name}: no healthcheck; only the image of the server has its own"
        )
        image = service["image"]
        assert re.fullmatch(r"mcp-network-tools|[\w/-]+:v?\d+\.\d+\.\d+", image), image


def test_every_file_that_compose_mounts_exists() -> None:
    for service in composed()["services"].values():
        for volume in service["volumes"]:
            if volume["type"] == "bind" and "/secrets/" not in volume["source"]:
                assert (DEPLOY / "compose" / volume["source"]).exists(), volume


def test_secrets_are_created_once_and_only_their_services_can_read_them(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "compose/prepare.sh", tmp_path)
    subprocess.run([tmp_path / "prepare.sh"], check=True, capture_output=True)
    made = {path.name: path for path in (tmp_path / "secrets").iterdir()}
    users = {name: service["user"].partition(":")[0] for name, service in composed()["services"].items()}
    owners = {"token": "server", "prometheus-token": "prometheus", "grafana-password": "grafana"}
    assert {name: str(path.stat().st_uid) for name, path in made.items()} == {n: users[s] for n, s in owners.items()}
    assert {path.stat().st_mode & 0o777 for path in made.values()} == {0o600}
    assert re.fullmatch(r"[0-9a-f]{64}", made["token"].read_text())
    assert made["token"].read_text() == made["prometheus-token"].read_text()
    before = {name: path.read_text() for name, path in made.items()}
    subprocess.run([tmp_path / "prepare.sh"], check=True, capture_output=True)
    assert {name: path.read_text() for name, path in made.items()} == before
    mounted = {
        Path(v["source"]).name
        for s in composed()["services"].values()
        for v in s["volumes"]
        if "secrets" in v["source"]
    }
    assert mounted == set(made)
    ignored = subprocess.run([binary("git"), "check-ignore", "deploy/compose/secrets/token"], cwd=ROOT, check=False)
    assert ignored.returncode == 0, "git does not ignore the secrets"


def test_prometheus_of_compose_scrapes_the_server_by_an_allowed_host_name(tmp_path: Path) -> None:
    volumes = {v["target"]: v["source"] for v in composed()["services"]["prometheus"]["volumes"]}
    for target, source in volumes.items():
        if target.startswith("/etc/prometheus/"):
            name = tmp_path / Path(target).name
            name.write_text("token" if "token" in source else (DEPLOY / "compose" / source).read_text())
    assert "1 rule files found" in promtool("check", "config", tmp_path / "prometheus.yml")
    (job,) = yaml.safe_load((tmp_path / "prometheus.yml").read_text())["scrape_configs"]
    assert job["job_name"] == "mcp-network-tools"
    hosts = composed()["services"]["server"]["environment"]["MCP_SERVER_ALLOWED_HOSTS"].split(",")
    assert set(job["static_configs"][0]["targets"]) <= set(hosts)


# Grafana.


def test_grafana_loads_the_dashboard_and_its_data_source() -> None:
    shipped = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
    read = Dashboard.from_json(shipped)
    assert (read.uid, read.title) == ("mcp-network-tools", "MCP Network Tools")
    assert read.panels is not None
    assert len(read.panels) == len(shipped["panels"])
    assert {type(panel).__name__ for panel in read.panels} <= {"Panel", "RowPanel"}
    folder = DEPLOY / "grafana/provisioning"
    provider = yaml.safe_load((folder / "dashboards/mcp-network-tools.yaml").read_text())
    source = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text())
    assert provider["apiVersion"] == source["apiVersion"] == 1
    folders = {
        Path(v["target"]).parent for v in composed()["services"]["grafana"]["volumes"] if "dashboard" in v["source"]
    }
    assert {Path(each["options"]["path"]) for each in provider["providers"]} == folders
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    # Grafana chooses the first data source of the type that the dashboard wants.
    (variable,) = (each for each in shipped["templating"]["list"] if each["type"] == "datasource")
    assert variable["query"] == source["datasources"][0]["type"]


# Kubernetes.


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_match_the_schemas_of_kubernetes(name: str) -> None:
    kubernetes_validate.validate(document(name), KUBERNETES, strict=True)


@pytest.mark.parametrize("name", ["namespace", "deployment"])
def test_manifests_with_the_overlay_match_the_schemas(name: str) -> None:
    kubernetes_validate.validate(kernel(name), KUBERNETES, strict=True)


def test_the_schemas_refuse_an_unknown_key() -> None:
    wrong = document("deployment.yaml")
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_every_manifest_is_in_the_kustomization_and_in_the_same_namespace() -> None:
    files = {path.name for path in K8S.glob("*.yaml")} - {"kustomization.yaml", "servicemonitor.yaml"}
    assert files == set(MANIFESTS)
    for name in [*MANIFESTS, "servicemonitor.yaml"]:
        found = document(name)
        assert found["metadata"].get("namespace", found["metadata"]["name"]) == "mcp-network-tools"
    overlay = yaml.safe_load((K8S / "kernel/kustomization.yaml").read_text())
    assert overlay["resources"] == ["../"]
    for patch in overlay["patches"]:
        target = {document(name)["kind"]: name for name in MANIFESTS}[patch["target"]["kind"]]
        assert patch["path"] == f"{Path(target).stem}.json"


def test_the_pod_has_no_privileges_and_the_overlay_adds_those_of_compose() -> None:
    pod = document("deployment.yaml")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert document("serviceaccount.yaml")["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for each in (*pod["initContainers"], *pod["containers"]):
        own = each["securityContext"]
        assert (own["readOnlyRootFilesystem"], own["allowPrivilegeEscalation"]) == (True, False)
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in each["resources"]["limits"]
    assert document("namespace.yaml")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    over = yaml.safe_load((DEPLOY / "compose/compose.kernel.yaml").read_text())["services"]["server"]
    patched = kernel("deployment")["spec"]["template"]["spec"]["containers"][0]
    assert patched["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": over["cap_add"]}
    given = {each["name"]: each.get("value") for each in patched["env"]}
    assert over["environment"].items() <= given.items()
    probes = {name: patched[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}


def test_the_network_policy_allows_the_scope_and_dns(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(document("config.yaml")["data"]["policy.yaml"])
    policy = ScopePolicy.load(tmp_path / "policy.yaml", (), entries_are_set=False)
    scope, names = document("networkpolicy.yaml")["spec"]["egress"]
    blocks = [each["ipBlock"] for each in scope["to"]]
    assert tuple(block["cidr"] for block in blocks) == tuple(policy.entries)
    written = yaml.safe_load((tmp_path / "policy.yaml").read_text())
    excluded = {str(ipaddress.ip_network(each)) for each in written["exclude"]}
    assert {each for block in blocks for each in block["except"]} == excluded
    assert "ports" not in scope
    assert {port["port"] for port in names["ports"]} == {53}
    ingress = document("networkpolicy.yaml")["spec"]["ingress"]
    assert all("from" in each and each["ports"] for each in ingress)


# systemd and scripts.


@pytest.mark.parametrize("name", EXPOSURE)
def test_the_exposure_of_a_unit_does_not_grow(name: str) -> None:
    file = DEPLOY / f"systemd/{name}.service"
    analyze = [binary("systemd-analyze"), "security", "--offline=true", "--no-pager", str(file)]
    done = subprocess.run(analyze, capture_output=True, text=True, check=True)
    exposure = re.search(r"Overall exposure level for \S+ (\d+\.\d)", done.stdout)
    assert exposure, done.stdout
    assert float(exposure[1]) <= EXPOSURE[name], done.stdout
    assert "Unknown" not in done.stderr, done.stderr


def test_a_unit_waits_longer_for_the_end_than_the_server_needs_to_stop() -> None:
    grace = load_config(env={}).server.shutdown_grace_period + 2
    for name in EXPOSURE:
        text = (DEPLOY / f"systemd/{name}.service").read_text()
        limit = re.search(r"(?m)^TimeoutStopSec=(\d+)$", text)
        assert limit, f"{name}.service has no TimeoutStopSec"
        assert int(limit[1]) > grace
    assert document("deployment.yaml")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > grace
    assert int(composed()["services"]["server"]["stop_grace_period"].rstrip("s")) > grace


def test_shellcheck_finds_nothing_in_any_script() -> None:
    listed = subprocess.run(
        [binary("git"), "ls-files", "*.sh", ".ci/*"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    scripts = listed.stdout.split()
    assert {"deploy/install.sh", "deploy/compose/prepare.sh", "scripts/setup.sh", ".ci/run"} <= set(scripts)
    done = subprocess.run([binary("shellcheck"), *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# The pages.


def commands() -> list[str]:
    text = "\n".join(page.read_text() for page in PAGES).replace("\\\n", " ")
    found = re.findall(
        r"mcp-network-tools ((?:serve|call|tools|runs|config|scope|audit|guard|doctor|version)\b[^`|;\n#&>)]*)", text
    )
    return sorted({each.strip() for each in found})


@pytest.mark.parametrize("line", commands())
def test_every_command_on_the_pages_exists(line: str) -> None:
    import typer.main

    from mcp_server.cli import app

    command: Any = typer.main.get_command(app)
    words = line.split()
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options, line


def test_every_file_setting_and_option_on_the_pages_exists() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert len(commands()) > 8, "the pages have too few commands to test"
    for named in set(re.findall(r"(?<![\w.])(?<!exec )deploy/[\w./-]*\w", text)):
        assert (ROOT / named).exists() or named.startswith("deploy/compose/secrets"), named
    configuration = (ROOT / "docs/configuration.md").read_text()
    for variable in set(re.findall(r"\bMCP_[A-Z_]+\b", text)):
        assert variable in configuration or variable == "MCP_CONFIG_FILE", variable
    install = (DEPLOY / "install.sh").read_text()
    for line in re.findall(r"install\.sh ([^`\n]*)", text):
        for option in re.findall(r"--[a-z-]+", line):
            assert f"    {option})" in install, option


def test_every_line_of_the_checklist_has_a_command() -> None:
    page = (ROOT / "docs/deployment-checklist.md").read_text()
    rows = [line for line in page.splitlines() if re.match(r"\| \d+ ", line)]
    assert len(rows) >= 20
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 4, row
        assert int(cells[0]) == number, row
        assert re.search(r"`[^`]+`", cells[2]), row
        assert cells[3], row
