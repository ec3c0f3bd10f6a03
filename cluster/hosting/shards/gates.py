"""What a call hears whose namespace a shard does not serve now."""

from __future__ import annotations

from history_store.engine.errors import Code, ServiceError
from replication.failover.gates import Admission


class NotActive(ServiceError):
    """The namespace is not served here now (definite: nothing happened).

    FORWARD: `region` serves it. PARK: soon somebody will.
    """

    def __init__(self, namespace_id: str, admission: Admission, message: str = "") -> None:
        where = (
            f"it is active in region {admission.region}" if admission.region else "it is being handed over"
        )
        super().__init__(Code.UNAVAILABLE, message or f"the namespace is not active here: {where}")
        self.namespace_id = namespace_id
        self.verdict = admission.verdict
        self.region = admission.region
        self.version = admission.version
