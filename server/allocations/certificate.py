"""The certificate of a stored allocation, made again from the rows that it was chosen from."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy.orm import Session

from compress_core.allocate import optimal_allocation
from compress_core.allocate.certificate_file import certificate_document, certificate_text
from results_db.constraints import ConstraintSpec
from results_db.params import AllocateParams
from results_db.tables import Allocation, Model
from server.allocations.constraints import check_constraints
from server.allocations.service import content_hash, prepare
from server.allocations.weights import load_weights
from server.kit.problem import Problem
from server.kit.rows import get_row


def make_certificate(session: Session, allocation: Allocation) -> str:
    """JSON text of the certificate; ``bitbudget verify`` checks it without trusting the solver.

    Raises:
        Problem: no-certificate: nothing was proven of this allocation; certificate-stale: what it was chosen from has
            been measured anew since.
    """
    if allocation.optimal is None or "menu" not in allocation.details:
        raise Problem(
            409,
            "no-certificate",
            f"allocation {allocation.id} is of kind {allocation.kind}, of which nothing is proven: only kind optimal "
            "has a certificate",
        )
    params = AllocateParams(
        model_id=allocation.model_id,
        calibration_id=allocation.calibration_id,
        name=allocation.name,
        objective=allocation.objective or "kl",  # type: ignore[arg-type]
        scope=allocation.scope,  # type: ignore[arg-type]
        menu=allocation.details["menu"],
        constraints=None if allocation.constraints is None else ConstraintSpec(**allocation.constraints),
    )
    model = get_row(session, Model, allocation.model_id)
    chooser, _, outside = prepare(session, model, params, allocation.calibration_id)
    if chooser.weights is not None:
        # those that it was chosen by, not the newest
        token_hash = allocation.details["sensitivities"]["token_hash"]
        job_id = allocation.details["sensitivities"]["job_id"]
        weights = load_weights(
            session, model.id, allocation.calibration_id, params.objective, token_hash=token_hash, job_id=job_id
        )
        chooser = replace(chooser, weights=weights)
    problem, budget = chooser.problem, (allocation.budget_bytes or 0) - outside
    constraints = check_constraints(params.constraints, problem)
    again = optimal_allocation(problem, budget, constraints=constraints or None)
    solution = again.solution
    assert solution is not None
    if content_hash(again) != allocation.content_hash or solution.objective != allocation.objective_value:
        raise Problem(
            409,
            "certificate-stale",
            f"cells or sensitivities that allocation {allocation.id} was chosen from have been measured anew since: "
            "allocate again, and take the certificate of the new one",
        )
    about = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "calibration_id": allocation.calibration_id,
        "allocation_id": allocation.id,
        "name": allocation.name,
        "objective": allocation.objective,
        "scope": allocation.scope,
    }
    return certificate_text(certificate_document(problem, solution, constraints=constraints, about=about))
