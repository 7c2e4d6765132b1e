"""LlamaIndex: `CPRSNodePostprocessor`, a node postprocessor, and `compressed_tool`, for agents.

Needs the extra "llama-index".
"""

from cprs_integrations.errors import require

require("llama_index.core", "llama-index")

from cprs_integrations.llama_index.events import CompressionEndEvent, CompressionStartEvent  # noqa: E402
from cprs_integrations.llama_index.postprocessor import CPRSNodePostprocessor  # noqa: E402
from cprs_integrations.llama_index.tools import CompressedTool, CompressedToolOutput, compressed_tool  # noqa: E402

__all__ = [
    "CPRSNodePostprocessor",
    "CompressedTool",
    "CompressedToolOutput",
    "CompressionEndEvent",
    "CompressionStartEvent",
    "compressed_tool",
]
