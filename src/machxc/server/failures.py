"""What a request may fail with: a status, a code for programs and a message for people, always as JSON.

======================  ====  ==================================================================
code                    HTTP
======================  ====  ==================================================================
invalid_json            400   the body is not JSON
unauthorized            401   the API key is missing or wrong
not_found               404   there is no such path
method_not_allowed      405   the path has no such method
timeout                 408   the body did not arrive
too_large               413   the body is longer than the limit
unsupported_media_type  415   the body is not said to be application/json
invalid_request         422   what is asked is not what the API or the model expects
overloaded              429   the queue is full: come again after Retry-After seconds
internal                500   a defect of the server
unavailable             503   nothing is left that scores, or the server is ending
deadline                504   the deadline passed before the query's turn came; nothing was scored
======================  ====  ==================================================================
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field


@dataclass(eq=False)
class Failure(Exception):  # noqa: N818 (it is also what is sent)
    """Why a request was not answered."""

    status: int
    code: str
    message: str
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """The error as JSON."""
        return json.dumps({"error": {"code": self.code, "message": self.message}}, ensure_ascii=False).encode()


def invalid_json(reason: str) -> Failure:
    """The body cannot be read."""
    return Failure(400, "invalid_json", f"the body is not valid JSON: {reason}")


def invalid_request(reason: str) -> Failure:
    """The body can be read, but not answered."""
    return Failure(422, "invalid_request", reason)


def unauthorized() -> Failure:
    """No key, or a wrong one."""
    message = "expected the API key: send the header 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
    return Failure(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})


def too_large(limit: int) -> Failure:
    """A body beyond the limit."""
    return Failure(413, "too_large", f"expected a body of at most {limit} bytes; split the request")


def wrong_media_type(given: str) -> Failure:
    """A body that is not JSON by its own account."""
    message = f"expected the header 'Content-Type: application/json', got {given[:80]!r}"
    return Failure(415, "unsupported_media_type", message)


def body_timeout(seconds: float) -> Failure:
    """A body that does not come."""
    return Failure(408, "timeout", f"the body did not arrive within {seconds:g} s", {"Connection": "close"})


def overloaded(seconds: int) -> Failure:
    """No room in the queue."""
    message = f"the server has as many queries waiting as it can answer in time; try again in {seconds} s"
    return Failure(429, "overloaded", message, {"Retry-After": str(seconds)})


def unavailable(reason: str) -> Failure:
    """Nothing can be answered at all."""
    return Failure(503, "unavailable", reason, {"Retry-After": "1"})


def late() -> Failure:
    """Its turn would have come too late."""
    return Failure(504, "deadline", "the deadline passed before the query's turn came; nothing was scored")


def internal(error: BaseException) -> Failure:
    """A defect, of which no more is told than its kind."""
    return Failure(500, "internal", f"a defect of the server: {type(error).__name__}; its log tells more")


OF_STATUS = {404: ("not_found", "there is no such path; /docs lists all"), 405: ("method_not_allowed", "")}


def of_status(status: int, detail: str, headers: dict[str, str] | None = None) -> Failure:
    """What the framework itself refuses."""
    code, message = OF_STATUS.get(status, ("invalid_request" if status < 500 else "internal", ""))
    return Failure(status, code, message or detail, dict(headers or {}))
