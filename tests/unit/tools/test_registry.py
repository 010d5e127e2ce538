"""Which classes become tools, under which names, and why others are left out."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from mcp_server.base_tool import MCPBaseTool, ToolPolicy
from mcp_server.errors import AccessError, ConflictError, NotFoundError
from mcp_server.tools.flags import Flag, read
from mcp_server.tools.nmap_tool import NmapTool
from mcp_server.tools.registry import discover, why_left_out


def named(name: str, command: str = "true") -> type[MCPBaseTool]:
    return type(name, (MCPBaseTool,), {"command_name": command})


@pytest.mark.parametrize(
    ("name", "tool_name"),
    [
        ("NmapTool", "nmap"),
        ("DatabaseTool", "database"),
        ("ExampleFreeTool", "example_free"),
        ("TestamentTool", "testament"),
        ("MockingbirdTool", "mockingbird"),
        ("TLSCheckTool", "tls_check"),
        ("Http2ProbeTool", "http2_probe"),
        ("Ping", "ping"),
    ],
)
def test_tools_are_kept_and_named_in_snake_case(name: str, tool_name: str) -> None:
    assert why_left_out(named(name), ["*"], []) is None
    assert named(name).tool_name() == tool_name


@pytest.mark.parametrize(
    "name",
    ["TestTool", "TestNmapTool", "MockTool", "AbstractTool", "_HiddenTool", "ExampleTool", "Example", "ScannerBase",
     "PingMixin", "ScanInterface"],
)  # fmt: skip
def test_scaffolding_is_left_out(name: str) -> None:
    assert "scaffolding" in (why_left_out(named(name), ["*"], []) or "")


def test_a_class_without_a_command_is_left_out() -> None:
    assert why_left_out(named("EmptyTool", ""), ["*"], []) == "it names no command"


@pytest.mark.parametrize(
    ("include", "exclude", "kept"),
    [(["*"], [], True), (["n*"], [], True), (["NmapTool"], [], True), (["p*"], [], False), (["*"], ["nm*"], False),
     ([], [], False)],
)  # fmt: skip
def test_the_patterns_of_the_operator_select_tools(include: list[str], exclude: list[str], kept: bool) -> None:
    assert (why_left_out(named("NmapTool"), include, exclude) is None) is kept


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"site_tools_{abs(hash(request.node.name))}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "echo.py").write_text(
        textwrap.dedent("""
        from mcp_server.base_tool import MCPBaseTool

        class EchoTool(MCPBaseTool):
            command_name = "echo"
            allowed_flags = ["-n"]
        """)
    )
    (folder / "broken.py").write_text("import a_module_that_is_not_there")
    (folder / "clash.py").write_text(
        "from mcp_server.base_tool import MCPBaseTool\nclass NmapTool(MCPBaseTool):\n    command_name = 'echo'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [each for each in sys.modules if each.startswith(name)]:
        del sys.modules[module]


def test_the_tools_of_a_package_are_added_to_the_built_in_tools(package: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        registry = discover(ToolPolicy(), packages=[package])
    assert list(registry.tools) == sorted(registry.tools)
    assert registry.programs["echo"].command_name == "echo"
    assert registry.get("EchoTool") is registry.get("echo")
    assert registry.programs["nmap"].command_name == "nmap"
    reasons = {item.name.rpartition(".")[2]: item.reason for item in registry.left_out}
    assert "a_module_that_is_not_there" in reasons["broken"]
    assert reasons["NmapTool"] == "another tool is already called 'nmap'"
    assert "tool.left_out" in caplog.text


def test_an_entry_point_names_a_class_or_a_module(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("echo", f"{package}.echo:EchoTool", "mcp_server.tools"),
        EntryPoint("broken", f"{package}.broken", "mcp_server.tools"),
        EntryPoint("number", "math:pi", "mcp_server.tools"),
    ]
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: EntryPoints(p for p in points if p.group == group)
    )
    registry = discover(ToolPolicy())
    assert "echo" in registry.tools
    assert {item.name for item in registry.left_out} >= {f"{package}.broken", "math:pi"}


def test_an_unknown_tool_is_refused_with_the_known_names() -> None:
    with pytest.raises(NotFoundError, match="no tool 'nmpa'") as caught:
        discover(ToolPolicy()).get("nmpa")
    assert caught.value.code == "unknown_tool"
    assert "nmap" in caught.value.hint


def test_intrusive_flags_are_refused_unless_the_policy_allows_them() -> None:
    allowing, refusing = (discover(ToolPolicy(allow_intrusive=allow)).programs["nmap"] for allow in (True, False))
    assert [setting.flag.name for setting in read("-A", allowing.flags(), max_length=99)] == ["-A"]
    with pytest.raises(AccessError) as caught:
        read("-A", refusing.flags(), max_length=99)
    assert caught.value.code == "intrusive_not_allowed"
    assert read("-sV", refusing.flags(), max_length=99), "other flags are not affected"


def test_every_registry_is_built_from_the_same_base_list() -> None:
    def table(*, allow: bool) -> dict[str, Flag]:
        return discover(ToolPolicy(allow_intrusive=allow)).programs["nmap"].flags()

    before = [flag for flag in NmapTool.allowed_flags if isinstance(flag, Flag)]
    first, second, third, fourth = (table(allow=allow) for allow in (True, False, True, False))
    assert first == third
    assert second == fourth
    assert set(first) == set(second) == {flag.name for flag in before}
    assert {name for name, flag in second.items() if flag.locked} == {"-A"}
    assert not any(flag.locked for flag in (*first.values(), *before)), "the base list itself is never changed"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("allowed_flags = ['-x PATH']", "unknown value type"),
        ("def __init__(self, policy): raise RuntimeError('no')", "it cannot be built: no"),
        ("parameters = 5", "it cannot be built"),
    ],
)
def test_a_class_that_cannot_be_built_is_the_only_one_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, reason: str
) -> None:
    name = f"unbuildable_{abs(hash(lines))}"
    (tmp_path / f"{name}.py").write_text(
        "from mcp_server.base_tool import MCPBaseTool\n"
        f"class WrongTool(MCPBaseTool):\n    command_name = 'echo'\n    {lines}\n"
        "class RightTool(MCPBaseTool):\n    command_name = 'echo'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry = discover(ToolPolicy(), packages=[name])
    assert list(registry.programs) == ["nmap", "right"]
    (item,) = registry.left_out
    assert item.name == f"{name}.WrongTool"
    assert reason in item.reason


def test_a_class_called_tool_is_left_out() -> None:
    assert "only 'Tool'" in (why_left_out(named("Tool"), ["*"], []) or "")


def test_a_module_that_exits_does_not_end_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving_tools.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = discover(ToolPolicy(), packages=["leaving_tools"])
    assert [item.name for item in registry.left_out] == ["leaving_tools"]
    assert "nmap" in registry.tools


def test_patterns_do_not_remove_a_tool_that_runs_no_program() -> None:
    registry = discover(ToolPolicy(), include=["n*"], exclude=["*"])
    assert (list(registry.tools), registry.programs) == (["scope"], {})
    assert list(discover(ToolPolicy()).seen_by(("no*",)).tools) == ["scope"]
    assert registry.is_server_tool("scope")
    assert registry.is_server_tool("ScopeTool")
    assert not discover(ToolPolicy()).is_server_tool("nmap")
    with pytest.raises(ConflictError, match="scope is disabled"):
        registry.with_disabled({"scope"}).get("scope")


def test_a_disabled_tool_is_not_offered_until_it_is_enabled_again() -> None:
    whole = discover(ToolPolicy())
    without = whole.with_disabled({"nmap"})
    assert (list(without.tools), list(without.offered)) == (["scope"], ["nmap", "scope"])
    for name in ("nmap", "NmapTool"):
        with pytest.raises(ConflictError, match="nmap is disabled") as caught:
            without.get(name)
        assert (caught.value.code, caught.value.details) == ("tool_disabled", {"tool": "nmap"})
        assert without.find(name) is whole.get(name), "active calls still find their tool"
    assert without.with_disabled(()).get("nmap") is whole.get("nmap")
    assert list(whole.programs) == ["nmap"], "the registry of active calls is unchanged"


def test_enabling_offers_no_tool_that_the_operator_excludes() -> None:
    none = discover(ToolPolicy(), exclude=["nmap"]).with_disabled(())
    assert none.programs == {}
    with pytest.raises(NotFoundError) as caught:
        none.with_disabled({"nmap"}).get("nmap")
    assert caught.value.code == "unknown_tool"
    back = discover(ToolPolicy()).with_disabled(none.with_disabled({"nmap"}).disabled)
    assert back.programs == {}, "it stays disabled when a reload offers it again"
