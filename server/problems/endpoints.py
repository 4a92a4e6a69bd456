"""/api/v1/problems."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from server.kit.answers import Answer
from server.kit.problem import Problem
from server.kit.problems import PROBLEMS, ProblemKind
from server.problems.schemas import ProblemKindList, ProblemKindRow

router = APIRouter(prefix="/problems", tags=["problems"])


@router.get("", summary="Every kind of problem", responses={200: {"model": ProblemKindList}})
def list_problems() -> Response:
    """The ``type`` of a problem never changes its meaning; new ones may come."""
    return Answer({"items": [_row(kind) for kind in PROBLEMS.values()], "next": None})


@router.get("/{slug}", summary="One kind of problem", responses={200: {"model": ProblemKindRow}})
def get_problem(slug: str) -> Response:
    """What it means, with which status it comes, and what to do about it. The slug is the end of ``type``."""
    if slug not in PROBLEMS:
        raise Problem(404, "not-found", f"no problem has the slug {slug[:80]!r}: GET /api/v1/problems lists them")
    return Answer(_row(PROBLEMS[slug]))


def _row(kind: ProblemKind) -> ProblemKindRow:
    return ProblemKindRow(
        type=kind.type,
        title=kind.title,
        slug=kind.slug,
        statuses=list(kind.statuses),
        meaning=kind.meaning,
        cure=kind.cure,
    )
