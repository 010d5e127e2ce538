"""The file and the environment: merging, precedence, and errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_server.config import load_config
from mcp_server.config.sources import CLIENT_VARIABLES, MAX_FILE_BYTES
from mcp_server.errors import ConfigError

YAML = """
# a comment
state_dir: /srv/state
server:
  host: ::1
  port: 9000
security:
  allowed_targets: [loopback, 10.0.0.0/8, .corp.example]
  allow_intrusive: true
metrics:
"""


def write(folder: Path, text: str | bytes, name: str = "config.yaml") -> Path:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def refused(file: Path | None = None, **env: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(file, env=env)
    assert caught.value.code == "config_invalid"
    assert caught.value.hint
    return caught.value


def test_a_yaml_file_is_merged_key_by_key(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, YAML), env={})
    assert config.state_dir == Path("/srv/state")
    assert (config.server.host, config.server.port, config.server.transport) == ("::1", 9000, "stdio")
    assert config.security.allowed_targets == ("loopback", "10.0.0.0/8", ".corp.example")
    assert config.security.allow_intrusive is True
    assert config.security.timeout_seconds == 300
    assert config.metrics.enabled is True


def test_json_and_yaml_give_the_same_configuration(tmp_path: Path) -> None:
    data = {
        "state_dir": "/srv/state",
        "server": {"host": "::1", "port": 9000},
        "security": {"allowed_targets": ["loopback", "10.0.0.0/8", ".corp.example"], "allow_intrusive": True},
        "metrics": None,
    }
    as_json = load_config(write(tmp_path, json.dumps(data), "config.json"), env={})
    assert as_json.model_dump() == load_config(write(tmp_path, YAML), env={}).model_dump()


def test_the_environment_takes_precedence_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, YAML)
    env = {"MCP_CONFIG_FILE": str(file), "MCP_SERVER_PORT": "9001", "MCP_SECURITY_ALLOWED_TARGETS": "RFC1918"}
    config = load_config(env=env)
    assert (config.server.host, config.server.port) == ("::1", 9001)
    assert config.security.allowed_targets == ("RFC1918",)
    assert config.file == file
    sources = [config.server.source_of(key) for key in ("port", "host", "transport")]
    assert sources == ["env", "file", "default"]
    assert config.source_of("state_dir") == "file"


def test_an_explicit_path_takes_precedence_over_the_variable(tmp_path: Path) -> None:
    asked = write(tmp_path, "server: {port: 1111}", "asked.yml")
    other = write(tmp_path, "server: {port: 2222}", "other.yml")
    assert load_config(asked, env={"MCP_CONFIG_FILE": str(other)}).server.port == 1111


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCP_SERVER_PORT", "9002")
    assert load_config().server.port == 9002
    assert load_config(env={}).server.port == 8080


def test_lists_in_variables_are_comma_separated() -> None:
    config = load_config(
        env={
            "MCP_SECURITY_ALLOWED_TARGETS": "loopback,RFC1918,.lab.internal",
            "TOOL_INCLUDE": "nmap, dig*,",
            "TOOL_EXCLUDE": "",
            "TOOLS_PACKAGE": "acme.tools,other_tools",
        }
    )
    assert config.security.allowed_targets == ("loopback", "RFC1918", ".lab.internal")
    assert config.tool.include_patterns == ("nmap", "dig*")
    assert config.tool.exclude_patterns == ()
    assert config.tool.packages == ("acme.tools", "other_tools")


def test_an_empty_scope_allows_nothing() -> None:
    assert load_config(env={"MCP_SECURITY_ALLOWED_TARGETS": ""}).security.allowed_targets == ()


def test_a_long_name_takes_precedence_over_a_short_one() -> None:
    assert load_config(env={"LOG_LEVEL": "trace", "MCP_LOGGING_LEVEL": "error"}).logging.level == "ERROR"
    assert load_config(env={"MCP_MAX_ARGS_LEN": "1", "MCP_LIMITS_MAX_ARGS_LEN": "7"}).limits.max_args_len == 7


@pytest.mark.parametrize("text", ["true", "YES", "on", "1"])
def test_a_variable_is_true_with_any_of_these_words(text: str) -> None:
    assert load_config(env={"MCP_SECURITY_ALLOW_INTRUSIVE": text}).security.allow_intrusive is True


@pytest.mark.parametrize("text", ["false", "No", "off", "0"])
def test_a_variable_is_false_with_any_of_these_words(text: str) -> None:
    assert load_config(env={"MCP_METRICS_ENABLED": text}).metrics.enabled is False


def test_variables_of_clients_and_of_others_are_ignored() -> None:
    foreign = dict.fromkeys([*CLIENT_VARIABLES, "PATH", "mcp_server_port", "MCPX", "PORT"], "1")
    assert load_config(env=foreign | {"MCP_STATE_DIR": "/s"}) == load_config(env={"MCP_STATE_DIR": "/s"})


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("MCP_SERVER_PROT", "MCP_SERVER_PORT"),
        ("MCP_SECURITY_ALLOWED_TARGET", "MCP_SECURITY_ALLOWED_TARGETS"),
        ("MCP_CONFIG_FIL", "MCP_CONFIG_FILE"),
        ("MCP_MAX_ARG_LEN", "MCP_MAX_ARGS_LEN"),
        ("MCP_STATEDIR", "MCP_STATE_DIR"),
    ],
)
def test_an_unknown_variable_is_an_error_with_the_nearest_name(name: str, like: str) -> None:
    error = refused(None, **{name: "1"})
    assert name in error.message
    assert error.details["nearest"] == like
    assert like in error.message


@pytest.mark.parametrize(
    ("text", "unknown", "like"),
    [
        ("sever: {port: 1}", "sever", "server"),
        ("server: {prot: 1}", "server.prot", "server.port"),
        ("security: {allowed_target: []}", "security.allowed_target", "security.allowed_targets"),
        ("statedir: /x", "statedir", "state_dir"),
        ("server.port: 80", "server.port", "server.port"),
    ],
)
def test_an_unknown_key_is_an_error_with_the_nearest_name(tmp_path: Path, text: str, unknown: str, like: str) -> None:
    file = write(tmp_path, text)
    error = refused(file)
    assert repr(unknown) in error.message
    assert str(file) in error.message
    assert error.details["nearest"].startswith(like)


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("MCP_SERVER_PORT", "http", "server.port"),
        ("MCP_SERVER_PORT", "", "server.port"),
        ("MCP_SERVER_PORT", "8080.5", "server.port"),
        ("MCP_SERVER_PORT", "٨٠٨٠", "server.port"),
        ("MCP_SERVER_PORT", "8_080", "server.port"),
        ("MCP_SERVER_PORT", "9" * 5000, "server.port"),
        ("MCP_HEALTH_CPU_THRESHOLD", "nan", "health.cpu_threshold"),
        ("MCP_HEALTH_CPU_THRESHOLD", "inf", "health.cpu_threshold"),
        ("MCP_SECURITY_ALLOW_INTRUSIVE", "maybe", "security.allow_intrusive"),
        ("MCP_SERVER_TRANSPORT", "sse", "server.transport"),
        ("MCP_SERVER_HOST", "", "server.host"),
        ("MCP_SERVER_ANSWER_TEXT", "long", "server.answer_text"),
        ("LOG_LEVEL", "loud", "logging.level"),
        ("TOOLS_PACKAGE", "../evil", "tool.packages"),
        ("MCP_SECURITY_ALLOWED_TARGETS", "RFC1918,8.8.8", "security.allowed_targets"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(variable: str, value: str, key: str) -> None:
    error = refused(None, **{variable: value})
    assert error.message.startswith(f"{key}: ")
    assert error.details["keys"] == [key]
    assert value.rsplit(",", maxsplit=1)[-1][:20] in error.message
    assert variable in error.message
    assert len(error.message) < 400


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("server: {port: '8080'}", "server.port"),
        ("server: {port: 8080.0}", "server.port"),
        ("server: {port: true}", "server.port"),
        ("server: {port: }", "server.port"),
        ("health: {cpu_threshold: .nan}", "health.cpu_threshold"),
        ("health: {cpu_threshold: -.inf}", "health.cpu_threshold"),
        ("health: {disk_threshold: .inf}", "health.disk_threshold"),
        ("security: {allow_intrusive: 1}", "security.allow_intrusive"),
        ("security: {allow_intrusive: 'true'}", "security.allow_intrusive"),
        ("security: {allowed_targets: RFC1918}", "security.allowed_targets"),
        ("security: {allowed_targets: [10]}", "security.allowed_targets"),
        ("security: {allowed_targets: ['']}", "security.allowed_targets"),
        ("database: {url: 5}", "database.url"),
        ("state_dir: 5", "state_dir"),
        ("logging: {level: 5}", "logging.level"),
    ],
)
def test_values_of_a_file_are_not_converted(tmp_path: Path, text: str, key: str) -> None:
    file = write(tmp_path, text)
    error = refused(file)
    assert error.message.startswith(f"{key}: ")
    assert f"from {file}" in error.message


def test_up_to_ten_problems_are_named(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "server: {port: a, transport: b}\nsecurity: {allow_intrusive: c}"))
    assert error.details["keys"] == ["server.port", "server.transport", "security.allow_intrusive"]
    many = ", ".join(["1"] * 500)
    error = refused(write(tmp_path, f"security: {{allowed_targets: [{many}]}}"))
    assert error.message.endswith("There are 490 more problems.")


@pytest.mark.parametrize(
    ("content", "name", "word"),
    [
        ("server: [1", "c.yaml", "not YAML"),
        ("server: {port: 1}\nserver: {port: 2}", "c.yaml", "line 2: the key 'server' occurs twice, first in line 1"),
        ("server:\n  port: 1\n  port: 2", "c.yaml", "line 3: the key 'port' occurs twice, first in line 2"),
        ("a: !!python/object/apply:os.system [id]", "c.yaml", "line 1: a tag (!) is not supported"),
        ("? [a]\n: 1", "c.yaml", "line 1: a key must be a single word"),
        ("server: {1: 2}", "c.yaml", "no key 'server.1'"),
        ("2020-01-01: 3", "c.yaml", "line 1: a key is not a name"),
        ("server: 5", "c.yaml", "section 'server'"),
        ("- server", "c.yaml", "must hold sections"),
        ("just text", "c.yaml", "must hold sections"),
        ("server: {port: 2024-99-99}", "c.yaml", "valid integer"),
        ('{"server": ', "c.json", "not JSON"),
        ('{"server": {"port": 1, "port": 2}}', "c.json", "the key 'port' occurs twice"),
        ("server: {port: 1}", "c.json", "not JSON"),
        ("[" * 120_000 + "]" * 120_000, "c.json", "nested too deeply"),
        ('{"server": {"port": %s}}' % ("9" * 5000), "c.json", "a number is too long"),
        ("server: {port: 0x%s}" % ("f" * 5000), "c.yaml", "valid integer"),
        ("server: &s {watch_config: false}", "c.yaml", "line 1: an anchor (&) is not supported"),
        ("server: {watch_config: *s}", "c.yaml", "line 1: an alias (*) is not supported"),
        ("[" * 50_000, "c.yaml", "nested more than"),
        (b"server: \xff\xfe", "c.yaml", "not UTF-8"),
        (b"#" * (MAX_FILE_BYTES + 1), "c.yaml", "larger than"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: str | bytes, name: str, word: str) -> None:
    file = write(tmp_path, content, name)
    error = refused(file)
    assert word in error.message
    assert str(file) in error.message


def test_the_message_about_a_broken_file_does_not_quote_it(tmp_path: Path) -> None:
    for name in ("c.yaml", "c.json"):
        message = refused(write(tmp_path, "database: {url: 'postgresql://u:hunter2@db/x", name)).message
        assert "hunter2" not in message
        assert "line 1" in message


@pytest.mark.parametrize("name", ["c.yaml", "c.json"])
@pytest.mark.parametrize(
    "text",
    [
        "root:$6$hunter2$abc:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n",
        "hunter2",
        "- hunter2",
        '["hunter2"]',
        '"hunter2"',
        "$hunter2: 1",
        '{"$hunter2": 1}',
        '{"hunter2 hunter2": 1, "hunter2 hunter2": 1}',
        "server: hunter2",
        '{"server": "hunter2"}',
        "password: !hunter2",
        "password: *hunter2",
        "password: &hunter2 x",
        "x: @hunter2",
        "%hunter2",
        "a: b: hunter2",
        "- {password: hunter2}",
    ],
)
def test_no_text_of_another_file_is_in_the_message(tmp_path: Path, text: str, name: str) -> None:
    link = tmp_path / name
    link.symlink_to(write(tmp_path, text, "other"))
    error = refused(link)
    assert "hunter2" not in f"{error.as_dict()}"
    assert str(link) in error.message


def test_a_pipe_or_a_device_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        assert refused(path).message == f"The configuration file {path} is not a regular file."


def test_messages_about_large_values_are_short(tmp_path: Path) -> None:
    bomb = "tool:\n  include_patterns:\n   - &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"   - &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
    )
    nested = "[" * 30 + "x" + "]" * 30
    wide = "[" + ", ".join(["[" + ", ".join(["[x, x, x, x, x, x, x]"] * 50) + "]"] * 50) + "]"
    texts = [bomb, *(f"tool: {{include_patterns: [{each}]}}" for each in (nested, wide))]
    texts += [f"server: {{allowed_origins: ['{'x' * 200_000}']}}", f"database: {{url: '@{'://:' * 50_000}'}}"]
    for text in texts:
        assert len(refused(write(tmp_path, text)).message) < 1500
    many = ", ".join(f"'{'x' * 2000}{number}'" for number in range(40))
    message = refused(write(tmp_path, f"server: {{allowed_origins: [{many}]}}")).message
    assert len(message) < 4100


def test_a_secret_in_a_text_that_is_too_long_to_search_is_hidden(tmp_path: Path) -> None:
    for password in ("hunter2" * 500, "hunter2/" * 500):
        url = f"mysql://scan:{password}@127.0.0.1/x"
        assert "hunter2" not in refused(write(tmp_path, f"database: {{url: '{url}'}}")).message
        assert "hunter2" not in refused(write(tmp_path, f"tool: {{include_patterns: [['{url}']]}}")).message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    assert f"{missing} cannot be read: No such file" in refused(None, MCP_CONFIG_FILE=str(missing)).message
    assert "is not a regular file" in refused(tmp_path).message


def test_an_empty_file_and_an_empty_variable_change_nothing(tmp_path: Path) -> None:
    default = load_config(env={})
    assert load_config(write(tmp_path, ""), env={}).model_dump() == default.model_dump()
    assert load_config(env={"MCP_CONFIG_FILE": ""}).model_dump() == default.model_dump()


def test_yaml_merge_keys_are_refused(tmp_path: Path) -> None:
    text = "circuit_breaker:\n  <<: {recovery_timeout: 9}\n  failure_threshold: 3\n"
    assert "line 2: merge keys (<<) are not supported" in refused(write(tmp_path, text)).message


@pytest.mark.parametrize(
    ("text", "value"),
    [("on", True), ("Yes", True), ("false", False), ("NO", False)],
)
def test_words_of_a_yaml_file_are_read_as_booleans(tmp_path: Path, text: str, value: bool) -> None:
    assert load_config(write(tmp_path, f"metrics: {{enabled: {text}}}"), env={}).metrics.enabled is value


def test_numbers_of_a_yaml_file_are_decimal(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "server: {port: 0080}"), env={}).server.port == 80
    assert load_config(write(tmp_path, "health: {cpu_threshold: 12.5}"), env={}).health.cpu_threshold == 12.5
    for text in ("0x50", "1_000", "22:00", "1e3"):
        assert "valid integer" in refused(write(tmp_path, f"server: {{port: {text}}}")).message


def test_a_wrong_value_in_a_yaml_file_is_named_with_its_line(tmp_path: Path) -> None:
    file = write(tmp_path, "server:\n  host: ::1\n  port: many\n")
    assert f"(got 'many' from {file}, line 3)" in refused(file).message


def test_slow_modules_are_not_imported_at_the_start() -> None:
    program = (
        "import sys; from mcp_server.config import load_config; load_config(env={'MCP_STATE_DIR': '/x'}); "
        "heavy = {'yaml', 'platformdirs', 'pydantic_settings', 'difflib', 'mcp_server.config.show'}; "
        "print(*sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert not result.stdout.strip()
