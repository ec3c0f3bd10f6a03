"""What the agent's workflow and its activities say to each other: plain data, readable in a history."""

from __future__ import annotations

from dataclasses import dataclass, field

WORKFLOW_TYPE = "Research"
TASK_QUEUE = "research"

# Activity types that call the model, and so cost money. All others are free to repeat.
MODEL_CALLS = ("plan", "read", "outline", "write")


@dataclass(frozen=True)
class Passage:
    """A paragraph of a document, and where it is."""

    document: str  # path relative to the folder
    line: int
    heading: str
    text: str

    @property
    def place(self) -> str:
        """As a citation names it."""
        return f"{self.document}:{self.line}"


@dataclass(frozen=True)
class Finding:
    """A quotation with its place. The text has to be in the document word for word; a tool checks that."""

    text: str
    document: str
    line: int

    @property
    def place(self) -> str:
        """As a citation names it."""
        return f"{self.document}:{self.line}"


@dataclass(frozen=True)
class Plan:
    """What the agent will look for."""

    queries: list[str]


@dataclass(frozen=True)
class Search:
    """One retrieval."""

    query: str
    not_again: list[str] = field(default_factory=list)  # places that an earlier retrieval brought
    may_be_held: bool = False  # the demo holds these while it kills the worker


@dataclass(frozen=True)
class Reading:
    """What the model is asked about one query."""

    question: str
    query: str
    passages: list[Passage]


@dataclass(frozen=True)
class Note:
    """What the model took from the passages of one query, and what it wants to look for next."""

    query: str
    findings: list[Finding]
    follow_up: str


@dataclass(frozen=True)
class Draft:
    """What the model is asked when everything was read."""

    question: str
    notes: list[Note]
    more: list[Passage]  # of the follow-up retrievals


@dataclass(frozen=True)
class Outline:
    """The findings that the report will rest on; this is what the human approves."""

    findings: list[Finding]


@dataclass(frozen=True)
class Citation:
    """A finding to look up, by number."""

    number: int
    finding: Finding


@dataclass(frozen=True)
class Verdict:
    """Whether a quotation is in its document."""

    place: str
    found: bool


@dataclass(frozen=True)
class Source:
    """A document of the report's bibliography, pinned by its digest."""

    document: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Writing:
    """What the model is asked at the end."""

    question: str
    outline: Outline
    verdicts: list[Verdict]
    sources: list[Source]


@dataclass(frozen=True)
class Approval:
    """The human's word."""

    granted: bool
    by: str


@dataclass(frozen=True)
class Progress:
    """The answer to the query `progress`."""

    stage: str  # planning, researching, checking, waiting for approval, writing, done
    queries: list[str]
    outline: list[Finding]
    verdicts: list[Verdict]


@dataclass(frozen=True)
class Report:
    """The run's result."""

    approved: bool
    text: str
    findings: list[Finding]
    sources: list[Source]
