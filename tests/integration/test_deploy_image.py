"""The Dockerfile, executed step by step in new Debian root folders; the result then serves and scans in each tier.

No container engine is used. tests/support/container.py describes which properties of a container are the same, and
which are not.
"""

from __future__ import annotations

import json
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonpatch
import pytest
import yaml

from tests.support.container import Container, Spec, container
from tests.support.debian_root import PROJECT, build_step, scratch
from tests.support.guarded import OPEN_PORT, TARGET, UNKNOWN_CALLER, World, policy, wait_for, world
from tests.support.image_recipe import Image, Recipe, context, stage_context

# The first test also waits for the build, which takes two minutes if .cache/ has no Debian packages.
pytestmark = pytest.mark.timeout(600)

DEPLOY: Final = PROJECT / "deploy"
STATE: Final = "/var/lib/mcp-network-tools"
NET_RAW: Final = 1 << 13
_ASK: Final = """
import json, sys, urllib.error, urllib.request
url, token, host, body = sys.argv[1:]
headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"} | ({"Host": host} if host else {})
try:
    response = urllib.request.urlopen(urllib.request.Request(url, body.encode() or None, headers), timeout=60)
except urllib.error.HTTPError as error:
    response = error
print(json.dumps([response.status, response.read().decode()]))
"""


@pytest.fixture(scope="module")
def work() -> Iterator[Path]:
    with scratch() as folder:
        yield folder


@pytest.fixture(scope="module")
def image(work: Path) -> Image:
    return Recipe(DEPLOY / "docker/Dockerfile", stage_context(PROJECT, work / "context"), work).build()


@pytest.fixture(scope="module")
def host() -> Iterator[World]:
    with world() as made:
        yield made


def ask(host: World, token: str, path: str, body: Any = None, name: str = "") -> tuple[int, Any]:
    """Send a request to port 8080 in the network of the host; return the status and the body, parsed if it is JSON."""
    url = f"http://127.0.0.1:8080{path}"
    output = host.run(sys.executable, "-c", _ASK, url, token, name, json.dumps(body) if body else "").stdout
    status, text = json.loads(output)
    return status, json.loads(text) if text.startswith("{") else text


def state_folder(image: Image, folder: Path) -> Path:
    """Create a new named volume, with the owner and mode of the folder in the image, as an engine does."""
    found = (image.root / STATE.lstrip("/")).stat()
    folder.mkdir()
    shutil.chown(folder, found.st_uid, found.st_gid)
    folder.chmod(stat.S_IMODE(found.st_mode))
    return folder


