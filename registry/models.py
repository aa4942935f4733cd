"""What the models of the index and of the manifest have in common: their rules, and that a hostile one costs little.

pydantic goes on after a fault and keeps a record of each, which takes a hundred times the memory of what it complains
about. So a sequence ends at its first faulty item, and a mapping that is too long is not looked into.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field
from pydantic.alias_generators import to_camel

__all__ = ["Items", "Model", "Size", "at_most"]

_Item = TypeVar("_Item")


class Model(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="ignore",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
    )


def _tuple(value: Any) -> Any:
    """JSON has lists where the models have tuples."""
    return tuple(value) if isinstance(value, list) else value


Items: TypeAlias = Annotated[tuple[_Item, ...], FailFast(), BeforeValidator(_tuple)]
Size = Annotated[int, Field(ge=0, lt=1 << 63)]


def at_most(limit: int) -> BeforeValidator:
    """A rule for a field: no more than so many items, which is checked before the first of them is."""

    def check(value: Any) -> Any:
        if isinstance(value, dict | list | tuple) and len(value) > limit:
            raise ValueError(f"{len(value)} items, at most {limit} are allowed")
        return value

    return BeforeValidator(check)
