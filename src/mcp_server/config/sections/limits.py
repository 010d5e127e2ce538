"""The sections ``limits``, ``tool``, ``admission``, ``rate_limit`` and ``circuit_breaker``."""

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from mcp_server.config import checks
from mcp_server.config.base import Section, Strings, each

MIB = 1024 * 1024
GIB = 1024 * MIB


class LimitsConfig(Section):
    """Limits of one run. A key for the same limit in ``security`` takes precedence."""

    section: ClassVar[str] = "limits"

    max_args_len: int = Field(
        2048,
        ge=1,
        le=10240,
        description="Longest extra_args in characters, unless security.max_args_length is set.",
        json_schema_extra={"env": ["MCP_MAX_ARGS_LEN"]},
    )
    max_stdout_bytes: int = Field(
        MIB,
        ge=1024,
        le=10 * MIB,
        description="Bytes of standard output in a result, unless security.max_output_size is set.",
        json_schema_extra={"env": ["MCP_MAX_STDOUT_BYTES"]},
    )
    max_stderr_bytes: int = Field(
        256 * 1024,
        ge=1024,
        le=10 * MIB,
        description="Bytes of standard error that are kept with a run.",
        json_schema_extra={"env": ["MCP_MAX_STDERR_BYTES"]},
    )
    default_timeout_sec: int = Field(
        300,
        ge=1,
        le=3600,
        description="Seconds for tools without their own number, unless security.timeout_seconds is set. Takes "
        "precedence over tool.default_timeout.",
        json_schema_extra={"env": ["MCP_DEFAULT_TIMEOUT_SEC"]},
    )
    default_concurrency: int = Field(
        2,
        ge=1,
        le=100,
        description="Runs at the same time for tools without their own number, unless security.concurrency_limit is "
        "set. Takes precedence over tool.default_concurrency.",
        json_schema_extra={"env": ["MCP_DEFAULT_CONCURRENCY"]},
    )
    max_memory_mb: int = Field(
        512,
        ge=32,
        le=65536,
        description="MiB of address space that one process of a tool may use.",
        json_schema_extra={"env": ["MCP_MAX_MEMORY_MB"]},
    )
    max_file_descriptors: int = Field(
        256,
        ge=16,
        le=65536,
        description="Files and sockets that one process of a tool may have open.",
        json_schema_extra={"env": ["MCP_MAX_FILE_DESCRIPTORS"]},
    )
    max_raw_bytes: int = Field(
        GIB,
        ge=MIB,
        le=16 * GIB,
        description="Bytes of raw output that are kept per run, before compression.",
        json_schema_extra={"env": ["MCP_MAX_RAW_BYTES"]},
    )


class ToolConfig(Section):
    """The tools that are offered, and the defaults of tools without their own numbers."""

    section: ClassVar[str] = "tool"

    include_patterns: Strings = Field(
        ("*",),
        description="Shell patterns of the names of tools that are offered. Empty: none.",
        json_schema_extra={"env": ["TOOL_INCLUDE"]},
    )
    exclude_patterns: Strings = Field(
        (),
        description="Shell patterns of the names of tools that are not offered. Takes precedence over "
        "include_patterns.",
        json_schema_extra={"env": ["TOOL_EXCLUDE"]},
    )
    packages: Annotated[Strings, each(checks.check_module)] = Field(
        (),
        description="Python packages that are searched for tools, besides the built-in ones.",
        json_schema_extra={"env": ["TOOLS_PACKAGE"]},
    )
    default_timeout: int = Field(
        300,
        ge=1,
        le=3600,
        description="Seconds for tools without their own number. limits.default_timeout_sec and "
        "security.timeout_seconds take precedence.",
    )
    default_concurrency: int = Field(
        2,
        ge=1,
        le=100,
        description="Runs at the same time for tools without their own number. limits.default_concurrency and "
        "security.concurrency_limit take precedence.",
    )


class AdmissionConfig(Section):
    """The numbers of active runs and of waiting calls. Each tool has its own limit as well."""

    section: ClassVar[str] = "admission"

    max_running: int = Field(16, ge=1, le=1000, description="Runs at the same time, over all tools.")
    per_actor: int = Field(8, ge=1, le=1000, description="Runs of one caller at the same time.")
    per_host: int = Field(
        1, ge=1, le=100, description="Runs against the same address at the same time, of all callers."
    )
    max_waiting: int = Field(64, ge=0, le=10000, description="Calls of one tool that may wait. One more is refused.")


class RateLimitConfig(Section):
    """Limits on the calls of tools per minute. Limits on packets are in the policy file."""

    section: ClassVar[str] = "rate_limit"

    calls_per_minute: int = Field(
        10, ge=0, le=100000, description="Calls of one tool by one caller within a minute. 0: no limit."
    )
    total_calls_per_minute: int = Field(
        600, ge=0, le=1000000, description="Calls of all tools by all callers within a minute. 0: no limit."
    )
    storage_url: Annotated[str, AfterValidator(checks.check_rate_storage)] = Field(
        "",
        description="Where calls are counted: a redis:// or rediss:// URL that several servers share, or empty for "
        "the memory of this process.",
    )


class CircuitBreakerConfig(Section):
    """The circuit breaker of each tool: after repeated failures, the tool is not called for some time."""

    section: ClassVar[str] = "circuit_breaker"

    failure_threshold: int = Field(5, ge=1, le=100, description="Consecutive failures that open the breaker.")
    recovery_timeout: int = Field(60, ge=1, le=600, description="Seconds until an open breaker allows one call.")
    half_open_success_threshold: int = Field(1, ge=1, le=10, description="Successes that close a half-open breaker.")
