"""One tree of errors. Each message names what was wrong and the way out.

CPRSError
├── ArgumentError      an argument has a value it cannot have (also a ValueError)
├── ModelError         the files of a model are missing, damaged or foreign
├── CriticError        a critic failed while it scored; its own error is the cause
├── ServerError        a served engine cannot be reached, or refused a request
└── MissingExtraError  an optional package is not installed (also an ImportError)
"""

from importlib import import_module
from types import ModuleType


class CPRSError(Exception):
    """The base of every error that this package raises on purpose."""


class ArgumentError(CPRSError, ValueError):
    """An argument has a value it cannot have."""


class ModelError(CPRSError):
    """The files of a model are missing, damaged or foreign."""


class CriticError(CPRSError):
    """A critic failed while it scored; `__cause__` is its own error."""


class ServerError(CPRSError):
    """A served engine cannot be reached, or refused a request.

    Attributes:
        status: of HTTP; None if there was no answer.
        request_id: under which the server's log tells more, if it answered.
    """

    def __init__(self, message: str, status: int | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.status, self.request_id = status, request_id


class MissingExtraError(CPRSError, ImportError):
    """An optional package is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package.

    Raises:
        MissingExtraError: it is not installed; the message has the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        message = f'{module.split(".")[0]} is not installed; run: pip install "cprs_integrations[{extra}]"'
        raise MissingExtraError(message, name=error.name) from error
