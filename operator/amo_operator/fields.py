"""What the models of the custom resources are made of: durations, names, and rules that hold on both sides."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError

if TYPE_CHECKING:
    from collections.abc import Callable

# Bounded: the API server counts nanoseconds in 64 bits, about 292 years, and beyond that wraps around in silence.
LONGEST_DURATION_CHARS = 10
DURATION = r"^([0-9]{1,5}(d|h|m|s))+$"
SHORT_DURATION = r"^[0-9]{1,4}(ms|s)$"
UNITS = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """A sentence that must hold: in CEL, and in Python unless it compares an object with what it was before."""

    path: str
    message: str
    cel: str
    holds: Callable[[Any], bool] | None = None

    def document(self) -> dict[str, str]:
        """Return the rule as the API server wants it."""
        return {"rule": self.cel, "message": self.message} | ({"fieldPath": f".{self.path}"} if self.path else {})


def duration_text(value: timedelta) -> str:
    """Write a duration in the largest unit in which it is a whole number: ``1d``, ``90m``, ``500ms``."""
    unit = next(unit for unit, length in UNITS.items() if not value % length)
    return f"{value // UNITS[unit]}{unit}"


def _reader(pattern: str) -> BeforeValidator:
    def read(value: Any) -> timedelta:
        if isinstance(value, timedelta):
            return value
        if not isinstance(value, str) or len(value) > LONGEST_DURATION_CHARS or not re.fullmatch(pattern, value):
            raise PydanticCustomError("duration", "must be a duration that matches {pattern}", {"pattern": pattern})
        parts = re.findall(r"([0-9]+)([a-z]+)", value)
        return sum((int(number) * UNITS[unit] for number, unit in parts), timedelta())

    return BeforeValidator(read)


def _duration_schema(pattern: str) -> WithJsonSchema:
    """By ``format: duration`` CEL compares lengths of time, days included, and not texts."""
    return WithJsonSchema({"type": "string", "format": "duration", "pattern": pattern, "maxLength": LONGEST_DURATION_CHARS})


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise PydanticCustomError("distinct", "must not name anything twice")
    return values


Duration: TypeAlias = Annotated[timedelta, _reader(DURATION), _duration_schema(DURATION)]
ShortDuration: TypeAlias = Annotated[timedelta, _reader(SHORT_DURATION), _duration_schema(SHORT_DURATION)]
ObjectName: TypeAlias = Annotated[
    str, StringConstraints(max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
]
DataKey: TypeAlias = Annotated[str, StringConstraints(max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
Account: TypeAlias = Annotated[str, StringConstraints(max_length=64, pattern=r"^[0-9A-Za-z]+$")]
Fingerprint: TypeAlias = Annotated[str, StringConstraints(max_length=12, pattern=r"^[0-9a-f]{12}$")]


# As sets the API server keeps them distinct also when several people apply parts of them.
AS_SET = Field(json_schema_extra={"x-kubernetes-list-type": "set"})
DISTINCT = AfterValidator(_distinct)
Accounts: TypeAlias = Annotated[tuple[Account, ...], Field(min_length=1, max_length=1000), AS_SET, DISTINCT]
Fingerprints: TypeAlias = Annotated[tuple[Fingerprint, ...], Field(max_length=100), AS_SET, DISTINCT]
ObjectNames: TypeAlias = Annotated[tuple[ObjectName, ...], Field(max_length=20), AS_SET, DISTINCT]


OPAQUE = Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
Opaque: TypeAlias = Annotated[dict[str, Any], OPAQUE]
"""Part of a pod's spec: what the API server takes for it is the API server's business."""
Opaques: TypeAlias = Annotated[tuple[Opaque, ...], Field(max_length=20)]


class Model(BaseModel):
    """What all parts of the custom resources have in common; fields that are not known are a later version's and ignored."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, frozen=True, use_attribute_docstrings=True
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obey(self) -> Self:
        for rule in self.rules:
            if rule.holds is not None and not rule.holds(self):
                raise PydanticCustomError("rule", "{message}", {"message": rule.message, "path": rule.path})
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add the rules."""
        schema = handler(core_schema)
        if cls.rules:
            handler.resolve_ref_schema(schema)["x-kubernetes-validations"] = [rule.document() for rule in cls.rules]
        return schema


class PodSettings(Model):
    """What a cluster may ask of a Job's pod; none of it is part of the work that the Job is named for."""

    image_pull_secrets: ObjectNames = ()
    """Names of the Secrets with which the image is pulled."""
    resources: Opaque | None = None
    """Requests and limits of the container, as in any pod."""
    node_selector: Annotated[Opaque | None, Field(max_length=20)] = None
    """Labels of the nodes on which it may run."""
    tolerations: Opaques = ()
    """Taints of nodes that it bears."""
    volumes: Opaques = ()
    """Volumes of the pod, such as the CA of a verify-full DSN."""
    volume_mounts: Opaques = ()
    """Where the container mounts them."""
