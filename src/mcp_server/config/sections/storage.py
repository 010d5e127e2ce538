"""The sections ``audit`` and ``database``."""

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from mcp_server.config import checks
from mcp_server.config.base import RESTART, Section
from mcp_server.config.sections.limits import GIB, MIB


class AuditConfig(Section):
    """The audit log: how often a checkpoint is signed, where checkpoints are sent, and the size of a file."""

    section: ClassVar[str] = "audit"

    checkpoint_interval: int = Field(
        300, ge=1, le=86400, description="Seconds after which a signed checkpoint covers new records."
    )
    ship_to: Annotated[str, AfterValidator(checks.check_shipment)] = Field(
        "",
        description="Where checkpoints are sent besides the state folder: syslog, an absolute path, or empty for "
        "nowhere. Only a copy that this server cannot change reveals a truncated or rewritten log.",
    )
    max_file_size: int = Field(
        100 * MIB,
        ge=64 * 1024,
        le=GIB,
        description="Bytes after which a new audit file begins; the hash chain continues.",
    )


class DatabaseConfig(Section):
    """Where runs and observations are stored."""

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
