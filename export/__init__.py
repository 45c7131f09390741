"""From checkpoints to bundles: inference graphs, parity, the bundle writer."""
