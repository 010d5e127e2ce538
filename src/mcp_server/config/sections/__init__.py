"""The sections of the configuration. ``Field(description=…)`` is the documentation of a key.

`docs/configuration.md` is generated from these classes. A key marked `RESTART` is read when the server starts. Every
other key is read each time it is used, so a reload applies it.
"""

from mcp_server.config.sections.limits import AdmissionConfig as AdmissionConfig
from mcp_server.config.sections.limits import CircuitBreakerConfig as CircuitBreakerConfig
from mcp_server.config.sections.limits import LimitsConfig as LimitsConfig
from mcp_server.config.sections.limits import RateLimitConfig as RateLimitConfig
from mcp_server.config.sections.limits import ToolConfig as ToolConfig
from mcp_server.config.sections.operations import DatabaseConfig as DatabaseConfig
from mcp_server.config.sections.operations import HealthConfig as HealthConfig
from mcp_server.config.sections.operations import LoggingConfig as LoggingConfig
from mcp_server.config.sections.operations import MetricsConfig as MetricsConfig
from mcp_server.config.sections.operations import TracingConfig as TracingConfig
from mcp_server.config.sections.security import AuditConfig as AuditConfig
from mcp_server.config.sections.security import GuardConfig as GuardConfig
from mcp_server.config.sections.security import SecurityConfig as SecurityConfig
from mcp_server.config.sections.server import AuthConfig as AuthConfig
from mcp_server.config.sections.server import ServerConfig as ServerConfig
