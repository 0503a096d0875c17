from __future__ import annotations

import inspect
import pickle
import re
from typing import Any

import pytest

from lossd_client import errors
from lossd_client.errors import PROBLEMS, InternalError, LossdError, NotEvaluable, NotFound, Problem, Unavailable


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = re.findall(r"[├└]── (\w+) +(\d{3})?", errors.__doc__ or "")
    assert dict(drawn) == {"ConnectionFailed": "", "UnreadableAnswer": "", "Problem": ""} | {
        kind.__name__: str(kind.status) for kind in PROBLEMS.values()
    }


def test_every_class_is_exported_and_documented() -> None:
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, LossdError)}
    assert classes == set(errors.__all__) - {"PROBLEMS", "Fault"}
    assert all(getattr(errors, name).__doc__ for name in classes)


@pytest.mark.parametrize("slug", PROBLEMS)
def test_a_problem_survives_the_trip_as_a_document(slug: str) -> None:
    kind = PROBLEMS[slug]
    fault = errors.Fault(pointer="/loss/gamma", detail="gamma must be >= 0")
    problem = kind("what, where, remedy", errors=[fault], request_id="r-1")
    document = problem.to_json()
    assert document == {
        "type": f"/problems/{slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": "what, where, remedy",
        "errors": [fault],
        "request_id": "r-1",
    }
    back = Problem.from_json(document, retry_after_s=2.0)
    assert type(back) is kind
    assert (back.detail, back.errors, back.request_id, back.retry_after_s) == (problem.detail, [fault], "r-1", 2.0)
    assert back.to_json() == document
    assert str(back) == "what, where, remedy (request r-1)"


def test_a_type_may_be_an_absolute_uri() -> None:
    assert type(Problem.from_json({"type": "https://example.org/problems/queue-full"})) is errors.QueueFull


@pytest.mark.parametrize(
    ("document", "status", "kind", "detail"),
    [
        ({}, None, InternalError, "the answer has HTTP status 500"),
        ({}, 503, Unavailable, "the answer has HTTP status 503"),
        ({"type": "about:blank", "title": "Not Found"}, 404, NotFound, "Not Found"),
        ({"type": "/problems/of-the-future", "detail": "new"}, 422, NotEvaluable, "new"),
        ({"status": "502"}, 502, InternalError, "the answer has HTTP status 502"),
        ({"status": None, "errors": "none", "title": "Teapot", "type": None}, 418, Problem, "Teapot"),
        ({"status": 404}, None, NotFound, "the answer has HTTP status 404"),
    ],
)
def test_a_strange_document_still_becomes_an_exception_of_its_status(
    document: dict[str, Any], status: int | None, kind: type[Problem], detail: str
) -> None:
    problem = Problem.from_json(document, status=status)
    assert type(problem) is kind
    assert problem.detail == detail
    assert problem.status == (status or document.get("status") or 500)
    assert problem.errors == []


def test_the_answers_request_id_is_used_where_the_document_has_none() -> None:
    assert Problem.from_json({}, request_id="r-2").request_id == "r-2"
    assert Problem.from_json({"request_id": "r-1"}, request_id="r-2").request_id == "r-1"


@pytest.mark.parametrize("name", sorted(set(errors.__all__) - {"PROBLEMS", "Fault"}))
def test_errors_cross_process_borders(name: str) -> None:
    error = getattr(errors, name)("detail", request_id="r-1")
    if isinstance(error, Problem):
        error.retry_after_s = 3.0
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert vars(back) == vars(error)
    assert str(back) == str(error) == "detail (request r-1)"
