"""The questions of the HTTP API: their parameters, checked, and the OpenAPI document that says so to programs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from budgettune.text import parse_duration, shortened
from budgettune.web.reply import Asked

MOST_TOP = 1_000
LONGEST_TEXT = 300
CONFIDENCES = (0.5, 0.999)
_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,6})?"
DURATION = rf"^(?=.*[1-9])(?:{''.join(f'(?:{_NUMBER}{unit})?' for unit in ('d', 'h', 'm', 's', 'ms'))}|{_NUMBER})$"
"""A duration above zero: what `--budget` takes, without its freer spellings."""


@dataclass(frozen=True)
class Parameter:
    """Something that a question takes in its address; `read` raises ValueError with the rest of a sentence."""

    name: str
    read: Callable[[str], Any]
    schema: dict[str, Any]
    help: str
    is_needed: bool = False
    example: Any = None


def _budget(text: str) -> float:
    if not re.fullmatch(DURATION, text):
        raise ValueError('is not a duration: write it like "45", "90s", "10m", "1h30m" or "1.5h"')
    return parse_duration(text)


def _top(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MOST_TOP:
        raise ValueError(f"is not a whole number from 1 to {MOST_TOP}")
    return int(text)


def _clean_only(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("is neither true nor false")
    return text == "true"


def _device_name(text: str) -> str:
    if not 1 <= len(text) <= LONGEST_TEXT:
        raise ValueError(f"is not a text of 1 to {LONGEST_TEXT} characters")
    return text


def _confidence(text: str) -> float:
    low, high = CONFIDENCES
    if not re.fullmatch(r"0?\.[0-9]{1,20}", text) or not low <= float(text) <= high:
        raise ValueError(f"is not a probability from {low} to {high}")
    return float(text)


BUDGET = Parameter(
    "budget",
    _budget,
    {"type": "string", "pattern": DURATION, "maxLength": 100},
    "Training time allowed, above zero: seconds, or parts with a unit, largest first.",
    is_needed=True,
    example="60s",
)
TOP = Parameter(
    "top", _top, {"type": "integer", "minimum": 1, "maximum": MOST_TOP, "default": 1}, "How many trials to return."
)
CLEAN_ONLY = Parameter(
    "clean_only",
    _clean_only,
    {"type": "boolean", "default": False},
    "Leave out trials whose times something is known to have disturbed, or that nothing watched.",
)
DEVICE_NAME = Parameter(
    "device_name",
    _device_name,
    {"type": "string", "minLength": 1, "maxLength": LONGEST_TEXT},
    "Kind of machine whose times count; the study's own where left out, `any` for all.",
)
RECOMMENDED_DEVICE = Parameter(
    "device_name", _device_name, DEVICE_NAME.schema, "Kind of machine that will train; the study's own where left out."
)
CONFIDENCE = Parameter(
    "confidence",
    _confidence,
    {"type": "number", "minimum": CONFIDENCES[0], "maximum": CONFIDENCES[1], "default": 0.9},
    "Least probability of ending in time.",
)


@dataclass(frozen=True)
class Question:
    """A resource of a study."""

    name: str
    summary: str
    parameters: tuple[Parameter, ...]
    schema: dict[str, Any]  # of the answer


def read_query(query: str, parameters: tuple[Parameter, ...]) -> dict[str, Any]:
    """Return the values of a query string by name.

    Raises:
        Asked: with 400 and a sentence, where something is wrong, missing, unknown or there twice.
    """
    known = {parameter.name: parameter for parameter in parameters}
    found: dict[str, Any] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError:
        raise Asked(400, "bad-request", "the query is not name=value pairs of UTF-8") from None
    for name, text in pairs:
        if name not in known:
            allowed = f"takes {', '.join(known)}" if known else "takes no parameters"
            raise Asked(400, "bad-request", f"there is no parameter {shortened(repr(name))}: this question {allowed}")
        if name in found:
            raise Asked(400, "bad-request", f"{name} is there twice: give it once")
        try:
            found[name] = known[name].read(text)
        except ValueError as error:
            raise Asked(400, "bad-request", f"{name} {shortened(repr(text))} {error}") from None
    for parameter in parameters:
        if parameter.is_needed and parameter.name not in found:
            example = f"{parameter.name}={parameter.example}"
            raise Asked(400, "bad-request", f"{parameter.name} is missing: ask with ?{example}")
    return found


# --- The OpenAPI document -----------------------------------------------------------------------------------------

TEXT, NUMBER, WHOLE, OBJECT = ({"type": name} for name in ("string", "number", "integer", "object"))
TEXT_OR_NULL, NUMBER_OR_NULL, OBJECT_OR_NULL = ({"type": [name, "null"]} for name in ("string", "number", "object"))


def _of(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _about(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {**schema, "description": description}


SCHEMAS = {
    "States": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
    "Trial": {
        "type": "object",
        "description": "A trial. The objective's value has the objective's own name, `test_accuracy` by default. Where "
        "validation images judge, it is `validation_accuracy`, `judged_on` says so, and `test_accuracy` chose nothing.",
        "required": ["number", "state", "train_seconds", "params"],
        "properties": {
            "number": WHOLE,
            "state": TEXT,
            "train_seconds": NUMBER_OR_NULL,
            "judged_on": {"const": "validation"},
            "validation_accuracy": NUMBER_OR_NULL,
            "test_accuracy": NUMBER_OR_NULL,
            "accuracy_low": _about(NUMBER_OR_NULL, "Of the mean over seeds (95%), where repeats tell it."),
            "accuracy_high": NUMBER_OR_NULL,
            "front_chance": _about(NUMBER_OR_NULL, "That nothing beats it in the mean over seeds."),
            "params": OBJECT,
        },
    },
    "Prediction": _object(
        params=OBJECT,
        epochs={"type": "integer", "minimum": 1},
        seconds=NUMBER,
        seconds_low=NUMBER,
        seconds_high=NUMBER,
        chance_in_time={"type": "number", "minimum": 0, "maximum": 1},
    ),
    "Front": _object(
        front=_list(_of("Trial")),
        hypervolume=NUMBER_OR_NULL,
        reference={**_list(NUMBER_OR_NULL), "minItems": 2, "maxItems": 2},
    ),
    "Recommendation": _object(
        study=TEXT,
        budget_seconds=NUMBER,
        confidence=NUMBER,
        device_name=TEXT_OR_NULL,
        choice=_of("Prediction"),
        observed=OBJECT_OR_NULL,
        extrapolated=_list(TEXT),
        next_trial=OBJECT_OR_NULL,
        basis=OBJECT,
        notes=_list(TEXT),
    ),
    "Show": _object(
        name=TEXT,
        cells={"type": ["integer", "null"]},
        states=_of("States"),
        devices=_list(TEXT),
        given_up=_list(OBJECT),
        stopping=OBJECT_OR_NULL,
        spec=OBJECT,
    ),
    "Standing": _object(
        mark=_about(TEXT, "Another one once a trial has ended."),
        page=_about(TEXT_OR_NULL, "The mark that the latest page was built at."),
        states=_of("States"),
        sentence=TEXT,
        is_over=_about({"type": "boolean"}, "Whether nothing waits or runs."),
    ),
    "Studies": _list(_object(name=TEXT, states=_of("States"))),
    "Refusal": _object(
        kind=_about(TEXT, "A short word for programs."),
        reason=_about(TEXT, "What is wrong and what to do, in a sentence."),
    ),
}
QUESTIONS: Mapping[str, Question] = {
    question.name: question
    for question in (
        Question(
            "best",
            "The best trials whose training fits a budget, as `budgettune best --format json`",
            (BUDGET, TOP, CLEAN_ONLY, DEVICE_NAME),
            _list(_of("Trial")),
        ),
        Question(
            "front",
            "The Pareto front and its hypervolume, as `budgettune front --format json`",
            (CLEAN_ONLY, DEVICE_NAME),
            _of("Front"),
        ),
        Question(
            "recommend",
            "What to train within a budget, run or not, as `budgettune recommend --format json`",
            (BUDGET, CONFIDENCE, RECOMMENDED_DEVICE),
            _of("Recommendation"),
        ),
        Question("show", "How a study stands, as `budgettune study show --format json`", (), _of("Show")),
        Question("standing", "How far it is, in a moment: what pages poll", (), _of("Standing")),
    )
}


def openapi(version: str, prefix: str, *, has_password: bool) -> dict[str, Any]:
    """Return the OpenAPI document of the API."""
    paths: dict[str, Any] = {
        "/api/answers": {"get": _operation("studies", "The studies, each with its trials by state", (), _of("Studies"))}
    }
    for name, question in QUESTIONS.items():
        operation = _operation(name, question.summary, question.parameters, question.schema)
        operation["parameters"].insert(0, STUDY)
        operation["responses"]["404"] = _refused("There is no such study.")
        if name != "standing":
            operation["responses"]["409"] = _refused(
                "The study cannot answer this: nothing is within the budget, too little has finished, none ran there."
            )
        paths[f"/api/answers/{{study}}/{name}"] = {"get": operation}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "BudgetTune's answers",
            "version": version,
            "description": "What a study answers, of now, read-only. A note beside an answer, which a command prints "
            "on standard error, is in the header `Budgettune-Note`.",
        },
        "servers": [{"url": prefix or "/"}],
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }
    if has_password:
        document["components"]["securitySchemes"] = {"password": {"type": "http", "scheme": "basic"}}
        document["security"] = [{"password": []}]
        for path in paths.values():
            path["get"]["responses"] |= {
                "401": _refused("The password is missing or wrong."),
                "429": _refused("Too many wrong passwords."),
            }
    return document


STUDY = {
    "name": "study",
    "in": "path",
    "required": True,
    "description": "Its name, percent-encoded; a slash in it may stand as it is.",
    "schema": {"type": "string", "minLength": 1},
}


def _operation(name: str, summary: str, parameters: tuple[Parameter, ...], schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [
            {
                "name": each.name,
                "in": "query",
                "required": each.is_needed,
                "description": each.help,
                "schema": each.schema,
                **({} if each.example is None else {"example": each.example}),
            }
            for each in parameters
        ],
        "responses": {
            "200": {"description": summary, "content": {"application/json": {"schema": schema}}},
            "400": _refused("A parameter, or the path, is not as it should be."),
            "503": {
                **_refused("The database is away, or too many ask: ask again later."),
                "headers": {"Retry-After": {"schema": {"type": "integer"}}},
            },
        },
    }


def _refused(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _of("Refusal")}}}
