"""Quantisation of bundles: activation collection, Q/DQ graphs, sensitivity and the quality gate. Knows `runtime` only."""
