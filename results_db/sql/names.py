"""Which names a query on PostgreSQL may use: a second fence, in front of the role that can only read the views.

Any role may call most functions of PostgreSQL: sleep, take locks, read settings and catalogs. No privilege takes that
away from one role alone, so the names are checked here: one before a parenthesis must be on a list. What passes by
mistake still meets the role, the read-only transaction and the clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from results_db.sql.effort import check_effort, with_subqueries_apart
from results_db.sql.result import QueryRefused, Refusal
from results_db.sql.tokens import Token, not_allowed, tokens_of

#: words that may stand before a parenthesis without being a function
_WORDS_TEXT = """
all and any array as between by case cast cross cube distinct else end except exists filter from full group grouping
having ilike in inner intersect is join lateral left like limit materialized not null of offset on or order over
partition recursive right rollup row select sets similar some then to union using values when where with within
"""
_TYPES_TEXT = """
bigint char date decimal double float int integer interval numeric real smallint text time timestamp timestamptz
varchar
"""
_TYPES = frozenset(_TYPES_TEXT.split())
_WORDS = frozenset(_WORDS_TEXT.split()) | _TYPES
#: pure functions. Not those whose one call may take minutes on a long text or number: PostgreSQL looks at its clock
#: between calls (replace, position, translate, trim). Nor those that make a text of any length (format, lpad, repeat)
#: or jsonb, of which one operator compares all keys with all keys
_FUNCTIONS_TEXT = """
abs acos acosh age array_agg array_length array_to_string ascii asin asinh atan atan2 atanh avg bool_and bool_or
cardinality cbrt ceil ceiling char_length character_length chr coalesce concat concat_ws corr cos cosh count covar_pop
covar_samp cume_dist date_bin date_part date_trunc degrees dense_rank div every exp extract first_value floor
greatest grouping initcap json_agg json_array_length json_build_array json_build_object json_extract_path_text
json_object_agg lag last_value lead least left length ln log log10 lower make_date
make_interval make_timestamp make_timestamptz max md5 min mod mode now nth_value ntile nullif octet_length
percent_rank percentile_cont percentile_disc pi power quote_ident quote_literal quote_nullable radians random rank
regr_intercept regr_r2 regr_slope reverse right round row_number row_to_json sign sin sinh sqrt starts_with stddev
stddev_pop stddev_samp string_agg substr substring sum tan tanh to_char to_date to_json to_number
to_timestamp trunc upper var_pop var_samp variance width_bucket
"""
FUNCTIONS = frozenset(_FUNCTIONS_TEXT.split())
_CALLS = FUNCTIONS | _TYPES | {"cast"}
#: of exact numbers these may take minutes, so they are asked of floating ones: name -> PostgreSQL's own name of that
FLOATING = {"exp": "dexp", "ln": "dlog1", "log": "dlog10", "log10": "dlog10", "power": "dpow", "sqrt": "dsqrt"}
#: of the query with its parameters written into it: a long text may stand in it many times
_LONGEST_CHECKED = 1_000_000
#: names that lead to catalogs, files and other servers, and types that make one call long; pg_… as well
_CLOSED_TEXT = """
information_schema regclass regproc regprocedure regrole regnamespace regtype
hstore jsonb jsonpath tsquery tsvector xml
"""
_CLOSED = frozenset(_CLOSED_TEXT.split())
#: keywords that tell of the session without a parenthesis
_TELLING_TEXT = "current_catalog current_role current_schema current_user session_user system_user user"
_TELLING = frozenset(_TELLING_TEXT.split())
_FIRST = frozenset({"select", "with", "values"})


def checked_query(sql: str, params: Mapping[str, Any]) -> str:
    """The query with its parameters written as constants, without comments and the last semicolon.

    Raises:
        QueryRefused: not-allowed, invalid where a parameter is missing, or too-large with what its parameters say.
    """
    tokens = list(tokens_of(sql))
    while tokens and tokens[-1].says(";"):
        tokens.pop()
    opening = next((token for token in tokens if not token.says("(")), None)
    if opening is None:
        raise not_allowed("there is nothing to run: write a SELECT")
    if not opening.says(*_FIRST):
        raise not_allowed(f"a query begins with SELECT, WITH or VALUES, not with {opening.text[:40]!r}")
    for position, token in enumerate(tokens):
        if token.says(";"):
            raise not_allowed("one statement at a time")
        if token.kind == "mark" and "^" in token.text:
            raise not_allowed("write power(x, y) for a power")
        _check_name(tokens, position)
    tokens = _with_regular_expressions(tokens, params)
    check_effort(tokens, _CALLS)
    return _joined(with_subqueries_apart(tokens), params)


def names_of_fields(sql: str) -> frozenset[str]:
    """Names behind a dot that may not be called: PostgreSQL reads ``(x).f`` and ``alias.f`` as ``f(x)`` too."""
    tokens = list(tokens_of(sql))
    names = {token.name for before, token in pairwise(tokens) if before.says(".") and token.name is not None}
    return frozenset(names - (FUNCTIONS - FLOATING.keys()))


def _check_name(tokens: list[Token], position: int) -> None:
    token = tokens[position]
    name = token.name
    if name is None:
        return
    if name.lower().startswith("pg_") or name.lower() in _CLOSED:
        raise not_allowed(f"{name} is not open to queries: ask the views")
    if token.kind == "word" and name in _TELLING:
        raise not_allowed(f"{name} is not open to queries: ask the views")
    if position + 1 == len(tokens) or not tokens[position + 1].says("("):
        return
    if name in FUNCTIONS or (token.kind == "word" and name in _WORDS):
        return
    before = tokens[position - 1] if position else None
    is_alias = before is not None and before.says("as")
    is_cte = before is not None and before.says("with", "recursive", ",") and _is_cte(tokens, position)
    if is_alias or is_cte:
        return
    raise not_allowed(f"the function {name} is not on the list (an alias with names of columns needs AS before it)")


def _with_regular_expressions(tokens: list[Token], params: Mapping[str, Any]) -> list[Token]:
    """The tokens with each LIKE as a regular expression: one LIKE on a long text may take minutes, and PostgreSQL looks
    at its clock within a regular expression, not within a LIKE."""
    found: list[Token] = []
    rest = iter(tokens)
    for token in rest:
        if token.kind == "mark" and "~~" in token.text:
            raise not_allowed("write LIKE for a pattern")
        if not token.says("like", "ilike"):
            found.append(token)
            continue
        pattern = next(rest, None)
        following = next(rest, None)
        if pattern is None or pattern.kind not in ("text", "param") or _goes_on(following):
            raise not_allowed("a pattern of LIKE is one text or parameter, without ESCAPE")
        operator = "~" if token.says("like") else "~*"
        if found and found[-1].says("not"):
            operator, token = f"!{operator}", replace(token, start=found.pop().start)
        found += [replace(token, kind="mark", text=operator), _regular_expression(pattern, params)]
        found += [] if following is None else [following]
    return found


def _goes_on(following: Token | None) -> bool:
    """Whether a text and this token are one expression."""
    if following is None:
        return False
    if following.kind == "mark":
        return not following.says(")", ",", "]", "=", "<>", "!=")
    return following.kind == "text" or following.says("escape", "collate", "like", "ilike")


def _regular_expression(pattern: Token, params: Mapping[str, Any]) -> Token:
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
        raise not_allowed("a pattern of LIKE ends in a backslash")
    # (?s): a dot is any character; ^ and $ are the ends of the text
    return replace(pattern, kind="text", text=f"'(?s)^{''.join(parts)}$'")


def _is_cte(tokens: list[Token], position: int) -> bool:
    """Whether ``name (a, b) AS [NOT] [MATERIALIZED] (`` and a query begin here, not the columns of a function's rows:
    SELECT and WITH are names of no column, and no type begins with a parenthesis."""
    at = position + 2
    while at < len(tokens) and (tokens[at].name is not None or tokens[at].says(",")):
        at += 1
    rest = [item for item in tokens[at : at + 7] if not item.says("not", "materialized")][:5]
    if len(rest) < 5 or not (rest[0].says(")") and rest[1].says("as") and rest[2].says("(")):
        return False
    return rest[3].says("select", "with") or (rest[3].says("values") and rest[4].says("("))


def _joined(tokens: list[Token], params: Mapping[str, Any]) -> str:
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
