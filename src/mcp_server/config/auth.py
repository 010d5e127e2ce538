"""The section ``auth``: who the HTTP doors let in, and what for."""

from typing import ClassVar

from pydantic import Field

from mcp_server.config.base import OptionalPath, Section


class AuthConfig(Section):
    """Who the HTTP doors let in, and what for."""

    section: ClassVar[str] = "auth"

    actors_file: OptionalPath = Field(
        None,
        description="Actors file (YAML) that bounds single actors: role, networks, tools, calls, packets. Whoever is "
        "not in it may do nothing, unless it says so; the holder of the local token is the owner.",
    )
