"""Request ids of started tasks that say which node has the poll they were started for (see takeover.py)."""

from __future__ import annotations


def named_for(request_id: str, node_id: int, region: int) -> str:
    """A request id that says for whose poll the task is started: a UUID of version 8, with both at its end.

    A run goes on in another region with tasks that were started in this one: nobody there knows of them.
    """
    return f"{request_id[:14]}8{request_id[15:-6]}{region:02x}{node_id:04x}"


def named_without_poll(request_id: str) -> str:
    """A request id of a task that rides on a worker's answer: that of node 0, which there is not."""
    return named_for(request_id, 0, 0)


def is_without_poll(request_id: str) -> bool:
    """Whether the task rode on an answer."""
    return len(request_id) == 36 and request_id[14] == "8" and request_id.endswith("0000")


def node_of(request_id: str, region: int) -> int:
    """Whose poll it was; 0 if the id does not say, or it was in another region."""
    if len(request_id) != 36 or request_id[14] != "8":
        return 0
    try:
        return int(request_id[-4:], 16) if int(request_id[-6:-4], 16) == region else 0
    except ValueError:
        return 0
