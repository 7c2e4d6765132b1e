import pytest
from benching import write_questions


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    """A folder with a set like SQuAD and a set like HotpotQA."""
    return write_questions(tmp_path_factory.mktemp("questions"))
