"""Every error this service raises on purpose, and the HTTP status it is answered with.

::

    AmoWebhooksError
    ├── RequestError                 caught once, in inbox/endpoints.py, and answered in the envelope
    │   ├── InvalidBody        400   authentic, but not what amoCRM sends; carries the problems with their paths
    │   ├── Unauthorized       401   no known key signed this, or its account is not the one the key is for
    │   ├── BodyTooLarge       413   more than max_body_bytes
    │   └── Unavailable        503   not known to be stored: too much in flight, past the budget, no database
    ├── Unparsable                   the bytes are no body of amoCRM's: InvalidBody on the signed path, a dead letter on the token path
    ├── ConfigurationError           found at start: one sentence on standard error, exit code 2
    └── CommandError                 a command could not do what was asked: one sentence, exit code 1
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a body: where (``leads.add[1].id``) and what, without the value."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class AmoWebhooksError(Exception):
    """Base of every error raised on purpose."""


class RequestError(AmoWebhooksError):
    """An error with an HTTP answer; ``retry_after`` is in seconds."""

    status = 500
    retry_after: int | None = None


class InvalidBody(RequestError):
    """The body is authentic and not usable; nothing of it is stored."""

    status = 400

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("Invalid data: " + "; ".join(map(str, problems[:3])))
        self.problems = problems


class Unauthorized(RequestError):
    """No active key matches; the message says how to mend it and never contains a secret."""

    status = 401


class BodyTooLarge(RequestError):
    """The body exceeds ``max_body_bytes``."""

    status = 413


class Unavailable(RequestError):
    """Unknown, never *not stored*: the sender is to repeat the delivery."""

    status = 503

    def __init__(self, message: str, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unparsable(AmoWebhooksError):
    """The bytes cannot be read as a body; ``reason`` contains nothing of them."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason)
        self.problem = Problem(path, reason)


class ConfigurationError(AmoWebhooksError):
    """A setting, a file or the database is not as the service needs it."""


class CommandError(AmoWebhooksError):
    """A command could not do what was asked."""
