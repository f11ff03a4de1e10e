"""The base of all configs, and the types of their fields."""

from __future__ import annotations

from typing import Annotated

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

STORE_ENDINGS = ".db", ".sqlite", ".sqlite3"


def _store(name: str) -> str:
    address = "://" in name or name.startswith("store:")
    return name if address or not name.partition("?")[0].endswith(STORE_ENDINGS) else f"store:{name}"


StoreName = Annotated[str, AfterValidator(_store)]
"""`store:FILE.db` or a database URL; FILE.db alone is the same store. A name with another ending is unchanged."""


class Config(BaseModel):
    """Base of all configs: unknown names are refused, fields are documented beneath themselves."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def to_yaml(self) -> str:
        """Return the form that a run folder keeps and `--config` reads."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True))

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        """Put a command's own fields first in `--help`, and those it shares with others after them."""
        fields = cls.__pydantic_fields__
        own = [name for name in cls.__annotations__ if name in fields]
        cls.__pydantic_fields__ = {n: fields[n] for n in [*own, *(n for n in fields if n not in own)]}
