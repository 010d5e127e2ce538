"""The environment that the server in the kernel tier gets from root's."""

from pathlib import Path

import pytest

from mcp_server.config import load_config
from mcp_server.netguard.account import Account, server_environment


def test_paths_become_absolute_and_variables_of_root_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "MCP_STATE_DIR": "state",
        "MCP_SECURITY_POLICY_FILE": "policy.yaml",
        "MCP_AUTH_ACTORS_FILE": "actors.yaml",
        "MCP_SERVER_TLS_CERT": "server.pem",
        "MCP_SERVER_TLS_KEY": "/elsewhere/server.key",
        "MCP_SERVER_PORT": "8081",
        "SUDO_USER": "joe",
    }
    config = load_config(env=given)
    environment = server_environment(given, Account("scanner", 990, 990, "/nonexistent"), config, config.state_dir)
    assert environment == {
        "HOME": "/nonexistent",
        "USER": "scanner",
        "LOGNAME": "scanner",
        "MCP_STATE_DIR": f"{tmp_path}/state",
        "MCP_SECURITY_POLICY_FILE": f"{tmp_path}/policy.yaml",
        "MCP_AUTH_ACTORS_FILE": f"{tmp_path}/actors.yaml",
        "MCP_SERVER_TLS_CERT": f"{tmp_path}/server.pem",
        "MCP_SERVER_TLS_KEY": "/elsewhere/server.key",
        "MCP_SERVER_PORT": "8081",
    }
