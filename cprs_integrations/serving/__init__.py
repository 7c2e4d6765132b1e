"""The served engine: `create_app` makes a FastAPI app of an engine, `cprs serve` runs it. Needs the extra "serve"."""

from typing import TYPE_CHECKING, Any

from cprs_integrations.errors import require
from cprs_integrations.serving.settings import Settings

if TYPE_CHECKING:
    from cprs_integrations.serving.app import create_app

__all__ = ["Settings", "create_app"]


def __getattr__(name: str) -> Any:
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for module in ("fastapi", "uvicorn", "prometheus_client", "re2"):
        require(module, "serve")
    from cprs_integrations.serving.app import create_app

    return create_app
