"""Training of the small critic. Needs the extra "torch"."""

from cprs_integrations.errors import require

require("torch", "torch")
require("transformers", "torch")
