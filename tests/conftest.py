import os
from pathlib import Path

import pytest
from hypothesis import settings

from cprs_integrations import CPRSEngine
from cprs_integrations.critics.known import KnownCritic

settings.register_profile("ci", max_examples=500, deadline=None)
settings.register_profile("long", max_examples=20_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser):
    parser.addoption("--data", type=Path, help="folder with the evaluation data, for the tests marked data")
    parser.addoption("--goldens", type=Path, help="folder with the reference's outputs, for the tests marked golden")
    parser.addoption("--screenshot", type=Path, help="where the browser test writes the picture of the playground")


@pytest.fixture(scope="session")
def data(request):
    return request.config.getoption("--data", skip=True)


@pytest.fixture(scope="session")
def engine():
    """The engine with the critic that ships."""
    return CPRSEngine.from_pretrained()


@pytest.fixture
def known():
    """An engine whose critic knows what is worth keeping."""
    return CPRSEngine(critic=KnownCritic({"Paris": 0.9, "Seine": 0.8, "Everest": 0.7, "Hillary": 0.95}))
