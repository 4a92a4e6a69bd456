"""How much a query on PostgreSQL may do in one step: it looks at its clock between steps, and rarely within one.

A step is one row through one SELECT, or the planning of one. What it costs grows with the calls in it, and a text may
have 1 GB. So calls are counted, operators that compare every element with every other are not on the list, and
subqueries stay apart: PostgreSQL writes a subquery's expressions into the outer query wherever their names stand, so
that ``SELECT x || x AS x FROM (…)`` forty times over would be a trillion calls, and all memory while it is planned.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from results_db.sql.tokens import Token, not_allowed

_MOST_PRODUCTS = 200
#: each multiplies or divides at least once
_PRODUCTS = frozenset({"div", "mod", "width_bucket"})
#: what may read a text from end to end: functions, casts, and operators but for those of numbers and equality
_MOST_CALLS = 200
_CHEAP = frozenset({"=", "<>", "!=", "+", "-", "*", "/", "%", ""})
#: names, keywords and operators: what one of them does is short, a comparison of two long texts for example
_MOST_TERMS = 2_000
_OPERATORS = _CHEAP | {"<", ">", "<=", ">=", "||", "->", "->>", "~", "~*", "!~", "!~*", "&", "|"}
#: compares its arguments one by one
_COMPARES = frozenset({"greatest", "least"})
#: a long pattern takes as long as a long text, for a short value
_PATTERNED = frozenset({"to_char", "to_date", "to_number", "to_timestamp"})
_PUNCTUATION = frozenset("()[],;.:") | {"::"}
_QUERY = ("select", "with", "values")
_SET_OPERATORS = ("union", "intersect", "except")
_PARTNERS = {")": "(", "]": "["}


@dataclass(slots=True)
class _Group:
    """What stands between two parentheses or brackets, but for what stands in inner ones."""

    start: int
    end: int = 0
    n_commas: int = 0
    #: position of the comma before the last argument
    last_comma: int = 0
    has_offset: bool = False


def check_effort(tokens: list[Token], functions: Collection[str]) -> None:
    """Refuse what one step may take minutes for.

    Args:
        functions: names that are calls where they stand before a parenthesis.

    Raises:
        QueryRefused: not-allowed.
    """
    groups = _groups(tokens)
    products = calls = terms = 0
    for position, token in enumerate(tokens):
        if token.kind == "mark" and token.text not in _PUNCTUATION:
            _check_operator(token)
        if token.says("materialized") and _before(tokens, position).says("not"):
            raise not_allowed("leave NOT MATERIALIZED away: each name would be another copy of its query")
        if _quantifies(tokens, position) and not tokens[position + 2].says(*_QUERY):
            raise not_allowed("ANY, SOME and ALL take a query, not an array")
        call = groups.get(position + 1) if token.name in functions else None
        if call is not None and token.name in _PATTERNED and not _ends_in_constant(tokens, call):
            raise not_allowed(f"a pattern of {token.name} is one text or parameter")
        products += _n_products(token)
        # (x).f is f(x)
        is_field = token.name in functions and _before(tokens, position).says(".")
        calls += is_field or _n_calls(token, call)
        terms += token.name is not None or (token.kind == "mark" and token.text not in _PUNCTUATION)
    for n, most, what in (
        (products, _MOST_PRODUCTS, "products and quotients"),
        (calls, _MOST_CALLS, "calls, casts and comparisons"),
        (terms, _MOST_TERMS, "names and operators"),
    ):
        if n > most:
            raise not_allowed(f"more than {most:,} {what}")


def with_subqueries_apart(tokens: list[Token]) -> list[Token]:
    """The tokens with MATERIALIZED in each WITH and OFFSET 0 in each other subquery: PostgreSQL computes them apart."""
    queries = [group for start, group in _groups(tokens).items() if _is_query(tokens, start)]
    # of a recursive one PostgreSQL takes no OFFSET
    begins = {group.start for group in queries if _before(tokens, group.start).says("as")}
    ends = {
        group.end
        for group in queries
        if not group.has_offset
        and not _before(tokens, group.start).says("as", "materialized", "in", "exists")
        and not (group.start > 0 and _quantifies(tokens, group.start - 1))
    }
    found: list[Token] = []
    for position, token in enumerate(tokens):
        if position in begins | ends:
            text = "MATERIALIZED" if position in begins else "OFFSET 0"
            # ends before it begins: blanks are written before and behind it
            found.append(Token("word", text, found[-1].end + 1, token.start - 1))
        found.append(token)
    return found


def _groups(tokens: list[Token]) -> dict[int, _Group]:
    """All of them, by where they begin."""
    found: dict[int, _Group] = {}
    opened: list[_Group] = []
    for position, token in enumerate(tokens):
        if token.says("(", "["):
            opened.append(_Group(position))
        elif token.says(")", "]"):
            if not opened or tokens[opened[-1].start].text != _PARTNERS[token.text]:
                raise not_allowed(f"a {token.text} closes what was not opened")
            group = opened.pop()
            group.end = position
            found[group.start] = group
        elif opened and token.says(","):
            opened[-1].n_commas += 1
            opened[-1].last_comma = position
        elif opened and token.says("offset") and not _before(tokens, position).says("as", "."):
            opened[-1].has_offset = True
    if opened:
        raise not_allowed(f"a {tokens[opened[-1].start].text} is not closed")
    return found


def _before(tokens: list[Token], position: int) -> Token:
    return tokens[position - 1] if position else Token("mark", ";", 0, 0)


def _check_operator(token: Token) -> None:
    """``*-`` is one mark to us and two to PostgreSQL; nothing that ends so is an operator that it has."""
    if token.text.rstrip("+-") not in _OPERATORS:
        raise not_allowed(f"the operator {token.text[:20]} is not on the list")


def _n_products(token: Token) -> int:
    if token.kind == "mark":
        return sum(token.text.count(sign) for sign in "*/%")
    return int(token.name in _PRODUCTS)


def _n_calls(token: Token, call: _Group | None) -> int:
    if token.kind == "mark":
        return int(token.text == "::" or (token.text not in _PUNCTUATION and token.text.rstrip("+-") not in _CHEAP))
    if token.says("between"):
        return 2
    if call is None:
        return 0
    return call.n_commas + 1 if token.name in _COMPARES else 1


def _ends_in_constant(tokens: list[Token], call: _Group) -> bool:
    """Whether the last of two arguments is one text or parameter; of a single argument, true."""
    last = tokens[call.last_comma + 1 : call.end]
    return call.n_commas == 0 or (len(last) == 1 and last[0].kind in ("text", "param"))


def _quantifies(tokens: list[Token], position: int) -> bool:
    """Whether ANY, SOME or ALL (of no UNION) stands here before a parenthesis."""
    if not tokens[position].says("any", "some", "all") or position + 2 >= len(tokens):
        return False
    is_all_of_set = tokens[position].says("all") and _before(tokens, position).says(*_SET_OPERATORS)
    return tokens[position + 1].says("(") and not is_all_of_set


def _is_query(tokens: list[Token], start: int) -> bool:
    first, second = [*tokens[start + 1 : start + 3], tokens[start], tokens[start]][:2]
    return first.says("select", "with") or (first.says("values") and second.says("("))