def composed(image: Image, folder: Path, *overrides: str) -> tuple[Spec, str]:
    """Return the server of compose.yaml and the files that override it, with the policy of the test, and its token."""
    server = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())["services"]["server"]
    for name in overrides:
        over = yaml.safe_load((DEPLOY / "compose" / name).read_text())["services"]["server"]
        added = {key: [*server.get(key, ()), *over[key]] for key in ("cap_add", "security_opt")}
        server |= {**over, **added, "environment": server["environment"] | over["environment"]}
    assert server["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in server["security_opt"]
    folder.mkdir()
    (folder / "policy.yaml").write_text(policy(TARGET))
    (folder / "policy.yaml").chmod(0o644)
    token = "t" * 40
    (folder / "token").write_text(token)
    (folder / "token").chmod(0o600)
    shutil.chown(folder / "token", 10001, 10001)
    sources = {"./policy.yaml": folder / "policy.yaml", "./secrets/token": folder / "token"}
    sources["state"] = state_folder(image, folder / "state")
    return Spec(
        image.root,
        server["user"],
        tuple(server.get("cap_add", ())),
        image.env | server["environment"],
        image.folder,
        tuple(
            (sources[each["source"]], each["target"], "ro" if each.get("read_only") else "rw")
            for each in server["volumes"]
        ),
        tuple(tuple(each.split(":", 1)) for each in server["tmpfs"]),
        masked="systempaths=unconfined" not in server["security_opt"],
        readonly=server["read_only"],
    ), token


def until_healthy(made: Container, image: Image) -> None:
    """Wait until the health check of the image succeeds."""

    def healthy() -> bool:
        assert made.process.poll() is None, made.log
        return "Listening on" in made.log and made.execute(*image.healthcheck).returncode == 0

    wait_for(healthy, lambda: made.log, 30)


def scan(host: World, token: str, **parameters: Any) -> dict[str, Any]:
    """Scan the target with nmap and return the result."""
    call = {"target": TARGET, "mode": "ports", "ports": f"1,{OPEN_PORT}"} | parameters
    status, result = ask(host, token, "/tools/nmap/execute", call)
    assert status == 200, result
    return dict(result)


def ports(result: dict[str, Any]) -> dict[int, str]:
    """Return the states of the ports of the first host."""
    return {port["number"]: port["state"] for port in result["hosts"][0]["ports"]}


def test_the_build_context_has_only_the_files_that_the_dockerfile_copies() -> None:
    sent = context(PROJECT, PROJECT / ".dockerignore")
    tops = {path.parts[0] for path in sent}
    assert tops == {"src", "requirements", "pyproject.toml", "README.md", "LICENSE"}
    assert {path.name for path in sent if path.parts[0] == "requirements"} == {"build.lock", "deploy.lock"}
    assert not [path for path in sent if path.suffix == ".pyc"]
    assert Path("src/mcp_server/cli/serve.py") in sent


def test_the_image_has_the_locked_packages_and_no_build_tools(image: Image) -> None:
    listing = "import importlib.metadata as m; print([[d.name, d.version] for d in m.distributions()])"
    output = build_step(image.root, ["/opt/mcp-network-tools/bin/python3", "-c", listing]).output
    found = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in json.loads(output.replace("'", '"'))}
    # The lock file can have several versions of a package, each for a range of Python versions.
    locked = set(re.findall(r"(?m)^([\w.-]+)(?:\[[^]]*\])?==(\S+)", (PROJECT / "requirements/deploy.lock").read_text()))
    assert found.pop("mcp-network-tools"), "the project itself is not installed"
    assert set(found.items()) <= locked
    assert {"mcp", "asyncpg", "redis", "opentelemetry-sdk", "cryptography"} <= found.keys()
    assert not {"pip", "setuptools", "hatchling", "wheel"} & found.keys()
    for program in ("gcc", "make", "git", "curl", "pip"):
        assert build_step(image.root, ["/bin/sh", "-c", f"command -v {program}"], env=image.env).code, (
            f"the image has {program}"
        )
    assert not list((image.root / "var/lib/apt/lists").glob("*_Packages"))


def test_the_image_runs_as_a_user_without_privileges(image: Image) -> None:
    assert image.user == "10001:10001"
    assert "mcp-network-tools:x:10001:10001:" in (image.root / "etc/passwd").read_text()
    assert image.volumes == [STATE]
    assert image.ports == ["8080"]
    assert image.labels["org.opencontainers.image.licenses"] == "MIT"
    folder = (image.root / STATE.lstrip("/")).stat()
    assert (folder.st_uid, folder.st_gid, stat.S_IMODE(folder.st_mode)) == (10001, 10001, 0o700)
    assert not list((image.root / STATE.lstrip("/")).iterdir())
    own = list((image.root / "opt/mcp-network-tools").rglob("*"))
    assert not [path for path in own if not path.is_symlink() and (path.stat().st_uid or path.stat().st_mode & 0o022)]


