"""Bad input through all four interfaces: the same typed error with a hint, and no process is started."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mcp_server.errors import ERRORS
from tests.bad_targets import BAD_TARGETS
from tests.support.cli import batch
from tests.support.interfaces import (
    INTERFACES,
    Interfaces,
    Reply,
    accepted,
    cli_reply,
    cli_words,
    in_own_task,
    open_interfaces,
)
from tests.support.mcp_wire import ServedProcess, exchange, modern, post

HUGE = "1" * 1_000_000
HERE = "127.0.0.1"
Case = tuple[str, dict[str, Any], str]

BAD_ARGUMENTS: list[Case] = [
    ("target-missing", {}, "invalid_arguments"),
    ("target-empty-list", {"target": []}, "invalid_arguments"),
    ("target-empty-in-list", {"target": [HERE, ""]}, "invalid_arguments"),
    ("target-one-bad-in-list", {"target": [HERE, "8.8.8.8"]}, "target_out_of_scope"),
    ("too-many-targets", {"target": "10.0.0.0/8"}, "too_many_targets"),
    ("both-versions", {"target": [HERE, "::1"]}, "invalid_arguments"),
    ("unknown-parameter", {"target": HERE, "prots": "80"}, "invalid_arguments"),
    ("unknown-parameter-shell", {"target": HERE, "a;b": "80"}, "invalid_arguments"),
    ("unknown-mode", {"target": HERE, "mode": "exploit"}, "invalid_arguments"),
    ("unknown-template", {"target": HERE, "template": "everything"}, "invalid_arguments"),
    ("ports-reversed", {"target": HERE, "ports": "90-80"}, "invalid_arguments"),
    ("ports-too-high", {"target": HERE, "ports": "70000"}, "invalid_arguments"),
    ("ports-negative", {"target": HERE, "ports": "-1"}, "forbidden_characters"),
    ("ports-empty", {"target": HERE, "ports": ""}, "invalid_arguments"),
    ("ports-space", {"target": HERE, "ports": "80 443"}, "invalid_arguments"),
    ("ports-huge", {"target": HERE, "ports": HUGE}, "invalid_arguments"),
    ("ports-too-many-ranges", {"target": HERE, "ports": ",".join(map(str, range(1, 400, 2)))}, "invalid_arguments"),
    ("ports-unicode-digits", {"target": HERE, "ports": "\uff18\uff10"}, "forbidden_characters"),
    ("ports-unknown-name", {"target": HERE, "ports": "no-such-service"}, "invalid_arguments"),
    ("ports-newline", {"target": HERE, "ports": "80\n443"}, "forbidden_characters"),
    ("ports-shell", {"target": HERE, "ports": "80;id"}, "forbidden_characters"),
    ("args-shell", {"target": HERE, "extra_args": "; rm -rf /"}, "forbidden_characters"),
    ("args-newline", {"target": HERE, "extra_args": "-sV\n-oN x"}, "forbidden_characters"),
    ("args-output-file", {"target": HERE, "extra_args": "-oN out"}, "argument_not_allowed"),
    ("args-output-file-bare", {"target": HERE, "extra_args": "-oN"}, "argument_not_allowed"),
    ("args-output-file-joined", {"target": HERE, "extra_args": "-oN=out"}, "argument_not_allowed"),
    ("args-two-dashes", {"target": HERE, "extra_args": "--oN out"}, "argument_not_allowed"),
    ("args-abbreviated", {"target": HERE, "extra_args": "--resum x"}, "argument_not_allowed"),
    ("args-input-file", {"target": HERE, "extra_args": "-iL /etc/passwd"}, "argument_not_allowed"),
    ("args-positional", {"target": HERE, "extra_args": "127.0.0.2"}, "argument_not_allowed"),
    ("args-unicode-dash", {"target": HERE, "extra_args": "\u2212sV"}, "forbidden_characters"),
    ("args-too-long", {"target": HERE, "extra_args": "-n " * 1000}, "arguments_too_long"),
    ("args-huge", {"target": HERE, "extra_args": HUGE}, "invalid_arguments"),
    ("args-intrusive", {"target": HERE, "extra_args": "-A"}, "intrusive_not_allowed"),
    ("script-path", {"target": HERE, "mode": "scripts", "scripts": ["/tmp/x.nse"]}, "invalid_arguments"),
    ("script-intrusive", {"target": HERE, "mode": "scripts", "scripts": ["vuln"]}, "intrusive_not_allowed"),
    ("contradiction", {"target": HERE, "mode": "discover", "ports": "80"}, "invalid_arguments"),
    ("timeout-zero", {"target": HERE, "timeout_sec": 0}, "invalid_arguments"),
    ("timeout-huge", {"target": HERE, "timeout_sec": 10**30}, "invalid_arguments"),
    ("timing-text", {"target": HERE, "timing": "fast"}, "invalid_arguments"),
    ("ping-text", {"target": HERE, "ping": "yes"}, "invalid_arguments"),
    ("correlation-id", {"target": HERE, "correlation_id": "a b"}, "invalid_arguments"),
    ("correlation-id-long", {"target": HERE, "correlation_id": "a" * 65}, "invalid_arguments"),
]  # fmt: skip
ONLY_JSON: list[Case] = [
    ("target-number", {"target": 2130706433}, "invalid_arguments"),
    ("target-null", {"target": None}, "invalid_arguments"),
    ("target-object", {"target": {"host": HERE}}, "invalid_arguments"),
    ("target-list-of-lists", {"target": [[HERE]]}, "invalid_arguments"),
    ("list-as-text", {"target": '["127.0.0.1","127.0.0.2"]'}, "invalid_target"),
    ("ping-number", {"target": HERE, "ping": 1}, "invalid_arguments"),
    ("timing-as-text", {"target": HERE, "timing": "4"}, "invalid_arguments"),
    ("timing-as-float", {"target": HERE, "timing": 4.5}, "invalid_arguments"),
    ("scripts-as-text", {"target": HERE, "scripts": "default"}, "invalid_arguments"),
    ("args-as-list", {"target": HERE, "extra_args": ["-sV"]}, "invalid_arguments"),
    ("args-nul", {"target": HERE, "extra_args": "-sV\x00"}, "forbidden_characters"),
    ("parameter-nul", {"target": HERE, "po\x00rts": "80"}, "invalid_arguments"),
    ("nested-deeply", {"target": HERE, "ports": json.loads("[" * 100 + "]" * 100)}, "invalid_arguments"),
    ("many-parameters", {str(number): number for number in range(5000)}, "invalid_arguments"),
]
"""Values that the command line cannot express: it has no types, and an argument of a process cannot contain NUL."""
TARGETS: list[Case] = [(name, {"target": text}, code) for name, text, code in BAD_TARGETS]

OVER_4_MIB = {"one-megabyte-of-nul"}
"""Longer as JSON than any interface accepts: a NUL takes six characters. The test of 4 MiB messages sends it."""
WITHOUT_UTF8 = {"surrogate"}
"""Text that has no form in UTF-8. The test of lone surrogates sends it as a JSON escape."""
REST_CASES = [case for case in BAD_ARGUMENTS + ONLY_JSON + TARGETS if case[0] not in OVER_4_MIB]
MCP_CASES = [case for case in REST_CASES if case[0] not in WITHOUT_UTF8]

ARG_MAX = 100_000
"""The longest argument to test. Linux accepts at most 128 KiB (execve(2), MAX_ARG_STRLEN)."""


def fits_a_command_line(case: Case) -> bool:
    return not any("\0" in str(value) or len(str(value)) > ARG_MAX for value in case[1].values())


CLI_CASES = [case for case in BAD_ARGUMENTS + TARGETS if fits_a_command_line(case)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def interfaces(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Interfaces]:
    async with in_own_task(open_interfaces(tmp_path_factory.mktemp("bad-input") / "state")) as opened:
        yield opened


def assert_refused(reply: Reply, code: str, interface: str) -> None:
    """Check that the interface returned this error with a hint, in its own form."""
    assert reply.error is not None, f"{interface} accepted it: {reply.text[:300]}"
    # The schema of the tool is checked first, and it limits the length of a target too.
    allowed = {code, "invalid_arguments"} if code in {"invalid_target", "arguments_too_long"} else {code}
    assert reply.code in allowed, reply.error
    assert reply.error["message"], f"{interface}: the error has no message"
    assert reply.error["hint"], f"{interface}: the error has no hint"
    assert reply.error["retryable"] == ERRORS[reply.code].retryable
    assert len(reply.text) < 4000, "the error repeats a huge input"
    assert reply.text.replace("\n", " ").isprintable(), "the error has control characters"
    if interface == "rest":
        assert reply.status == reply.error["status"] == ERRORS[reply.code].http
    if interface == "cli":
        assert reply.status == ERRORS[reply.code].exit
    if interface in {"stdio", "http"}:
        assert reply.body["outcome"] == "refused"
        assert "run_id" not in reply.body, f"{interface}: a refused call has a run"


@pytest.fixture
def nothing_started(interfaces: Interfaces) -> Any:
    """Fail the test if the audit log has an accepted call afterwards, because every started process has one."""
    yield
    assert not accepted(Path(interfaces.env["MCP_STATE_DIR"])), "a process was started"


@pytest.mark.parametrize("interface", ["stdio", "http"])
@pytest.mark.parametrize("case", MCP_CASES, ids=lambda case: case[0])
@pytest.mark.asyncio(loop_scope="module")
async def test_bad_input_over_mcp_is_refused(
    interfaces: Interfaces, nothing_started: None, interface: str, case: Case
) -> None:
    _, arguments, code = case
    assert_refused(await interfaces.call(interface, "nmap", arguments), code, interface)


@pytest.mark.parametrize("case", REST_CASES, ids=lambda case: case[0])
@pytest.mark.asyncio(loop_scope="module")
async def test_bad_input_over_rest_is_refused(interfaces: Interfaces, nothing_started: None, case: Case) -> None:
    _, arguments, code = case
    assert_refused(await interfaces.call("rest", "nmap", arguments), code, "rest")


@pytest.mark.asyncio(loop_scope="module")
async def test_bad_input_on_the_command_line_is_refused(interfaces: Interfaces, nothing_started: None) -> None:
    commands = [["call", "nmap", *cli_words(arguments), "--json"] for _, arguments, _ in CLI_CASES]
    replies = await batch(interfaces.env, *commands)
    for (name, _, code), (status, out, err) in zip(CLI_CASES, replies, strict=True):
        try:
            assert_refused(cli_reply(status, out, err), code, "cli")
        except AssertionError as error:
            error.add_note(f"case {name}")
            raise


@pytest.mark.parametrize("word", ["target=10.0.0.1\0", "target=" + "a" * 1_000_000])
def test_linux_refuses_arguments_with_nul_or_over_128_kib(interfaces: Interfaces, word: str) -> None:
    with pytest.raises((ValueError, OSError)):
        subprocess.run([sys.executable, "-m", "mcp_server", "call", "nmap", word], env=interfaces.env, check=False)


@pytest.mark.asyncio(loop_scope="module")
async def test_words_without_a_parameter_name_and_value_are_refused(
    interfaces: Interfaces, nothing_started: None
) -> None:
    words = ["target", "=127.0.0.1", "127.0.0.1", "target:127.0.0.1", "\udcff", "a" * ARG_MAX]
    for status, out, err in await batch(interfaces.env, *(["call", "nmap", word, "--json"] for word in words)):
        assert_refused(cli_reply(status, out, err), "invalid_arguments", "cli")


async def raw_call(interfaces: Interfaces, interface: str, target: str) -> dict[str, Any]:
    """Send a call without a client library, and return the response as a dictionary."""
    message = modern(7, "tools/call", name="nmap", arguments={"target": target})
    if interface == "stdio":
        async with ServedProcess.open(sys.executable, "-m", "mcp_server.server", env=interfaces.env) as client:
            await client.send(message)
            return await client.receive()
    port = int(interfaces.base.rpartition(":")[2])
    response = await exchange(port, post(port, message, headers={"Authorization": f"Bearer {interfaces.token}"}))
    return dict(response.json()) | {"status": response.status}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_lone_surrogate_over_mcp_is_refused(interfaces: Interfaces, nothing_started: None) -> None:
    # JSON can escape it, but UTF-8 cannot encode it (RFC 8259 section 8.2). The parser of stdio refuses the message.
    # The parser of HTTP accepts the message. Then validation refuses the value.
    by_stdio = await raw_call(interfaces, "stdio", "10.0.0.1\udcff")
    assert by_stdio["error"]["code"] == -32700
    by_http = await raw_call(interfaces, "http", "10.0.0.1\udcff")
    assert by_http["result"]["isError"]
    assert by_http["result"]["structuredContent"]["error"]["code"] == "invalid_arguments"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_message_over_4_mib_is_refused(interfaces: Interfaces, nothing_started: None) -> None:
    target = "\0" * 1_000_000
    by_stdio = await raw_call(interfaces, "stdio", target)
    assert by_stdio["error"]["data"]["code"] == "body_too_large"
    by_http = await raw_call(interfaces, "http", target)
    assert (by_http["status"], by_http["code"]) == (413, "body_too_large")
    by_rest = await interfaces.call("rest", "nmap", {"target": target})
    assert (by_rest.status, by_rest.code) == (413, "body_too_large")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"target": "127.0.0.1"', b"[]", b'"127.0.0.1"', b"null", b'{"target": "\xff"}', b"[" * 100_000,
     b'{"timeout_sec": NaN, "target": "127.0.0.1"}', b'{"timing": 1' + b"0" * 5000 + b', "target": "127.0.0.1"}',
     b'{"target": ' + b"[" * 900 + b"]" * 900 + b"}"],
    ids=["empty", "cut", "cut-object", "list", "text", "null", "bytes", "brackets", "nan", "long-number", "deep"],
)  # fmt: skip
@pytest.mark.asyncio(loop_scope="module")
async def test_a_body_that_is_not_an_object_of_arguments_is_refused(
    interfaces: Interfaces, nothing_started: None, body: bytes
) -> None:
    response = await interfaces.rest.post(
        "/tools/nmap/execute", content=body, headers={"Content-Type": "application/json"}
    )
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "invalid_arguments"), problem
    assert problem["hint"], "the error has no hint"
    assert len(response.content) < 4000, "the error repeats the input"


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.asyncio(loop_scope="module")
async def test_an_unknown_tool_is_not_found(interfaces: Interfaces, nothing_started: None, interface: str) -> None:
    for name in ("nmpa", "nmap\x1b[31m", "n" * 5000, "nmap/../nmap"):
        if interface == "rest":
            name = name.replace("/", "%2F").replace("\x1b", "%1B")  # noqa: PLW2901 - percent-encoded for a URL
        reply = await interfaces.call(interface, name, {"target": HERE})
        assert reply.error is not None
        assert reply.code in {"unknown_tool", "not_found"}
        assert reply.status == {"stdio": -32602, "http": -32602, "rest": 404, "cli": 4}[interface]
        assert "\x1b" not in reply.text, "the error has a control character"
        assert len(reply.text) < 2000, "the error repeats a long name"
    reply = await interfaces.call(interface, "nmpa", {"target": HERE})
    assert reply.code == "unknown_tool"
    assert reply.error is not None
    assert "nmap" in reply.error["hint"]


@pytest.mark.asyncio(loop_scope="module")
async def test_every_refusal_is_on_the_audit_log(interfaces: Interfaces) -> None:
    await interfaces.call("rest", "nmap", {"target": "8.8.8.8"})
    records = [
        json.loads(line) for line in (Path(interfaces.env["MCP_STATE_DIR"]) / "audit.jsonl").read_text().splitlines()
    ]
    last = records[-1]
    assert (last["decision"], last["code"], last["interface"]) == ("deny", "target_out_of_scope", "rest")
    assert last["arguments"] == {"target": "8.8.8.8"}
    assert "RFC1918" in last["reason"]
    assert {record["decision"] for record in records if record["event"] == "decision"} == {"deny"}
