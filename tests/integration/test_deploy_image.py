"""The image's recipe, carried out step by step in fresh Debian roots; what it makes then serves and scans in each tier.

No engine runs here: tests/support/container.py says what of a container's surroundings is the same, and what is not.
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

# The first test also waits for the build: two minutes where nothing of Debian is kept in .cache/ yet.
pytestmark = pytest.mark.timeout(600)

DEPLOY: Final = PROJECT / "deploy"
STATE: Final = "/var/lib/mcp-network-tools"
NET_RAW: Final = 1 << 13
_ASK: Final = """
import json, sys, urllib.error, urllib.request
url, token, host, body = sys.argv[1:]
headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"} | ({"Host": host} if host else {})
try:
    answer = urllib.request.urlopen(urllib.request.Request(url, body.encode() or None, headers), timeout=60)
except urllib.error.HTTPError as error:
    answer = error
print(json.dumps([answer.status, answer.read().decode()]))
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
    """Ask the server on port 8080 of the host's network; status and what it answers, read as JSON where it is."""
    url = f"http://127.0.0.1:8080{path}"
    said = host.run(sys.executable, "-c", _ASK, url, token, name, json.dumps(body) if body else "").stdout
    status, text = json.loads(said)
    return status, json.loads(text) if text.startswith("{") else text


def state_folder(image: Image, folder: Path) -> Path:
    """A new named volume: an engine gives it owner and mode of the image's folder."""
    found = (image.root / STATE.lstrip("/")).stat()
    folder.mkdir()
    shutil.chown(folder, found.st_uid, found.st_gid)
    folder.chmod(stat.S_IMODE(found.st_mode))
    return folder


def composed(image: Image, folder: Path, *further: str) -> tuple[Spec, str]:
    """The server as compose.yaml and files over it describe it, with the test's policy; and its token."""
    server = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())["services"]["server"]
    for name in further:
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
    """Wait for the image's own health check to say so."""

    def healthy() -> bool:
        assert made.process.poll() is None, made.log
        return "Listening on" in made.log and made.execute(*image.healthcheck).returncode == 0

    wait_for(healthy, lambda: made.log, 30)


def scanned(host: World, token: str, **parameters: Any) -> dict[str, Any]:
    call = {"target": TARGET, "mode": "ports", "ports": f"1,{OPEN_PORT}"} | parameters
    status, answer = ask(host, token, "/tools/nmap/execute", call)
    assert status == 200, answer
    return dict(answer)


def ports(answer: dict[str, Any]) -> dict[int, str]:
    return {port["number"]: port["state"] for port in answer["hosts"][0]["ports"]}


def test_the_build_context_is_what_the_recipe_copies_and_nothing_else() -> None:
    sent = context(PROJECT, PROJECT / ".dockerignore")
    tops = {path.parts[0] for path in sent}
    assert tops == {"src", "requirements", "pyproject.toml", "README.md", "LICENSE"}
    assert {path.name for path in sent if path.parts[0] == "requirements"} == {"build.lock", "deploy.lock"}
    assert not [path for path in sent if path.suffix == ".pyc"]
    assert Path("src/mcp_server/cli/serve.py") in sent


def test_the_image_holds_what_is_pinned_and_nothing_that_builds(image: Image) -> None:
    listing = "import importlib.metadata as m; print([[d.name, d.version] for d in m.distributions()])"
    said = build_step(image.root, ["/opt/mcp-network-tools/bin/python3", "-c", listing]).output
    found = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in json.loads(said.replace("'", '"'))}
    # A package may be pinned once for each range of Python versions.
    pins = set(re.findall(r"(?m)^([\w.-]+)(?:\[[^]]*\])?==(\S+)", (PROJECT / "requirements/deploy.lock").read_text()))
    assert found.pop("mcp-network-tools")
    assert set(found.items()) <= pins
    assert {"mcp", "asyncpg", "redis", "opentelemetry-sdk", "cryptography"} <= found.keys()
    assert not {"pip", "setuptools", "hatchling", "wheel"} & found.keys()
    for program in ("gcc", "make", "git", "curl", "pip"):
        assert build_step(image.root, ["/bin/sh", "-c", f"command -v {program}"], env=image.env).code, program
    assert not list((image.root / "var/lib/apt/lists").glob("*_Packages"))


def test_the_image_is_for_a_user_without_privilege(image: Image) -> None:
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


