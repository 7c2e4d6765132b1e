import httpx
import pytest
from serving_support import served


@pytest.fixture(scope="session")
def server():
    """The shipped critic, served."""
    with served() as (url, _):
        yield url


@pytest.fixture(scope="session")
def client(server):
    with httpx.Client(base_url=server, timeout=60) as client:
        yield client
