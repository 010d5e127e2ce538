"""The import paths and attributes that DESIGN.md fixes can be imported."""

from __future__ import annotations

from importlib import import_module

import pytest

FIXED = {
    "mcp_server": ("__version__",),
    "mcp_server.base_tool": ("MCPBaseTool", "ToolInput", "ToolOutput", "ToolErrorType"),
    "mcp_server.tools.nmap_tool": ("NmapTool",),
    "mcp_server.server": ("EnhancedMCPServer",),
    "mcp_server.health": ("SystemHealth", "HealthStatus", "HealthCheckResult", "HealthCheckPriority"),
    "mcp_server.config": ("get_config", "reset_config"),
}
"""Public names by module."""
OUTPUT_FIELDS = (
    "stdout",
    "stderr",
    "returncode",
    "truncated_stdout",
    "truncated_stderr",
    "timed_out",
    "error",
    "error_type",
    "execution_time",
    "correlation_id",
    "metadata",
)


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in FIXED.items() for name in names])
def test_a_fixed_name_can_be_imported(module: str, name: str) -> None:
    assert hasattr(import_module(module), name), f"{module} has no {name}"


def test_the_server_is_a_module_that_can_be_run() -> None:
    from importlib.util import find_spec

    assert find_spec("mcp_server.server.__main__") is not None


def test_a_tool_has_its_fixed_attributes() -> None:
    from mcp_server.base_tool import MCPBaseTool
    from mcp_server.tools.nmap_tool import NmapTool

    assert issubclass(NmapTool, MCPBaseTool)
    for name in ("command_name", "allowed_flags", "default_timeout_sec", "concurrency"):
        assert hasattr(MCPBaseTool, name), f"MCPBaseTool has no {name}"


def test_the_models_of_a_tool_have_their_fixed_fields() -> None:
    from mcp_server.base_tool import ToolInput, ToolOutput

    assert set(ToolInput.model_fields) == {"target", "extra_args", "timeout_sec", "correlation_id"}
    missing = set(OUTPUT_FIELDS) - set(ToolOutput.model_fields)
    assert not missing, f"ToolOutput lacks {sorted(missing)}"


def test_the_server_can_be_cleaned_up_and_the_configuration_read_again() -> None:
    from inspect import iscoroutinefunction, signature

    from mcp_server.config import get_config
    from mcp_server.server import EnhancedMCPServer

    assert iscoroutinefunction(EnhancedMCPServer.cleanup)
    assert "force_new" in signature(get_config).parameters
