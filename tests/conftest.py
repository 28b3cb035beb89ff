"""What several test files share."""

import logging
from collections.abc import Iterator

import boto3
import pytest
from hypothesis import settings
from moto.server import ThreadedMotoServer

# How long an example takes is the machine's affair.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """A folder on an S3 server of this process."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys).create_bucket(Bucket="bucket")
    yield f"s3://key:secret@bucket/runs?endpoint_override=http://127.0.0.1:{port}&scheme=http&region=us-east-1"
    server.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start Ray come first, the longest: what is last should be short when two processes share them."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
