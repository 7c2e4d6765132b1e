"""Logs of a server: one JSON object a line, with sizes and times, and never a word of a document."""

import json
import logging
import sys
import time
import traceback
import warnings
from typing import Any

LOGGER = logging.getLogger("cprs_integrations.serving")


class JsonLines(logging.Formatter):
    """Writes a record with its `fields`, and of an exception of others where it came from."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        message = record.getMessage().partition("\n")[0]  # asyncio's other lines are objects, which may quote a document
        line: dict[str, Any] = {"time": moment, "level": record.levelname.lower(), "message": message}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            line["causes"] = causes(record.exc_info[1])
        return json.dumps(line)


def causes(error: BaseException) -> list[dict[str, Any]]:
    """An error and what caused it: kinds and places in the code. Messages are left out, since they may quote a document."""
    found: list[dict[str, Any]] = []
    cause: BaseException | None = error
    while cause is not None and len(found) < 8:
        frames = traceback.extract_tb(cause.__traceback__)[-12:]
        found.append({"type": type(cause).__name__, "at": [f"{frame.filename}:{frame.lineno}" for frame in frames]})
        cause = cause.__cause__ or cause.__context__
    return found


def configure() -> None:
    """Write our lines, and what uvicorn, asyncio and Python warn of, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    others = (logging.getLogger(name) for name in ("uvicorn", "asyncio"))
    for logger, level in ((LOGGER, logging.INFO), *((other, logging.WARNING) for other in others)):
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    warnings.showwarning = _warned


def _warned(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
    LOGGER.warning("warning", extra={"fields": {"causes": [{"type": category.__name__, "at": [f"{filename}:{lineno}"]}]}})
