"""The grammar of the filter language: text to a small tree, knowing nothing of attributes and their types.

    query      = [ or ] [ GROUP BY name { "," name } ] [ ORDER BY name [ ASC | DESC ] { "," ... } ]
    or         = and { OR and }
    and        = not { AND not }
    not        = { NOT } ( "(" or ")" | condition )
    condition  = name ( "=" | "!=" | "<>" | "<" | "<=" | ">" | ">=" ) literal
               | name [ NOT ] BETWEEN literal AND literal
               | name [ NOT ] IN "(" literal { "," literal } ")"
               | name [ NOT ] STARTS_WITH literal
               | name IS [ NOT ] NULL

Words are case-insensitive; a name may stand in backquotes, a string in single or double quotes (a quote
inside is doubled or follows a backslash). Positions in error messages count characters of the query from 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from history_store.engine.errors import ServiceError, invalid

MAX_DEPTH = 100  # of parentheses and NOTs
MAX_CONDITIONS = 1_000
MAX_LITERALS = 10_000
MAX_TOKENS = 25_000
MAX_LENGTH = 500_000  # characters

Scalar = str | int | float | bool


def malformed(message: str) -> ServiceError:
    """The error for text that is not of the language."""
    return invalid(f"invalid query: malformed SQL query: {message}")


def unsupported(message: str) -> ServiceError:
    """The error for what SQL has and this language has not."""
    return invalid(f"invalid query: operation is not supported: {message}")


def invalid_expression(message: str) -> ServiceError:
    """The error for a condition that makes no sense."""
    return invalid(f"invalid query: invalid expression: {message}")


@dataclass(frozen=True, slots=True)
class Name:
    """An attribute as the query names it."""

    text: str
    position: int = 0


@dataclass(frozen=True, slots=True)
class Literal:
    """A value as the query writes it."""

    value: Scalar
    position: int = 0

    def __str__(self) -> str:
        match self.value:
            case bool():
                return "true (type: bool)" if self.value else "false (type: bool)"
            case str():
                text = self.value if len(self.value) <= 100 else self.value[:100] + "…"
                return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '" (type: string)'
            case int():
                return f"{self.value} (type: int64)"
            case _:
                return f"{self.value:g} (type: float64)"


@dataclass(frozen=True, slots=True)
class Comparison:
    """`name operator literal`; the operator is one of = != < <= > >= or STARTS_WITH."""

    name: Name
    operator: str
    literal: Literal
    negated: bool = False  # only for STARTS_WITH


@dataclass(frozen=True, slots=True)
class Between:
    """`name [NOT] BETWEEN low AND high`, both ends included."""

    name: Name
    low: Literal
    high: Literal
    negated: bool = False


@dataclass(frozen=True, slots=True)
class In:
    """`name [NOT] IN (…)`."""

    name: Name
    literals: tuple[Literal, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class IsNull:
    """`name IS [NOT] NULL`."""

    name: Name
    negated: bool = False


@dataclass(frozen=True, slots=True)
class And:
    """All of them."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of them."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite; of something unknown (a missing value) unknown again."""

    item: Expression


Condition = Comparison | Between | In | IsNull
Expression = Condition | And | Or | Not


@dataclass(frozen=True, slots=True)
class Order:
    """One term of ORDER BY."""

    name: Name
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """A whole query."""

    where: Expression | None = None
    group_by: tuple[Name, ...] = ()
    order_by: tuple[Order, ...] = ()


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # name, quoted, string, number, operator, end
    text: str
    position: int

    @property
    def word(self) -> str:
        return self.text.upper() if self.kind == "name" else ""


_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<name>[^\W\d][\w$]*)
      | `(?P<quoted>[^`]+)`
      | (?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.]))
      | '(?P<single>[^'\\]*(?:(?:''|\\.)[^'\\]*)*)'
      | "(?P<double>[^"\\]*(?:(?:""|\\.)[^"\\]*)*)"
      | (?P<operator><=>|<=|>=|!=|<>|[=<>(),+*/%;-])
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "0": "\0", "Z": "\x1a"}
_ESCAPE = re.compile(r"\\(.)|''", re.DOTALL)
_ESCAPE_DOUBLE = re.compile(r'\\(.)|""', re.DOTALL)
_COMPARISONS = {"=": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_REFUSED_OPERATORS = frozenset({"LIKE", "REGEXP", "RLIKE", "<=>"})
_RESERVED = frozenset(
    {
        *("AND", "OR", "NOT", "BETWEEN", "IN", "IS", "NULL", "LIKE", "REGEXP", "RLIKE", "STARTS_WITH"),
        *("TRUE", "FALSE", "ORDER", "GROUP", "BY", "LIMIT"),
    }
)


def _unescape(text: str, quote: str) -> str:
    if "\\" not in text and quote not in text:
        return text
    pattern = _ESCAPE if quote == "'" else _ESCAPE_DOUBLE
    return pattern.sub(lambda m: _ESCAPES.get(m.group(1), m.group(1)) if m.group(1) else quote, text)


def _tokens(text: str) -> list[_Token]:
    if len(text) > MAX_LENGTH:
        raise malformed(f"{len(text)} characters, more than {MAX_LENGTH}")
    result = []
    offset = 0
    while offset < len(text):
        match = _TOKEN.match(text, offset)
        if match is None:
            raise malformed(f"syntax error at position {offset + 1} near '{text[offset : offset + 20]}'")
        kind = match.lastgroup
        assert kind is not None
        if kind != "space":
            value = match.group(kind)
            if kind in ("single", "double"):
                kind, value = "string", _unescape(value, "'" if kind == "single" else '"')
            result.append(_Token(kind, value, offset + 1))
            if len(result) > MAX_TOKENS:
                raise malformed(f"more than {MAX_TOKENS} words and signs at position {offset + 1}")
        offset = match.end()
    result.append(_Token("end", "", len(text) + 1))
    return result


def parse(text: str) -> Query:
    """The tree of a query; ServiceError (INVALID_ARGUMENT) says where it is no query."""
    return _Parser(_tokens(text)).query()


class _Parser:
    """Recursive descent over the tokens."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0
        self._conditions = 0
        self._literals = 0

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        self._next += 1
        return token

    def _accept(self, word: str) -> bool:
        token = self._token
        if token.word == word or (token.kind == "operator" and token.text == word):
            self._next += 1
            return True
        return False

    def _expect(self, word: str) -> None:
        if not self._accept(word):
            raise self._failure()

    def _failure(self) -> ServiceError:
        token = self._token
        if token.kind == "end":
            return malformed(f"syntax error at position {token.position}: the query ends too early")
        return malformed(f"syntax error at position {token.position} near '{token.text[:40]}'")

    def query(self) -> Query:
        where = None
        if self._token.kind != "end" and self._token.word not in ("ORDER", "GROUP", "LIMIT"):
            where = self._or()
        group_by: tuple[Name, ...] = ()
        order_by: tuple[Order, ...] = ()
        if self._accept("GROUP"):
            self._expect("BY")
            names = [self._name()]
            while self._accept(","):
                names.append(self._name())
            group_by = tuple(names)
        if self._accept("ORDER"):
            self._expect("BY")
            terms = [self._order()]
            while self._accept(","):
                terms.append(self._order())
            order_by = tuple(terms)
        if self._token.word == "LIMIT":
            raise unsupported("'LIMIT' clause")
        if self._token.kind != "end":
            raise self._failure()
        return Query(where, group_by, order_by)

    def _order(self) -> Order:
        name = self._name()
        descending = self._accept("DESC")
        if not descending:
            self._accept("ASC")
        return Order(name, descending)

    def _name(self) -> Name:
        token = self._token
        if token.kind == "quoted" or (token.kind == "name" and token.word not in _RESERVED):
            self._next += 1
            return Name(token.text, token.position)
        raise self._failure()

    def _or(self) -> Expression:
        items = [self._and()]
        while self._accept("OR"):
            items.append(self._and())
        return items[0] if len(items) == 1 else Or(tuple(items))

    def _and(self) -> Expression:
        items = [self._not()]
        while self._accept("AND"):
            items.append(self._not())
        return items[0] if len(items) == 1 else And(tuple(items))

    def _not(self) -> Expression:
        position = self._token.position
        negations = 0
        while self._accept("NOT"):
            negations += 1
        if self._accept("("):
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise malformed(f"nested more than {MAX_DEPTH} deep at position {position}")
            item = self._or()
            self._expect(")")
            self._depth -= 1
        else:
            item = self._condition()
        return Not(item) if negations % 2 else item

    def _condition(self) -> Expression:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise malformed(f"more than {MAX_CONDITIONS} conditions at position {self._token.position}")
        name = self._subject()
        token = self._token
        if token.kind == "operator" and token.text in _COMPARISONS:
            self._next += 1
            return Comparison(name, _COMPARISONS[token.text], self._literal())
        if self._accept("IS"):
            return self._is(name)
        negated = self._accept("NOT")
        word = self._token.word or self._token.text
        if self._accept("BETWEEN"):
            low = self._literal()
            self._expect("AND")
            return Between(name, low, self._literal(), negated)
        if self._accept("IN"):
            return In(name, self._tuple(), negated)
        if self._accept("STARTS_WITH"):
            return Comparison(name, "STARTS_WITH", self._literal(), negated)
        if word in _REFUSED_OPERATORS and self._token.kind in ("name", "operator"):
            shown = f"NOT {word}" if negated else word
            raise unsupported(
                f"operator '{shown}' for search attribute '{name.text}' at position {self._token.position}"
            )
        if not negated and (self._token.kind == "end" or word in ("AND", "OR", ")", "ORDER", "GROUP")):
            raise invalid_expression(f"incomplete expression: '{name.text}' at position {name.position}")
        raise self._failure()

    def _subject(self) -> Name:
        """The attribute on the left; with the reason where there is something else."""
        token = self._token
        following = self._tokens[self._next + 1] if token.kind != "end" else token
        if token.kind in ("string", "number") or token.word in ("TRUE", "FALSE", "NULL"):
            raise invalid_expression(
                f"must be a search attribute name but was the value '{token.text[:40]}'"
                f" at position {token.position} (a condition is: name, operator, value)"
            )
        name = self._name()
        if following.kind == "operator" and following.text == "(":
            raise unsupported(f"function expression '{name.text}' at position {name.position}")
        return name

    def _is(self, name: Name) -> Expression:
        negated = self._accept("NOT")
        if self._accept("NULL"):
            return IsNull(name, negated)
        if self._token.word in ("TRUE", "FALSE"):
            raise invalid_expression(
                "'IS' operator can only be used as 'IS NULL' or 'IS NOT NULL'"
                f" (search attribute '{name.text}', position {self._token.position})"
            )
        raise self._failure()

    def _tuple(self) -> tuple[Literal, ...]:
        self._expect("(")
        literals = [self._literal()]
        while self._accept(","):
            literals.append(self._literal())
        self._expect(")")
        return tuple(literals)

    def _literal(self) -> Literal:
        self._literals += 1
        if self._literals > MAX_LITERALS:
            raise malformed(f"more than {MAX_LITERALS} values at position {self._token.position}")
        token = self._take()
        sign = 1
        while token.kind == "operator" and token.text in "+-":
            sign = -sign if token.text == "-" else sign
            token = self._take()
            if token.kind != "number":
                self._next -= 1
                raise self._failure()
        match token.kind, token.word:
            case "string", _:
                return Literal(token.text, token.position)
            case "number", _:
                return Literal(_number(token, sign), token.position)
            case _, "TRUE" | "FALSE":
                return Literal(token.word == "TRUE", token.position)
            case _, "NULL":
                raise invalid_expression(
                    f"NULL at position {token.position} is no value to compare with: use IS [NOT] NULL"
                )
            case "quoted" | "name", word if token.kind == "quoted" or word not in _RESERVED:
                raise unsupported(
                    "column name on the right side of comparison expression"
                    f' (did you forget to quote "{token.text[:100]}"?) at position {token.position}'
                )
            case _:
                self._next -= 1
                raise self._failure()


def _number(token: _Token, sign: int) -> int | float:
    if token.text.isdigit() and len(token.text) <= 19:
        number = sign * int(token.text)
        if -(1 << 63) <= number < 1 << 63:
            return number
    value = sign * float(token.text)
    if value in (float("inf"), float("-inf")):
        raise invalid_expression(f'unable to parse value "{token.text[:40]}" at position {token.position}')
    return value
