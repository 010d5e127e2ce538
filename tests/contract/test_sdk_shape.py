"""Parts of the SDK that this project uses beyond its documented interface; a new version of the SDK must keep them."""

from __future__ import annotations

import inspect

import anyio
from mcp.server.lowlevel import Server
from mcp.server.runner import serve_dual_era_loop
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from mcp_types import JSONRPCError, JSONRPCNotification, jsonrpc_message_adapter


def test_the_loop_for_both_protocol_revisions_takes_a_pair_of_streams() -> None:
    parameters = inspect.signature(serve_dual_era_loop).parameters
    assert list(parameters)[:3] == ["server", "read_stream", "write_stream"]
    assert {"lifespan_state", "init_options"} <= set(parameters)


async def test_the_loop_ends_and_closes_its_output_at_end_of_input() -> None:
    server = Server("shape")
    send_in, receive_in = anyio.create_memory_object_stream[object](0)
    send_out, receive_out = anyio.create_memory_object_stream[object](1)
    send_in.close()
    await serve_dual_era_loop(server, receive_in, send_out, lifespan_state={})  # type: ignore[arg-type]  # no message is sent
    assert [item async for item in receive_out] == []
    receive_out.close()


def test_the_adapter_reads_a_request_with_an_unusable_id_as_a_notification() -> None:
    message = jsonrpc_message_adapter.validate_json(b'{"jsonrpc":"2.0","id":null,"method":"ping"}', by_name=False)
    assert isinstance(message, JSONRPCNotification), "the stricter parsing in api/mcp/stdio.py is no longer needed"


def test_an_error_without_an_id_is_sent_with_id_null() -> None:
    error = JSONRPCError.model_validate({"jsonrpc": "2.0", "id": None, "error": {"code": 1, "message": "m"}})
    assert '"id":null' in error.model_dump_json(by_alias=True, exclude_unset=True)


def test_the_sdk_compares_complete_names_if_there_is_no_wildcard() -> None:
    settings = TransportSecuritySettings(allowed_hosts=["localhost:80"], allowed_origins=["http://localhost:80"])
    check = TransportSecurityMiddleware(settings)
    assert check._validate_host("localhost:80")
    assert not check._validate_host("localhost:80@evil")
    assert not check._validate_origin("http://localhost:80@evil")


def test_the_app_has_parameters_for_its_limits() -> None:
    parameters = inspect.signature(Server.streamable_http_app).parameters
    assert {"max_sessions", "session_idle_timeout", "max_request_body_size", "transport_security"} <= set(parameters)
