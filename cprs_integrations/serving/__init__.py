"""The served engine: `create_app` makes a FastAPI app of an engine, `cprs serve` runs it. Needs the extra "serve"."""

from cprs_integrations.errors import require

for _module in ("fastapi", "prometheus_client", "re2"):
    require(_module, "serve")

from cprs_integrations.serving.app import create_app  # noqa: E402 - its imports need the extra
from cprs_integrations.serving.settings import Settings  # noqa: E402

__all__ = ["Settings", "create_app"]
