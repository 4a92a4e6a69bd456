"""Which names a query on PostgreSQL may use: a second fence, in front of the role that can only read the views.

Any role may call most functions of PostgreSQL: sleep, take locks, read settings and catalogs. No privilege takes that
away from one role alone, so the names are checked here. It is no parser: it knows what a text, a name and a comment
are, refuses every form of them that could be read in two ways (``E'…'``, ``U&'…'``, ``$tag$``), and then a name before
a parenthesis must be on a list. What passes by mistake still meets the role, the read-only transaction and the clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from results_db.sql.result import QueryRefused, Refusal

_TOKEN = re.compile(
    r"""
      (?P<blank>[ \t\r\n\f\v]+ | --[^\r\n]*)
    | (?P<text>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")+")
    | (?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)? | \.\d+(?:[eE][+-]?\d+)?)
    | (?P<word>[A-Za-z_\x80-\U0010ffff][\w$]*)
    | (?P<param>:[A-Za-z_][A-Za-z0-9_]*)
    | (?P<mark>:: | [()\[\],;.:] | [-+*/<>=~!@%^&|?]+)
    """,
    re.VERBOSE,
)

#: words that may stand before a parenthesis without being a function
_WORDS_TEXT = """
all and any array as between by case cast cross cube distinct else end except exists filter from full group grouping
having ilike in inner intersect is join lateral left like limit materialized not null of offset on or order over
partition recursive right rollup row select sets similar some then to union using values when where with within
bigint char date decimal double float int integer interval numeric real smallint text time timestamp timestamptz
varchar
"""
_WORDS = frozenset(_WORDS_TEXT.split())
#: pure functions. Not those whose one call may take minutes on a long text or number: PostgreSQL looks at its clock
#: between calls (replace, position, translate, trim)
_FUNCTIONS_TEXT = """
abs acos acosh age array_agg array_length array_to_string ascii asin asinh atan atan2 atanh avg bool_and bool_or
cardinality cbrt ceil ceiling char_length character_length chr coalesce concat concat_ws corr cos cosh count covar_pop
covar_samp cume_dist date_bin date_part date_trunc degrees dense_rank div every exp extract first_value floor format
greatest grouping initcap json_agg json_array_length json_build_array json_build_object json_extract_path_text
json_object_agg jsonb_agg jsonb_array_length lag last_value lead least left length ln log log10 lower make_date
make_interval make_timestamp make_timestamptz max md5 min mod mode now nth_value ntile nullif octet_length
percent_rank percentile_cont percentile_disc pi power quote_ident quote_literal quote_nullable radians random rank
regr_intercept regr_r2 regr_slope reverse right round row_number row_to_json sign sin sinh sqrt starts_with stddev
stddev_pop stddev_samp string_agg substr substring sum tan tanh to_char to_date to_json to_jsonb to_number
to_timestamp trunc upper var_pop var_samp variance width_bucket
"""
FUNCTIONS = frozenset(_FUNCTIONS_TEXT.split())
#: of exact numbers these may take minutes, so they are asked of floating ones: name -> PostgreSQL's own name of that
FLOATING = {"exp": "dexp", "ln": "dlog1", "log": "dlog10", "log10": "dlog10", "power": "dpow", "sqrt": "dsqrt"}
_MOST_PRODUCTS = 200
#: each multiplies or divides at least once
_PRODUCTS = frozenset({"div", "mod", "width_bucket"})
#: of the query with its parameters written into it: a long text may stand in it many times
_LONGEST_CHECKED = 1_000_000
#: names that lead to catalogs, files and other servers; whatever begins with pg_ as well
_CLOSED = frozenset({"information_schema", "regclass", "regproc", "regprocedure", "regrole", "regnamespace", "regtype"})
#: keywords that tell of the session without a parenthesis
_TELLING_TEXT = "current_catalog current_role current_schema current_user session_user system_user user"
_TELLING = frozenset(_TELLING_TEXT.split())
_FIRST = frozenset({"select", "with", "values"})


@dataclass(frozen=True, slots=True)
class _Token:
    kind: Literal["text", "quoted", "number", "word", "param", "mark"]
    text: str
    start: int
    end: int

    @property
    def name(self) -> str | None:
        """What it names, as PostgreSQL folds it; None for what is no name."""
        if self.kind == "word":
            return self.text.lower()
        return self.text[1:-1].replace('""', '"') if self.kind == "quoted" else None

    def says(self, *words: str) -> bool:
        return self.kind in ("word", "mark") and self.text.lower() in words


def checked_query(sql: str, params: Mapping[str, Any]) -> str:
    """The query with its parameters written as constants, without comments and the last semicolon.

    Raises:
        QueryRefused: not-allowed, invalid where a parameter is missing, or too-large with what its parameters say.
    """
    tokens = list(_tokens(sql))
    while tokens and tokens[-1].says(";"):
        tokens.pop()
    opening = next((token for token in tokens if not token.says("(")), None)
    if opening is None:
        raise _no("there is nothing to run: write a SELECT")
    if not opening.says(*_FIRST):
        raise _no(f"a query begins with SELECT, WITH or VALUES, not with {opening.text[:40]!r}")
    for position, token in enumerate(tokens):
        if token.says(";"):
            raise _no("one statement at a time")
        if token.kind == "mark" and "^" in token.text:
            raise _no("write power(x, y) for a power")
        _check_name(tokens, position)
    tokens = _with_regular_expressions(tokens, params)
    if sum(map(_n_products, tokens)) > _MOST_PRODUCTS:
        raise _no(f"more than {_MOST_PRODUCTS} products and quotients")
    return _joined(tokens, params)


def names_of_fields(sql: str) -> frozenset[str]:
    """Names behind a dot that may not be called: PostgreSQL reads ``(x).f`` and ``alias.f`` as ``f(x)`` too."""
    tokens = list(_tokens(sql))
    names = {token.name for before, token in pairwise(tokens) if before.says(".") and token.name is not None}
    return frozenset(names - FUNCTIONS)


def _n_products(token: _Token) -> int:
    """``*-`` is one mark to us and two to PostgreSQL."""
    if token.kind == "mark":
        return sum(token.text.count(sign) for sign in "*/%")
    return int(token.name in _PRODUCTS)


def _tokens(sql: str) -> Iterator[_Token]:
    position = 0
    while position < len(sql):
        if sql.startswith("/*", position):
            position = _end_of_comment(sql, position)
            continue
        match = _TOKEN.match(sql, position)
        if match is None or match.lastgroup is None:
            raise _no(f"{sql[position : position + 20]!r} is not understood here")
        start, position = position, match.end()
        if match.lastgroup == "blank":
            continue
        token = _Token(match.lastgroup, match.group(), start, position)  # type: ignore[arg-type]
        if "$" in token.text and token.kind == "word":
            raise _no("names with a dollar sign are not understood here")
        if token.kind == "word" and re.match(r"'|&['\"]", sql[position : position + 2]):
            raise _no(f"texts are written '…', without {token.text[:20]!r} before them")
        if token.kind == "mark" and ("--" in token.text or "/*" in token.text):
            raise _no("leave a blank before a comment")
        yield token


def _end_of_comment(sql: str, start: int) -> int:
    depth, position = 0, start
    while True:
        match = re.compile(r"/\*|\*/").search(sql, position)
        if match is None:
            raise _no("a comment does not end")
        depth += 1 if match.group() == "/*" else -1
        position = match.end()
        if depth == 0:
            return position


def _check_name(tokens: list[_Token], position: int) -> None:
    token = tokens[position]
    name = token.name
    if name is None:
        return
    if name.lower().startswith("pg_") or name.lower() in _CLOSED:
        raise _no(f"{name} is not open to queries: ask the views")
    if token.kind == "word" and name in _TELLING:
        raise _no(f"{name} is not open to queries: ask the views")
    if position + 1 == len(tokens) or not tokens[position + 1].says("("):
        return
    if name in FUNCTIONS or (token.kind == "word" and name in _WORDS):
        return
    before = tokens[position - 1] if position else None
    is_alias = before is not None and before.says("as")
    is_cte = before is not None and before.says("with", "recursive", ",") and _is_cte(tokens, position)
    if is_alias or is_cte:
        return
    raise _no(f"the function {name} is not on the list (an alias with names of columns needs AS before it)")


def _with_regular_expressions(tokens: list[_Token], params: Mapping[str, Any]) -> list[_Token]:
    """The tokens with each LIKE as a regular expression: one LIKE on a long text may take minutes, and PostgreSQL looks
    at its clock within a regular expression, not within a LIKE."""
    found: list[_Token] = []
    rest = iter(tokens)
    for token in rest:
        if token.kind == "mark" and "~~" in token.text:
            raise _no("write LIKE for a pattern")
        if not token.says("like", "ilike"):
            found.append(token)
            continue
        pattern = next(rest, None)
        following = next(rest, None)
        if pattern is None or pattern.kind not in ("text", "param") or _goes_on(following):
            raise _no("a pattern of LIKE is one text or parameter, without ESCAPE")
        operator = "~" if token.says("like") else "~*"
        if found and found[-1].says("not"):
            operator, token = f"!{operator}", replace(token, start=found.pop().start)
        found += [replace(token, kind="mark", text=operator), _regular_expression(pattern, params)]
        found += [] if following is None else [following]
    return found


def _goes_on(following: _Token | None) -> bool:
    """Whether a text and this token are one expression."""
    if following is None:
        return False
    if following.kind == "mark":
        return not following.says(")", ",", "]", "=", "<>", "!=")
    return following.kind == "text" or following.says("escape", "collate", "like", "ilike")


def _regular_expression(pattern: _Token, params: Mapping[str, Any]) -> _Token:
    if pattern.kind == "text":
        value: Any = pattern.text[1:-1].replace("''", "'")
    else:
        value = _value(pattern.text[1:], params)
    if value is None:
        return pattern
    parts, escaped = [], False
    for character in str(value):
        if escaped or character not in "\\%_":
            # \uXXXX and \UXXXXXXXX mean the character and nothing else
            plain = character.isascii() and character.isalnum()
            parts.append(character if plain else f"\\U{ord(character):08x}")
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            parts.append(".*" if character == "%" else ".")
    if escaped:
        raise _no("a pattern of LIKE ends in a backslash")
    # (?s): a dot is any character; ^ and $ are the ends of the text
    return replace(pattern, kind="text", text=f"'(?s)^{''.join(parts)}$'")


def _is_cte(tokens: list[_Token], position: int) -> bool:
    """Whether ``name (a, b) AS [NOT] [MATERIALIZED] (`` and a query begin here, not the columns of a function's rows:
    SELECT and WITH are names of no column, and no type begins with a parenthesis."""
    at = position + 2
    while at < len(tokens) and (tokens[at].name is not None or tokens[at].says(",")):
        at += 1
    rest = [item for item in tokens[at : at + 7] if not item.says("not", "materialized")][:5]
    if len(rest) < 5 or not (rest[0].says(")") and rest[1].says("as") and rest[2].says("(")):
        return False
    return rest[3].says("select", "with") or (rest[3].says("values") and rest[4].says("("))


def _joined(tokens: list[_Token], params: Mapping[str, Any]) -> str:
    """The tokens as text; a blank stands where there was one, or a comment."""
    parts: list[str] = []
    left = _LONGEST_CHECKED
    end = tokens[0].start
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        parts.append(" " if token.start > end else "")
        if token.kind == "param":
            parts.append(_constant(token.text[1:], params))
        elif following is not None and following.says("("):
            parts.append(FLOATING.get(token.name or "", token.text))
        else:
            parts.append(token.text)
        end = token.end
        left -= len(parts[-1])
        if left < 0:
            raise QueryRefused(
                Refusal.TOO_LARGE, f"with its parameters the query is longer than {_LONGEST_CHECKED:,} characters"
            )
    return "".join(parts)


def _value(name: str, params: Mapping[str, Any]) -> Any:
    if name not in params:
        raise QueryRefused(Refusal.INVALID, f"the query has no value for its parameter :{name}")
    return params[name]


def _constant(name: str, params: Mapping[str, Any]) -> str:
    value = _value(name, params)
    match value:
        case None:
            return "NULL"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"({value!r})" if value == value and abs(value) != float("inf") else f"'{value}'"
    # standard_conforming_strings is on in the console's sessions: a backslash is a character
    return "'" + str(value).replace("'", "''") + "'"


def _no(message: str) -> QueryRefused:
    return QueryRefused(Refusal.NOT_ALLOWED, message, cure="write one SELECT on the views; changes go through the API")
