"""Frozen dataclasses as plain JSON values and back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, SerializerFunctionWrapHandler, TypeAdapter, model_serializer


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind | None, config=ConfigDict(extra="forbid"))  # a dataclass alone takes no config here


class JsonValue:
    """A dataclass that goes into plain JSON values and comes back without loss."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, with absent ones as None."""
        kind: Any = type(self)
        document: dict[str, Any] = _adapter(kind).dump_python(self, by_alias=True, warnings=False)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in document.items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return what `to_json` wrote.

        Raises:
            ValueError: where it did not write this.
        """
        kind: Any = cls
        value: Self = _adapter(kind).validate_python(document)
        return value


class AsBefore:
    """A dataclass that is written without its newer fields where these say nothing: earlier versions read it too."""

    _newer: ClassVar[Mapping[str, Any]] = {}  # what each of them is where it says nothing

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        newer = self._newer
        return {name: value for name, value in document.items() if name not in newer or newer[name] != value}
