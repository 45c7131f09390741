"""From a corpus to checkpoints: models, one file per stage, corpora."""
