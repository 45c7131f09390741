"""The synthetic corpus: rendered portraits paired by rule with virtual speakers."""
