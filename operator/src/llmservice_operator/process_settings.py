"""Reads the settings of a process from environment variables, which __main__ passes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from llmservice_operator.api.references import NAMESPACE_FORM, SUBDOMAIN_FORM
from llmservice_operator.errors import InvalidSettings


def from_text(parse: Callable[[str], Any]) -> BeforeValidator:
    """Return a validator that parses the text of a variable and leaves other values alone."""
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


def named(form: re.Pattern[str]) -> Callable[[str], str]:
    """Return a validator for the name of an object, which must match `form`."""

    def check(name: str) -> str:
        if not form.fullmatch(name) or len(name) > 253:
            raise ValueError("not a valid name")
        return name

    return check


def wrong(said: str) -> PydanticCustomError:
    """Return the error for a setting with a valid form but an invalid content."""
    return PydanticCustomError("content", "{said}", {"said": said})


# The description of a field says what to write into its variable.
Port = Annotated[int, Field(ge=1, le=65535, description="a port number from 1 to 65535")]
Namespace = Annotated[
    str, AfterValidator(named(NAMESPACE_FORM)), Field(description="the name of a namespace")
]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]+$", description="a DNS name or an address")]
ObjectName = Annotated[
    str, AfterValidator(named(SUBDOMAIN_FORM)), Field(description="the name of an object")
]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR"],
    from_text(str.upper),
    Field(description="one of DEBUG, INFO, WARNING, ERROR"),
]


class Settings(BaseModel):
    """Settings that are read from the variables that the caller passes."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True)

    prefix: ClassVar[str]
    """Prefix of the variables. A variable is named prefix + NAME."""

    @classmethod
    def texts(cls, variables: Mapping[str, str]) -> dict[str, str]:
        """Return a mapping from each field of this class that `variables` sets to its text."""
        return {
            alias: variables[cls.prefix + alias.upper()]
            for alias in cls._aliases().values()
            if cls.prefix + alias.upper() in variables
        }

    @classmethod
    def variables(cls) -> dict[str, str | None]:
        """Return a mapping from the name of each variable of this class to its description."""
        return {
            cls.prefix + alias.upper(): cls.model_fields[name].description
            for name, alias in cls._aliases().items()
        }

    @classmethod
    def _aliases(cls) -> dict[str, str]:
        return {
            name: str(field.validation_alias or name) for name, field in cls.model_fields.items()
        }


class ProcessSettings(Settings):
    """All settings of one process."""

    groups: ClassVar[Mapping[str, type[Settings]]] = {}
    """Fields that are groups of further settings."""

    advice: ClassVar[Mapping[str, str]] = {}
    """Text after the message about a variable whose content is not valid."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Return the settings in the environment. An empty variable counts as unset.

        Other variables that start with the prefix are ignored, because Kubernetes may set them for
        a Service object whose name begins in the same way. Raises InvalidSettings, whose text names
        every invalid variable and the correction.
        """
        known = cls.variables() | {
            name: text for group in cls.groups.values() for name, text in group.variables().items()
        }
        variables = {
            name: text.strip()
            for name, text in environment.items()
            if name in known and text.strip()
        }
        groups = {field: group.texts(variables) for field, group in cls.groups.items()}
        try:
            return cls.model_validate({**cls.texts(variables), **groups})
        except ValidationError as error:
            refusals = (cls._refusal(each, variables, known) for each in error.errors())
            raise InvalidSettings("; ".join(dict.fromkeys(refusals))) from None

    @classmethod
    def _refusal(
        cls,
        error: ErrorDetails,
        variables: Mapping[str, str],
        known: Mapping[str, str | None],
    ) -> str:
        """Return the sentence that names a variable, its text and what to write instead."""
        # Parts of the location after the variable's name are inside the variable's value.
        variable = next(
            name
            for part in reversed(error["loc"])
            if (name := cls.prefix + str(part).upper()) in known
        )
        if error["type"] == "missing" and variable not in variables:
            return f"{variable} is not set: write {known[variable]}"
        text, advice = variables[variable], cls.advice.get(variable, "")
        if error["type"] == "json_setting":
            return f"{error['msg']}{advice}"
        if error["type"] == "content":
            return f"{variable} is {text!r}: {error['msg']}{advice}"
        return f"{variable} is {text!r}: write {known[variable]}{advice}"
