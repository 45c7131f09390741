"""How good portraits are: a judge network, the metrics, what is measured, and the report of it."""
