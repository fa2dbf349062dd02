"""Describes the HTTP interface in OpenAPI 3.1, for /openapi.json."""

from __future__ import annotations

from typing import Any

from core.version import VERSION

_TIME = {
    "type": ["integer", "string"],
    "description": "In the unit of the training log, or a date and time of ISO 8601.",
}
_IDS = {"type": "array", "items": {"type": "string"}}
_CLICK = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "required": ["item"],
            "properties": {"item": {"type": "string"}, "time": _TIME},
        },
    ]
}
_SEARCH = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "required": ["query"],
            "properties": {"query": {"type": "string"}, "clicked": _IDS, "time": _TIME},
        },
    ]
}
QUESTION: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "clicks": {
            "type": "array",
            "items": _CLICK,
            "description": "Clicked items, the latest last. All events have times, or none has.",
        },
        "searches": {
            "type": "array",
            "items": _SEARCH,
            "description": "Searches with the items clicked in them, the latest last.",
        },
        "user": {"type": "string", "description": "A user of the training log, or anyone."},
        "query": {"type": "string", "description": "Words of a search; at /search alone."},
        "at": _TIME | {"description": "Only what is earlier is history."},
        "k": {"type": "integer", "minimum": 1, "default": 20},
        "candidates": _IDS | {"description": "Items to choose from; all where it is left out."},
        "exclude": _IDS | {"description": "Items to leave out."},
        "keep_seen": {
            "type": "boolean",
            "default": False,
            "description": "Whether items that the user has touched may come again.",
        },
        "because": {
            "type": "boolean",
            "default": False,
            "description": "Whether to say which events moved each item.",
        },
        "reasoning_steps": {"type": "integer", "minimum": 0, "description": "K of this answer."},
    },
}
_MOVED = {
    "type": "object",
    "required": ["kind", "score", "rank"],
    "properties": {
        "kind": {"enum": ["click", "search"]},
        "item": {"type": "string"},
        "query": {"type": "string"},
        "clicked": _IDS,
        "given": {"type": "integer", "description": "Its place in clicks or searches."},
        "score": {"type": "number", "description": "The score with it less that without it."},
        "rank": {"type": "integer", "description": "Places that it moved the item up."},
    },
}
ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["items", "known_user", "skipped_items", "skipped_words", "skipped_events"],
    "properties": {
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["item", "title", "score"],
                "properties": {
                    "item": {"type": "string"},
                    "title": {"type": "string"},
                    "score": {"type": "number"},
                    "probability": {"type": "number"},
                    "because": {
                        "type": "object",
                        "required": ["moved"],
                        "properties": {
                            "moved": {"type": "array", "items": _MOVED},
                            "rank_by_step": {"type": "array", "items": {"type": "integer"}},
                        },
                    },
                },
            },
        },
        "known_user": {"type": "boolean"},
        "skipped_items": {"type": "integer"},
        "skipped_words": {"type": "integer"},
        "skipped_events": {"type": "integer"},
    },
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "Expected, found, what to do."}},
}
_REASONS = {
    "400": "The body is no JSON in UTF-8.",
    "408": "The body did not arrive in time.",
    "413": "The body is too long.",
    "415": "The content is not application/json.",
    "422": "A key or a value of the question is wrong.",
    "503": "Too much is asked at once, or no model is loaded; Retry-After says when to come again.",
}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _asks(summary: str) -> dict[str, Any]:
    errors = {
        code: {"description": text, "content": _content(_reference("Error"))}
        for code, text in _REASONS.items()
    }
    found = {"description": "The items, best first.", "content": _content(_reference("Answer"))}
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": _content(_reference("Question"))},
            "responses": {"200": found} | errors,
        }
    }


def _gets(summary: str, parameters: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "get": {
            "summary": summary,
            "parameters": [
                {"name": name, "in": "query", "schema": {"type": "string"}} for name in parameters
            ],
            "responses": {"200": {"description": summary}},
        }
    }


def description() -> dict[str, Any]:
    """Returns the description of all paths."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Recommendations and searches", "version": VERSION},
        "paths": {
            "/recommend": _asks("Recommends items for a history."),
            "/search": _asks("Finds the items of a query, for a history."),
            "/items": _gets("Finds items by the words of their titles.", ("q",)),
            "/model": _gets("Tells which model answers, and what it can."),
            "/healthz": _gets("Tells that the server is alive."),
            "/readyz": _gets("Tells by 200 or 503 whether it answers questions."),
            "/metrics": _gets("Tells what was counted, as Prometheus reads it."),
            "/openapi.json": _gets("Describes these paths."),
            "/reload": {
                "post": {
                    "summary": "Reads the model again; taken from this machine alone.",
                    "responses": {
                        "200": {"description": "The new model answers."},
                        "403": {"description": "It was asked from elsewhere."},
                        "422": {"description": "It cannot be read; the one before goes on."},
                    },
                }
            },
        },
        "components": {"schemas": {"Question": QUESTION, "Answer": ANSWER, "Error": _ERROR}},
    }
