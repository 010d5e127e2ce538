"""The sections ``health``, ``metrics``, ``tracing``, ``logging`` and ``database``."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from mcp_server.config import checks
from mcp_server.config.base import RESTART, OptionalPath, Section, Strings, any_case
from mcp_server.config.sections.limits import MIB


class HealthConfig(Section):
    """Health checks, and the thresholds that degrade health."""

    section: ClassVar[str] = "health"

    check_interval: int = Field(30, ge=5, le=300, description="Seconds between health checks.")
    cpu_threshold: float = Field(80.0, ge=0, le=100, description="Percentage of CPU in use that degrades health.")
    memory_threshold: float = Field(80.0, ge=0, le=100, description="Percentage of memory in use that degrades health.")
    disk_threshold: float = Field(
        80.0,
        ge=0,
        le=100,
        description="Percentage of the disk of the state folder in use that degrades health.",
    )
    timeout: int = Field(10, ge=1, le=60, description="Seconds that one check may take.")
    dependencies: Strings = Field((), description="Python modules that must be importable.")


class MetricsConfig(Section):
    """The collection of metrics, and the page on which they can be read."""

    section: ClassVar[str] = "metrics"

    enabled: bool = Field(default=True, description="Collect metrics.")
    prometheus_enabled: bool = Field(default=True, description="Offer the metrics in the text format of Prometheus.")
    prometheus_port: int = Field(
        9090,
        ge=1,
        le=65535,
        description="TCP port of a metrics page on 127.0.0.1, which is served only if this key is set. Over HTTP, the "
        "metrics are also at /metrics of the server's own port.",
    )
    collection_interval: int = Field(
        15, ge=5, le=300, description="Seconds between measurements of the server process itself."
    )


class TracingConfig(Section):
    """The collector of the spans of calls. Without an endpoint, no spans are recorded."""

    section: ClassVar[str] = "tracing"

    endpoint: Annotated[str, AfterValidator(checks.check_http_url)] = Field(
        "",
        description="Base URL of an OTLP/HTTP collector, such as http://127.0.0.1:4318. Empty: no spans. Needs the "
        "extra 'tracing'.",
        json_schema_extra={"env": ["OTEL_EXPORTER_OTLP_ENDPOINT"]},
    )
    sample_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of traces that is recorded. For a trace that a client began, the client's decision applies.",
    )


class LoggingConfig(Section):
    """The level, form and destination of log records. Standard output never contains log records."""

    section: ClassVar[str] = "logging"

    level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        any_case("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    ] = Field(
        "INFO",
        description="Lowest severity that is logged, in upper or lower case.",
        json_schema_extra={"env": ["LOG_LEVEL"]},
    )
    format: Annotated[Literal["json", "console"], any_case("json", "console")] = Field(
        "json",
        description="json: one object per line. console: text for people. In upper or lower case.",
        json_schema_extra={"env": ["LOG_FORMAT"]},
    )
    file_path: OptionalPath = Field(
        None, description="File that is written besides standard error. Empty: standard error only."
    )
    max_file_size: int = Field(
        10 * MIB, ge=1024, le=100 * MIB, description="Bytes after which the log file is rotated."
    )
    backup_count: int = Field(5, ge=0, le=100, description="Rotated log files that are kept.")


class DatabaseConfig(Section):
    """The database of runs and observations."""

    section: ClassVar[str] = "database"

    url: Annotated[str | None, AfterValidator(checks.check_database_url)] = Field(
        None,
        description="SQLAlchemy URL of the store (sqlite or postgresql). Empty: SQLite in the state folder.",
        json_schema_extra=RESTART,
    )
    pool_size: int = Field(
        10, ge=1, le=100, description="Connections that stay open (Postgres).", json_schema_extra=RESTART
    )
    max_overflow: int = Field(
        20, ge=0, le=100, description="Additional connections under load (Postgres).", json_schema_extra=RESTART
    )
    pool_timeout: int = Field(
        30, ge=1, le=300, description="Seconds to wait for a connection (Postgres).", json_schema_extra=RESTART
    )
    pool_recycle: int = Field(
        3600,
        ge=60,
        le=7200,
        description="Seconds after which a connection is replaced (Postgres).",
        json_schema_extra=RESTART,
    )
