"""The documents: a folder of text, cut into passages, ranked for a query with BM25.

BM25 (Robertson and Spärck Jones) is what full-text search engines rank with by default: a term counts
more the rarer it is in the collection, and ever less the more often it stands in one passage.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from sdk.demo.messages import Passage, Source

SUFFIXES = (".md", ".txt", ".rst")
DOCUMENTS_MAX = 500  # everything is held in memory, by the worker
DOCUMENT_BYTES_MAX = 1_000_000
PASSAGE_CHARACTERS_MAX = 1200  # a longer paragraph is cut off here: eight of them fit a small model's window
PASSAGE_WORDS_MIN = 6  # shorter ones say nothing that can be quoted
SKIPPED_DIRECTORIES = {"node_modules", "build", "dist", "venv", "__pycache__"}

# BM25's constants, as Lucene has them.
K1 = 1.2
B = 0.75

STOP_WORDS = frozenset(
    """
    a about after all also an and any are as at be been before but by can do does done for from had
    happen happens has have how i if in into is it its just kept like may more most much must no nor not
    of on one only or other our out over own same should so some such than that the their them then
    there these they this those to too under until up us was we were what when where which while who why
    will with without would you your
    """.split()  # noqa: SIM905 - a list of quotation marks is no easier to read
)
_WORD = re.compile(r"[^\W_]{2,}")
_HEADING = re.compile(r"#{1,6}\s+(.*?)\s*#*$")
_FENCE = re.compile(r"\s*(```|~~~)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`*\[(\"“])")


class DocumentsError(Exception):
    """The folder cannot be used; the message says why."""


def terms(text: str) -> list[str]:
    """The words that count, in one form: lower case, no plural, no "-ing" or "-ed"."""
    return [_stem(word) for word in _WORD.findall(text.lower()) if word not in STOP_WORDS]


def _stem(word: str) -> str:
    """A crude stem, the same for query and passage: it brings "kills", "killed" and "killing" together."""
    for suffix in ("ing", "ed", "s"):
        if word.endswith(suffix) and not word.endswith("ss") and len(word) - len(suffix) >= 4:
            return word[: -len(suffix)]
    return word


def sentences(text: str) -> list[str]:
    """The sentences of a passage, each a slice of it, so that it can be found again word for word."""
    return [sentence.strip() for sentence in _SENTENCE_END.split(text) if sentence.strip()]


class Ranking:
    """BM25 over a fixed collection of texts."""

    def __init__(self, texts: Iterable[Sequence[str]]) -> None:
        """Index texts, given as their terms."""
        self._counts = [Counter(text) for text in texts]
        self._lengths = [sum(count.values()) for count in self._counts]
        self._mean = max(1.0, sum(self._lengths) / max(1, len(self._lengths)))
        self._containing: Counter[str] = Counter(term for count in self._counts for term in count)

    def rarity(self, term: str) -> float:
        """How much a term tells: BM25's inverse document frequency."""
        containing = self._containing[term]
        return math.log(1 + (len(self._counts) - containing + 0.5) / (containing + 0.5))

    def score(self, query: Iterable[str], number: int) -> float:
        """How well text `number` matches."""
        count = self._counts[number]
        spread = K1 * (1 - B + B * self._lengths[number] / self._mean)
        return sum(
            self.rarity(term) * count[term] * (K1 + 1) / (count[term] + spread)
            for term in dict.fromkeys(query)
            if term in count
        )

    def best(self, query: Sequence[str], limit: int) -> list[int]:
        """The numbers of the best texts, best first, the earlier of equals first; no text without a match."""
        scored = [(self.score(query, number), number) for number in range(len(self._counts))]
        matching = sorted((-score, number) for score, number in scored if score > 0)
        return [number for _, number in matching[:limit]]


