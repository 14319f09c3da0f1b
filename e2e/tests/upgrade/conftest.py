"""Fixtures of the tests that install the chart themselves."""

import pytest

from stage import Images, load_images


@pytest.fixture(scope="session", autouse=True)
def installation(images: Images, local_cluster_name: str) -> None:
    """Load the images under test, and install nothing."""
    load_images(local_cluster_name, images)
