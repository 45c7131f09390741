"""Quantisation of bundles: activation collection, Q/DQ graphs, sensitivity, quality gate. Knows `runtime` only."""
