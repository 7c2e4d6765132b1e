import pytest
from served import serving


@pytest.fixture(scope="module")
def served(engine):
    """The critic that ships, served."""
    with serving(engine) as found:
        yield found
