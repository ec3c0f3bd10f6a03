"""The model: an offline stand-in, or any endpoint that speaks OpenAI's chat completions.

The stand-in is no language model and does not pretend to be one. It picks sentences out of the passages
it is given, ranked with BM25, and never writes one of its own about the matter. So the same question over
the same documents has the same answer.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from sdk.demo.documents import Ranking, sentences, terms
from sdk.demo.messages import Draft, Finding, Note, Outline, Passage, Plan, Reading, Writing

QUERIES_MAX = 4
FINDINGS_OF_A_NOTE_MAX = 3
FINDINGS_MAX = 5
FINDINGS_OF_A_DOCUMENT_MAX = 2
QUOTATION_CHARACTERS_MAX = 400
QUOTATION_WORDS_MIN = 8
ANSWER_WAIT_MAX_S = 80.0  # below the activity's time-out, so that this is what ends a slow call
ERROR_CHARACTERS_MAX = 300
ENDPOINT_DEFAULT = "https://api.openai.com/v1"
MODEL_DEFAULT = "gpt-4o-mini"

Value = TypeVar("Value")


@dataclass(frozen=True)
class Answer(Generic[Value]):
    """What a call brought, and its price in tokens (0: the stand-in has none)."""

    value: Value
    tokens: int = 0


class Refused(Exception):
    """The endpoint took no order: nothing was done, nothing is paid."""

    def __init__(self, message: str, *, worth_a_retry: bool) -> None:
        super().__init__(message)
        self.worth_a_retry = worth_a_retry


class Model(Protocol):
    """Four kinds of call, each made once with its idempotency key."""

    name: str

    async def plan(self, key: str, question: str, headings: Sequence[str]) -> Answer[Plan]:
        """Say what to look for."""
        ...

    async def read(self, key: str, reading: Reading) -> Answer[Note]:
        """Quote what answers the question, and say what to look for next."""
        ...

    async def outline(self, key: str, draft: Draft) -> Answer[Outline]:
        """Choose the findings that matter."""
        ...

    async def write(self, key: str, writing: Writing) -> Answer[str]:
        """Write the report."""
        ...


def choose(environment: Mapping[str, str], *, offline: bool = False) -> Model:
    """The endpoint of the environment, or the stand-in where it names none."""
    key = environment.get("OPENAI_API_KEY", "")
    if offline or not key:
        return StandIn()
    base = environment.get("OPENAI_BASE_URL") or ENDPOINT_DEFAULT
    return Endpoint(base.rstrip("/"), key, environment.get("OPENAI_MODEL") or MODEL_DEFAULT)


class StandIn:
    """Ranks sentences."""

    name = "stand-in (ranks sentences, offline)"

    async def plan(self, key: str, question: str, headings: Sequence[str]) -> Answer[Plan]:  # noqa: ARG002 - a key for nobody
        """One query for each of the headings that match best, then the first ones given."""
        asked = terms(question)
        ranking = Ranking(terms(heading) for heading in headings)
        matching = [headings[number] for number in ranking.best(asked, QUERIES_MAX)]
        chosen = list(dict.fromkeys([*matching, *headings]))[:QUERIES_MAX] or [question]
        return Answer(
            Plan([f"{heading}: {question}" if heading != question else question for heading in chosen])
        )

    async def read(self, key: str, reading: Reading) -> Answer[Note]:  # noqa: ARG002 - a key for nobody
        """The sentences nearest to the query; then the words that the passages share and it lacks."""
        query = terms(reading.query)
        findings = nearest(quotations(reading.passages), query, FINDINGS_OF_A_NOTE_MAX)
        shared = Counter(term for passage in reading.passages for term in set(terms(passage.text)))
        for term in query:
            shared.pop(term, None)
        new = [term for term, _ in sorted(shared.items(), key=lambda item: (-item[1], item[0]))[:3]]
        follow_up = " ".join([*new, *terms(reading.question)])
        return Answer(Note(reading.query, findings, follow_up))

    async def outline(self, key: str, draft: Draft) -> Answer[Outline]:  # noqa: ARG002 - a key for nobody
        """The best of all findings; not too many of one document, and none far from the best."""
        pool = [finding for note in draft.notes for finding in note.findings] + quotations(draft.more)
        distinct = list({finding.text: finding for finding in pool}.values())
        asked = terms(draft.question)
        ranked = nearest(distinct, asked, len(distinct))
        wanted = len(set(terms(ranked[0].text)) & set(asked)) / 2 if ranked else 0.0
        ranked = [finding for finding in ranked if len(set(terms(finding.text)) & set(asked)) >= wanted]
        chosen: list[Finding] = []
        of_document: Counter[str] = Counter()
        for finding in ranked:
            if of_document[finding.document] < FINDINGS_OF_A_DOCUMENT_MAX and len(chosen) < FINDINGS_MAX:
                of_document[finding.document] += 1
                chosen.append(finding)
        return Answer(Outline(chosen))

    async def write(self, key: str, writing: Writing) -> Answer[str]:  # noqa: ARG002 - a key for nobody
        """The findings as they are, numbered, with their places."""
        lines = [f"# {writing.question}", ""]
        lines.append("What the documents say, in their own words (a stand-in chose the sentences):")
        lines.append("")
        checked = zip(writing.outline.findings, writing.verdicts, strict=True)
        for number, (finding, verdict) in enumerate(checked, start=1):
            doubt = "" if verdict.found else " (not found word for word)"
            lines.append(f"{number}. {finding.text} [{finding.place}]{doubt}")
        if not writing.outline.findings:
            lines.append("Nothing: no sentence has a word in common with the question.")
        return Answer("\n".join([*lines, "", *bibliography(writing)]))


def quotations(passages: Sequence[Passage]) -> list[Finding]:
    """Every sentence that is long enough to say something and short enough to quote."""
    return [
        Finding(sentence, passage.document, passage.line)
        for passage in passages
        for sentence in sentences(passage.text)
        if len(sentence.split()) >= QUOTATION_WORDS_MIN
        and len(sentence) <= QUOTATION_CHARACTERS_MAX
        and sentence.endswith((".", "!", "?"))
    ]


def nearest(findings: Sequence[Finding], query: Sequence[str], limit: int) -> list[Finding]:
    """The findings that match the query best, best first.

    How many of the query's words a sentence has counts before BM25: over texts as short as sentences, BM25
    alone prefers the shortest that has one rare word.
    """
    texts = [terms(finding.text) for finding in findings]
    matching = Ranking(texts).best(query, len(findings))
    matching.sort(key=lambda number: -len(set(texts[number]) & set(query)))  # stable: BM25 among equals
    return [findings[number] for number in matching[:limit]]


def bibliography(writing: Writing) -> list[str]:
    """The documents with their digests, so that a reader can tell whether they changed since."""
    return ["Sources:", *(f"- {each.document} (sha256 {each.sha256[:12]}…)" for each in writing.sources)]


class Endpoint:
    """OpenAI's chat completions, at OpenAI's or anybody's address.

    What a model answers is taken as far as it can be used and never asked for again: an answer that is
    no JSON, or quotes a passage that was not shown, is a poor answer, but it is paid.
    """

    def __init__(self, base: str, key: str, model: str) -> None:
        if not base.startswith(("http://", "https://")):
            raise ValueError(f"OPENAI_BASE_URL has to be an http:// or https:// address, not {base!r}")
        self.name = f"{model} at {base}"
        self._url = f"{base}/chat/completions"
        self._key = key
        self._model = model

    async def plan(self, key: str, question: str, headings: Sequence[str]) -> Answer[Plan]:
        """Ask for search queries."""
        told = "\n".join(headings)
        answer = await self._ask(
            key,
            f"Question: {question}\n\nSection headings of the documents:\n{told}\n\n"
            f"Give at most {QUERIES_MAX} search queries that together answer the question, "
            'as JSON: {"queries": ["…"]}',
        )
        given = _json(answer.value).get("queries")
        queries = [each for each in given if isinstance(each, str)] if isinstance(given, list) else []
        return Answer(Plan(queries[:QUERIES_MAX] or [question]), answer.tokens)

    async def read(self, key: str, reading: Reading) -> Answer[Note]:
        """Ask for quotations and for what to look for next."""
        told = "\n\n".join(f"[{number}] {each.text}" for number, each in enumerate(reading.passages))
        answer = await self._ask(
            key,
            f"Question: {reading.question}\nAspect: {reading.query}\n\nPassages:\n{told}\n\n"
            f"Quote at most {FINDINGS_OF_A_NOTE_MAX} sentences, word for word, that help to answer, "
            "and one follow-up search query, as JSON: "
            '{"findings": [{"passage": 0, "quote": "…"}], "follow_up": "…"}',
        )
        given = _json(answer.value)
        listed = given.get("findings")
        findings = []
        for each in listed if isinstance(listed, list) else []:
            number, quote = (
                (each.get("passage"), each.get("quote")) if isinstance(each, dict) else (None, None)
            )
            if isinstance(number, int) and 0 <= number < len(reading.passages) and isinstance(quote, str):
                passage = reading.passages[number]
                findings.append(Finding(quote, passage.document, passage.line))
        follow_up = given.get("follow_up")
        note = Note(
            reading.query,
            findings[:FINDINGS_OF_A_NOTE_MAX],
            follow_up if isinstance(follow_up, str) and follow_up else reading.query,
        )
        return Answer(note, answer.tokens)

    async def outline(self, key: str, draft: Draft) -> Answer[Outline]:
        """Ask which findings matter."""
        pool = [finding for note in draft.notes for finding in note.findings]
        pool += nearest(quotations(draft.more), terms(draft.question), FINDINGS_MAX)
        told = "\n".join(f"[{number}] {finding.text}" for number, finding in enumerate(pool))
        answer = await self._ask(
            key,
            f"Question: {draft.question}\n\nFindings:\n{told}\n\nChoose those, at most {FINDINGS_MAX}, "
            'that answer the question best, best first, none twice, as JSON: {"chosen": [0]}',
        )
        given = _json(answer.value).get("chosen")
        numbers = [each for each in given if isinstance(each, int)] if isinstance(given, list) else []
        chosen = [pool[number] for number in dict.fromkeys(numbers) if 0 <= number < len(pool)]
        return Answer(Outline(chosen[:FINDINGS_MAX]), answer.tokens)

    async def write(self, key: str, writing: Writing) -> Answer[str]:
        """Ask for the report."""
        checked = zip(writing.outline.findings, writing.verdicts, strict=True)
        told = "\n".join(f"[{finding.place}] {finding.text}" for finding, verdict in checked if verdict.found)
        answer = await self._ask(
            key,
            f"Question: {writing.question}\n\nFindings, with their places:\n{told}\n\nWrite a short report "
            "in Markdown that answers the question from these findings alone, with the places as citations.",
        )
        return Answer("\n".join([answer.value.strip(), "", *bibliography(writing)]), answer.tokens)

    async def _ask(self, key: str, prompt: str) -> Answer[str]:
        return await asyncio.to_thread(self._post, key, prompt)

    def _post(self, key: str, prompt: str) -> Answer[str]:
        body = {"model": self._model, "messages": [{"role": "user", "content": prompt}]}
        headers = {
            "Authorization": f"Bearer {self._key}",
            "Content-Type": "application/json",
            "Idempotency-Key": key,
        }
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)  # noqa: S310 - checked in __init__
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_WAIT_MAX_S) as response:  # noqa: S310 - as above
                given = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                words = error.read().decode(errors="replace")[:ERROR_CHARACTERS_MAX]
            again = error.code == 429 or error.code >= 500
            raise Refused(
                f"the model's endpoint answered {error.code}: {words}", worth_a_retry=again
            ) from None
        except urllib.error.URLError as error:
            # Not connected, so nothing was sent. Anything else may have been taken, and so be paid.
            if isinstance(error.reason, ConnectionRefusedError | socket.gaierror):
                raise Refused(f"cannot reach the endpoint: {error.reason}", worth_a_retry=True) from None
            raise
        return _answer(given)


def _answer(given: Any) -> Answer[str]:
    """The text of a chat completion; an empty one where there is none, since it is paid all the same."""
    try:
        text = given["choices"][0]["message"]["content"]
        tokens = given.get("usage", {}).get("total_tokens", 0)
    except (KeyError, IndexError, TypeError, AttributeError):
        return Answer("")
    return Answer(text if isinstance(text, str) else "", tokens if isinstance(tokens, int) else 0)


_OBJECT = re.compile(r"\{.*\}", re.DOTALL)


def _json(text: str) -> dict[str, Any]:
    """The JSON object in an answer, however much is said around it; empty if there is none."""
    match = _OBJECT.search(text)
    try:
        value = json.loads(match.group()) if match else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