class Library:
    """All passages of a folder."""

    def __init__(self, folder: Path, documents: Sequence[str] | None = None) -> None:
        """Read the folder, or only the documents named."""
        self.folder = folder.resolve()
        self.documents = find(self.folder) if documents is None else list(documents)
        self.passages = [passage for name in self.documents for passage in passages_of(name, self.text(name))]
        if not self.passages:
            raise DocumentsError(f"{folder} has no paragraph of at least {PASSAGE_WORDS_MIN} words")
        self._ranking = Ranking(terms(f"{passage.heading} {passage.text}") for passage in self.passages)

    def text(self, name: str) -> str:
        """A document, read again from the disk. What is not UTF-8 is replaced."""
        return (self.folder / name).read_text(encoding="utf-8", errors="replace")

    def search(self, query: str, limit: int, not_again: Iterable[str] = ()) -> list[Passage]:
        """The best passages for a query, without those at the places named."""
        left_out = set(not_again)
        best = self._ranking.best(terms(query), limit + len(left_out))
        return [self.passages[number] for number in best if self.passages[number].place not in left_out][
            :limit
        ]

    def quotes(self, name: str, text: str) -> bool:
        """Whether the document has this text; line breaks count as spaces, as they do in a paragraph."""
        return name in self.documents and _one_line(text) in _one_line(self.text(name))

    def source(self, name: str) -> Source:
        """The document as a bibliography names it."""
        content = (self.folder / name).read_bytes()
        return Source(name, hashlib.sha256(content).hexdigest(), len(content))


def project() -> Library:
    """This project's own documents, of the checkout that this module is in.

    Its page about this demo is left out, or the agent would quote what the page says of the agent.
    """
    root = Path(__file__).parents[2]
    pages = [
        root / "ARCHITECTURE.md",
        *sorted((root / "docs").rglob("*.md")),
        *sorted(root.glob("*/README.md")),
    ]
    names = sorted(page.relative_to(root).as_posix() for page in pages if page.is_file())
    names = [name for name in names if name != "docs/demo.md"]
    if "ARCHITECTURE.md" not in names:
        raise DocumentsError("the project's documents are not here: name a folder with --documents")
    return Library(root, names)


def find(folder: Path) -> list[str]:
    """The documents of a folder, by name, sorted; hidden ones and those of build directories left out."""
    if not folder.is_dir():
        raise DocumentsError(f"{folder} is not a folder")
    found = []
    for where, directories, files in os.walk(folder):
        directories[:] = [
            name for name in directories if not name.startswith(".") and name not in SKIPPED_DIRECTORIES
        ]
        for name in files:
            path = Path(where, name)
            wanted = path.suffix.lower() in SUFFIXES and not name.startswith(".") and path.is_file()
            if wanted and path.stat().st_size <= DOCUMENT_BYTES_MAX:
                found.append(path.relative_to(folder).as_posix())
    if not found:
        raise DocumentsError(f"{folder} has no {', '.join(SUFFIXES)} of at most {DOCUMENT_BYTES_MAX:,} bytes")
    if len(found) > DOCUMENTS_MAX:
        raise DocumentsError(
            f"{folder} has {len(found)} documents; at most {DOCUMENTS_MAX}: name a smaller folder"
        )
    return sorted(found)


def passages_of(name: str, text: str) -> list[Passage]:
    """Cut a document into its paragraphs, with the heading each stands under, without code and tables."""
    found: list[Passage] = []
    lines: list[str] = []
    begin, heading, fenced = 1, "", False

    def flush() -> None:
        paragraph = _one_line(" ".join(lines))[:PASSAGE_CHARACTERS_MAX]
        if len(_WORD.findall(paragraph)) >= PASSAGE_WORDS_MIN:
            found.append(Passage(name, begin, heading, paragraph))
        lines.clear()

    for number, line in enumerate(text.splitlines(), start=1):
        title = None if fenced else _HEADING.match(line)
        is_fence = _FENCE.match(line) is not None
        ends = not line.strip() or title or is_fence or line.lstrip().startswith(("|", "* ", "- ", "+ "))
        if ends:
            flush()
        if is_fence:
            fenced = not fenced
        elif title:
            heading = title[1]
        elif line.strip() and not fenced and not line.lstrip().startswith(("|", "![", "<")):
            if not lines:
                begin = number
            lines.append(line.strip().removeprefix("* ").removeprefix("- ").removeprefix("+ "))
    flush()
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())
