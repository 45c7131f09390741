"""One whole evaluation, for whatever paints: measure every row, write the report."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import BackendMissing, InvalidArgument, OutputUnwritable
from training.corpus.table import Corpus, Identity, read_corpus
from training.data import command_of, fingerprint
from training.evaluate.judge import NAME, load_judge, shipped_judge
from training.evaluate.metrics import chance
from training.evaluate.protocol import Evaluation, Painter, Pixels, Result, Voices
from training.evaluate.recordings import recordings
from training.evaluate.report import write_report

logger = logging.getLogger(__name__)

References = dict[str, Callable[[Corpus, Sequence[Identity]], Pixels]]
"""Name of a row → portraits uint8 [n, H, W, 3] of these identities, made in another way than from their voices."""


@dataclass(frozen=True)
class Options:
    """What a caller may choose; None takes all test voices, no recordings, the shipped judge."""

    corpus: Path
    out: Path
    speech: Path | None = None
    voices: int | None = None
    seeds: int = 2
    seed: int = 0
    judge: Path | None = None


def options_of(arguments: argparse.Namespace) -> Options:
    """From the options that `commands.add_shared_arguments` adds."""
    return Options(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Options)})


def assess(painters: Sequence[Painter], options: Options, references: References | None = None) -> list[Path]:
    """Measures every painter on the corpus' test voices and writes the report; returns its files.

    Raises BackendMissing, CorpusInvalid, CheckpointInvalid, InvalidArgument, OutputUnwritable.
    """
    if len({painter.name for painter in painters}) != len(painters):
        raise InvalidArgument(f"two painters share a name: {', '.join(p.name for p in painters)}; rename one")
    evaluation = prepared(options)
    corpus = evaluation.corpus
    real_voices = recordings(options.speech, corpus) if options.speech else None
    identities = evaluation.voices.identities
    others = {name: make(corpus, identities) for name, make in (references or {}).items()}
    rows = evaluation.reference_rows(others)
    for painter in painters:
        rows += evaluation.steps_rows(painter)
        rows += evaluation.steps_rows(painter, real_voices) if real_voices else []
    prior = [row for painter in painters for row in evaluation.prior_rows(painter)]
    result = Result(tuple(rows), tuple(prior), facts_of(evaluation, painters, options, real_voices))
    try:
        return write_report(result, options.out)
    except OSError as error:
        raise OutputUnwritable(f"{options.out}: {error}; free space or choose another folder") from error


def prepared(options: Options) -> Evaluation:
    """The evaluation these options ask for, with its folder; whatever is missing is found now, before the long work."""
    for package in ("torchmetrics", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise BackendMissing(f"evaluation lacks {package}; install it with: pip install 's2f-edge[train]'")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputUnwritable(f"{options.out}: {error}; choose another folder") from error
    judge, corpus = load_judge(options.judge), read_corpus(options.corpus)
    return Evaluation(judge, corpus, voices=options.voices, seeds=options.seeds, seed=options.seed)


def facts_of(
    evaluation: Evaluation, painters: Sequence[Painter], options: Options, recorded: Voices | None
) -> dict[str, Any]:
    """What is needed to do the same again, and to read the numbers: no path, no date."""
    size, corpus = len(evaluation.galleries[0]), evaluation.corpus
    return {
        "seed": options.seed,
        "seeds": evaluation.seeds,
        "voices": len(evaluation.voices),
        "speakers": len({identity.speaker for identity in evaluation.voices.identities}),
        "recordings": len(recorded) if recorded else 0,
        "galleries": {"count": len(evaluation.galleries), "size": size},
        "chance_percent": {str(rank): value for rank, value in chance(size).items()},
        "real_views": evaluation.real.views,
        "judge": {
            "name": NAME,
            "sha256": hashlib.sha256((options.judge or shipped_judge()).read_bytes()).hexdigest(),
            "accuracy": evaluation.judge.accuracy,
        },
        "corpus": {
            "fingerprint": fingerprint(corpus),
            "command": command_of(corpus),
        },
        "arms": [{"name": p.name, "identity": p.identity, "facts": dict(p.facts)} for p in painters],
    }
