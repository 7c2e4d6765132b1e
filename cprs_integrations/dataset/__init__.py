"""Whole corpora: every row of JSONL or Parquet files compressed, on all machines of a Ray cluster. Needs the extra "ray"."""

from cprs_integrations.dataset.run import Summary, compress_dataset

__all__ = ["Summary", "compress_dataset"]
