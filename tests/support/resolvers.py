"""Gives a server's pipeline another resolver."""

from __future__ import annotations

from dataclasses import replace

from mcp_server.pipeline.pipeline import Pipeline
from mcp_server.scope.resolver import Resolver


def use_resolver(pipeline: Pipeline, resolver: Resolver) -> None:
    """Look names up with ``resolver`` in all later calls."""
    pipeline.current.swap(replace(pipeline.current.value, resolver=resolver))
