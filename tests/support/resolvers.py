"""Replaces the resolver of a pipeline."""

from __future__ import annotations

from dataclasses import replace

from mcp_server.pipeline.pipeline import Pipeline
from mcp_server.scope.resolver import Resolver


def use_resolver(pipeline: Pipeline, resolver: Resolver) -> None:
    """Use ``resolver`` for all later calls of the pipeline."""
    pipeline.current.swap(replace(pipeline.current.value, resolver=resolver))
