"""LangChain: `CPRSCompressor`, a document compressor. Needs the extra "langchain"."""

from cprs_integrations.errors import require

require("langchain_core", "langchain")

from cprs_integrations.langchain.compressor import CPRSCompressor  # noqa: E402

__all__ = ["CPRSCompressor"]
