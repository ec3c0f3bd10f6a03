"""Limits on what a request or a command may carry: how long, how large, how many.

One frozen record per namespace; the defaults are Temporal's. Sizes are bytes of the encoded message,
identifiers are measured in bytes of UTF-8, times in nanoseconds. What a run as a whole may hold (events,
pending activities) is the engine's own business: `environment.EngineLimits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from history_store.engine.durations import NS_PER_HOUR, NS_PER_SECOND


class CommandLimits(Protocol):
    """What the rules for commands read: `Limits` is one, and any record with these fields."""

    @property
    def id_bytes_max(self) -> int:
        """The longest identifier."""

    @property
    def blob_bytes_max(self) -> int:
        """The largest input, result or details."""

    @property
    def memo_bytes_max(self) -> int:
        """The largest memo."""

    @property
    def search_attributes_max(self) -> int:
        """The most search attributes of one run."""

    @property
    def search_attribute_bytes_max(self) -> int:
        """The largest value of one search attribute."""

    @property
    def search_attributes_bytes_max(self) -> int:
        """The largest set of search attributes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one namespace allows in a request. The `_warn` limits are for the log only."""

    id_bytes_max: int = 1_000  # every name and id: namespace, workflow, type, task queue, request, identity
    build_id_bytes_max: int = 255

    blob_bytes_max: int = 2 << 20
    blob_bytes_warn: int = 512 << 10
    memo_bytes_max: int = 2 << 20
    memo_bytes_warn: int = 2 << 10
    user_metadata_summary_bytes_max: int = 400
    user_metadata_details_bytes_max: int = 20_000

    search_attributes_max: int = 100
    search_attribute_bytes_max: int = 2 << 10
    search_attributes_bytes_max: int = 40 << 10

    links_max: int = 10
    link_bytes_max: int = 4_000  # a link may hold a workflow id and a namespace of 1,000 each
    callbacks_max: int = 2_000  # attached to one run
    callback_url_bytes_max: int = 1_000
    callback_header_bytes_max: int = 8 << 10

    history_page_events_max: int = 256
    visibility_page_max: int = 1_000
    archival_page_max: int = 10_000
    reachability_build_ids_max: int = 5
    fairness_overrides_max: int = 1_000

    nexus_token_bytes_max: int = 4_096
    nexus_endpoint_name_bytes_max: int = 200
    nexus_endpoint_url_bytes_max: int = 4 << 10
    nexus_endpoint_description_bytes_max: int = 20_000
    nexus_endpoints_page_max: int = 1_000

    retention_ns_min: int = NS_PER_HOUR
    workflow_task_timeout_default: int = 10 * NS_PER_SECOND
    workflow_task_timeout_max: int = 120 * NS_PER_SECOND
