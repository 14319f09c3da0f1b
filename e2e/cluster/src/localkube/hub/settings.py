"""Parses the test hub's configuration: repositories, access and speed.

host: 10.200.0.1
port: 8090
bytesPerSecond: 1000000            # of each download; no limit when left out
repositories:
  org/name:
    visibility: private            # public (the default), gated or private
    bytesPerSecond: 50000          # instead of the hub's own limit
    branches: {main: /models/a, v1: /models/b}
tokens:
  hf_reader: [org/name]            # gated and private repositories that the token opens
"""

from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    DirectoryPath,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

from localkube.hub.repository import Visibility

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8090

RepositoryId = Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")]


def _has_main(branches: dict[str, Path]) -> dict[str, Path]:
    if "main" not in branches:
        raise ValueError("add `main`, the branch that clients start at")
    return branches


class _Settings(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )


class InvalidHubSettings(Exception):
    """The configuration is invalid. The message names each wrong field."""


class RepositorySettings(_Settings):
    """One repository: a folder for each branch."""

    branches: Annotated[dict[str, DirectoryPath], AfterValidator(_has_main)]
    visibility: Visibility = Visibility.PUBLIC
    bytes_per_second: PositiveInt | None = None


class HubSettings(_Settings):
    """Settings of the hub. Its speed limit applies to each download, in bytes per second."""

    repositories: dict[RepositoryId, RepositorySettings]
    tokens: dict[str, frozenset[RepositoryId]] = {}
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    bytes_per_second: PositiveInt | None = None

    @property
    def url(self) -> str:
        """Address of the hub, in the form of HF_ENDPOINT."""
        return f"http://{self.host}:{self.port}"

    @model_validator(mode="after")
    def _tokens_open_repositories_that_exist(self) -> Self:
        opened = {repo_id for repositories in self.tokens.values() for repo_id in repositories}
        if unknown := sorted(opened - set(self.repositories)):
            raise ValueError(f"tokens name {', '.join(unknown)}: add it under repositories")
        return self

    @classmethod
    def parse(cls, text: str) -> "HubSettings":
        """Parse the YAML form; raise InvalidHubSettings if it is invalid."""
        try:
            return cls.model_validate(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise InvalidHubSettings(f"the hub's configuration is not YAML: {error}") from error
        except ValidationError as error:
            faults = (
                f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}"
                for fault in error.errors()
            )
            raise InvalidHubSettings("the hub's configuration: " + "; ".join(faults)) from error

    def to_yaml(self) -> str:
        """Return the YAML form that `parse` reads."""
        document = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return yaml.safe_dump(document, sort_keys=False)
