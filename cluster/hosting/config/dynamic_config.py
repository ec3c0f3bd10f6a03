"""Temporal's dynamic config keys that mean something here, read into limits. Others are ignored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import structlog

from history_store.engine.environment import EngineLimits
from history_store.engine.limits import Limits

log = structlog.get_logger("config")

# key -> (field of EngineLimits, field of the request Limits or "")
_NUMBERS: dict[str, tuple[str, str]] = {
    "limit.blobSize.error": ("blob_bytes_max", "blob_bytes_max"),
    "limit.blobSize.warn": ("", "blob_bytes_warn"),
    "limit.memoSize.error": ("memo_bytes_max", "memo_bytes_max"),
    "limit.memoSize.warn": ("", "memo_bytes_warn"),
    "limit.historySize.error": ("history_bytes_max", ""),
    "limit.historyCount.error": ("history_events_max", ""),
    "limit.historySize.suggestContinueAsNew": ("history_bytes_suggest", ""),
    "limit.historyCount.suggestContinueAsNew": ("history_events_suggest", ""),
    "limit.numPendingActivities.error": ("pending_activities_max", ""),
    "limit.numPendingChildExecutions.error": ("pending_children_max", ""),
    "limit.numPendingSignals.error": ("pending_signals_max", ""),
    "limit.numPendingCancelRequests.error": ("pending_cancels_max", ""),
    "limit.maxIDLength": ("id_bytes_max", "id_bytes_max"),
    "history.maximumSignalsPerExecution": ("signals_max", ""),
    "history.maxInFlightUpdates": ("updates_in_flight_max", ""),
    "history.maxTotalUpdates": ("updates_total_max", ""),
    "history.maximumBufferedEventsBatch": ("buffered_events_max", ""),
}

# Switches of Temporal's that are always on here.
_ALWAYS_ON = frozenset(
    (
        "system.forceSearchAttributesCacheRefreshOnRead",
        "system.enableEagerWorkflowStart",
        "system.enableActivityEagerExecution",
        "frontend.enableExecuteMultiOperation",
        "frontend.enableUpdateWorkflowExecution",
        "frontend.enableUpdateWorkflowExecutionAsyncAccepted",
        "frontend.enableCancelWorkerPollsOnShutdown",
        "frontend.activityAPIsEnabled",
        "frontend.workerHeartbeatsEnabled",
        "frontend.listWorkersEnabled",
        "history.enableRequestIdRefLinks",
    )
)


def read(config: Mapping[str, object]) -> tuple[EngineLimits, Limits]:
    """The limits that the configuration asks for. Unknown keys and unusable values are warned of."""
    engine: dict[str, int] = {}
    request: dict[str, int] = {}
    for key, value in config.items():
        if key in _NUMBERS:
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                log.warning(
                    "a dynamic config value is not a whole number; the default holds", key=key, value=value
                )
                continue
            for_engine, for_request = _NUMBERS[key]
            if for_engine:
                engine[for_engine] = value
            if for_request:
                request[for_request] = value
        elif key in _ALWAYS_ON:
            if value is False:
                log.warning("this cannot be switched off", key=key)
        else:
            log.warning("a dynamic config key has no meaning here; it is ignored", key=key)
    return dataclasses.replace(EngineLimits(), **engine), dataclasses.replace(Limits(), **request)
