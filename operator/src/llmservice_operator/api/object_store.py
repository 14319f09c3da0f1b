"""spec.model.objectStore: address of the object store of an s3:// model, and its credentials."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from llmservice_operator.api.fields import Fields, matches
from llmservice_operator.api.references import HTTP_ADDRESS, SUBDOMAIN_PATTERN

ACCESS_KEY_ID: Final = "AWS_ACCESS_KEY_ID"
SECRET_ACCESS_KEY: Final = "AWS_SECRET_ACCESS_KEY"
ENDPOINT: Final = "AWS_ENDPOINT_URL"
REGION: Final = "AWS_DEFAULT_REGION"
STREAMER_ENDPOINT: Final = "RUNAI_STREAMER_S3_ENDPOINT"
STREAMER_VIRTUAL_HOSTS: Final = "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING"

VARIABLES: Final = (
    *(ACCESS_KEY_ID, SECRET_ACCESS_KEY, ENDPOINT, REGION),
    *(STREAMER_ENDPOINT, STREAMER_VIRTUAL_HOSTS),
)
"""Variables that spec.model.objectStore sets."""


class ObjectStoreSecret(Fields):
    name: Annotated[
        str,
        Field(min_length=1, max_length=253),
        matches(SUBDOMAIN_PATTERN, "must be the name of a Secret, such as weights-reader"),
    ]
    """Name of a Secret in the LLMService's namespace with the keys AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY."""


class ObjectStore(Fields):
    endpoint: (
        Annotated[
            str,
            Field(min_length=1, max_length=512),
            matches(
                HTTP_ADDRESS,
                "must be the address of an S3 API, such as https://s3.example.com:9000, without a "
                "user or key: set credentialsSecretRef for credentials",
            ),
        ]
        | None
    ) = None
    """Address of the S3 API, such as https://s3.example.com:9000. Default: Amazon S3."""
    region: (
        Annotated[
            str,
            Field(min_length=1, max_length=64),
            matches("[a-z0-9][a-z0-9-]*", "must be the name of a region, such as eu-central-1"),
        ]
        | None
    ) = None
    """Region of the bucket, such as eu-central-1. Default: us-east-1, or the region that the
    cluster gives the pods of the ServiceAccount."""
    addressing: Literal["Path", "VirtualHost"] | None = None
    """Place of the bucket's name in an address. Path: after the host name. VirtualHost: at the
    start of the host name. Default: Path if endpoint is set, VirtualHost otherwise."""
    credentials_secret_ref: ObjectStoreSecret | None = None
    """Secret with the access key. Default: the role that the cluster gives the ServiceAccount in
    template.serviceAccountName."""
