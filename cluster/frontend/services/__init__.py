"""The gRPC services, by area: each module validates, routes to the shard, and answers."""

from __future__ import annotations

import importlib

AREAS = (
    "workflows",
    "workflow_tasks",
    "activity_tasks",
    "nexus_tasks",
    "history",
    "updates",
    "describe",
    "visibility",
    "namespaces",
    "operator",
    "system",
    "task_queues",
    "workers",
    "reset",
    "activity_options",
    "workflow_options",
    "unimplemented",
)


def everything() -> None:
    """Import every area, so that its methods are registered; the last one answers for what is left."""
    for area in AREAS:
        importlib.import_module(f"{__name__}.{area}")
