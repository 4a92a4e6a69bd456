"""What server and worker must agree on without importing each other."""

from __future__ import annotations

from importlib import import_module

from results_db.params import PARAMS
from results_db.states import WORKER_KINDS
from server import relay
from worker import main
from worker.registry import handler_of


def test_the_queue_has_one_name() -> None:
    assert relay.QUEUE == main.QUEUE


def test_the_message_names_a_function() -> None:
    module, _, name = relay.RUN_ATTEMPT.rpartition(".")
    assert callable(getattr(import_module(module), name))


def test_every_worker_kind_has_parameters_and_a_handler() -> None:
    for kind in WORKER_KINDS:
        assert kind in PARAMS
        assert callable(handler_of(kind))
