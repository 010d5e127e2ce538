"""What the server inside the kernel tier is told of the environment that root was given."""

from pathlib import Path

import pytest

from mcp_server.config import load_config
from mcp_server.netguard.account import Account
from mcp_server.netguard.kernel import server_environment


def test_files_are_named_wherever_the_server_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    told = server_environment(given, Account("scanner", 990, 990, "/nonexistent"), load_config(env=given))
    assert told == {
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