def test_it_serves_and_scans_as_compose_starts_it_and_stops_clean(image: Image, host: World, work: Path) -> None:
    spec, token = composed(image, work / "argument")
    assert spec.capabilities == ()
    with container(spec, image.entrypoint, work / "argument.log", inside=host.prefix) as made:
        until_healthy(made, image)
        own = made.status()
        assert own["Uid"].split() == ["10001"] * 4
        assert [own[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")] == ["0" * 16] * 4
        assert own["NoNewPrivs"] == "1"
        answer = scanned(host, token)
        assert ports(answer) == {1: "closed", OPEN_PORT: "open"}
        assert answer["metadata"]["enforcement"] == "argument"
        status, refused = ask(host, token, "/tools/nmap/execute", {"target": UNKNOWN_CALLER, "ports": "1"})
        assert (status, refused["code"]) == (400, "target_out_of_scope")
        assert ask(host, "x" * 40, "/tools")[0] == 401
        assert "read-only" in made.execute("sh", "-c", "echo x >/etc/x").stderr.lower()
        # Prometheus scrapes it by the service's name.
        status, page = ask(host, token, "/metrics", name="server:8080")
        assert status == 200
        assert "mcp_tool_execution_total" in page
        members = made.members()
        assert made.pid in members
        assert made.stop() == 0
        assert not [pid for pid in members if Path(f"/proc/{pid}").exists()]
    assert "server.stopping" in made.log
    assert token not in made.log
    assert "Token" not in made.log
    kept = Path(spec.volumes[1][0])
    assert {"store.db", "audit.jsonl"} <= {path.name for path in kept.iterdir()}
    assert {path.stat().st_uid for path in kept.iterdir() if path.name != "token"} == {10001}


def test_net_raw_is_nothing_to_a_user_who_does_not_start_as_root(image: Image, work: Path) -> None:
    """Why the argument tier is given no capability at all: a runtime can put it into the bounding set only."""
    spec = Spec(image.root, image.user, ("NET_RAW",), image.env)
    with container(spec, ["sh", "-c", "cat /proc/self/status; exec sleep 60"], work / "raw.log") as made:
        wait_for(lambda: "CapBnd" in made.log, lambda: made.log)
        held = made.status()
    assert int(held["CapBnd"], 16) == NET_RAW
    assert int(held["CapEff"], 16) == 0


@pytest.mark.parametrize("mode", ["nat", "macvlan"])
def test_as_compose_starts_the_kernel_tier_the_server_has_net_raw_alone(
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
        assert servers
        for pid in servers:
            held = made.status(pid)
            assert {int(held[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {NET_RAW}
        guards = json.loads(made.execute("mcp-network-tools", "guard", "status", "--json").stdout)["guards"]
        assert [(each["state"], each["mode"]) for each in guards] == [("up", mode)]
        answer = scanned(host, token)
        assert ports(answer) == {1: "closed", OPEN_PORT: "open"}
        assert answer["metadata"]["enforcement"] == "kernel"
        assert answer["coverage"]["ports"][0]["method"] == "syn"
        assert made.stop() == 0
    assert host.counted()["stray"] == strays
    wait_for(lambda: host.traces() == before, lambda: f"{before}\n{host.traces()}")


@pytest.mark.parametrize(
    ("change", "said"),
    [({"masked": True}, "A read-only /proc/sys"), ({"capabilities": ("NET_RAW",)}, "Root lacks CAP_SETGID")],
    ids=["proc-sys", "capabilities"],
)
def test_where_the_kernel_tier_cannot_be_nothing_is_served(
    image: Image, host: World, work: Path, change: dict[str, Any], said: str
) -> None:
    spec, _ = composed(image, work / f"refused-{said[:4].strip()}", "compose.kernel.yaml")
    changed = Spec(**spec.__dict__ | change)
    with container(changed, image.entrypoint, work / "refused.log", inside=host.prefix, started=False) as made:
        assert made.process.wait(20) == 9
    assert "guard_unavailable" in made.log
    assert said in made.log
    assert "Listening on" not in made.log


def deployed(image: Image, folder: Path, *patches: str) -> tuple[dict[str, Any], Spec, str]:
    """The pod of deployment.yaml: its description, the server's surroundings, and the token its Secret holds.

    Volumes are as the kubelet makes them: with the group of ``fsGroup``, a Secret's and a ConfigMap's files as root's.
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
def test_the_pod_starts_as_kubernetes_would_start_it(image: Image, host: World, work: Path, tier: str) -> None:
    pod, spec, token = deployed(image, work / f"pod-{tier}", *(["kernel/deployment.json"] if tier == "kernel" else []))
    first = pod["initContainers"][0]
    folder = work / f"pod-{tier}"
    prepare = Spec(
        image.root, "10001:10001", (), image.env | {each["name"]: each["value"] for each in first["env"]},
        volumes=((folder / "state", STATE, "rw"), (folder / "token", first["volumeMounts"][1]["mountPath"], "ro")),
    )  # fmt: skip
    # Its group is the pod's fsGroup: that is how it may read the Secret and write to the volume.
    with container(prepare, [*first["command"], *first["args"]], work / f"init-{tier}.log", started=False) as made:
        assert made.process.wait(20) == 0, made.log
    with container(spec, image.entrypoint, work / f"pod-{tier}.log", inside=host.prefix) as made:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            path = pod["containers"][0][probe]["httpGet"]["path"]
            wait_for(lambda path=path: probed(host, path) == 200, lambda: made.log, 30)  # type: ignore[misc]
        answer = scanned(host, token)
        assert ports(answer) == {1: "closed", OPEN_PORT: "open"}
        assert answer["metadata"]["enforcement"] == tier
        # A ServiceMonitor scrapes the pod's address.
        assert ask(host, token, "/metrics", name="10.99.0.1:8080")[0] == 200
        assert ask(host, token, "/metrics", name="elsewhere:8080")[0] == 403
        started = time.monotonic()
        assert made.stop() == 0
        assert time.monotonic() - started < pod["terminationGracePeriodSeconds"]
    assert "Token" not in made.log


def probed(host: World, path: str) -> int:
    """The status a kubelet sees, which asks by the pod's address; 0 where nobody listens."""
    done = host.run(sys.executable, "-c", _ASK, f"http://10.99.0.1:8080{path}", "", "", "", check=False)
    return int(json.loads(done.stdout)[0]) if done.returncode == 0 else 0


def test_the_folder_of_a_configmap_is_refused_in_the_kernel_tier(image: Image, host: World, work: Path) -> None:
    """Why the overlay mounts the policy as a file."""
    _, spec, _ = deployed(image, work / "folder", "kernel/deployment.json")
    volumes = ((work / "folder/state", STATE, "rw"), (work / "folder/config", "/etc/mcp-network-tools", "ro"))
    changed = Spec(**spec.__dict__ | {"volumes": volumes})
    with container(changed, image.entrypoint, work / "folder.log", inside=host.prefix, started=False) as made:
        assert made.process.wait(20) == 8
    assert "can change /etc/mcp-network-tools" in made.log