def test_the_server_of_compose_scans_and_leaves_no_process_when_it_stops(image: Image, host: World, work: Path) -> None:
    spec, token = composed(image, work / "argument")
    assert spec.capabilities == ()
    with container(spec, image.entrypoint, work / "argument.log", inside=host.prefix) as made:
        until_healthy(made, image)
        own = made.status()
        assert own["Uid"].split() == ["10001"] * 4
        assert [own[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")] == ["0" * 16] * 4
        assert own["NoNewPrivs"] == "1"
        result = scan(host, token)
        assert ports(result) == {1: "closed", OPEN_PORT: "open"}
        assert result["metadata"]["enforcement"] == "argument"
        status, refused = ask(host, token, "/tools/nmap/execute", {"target": UNKNOWN_CALLER, "ports": "1"})
        assert (status, refused["code"]) == (400, "target_out_of_scope")
        assert ask(host, "x" * 40, "/tools")[0] == 401
        assert "read-only" in made.execute("sh", "-c", "echo x >/etc/x").stderr.lower()
        # Prometheus uses the name of the service.
        status, page = ask(host, token, "/metrics", name="server:8080")
        assert status == 200
        assert "mcp_tool_execution_total" in page
        members = made.members()
        assert made.pid in members
        assert made.stop() == 0
        assert not [pid for pid in members if Path(f"/proc/{pid}").exists()], "processes were left behind"
    assert "server.stopping" in made.log
    assert token not in made.log
    assert "Token" not in made.log
    kept = Path(spec.volumes[1][0])
    assert {"store.db", "audit.jsonl"} <= {path.name for path in kept.iterdir()}
    assert {path.stat().st_uid for path in kept.iterdir() if path.name != "token"} == {10001}


def test_net_raw_has_no_effect_for_a_user_other_than_root(image: Image, work: Path) -> None:
    # A runtime adds it to the bounding set only. The argument tier therefore asks for no capability.
    spec = Spec(image.root, image.user, ("NET_RAW",), image.env)
    with container(spec, ["sh", "-c", "cat /proc/self/status; exec sleep 60"], work / "raw.log") as made:
        wait_for(lambda: "CapBnd" in made.log, lambda: made.log)
        held = made.status()
    assert int(held["CapBnd"], 16) == NET_RAW
    assert int(held["CapEff"], 16) == 0


@pytest.mark.parametrize("mode", ["nat", "macvlan"])
def test_in_the_kernel_tier_of_compose_the_server_has_only_net_raw(
    image: Image, host: World, work: Path, mode: str
) -> None:
    before, strays = host.traces(), host.counted()["stray"]
    spec, token = composed(image, work / mode, "compose.kernel.yaml")
    own = {"MCP_GUARD_MODE": mode}
    if mode == "macvlan":
        own |= {"MCP_GUARD_ADDRESSES": "10.99.0.250/24", "MCP_GUARD_GATEWAYS": TARGET}
    spec = Spec(**spec.__dict__ | {"env": {**spec.env, **own}})
    with container(spec, image.entrypoint, work / f"{mode}.log", inside=host.prefix) as made:
        until_healthy(made, image)
        assert made.status()["Uid"].split()[0] == "0"
        servers = [pid for pid in made.members() if made.status(pid)["Uid"].split()[0] == "10001"]
        assert servers, "no process runs as the user of the server"
        for pid in servers:
            held = made.status(pid)
            assert {int(held[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {NET_RAW}
        guards = json.loads(made.execute("mcp-network-tools", "guard", "status", "--json").stdout)["guards"]
        assert [(each["state"], each["mode"]) for each in guards] == [("up", mode)]
        result = scan(host, token)
        assert ports(result) == {1: "closed", OPEN_PORT: "open"}
        assert result["metadata"]["enforcement"] == "kernel"
        assert result["coverage"]["ports"][0]["method"] == "syn"
        assert made.stop() == 0
    assert host.counted()["stray"] == strays
    wait_for(lambda: host.traces() == before, lambda: f"{before}\n{host.traces()}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masked": True}, "Read-only file system: '/proc/sys"),
        ({"capabilities": ("NET_RAW",)}, "Root lacks CAP_SETGID"),
    ],
    ids=["proc-sys", "capabilities"],
)
def test_the_server_does_not_start_without_the_kernel_tier(
    image: Image, host: World, work: Path, change: dict[str, Any], message: str
) -> None:
    spec, _ = composed(image, work / f"refused-{message[:4].strip()}", "compose.kernel.yaml")
    changed = Spec(**spec.__dict__ | change)
    with container(changed, image.entrypoint, work / "refused.log", inside=host.prefix, started=False) as made:
        assert made.process.wait(20) == 9
    assert "guard_unavailable" in made.log
    assert message in made.log
    assert "Listening on" not in made.log


def deployed(image: Image, folder: Path, *patches: str) -> tuple[dict[str, Any], Spec, str]:
    """Return the pod of deployment.yaml, the container of its server, and the token in its Secret.

    Volumes have the owners that the kubelet gives them: the group is ``fsGroup``, and files of Secrets and ConfigMaps
    belong to root.
    """
    document = yaml.safe_load((DEPLOY / "kubernetes/deployment.yaml").read_text())
    for name in patches:
        document = jsonpatch.apply_patch(document, json.loads((DEPLOY / "kubernetes" / name).read_text()))
    pod = document["spec"]["template"]["spec"]
    group = pod["securityContext"]["fsGroup"]
    folder.mkdir()
    token = "k" * 40
    for name, mode in (("state", 0o2775), ("config", 0o2777), ("token", 0o1777)):
        (folder / name).mkdir()
        shutil.chown(folder / name, 0, group)
        (folder / name).chmod(mode)
    for file, content, mode in (
        ("token/token", token, pod["volumes"][2]["secret"]["defaultMode"]),
        ("config/policy.yaml", policy(TARGET), 0o644),
    ):
        (folder / file).write_text(content)
        shutil.chown(folder / file, 0, group)
        (folder / file).chmod(mode)
    server = pod["containers"][0]
    env = {each["name"]: each.get("value", "10.99.0.1") for each in server["env"]}
    env = {name: value.replace("$(POD_IP)", env["POD_IP"]) for name, value in env.items()}
    context = server["securityContext"]
    user = context.get("runAsUser", pod["securityContext"]["runAsUser"])
    volumes = tuple(
        (folder / each["name"] / each.get("subPath", ""), each["mountPath"], "ro" if each.get("readOnly") else "rw")
        for each in server["volumeMounts"]
        if each["name"] in {"state", "config"}
    )
    spec = Spec(
        image.root, f"{user}:{user}", tuple(context["capabilities"].get("add", ())), image.env | env, image.folder,
        volumes, masked=context.get("procMount") != "Unmasked", readonly=context["readOnlyRootFilesystem"],
    )  # fmt: skip
    return pod, spec, token


@pytest.mark.parametrize("tier", ["argument", "kernel"])
def test_the_pod_starts_answers_its_probes_and_scans(image: Image, host: World, work: Path, tier: str) -> None:
    pod, spec, token = deployed(image, work / f"pod-{tier}", *(["kernel/deployment.json"] if tier == "kernel" else []))
    first = pod["initContainers"][0]
    folder = work / f"pod-{tier}"
    prepare = Spec(
        image.root, "10001:10001", (), image.env | {each["name"]: each["value"] for each in first["env"]},
        volumes=((folder / "state", STATE, "rw"), (folder / "token", first["volumeMounts"][1]["mountPath"], "ro")),
    )  # fmt: skip
    # The group of the container is fsGroup, so it can read the Secret and write to the volume.
    with container(prepare, [*first["command"], *first["args"]], work / f"init-{tier}.log", started=False) as made:
        assert made.process.wait(20) == 0, made.log
    with container(spec, image.entrypoint, work / f"pod-{tier}.log", inside=host.prefix) as made:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            path = pod["containers"][0][probe]["httpGet"]["path"]
            wait_for(lambda path=path: probed(host, path) == 200, lambda: made.log, 30)  # type: ignore[misc]
        result = scan(host, token)
        assert ports(result) == {1: "closed", OPEN_PORT: "open"}
        assert result["metadata"]["enforcement"] == tier
        # A ServiceMonitor uses the address of the pod.
        assert ask(host, token, "/metrics", name="10.99.0.1:8080")[0] == 200
        assert ask(host, token, "/metrics", name="elsewhere:8080")[0] == 403
        started = time.monotonic()
        assert made.stop() == 0
        assert time.monotonic() - started < pod["terminationGracePeriodSeconds"]
    assert "Token" not in made.log


def probed(host: World, path: str) -> int:
    """Send a probe to the address of the pod, like a kubelet; return the status, or 0 if no server listens there."""
    done = host.run(sys.executable, "-c", _ASK, f"http://10.99.0.1:8080{path}", "", "", "", check=False)
    return int(json.loads(done.stdout)[0]) if done.returncode == 0 else 0


def test_a_policy_in_the_folder_of_a_configmap_is_refused_in_the_kernel_tier(
    image: Image, host: World, work: Path
) -> None:
    # The overlay therefore mounts the policy as a file.
    _, spec, _ = deployed(image, work / "folder", "kernel/deployment.json")
    volumes = ((work / "folder/state", STATE, "rw"), (work / "folder/config", "/etc/mcp-network-tools", "ro"))
    changed = Spec(**spec.__dict__ | {"volumes": volumes})
    with container(changed, image.entrypoint, work / "folder.log", inside=host.prefix, started=False) as made:
        assert made.process.wait(20) == 8
    assert "can change /etc/mcp-network-tools" in made.log
