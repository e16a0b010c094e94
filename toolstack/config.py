"""How any setting is checked and refused.

Owns: the base class of settings, and the words in which one that cannot be used is told.
Rule: whatever is wrong, from a flag, a file or Python, is one ConfigError of one line that names
the setting, its value and what is allowed.
"""

from typing import Any, Final, Literal, Self, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from common.targets import UNITS, size_of

VALUE_SHOWN_MAX: Final = 60  # characters of a bad value that an error repeats


class ConfigError(Exception):
    """A setting that cannot be used; the text is one line for the user."""


class Config(BaseModel):
    """Settings that are checked when made, and never change. Raises ConfigError, nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ConfigError(_in_one_line(type(self), error.errors()[0])) from None

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        field = cls.model_fields[info.field_name]
        if isinstance(value, bool) and field.annotation is not bool and allowed(field):
            raise PydanticCustomError("no_number", "a truth value is not a number")
        return value

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> Self:
        """From a config file's table; `-` may stand for `_`, and seconds lack their `_s`."""
        settings: dict[str, Any] = {}
        for key, value in table.items():
            name = key.replace("-", "_")
            name = f"{name}_s" if f"{name}_s" in cls.model_fields else name
            if name in settings:
                raise ConfigError(f"{label(name)}: is there twice, by two spellings")
            settings[name] = value
        return cls(**settings)

    def given(self) -> dict[str, Any]:
        """The settings that were named when this was made, and are no defaults."""
        return self.model_dump(exclude_unset=True)


def label(name: str) -> str:
    """A setting's name as errors and flags spell it."""
    return repr(name.removesuffix("_s").replace("_", "-"))[1:-1]


def allowed(info: FieldInfo) -> str:
    """What a setting may be: `1..64`, `mask, precise`, `0 or more`; empty if it says so itself."""
    if get_origin(info.annotation) is Literal:
        return ", ".join(get_args(info.annotation))
    if info.annotation is bool:
        return "true, false"
    least = next((bound.ge for bound in info.metadata if isinstance(bound, Ge)), None)
    above = next((bound.gt for bound in info.metadata if isinstance(bound, Gt)), None)
    most = next((bound.le for bound in info.metadata if isinstance(bound, Le)), None)
    if above is not None:
        return f"above {above}, at most {most}"
    if least is not None:
        return f"{least} or more" if most is None else f"{least}..{most}"
    return ""


def _complaint(info: FieldInfo) -> str:
    bounds = allowed(info)
    relation = "one of " if ", " in bounds and "above" not in bounds else ""
    return f"is not {relation}{'in ' if '..' in bounds else ''}{bounds}"


def shown(value: Any) -> str:
    """A bad value, short and on one line; a number that came as text looks like a number."""
    is_number = isinstance(value, str) and value.replace(".", "", 1).removeprefix("-").isdigit()
    text = str(value) if is_number else repr(value)
    return text if len(text) <= VALUE_SHOWN_MAX else f"{text[: VALUE_SHOWN_MAX - 3]}..."


def _in_one_line(model: type[Config], error: ErrorDetails) -> str:
    if not error["loc"]:  # a check of several settings together, which names them itself
        return str(error["ctx"]["error"])
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        key = repr(name[:VALUE_SHOWN_MAX])[1:-1]
        return f"{key}: no such setting; allowed are {', '.join(model.model_fields)}"
    if error["type"] == "value_error":
        complaint = str(error["ctx"]["error"])
    else:
        complaint = _complaint(model.model_fields[name])
    return f"{label(name)}: {shown(error['input'])} {complaint}"


def bytes_of(size: int | str) -> int:
    """A size as a user writes it, or already in bytes. Raises ConfigError."""
    nbytes = size if isinstance(size, int) else size_of(size)
    if nbytes is None:
        raise ConfigError(f"size: {shown(size)} is not a size in bytes, as 512, 4k or 32m")
    return nbytes


def size_text(nbytes: int) -> str:
    """A size in bytes as people write it: 512, 4k, 1m."""
    for unit in ("g", "m", "k"):
        if nbytes and nbytes % UNITS[unit] == 0:
            return f"{nbytes // UNITS[unit]}{unit}"
    return str(nbytes)
