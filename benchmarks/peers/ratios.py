"""What the arena's rounds amount to: ratios of paired rounds with intervals, and goals with verdicts.

Two ratios to every peer: of the fastest of ours, in whichever precision, and of the fastest of ours in the peer's own
precision. The first is what a caller gains, the second what our work gains. The fastest of ours is chosen by the very
rounds the ratio is of, so among arms that are nearly as fast the luckiest is taken: the interval does not cover that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.gpu.parts import JSON
from runtime.bench import ratio

OURS = "ours "

FEWEST_CLEAN = 3
"""Clean rounds without which the dirty ones are taken too, and said to be, and no goal is judged."""

GOALS = (
    ("diffusers 25 steps", 8.0),
    ("torch eager fp32", 3.0),
    ("torch eager bf16", 3.0),
    ("onnxruntime naive", 1.8),
    ("openvino fp32 by hand", 1.0),
    ("openvino bf16 by hand", 1.0),
    ("openvino int8 by hand", 1.0),
)
"""How many times faster than a peer ours must be; 1 means not behind."""
OWN_GOALS = (
    ("ours cpu int8", "ours cpu fp32", 1.5),
    ("ours openvino int8", "ours openvino fp32", 1.3),
    ("ours openvino int8", "ours openvino bf16", None),
)
"""How many times faster eight bits must be than other precisions of ours; None: told, and not judged."""
ENGINES = (
    ("ours cpu fp32", "onnxruntime naive"),
    ("ours openvino fp32", "openvino fp32 by hand"),
    ("ours openvino bf16", "openvino bf16 by hand"),
    ("ours openvino int8", "openvino int8 by hand"),
)
"""Ours and a peer on one engine; compared where they are of one precision too."""
NOT_BEHIND = 0.95
"""Not to be behind is judged by this: nearer than 5 % is not told apart from run to run."""

ANY, EQUAL, ENGINE, OWN = "fastest of ours", "equal precision", "same engine", "both ours"
TOLD, UNKNOWN, UNSURE = "told, not judged", "not measured", "not certain"


def summarise(contest: JSON) -> JSON:
    """Of one contest: `base`, the fastest of ours; per arm whether it is that, its median, the rounds taken, how many
    times as long as `base` it takes (`times`), and as the fastest of ours in its precision (`equal`, named `equal_to`).

    Empty where nothing of ours was measured.
    """
    base = fastest(contest)
    if base is None:
        return {}
    return {"base": base, "arms": {name: _line(contest, name, base) for name in measured(contest)}}


def fastest(contest: JSON, precision: str | None = None) -> str | None:
    """The arm of ours with the least median, of all or of those of one precision."""
    arms = measured(contest)
    names = [name for name in arms if name.startswith(OURS)]
    if precision is not None:
        names = [name for name in names if arms[name]["precision"] == precision]
    return min(names, key=lambda name: median(arms[name]), default=None)


def median(arm: JSON) -> float:
    """Milliseconds, over all calls of the rounds that are taken."""
    return float(np.median(np.concatenate([one["ms"] for one in taken(arm)])))


def taken(arm: JSON) -> list[JSON]:
    """The clean rounds, or all where those are too few."""
    clean = [one for one in arm["rounds"] if not one["conditions"]["dirty"]]
    return clean if len(clean) >= FEWEST_CLEAN else list(arm["rounds"])


def times(ours: JSON, peer: JSON) -> JSON | None:
    """How many times as long as ours a peer takes: the median over paired rounds, its 95 % interval, the number of
    rounds, and in how many of them one of the two was disturbed. None where they share no round.
    """
    both = paired(ours["rounds"], peer["rounds"])
    if not both:
        return None
    found = ratio([b["ms"] for _, b in both], [a["ms"] for a, _ in both], paired=True)
    dirty = sum(_dirty(a) or _dirty(b) for a, b in both)
    return {"value": found.value, "low": found.low, "high": found.high, "rounds": len(both), "dirty": dirty}


def paired(some: Sequence[JSON], others: Sequence[JSON]) -> list[tuple[JSON, JSON]]:
    """A block of each from every round that both have, and none twice: retries of a disturbed turn are no rounds.

    The rounds in which both were undisturbed, or all where those are too few.
    """
    first, second = _by_round(some), _by_round(others)
    both = [(first[number], second[number]) for number in first if number in second]
    clean = [(a, b) for a, b in both if not _dirty(a) and not _dirty(b)]
    return clean if len(clean) >= FEWEST_CLEAN else both


def goals(contest: JSON) -> Iterator[JSON]:
    """One line per goal and pair of arms: `compared` says what the pair stands for, in words of ANY, EQUAL, ENGINE, OWN
    with the precisions; the ratio that is wanted, the one measured with its interval, and the verdict.
    """
    arms = measured(contest)
    pairs: list[tuple[str, str, list[str], float | None]] = []
    for peer, wanted in GOALS:
        pairs += [(ours, peer, compared, wanted) for ours, compared in _opponents(contest, peer).items()]
    pairs += [(ours, peer, [_of_precisions(arms, OWN, ours, peer)], wanted) for ours, peer, wanted in OWN_GOALS]
    for ours, peer, compared, wanted in pairs:
        found = times(arms[ours], arms[peer]) if ours in arms and peer in arms else None
        line = {"ours": ours, "peer": peer, "compared": compared, "wanted": wanted, "times": found}
        yield {**line, "verdict": verdict(found, wanted)}


def verdict(found: JSON | None, wanted: float | None) -> str:
    """Met where the whole interval is; missed where the ratio is not. Judged by clean rounds alone."""
    if found is None:
        return UNKNOWN
    if wanted is None:
        return TOLD
    limit = least(wanted)
    if found["dirty"]:
        return "not judged: the machine was busy"
    if found["rounds"] < FEWEST_CLEAN:
        return "not judged: too few rounds"
    if found["value"] < limit:
        return "missed" if found["high"] < limit else "missed, within the interval"
    return "met" if found["low"] >= limit else UNSURE


def least(wanted: float) -> float:
    """The ratio by which a goal is judged."""
    return NOT_BEHIND if wanted == 1 else wanted


def _opponents(contest: JSON, peer: str) -> dict[str, list[str]]:
    """Arms of ours to set against a peer, and what each of them stands for: one may stand for several things."""
    arms = measured(contest)
    first = fastest(contest) or OURS.strip()
    found = {first: [_of_precisions(arms, ANY, first, peer)]}
    precision = arms.get(peer, {}).get("precision")
    if precision:
        found.setdefault(fastest(contest, precision) or f"ours in {precision}", []).append(f"{EQUAL}, {precision}")
    for ours, other in ENGINES:
        if other == peer and ours in arms and arms[ours]["precision"] == precision:
            found.setdefault(ours, [f"{EQUAL}, {precision}"]).append(ENGINE)
    return found


def _of_precisions(arms: JSON, words: str, ours: str, peer: str) -> str:
    """What a pair is compared for, with its precisions where they differ."""
    some, other = (arms.get(name, {}).get("precision") for name in (ours, peer))
    return f"{words}, {some} against {other}" if some and other and some != other else words


def _line(contest: JSON, name: str, base: str) -> JSON:
    arms = measured(contest)
    arm = arms[name]
    found, equal = times(arms[base], arm), fastest(contest, arm["precision"]) if arm["precision"] else None
    same = found if equal == base else None if equal is None else times(arms[equal], arm)
    return {**spread(arm), "base": name == base, "times": found, "equal_to": equal, "equal": same}


def spread(arm: JSON) -> JSON:
    """Milliseconds of an arm, and the rounds they are of: `p50` of the calls, `least` and `most` of the rounds' own."""
    blocks = taken(arm)
    rounds = [float(np.median(one["ms"])) for one in blocks]
    about = {"rounds": len(blocks), "dirty": sum(map(_dirty, blocks))}
    return {"p50": round(median(arm), 3), "least": round(min(rounds), 3), "most": round(max(rounds), 3), **about}


def measured(contest: JSON) -> dict[str, JSON]:
    """The arms that have times."""
    return {name: arm for name, arm in contest["arms"].items() if arm["rounds"]}


def _by_round(blocks: Sequence[JSON]) -> dict[int, JSON]:
    """One block a round: the undisturbed one, or else the last."""
    found: dict[int, JSON] = {}
    for block in blocks:
        if block["round"] not in found or _dirty(found[block["round"]]):
            found[block["round"]] = block
    return found


def _dirty(block: JSON) -> bool:
    return bool(block["conditions"]["dirty"])
