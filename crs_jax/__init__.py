"""CRS: context, explicit reasoning and R-GRPO for generative search (papers/crs.md)."""
