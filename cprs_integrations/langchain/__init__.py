"""LangChain: `CPRSCompressor`, a document compressor, and `CPRSToolOutputMiddleware`, for agents.

Needs the extra "langchain"; the middleware the extra "agents".
"""

from typing import TYPE_CHECKING, Any

from cprs_integrations.errors import require

require("langchain_core", "langchain")

from cprs_integrations.langchain.compressor import CPRSCompressor  # noqa: E402

if TYPE_CHECKING:
    from cprs_integrations.langchain.middleware import CPRSToolOutputMiddleware

__all__ = ["CPRSCompressor", "CPRSToolOutputMiddleware"]


def __getattr__(name: str) -> Any:
    # imported when it is asked for: the compressor needs neither langchain nor langgraph
    if name == "CPRSToolOutputMiddleware":
        from cprs_integrations.langchain.middleware import CPRSToolOutputMiddleware

        return CPRSToolOutputMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
