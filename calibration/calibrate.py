"""The calibration of a bundle, top to bottom: clips, what the graphs hold, ranges, sensitivities, plans, gate, bundle.

Everything runs with one thread on ONNX Runtime, so the same bundle, data, options and versions give the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from onnx import ModelProto

from calibration import smooth
from calibration.activations import Activations, observable
from calibration.judge import Judge
from calibration.layers import Layer, float_graphs, layers_of
from calibration.notebook import Notebook
from calibration.plan import Sensitivity, operations_of, search, sensitivity_of, worst_first
from calibration.quality import Drawn, Gate, Quality, compare
from calibration.quantise import quantise, spans
from calibration.ranges import METHODS, Range
from calibration.sampler import Pair, Sampler, open_graph
from calibration.speech import KINDS, Clips
from runtime.bundle import STAGES, Bundle
from runtime.doctor import package_versions
from runtime.portrait import psnr
from runtime.variants import FAMILIES

log = logging.getLogger(__name__)

T = TypeVar("T")
Bar = Callable[[Iterable[T], str], Iterable[T]]
"""Shows how far an iteration is: (items, what is done with them) → the items."""

SMOOTHED_OVER = 32  # portraits; outliers of linears show in a few
KEPT_EVERY = 16  # portraits, between two notes for an interrupted run
TRIALS = 16  # pairs by which methods and plans are chosen
ALONE = 8  # of them, for the sensitivity of a single layer
GATE_SEED = 1 << 32  # seeds of the gate begin here, so that none was calibrated on
NOTHING = "no layer can be quantised without missing the gate of the search: give better recordings, or train longer"
STRICTER = Gate(psnr=33.0, cosine=0.985, growth=1.45, pairs=TRIALS)
"""The gate of the search: plans are chosen by few pairs of voices that were calibrated on, so they need some margin."""


@dataclass(frozen=True)
class Options:
    """What the caller decides. `families`: of `runtime.variants`; `portraits`: how many are drawn to observe; `pairs`:
    voice × seed pairs of the gate, at least; `method`: one of METHODS or "auto"; `also`: parts of names of layers that
    may be quantised though they are kept by default.
    """

    families: tuple[str, ...] = tuple(FAMILIES)
    portraits: int = 128
    pairs: int = 256
    seed: int = 0
    method: str = "auto"
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How a family is quantised. `methods`: of the ranges, by stage; `chosen`: the layers in eight bits, by stage."""

    methods: Mapping[str, str]
    chosen: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Result:
    """A family's graphs by stage, the plan that made them, what the gate measured on them and what it says."""

    family: str
    graphs: Mapping[str, bytes]
    plan: Plan
    quality: Quality
    misses: tuple[str, ...]
    drawn: Drawn
    everything: Quality
    """With every layer quantised, those that are kept by default too."""


@dataclass(frozen=True)
class Calibration:
    """All that a calibration found. `stored`: what storing the weights of the float graphs small did to the portraits;
    `groups`: PSNR of the portraits in dB, one per pair, if all layers of a group are quantised, by "stage: group";
    `dead`: layers that stay in float32 because all they read was zero.
    """

    layers: Mapping[str, tuple[Layer, ...]]
    sensitivities: Mapping[str, Sensitivity]
    groups: Mapping[str, tuple[float, ...]]
    results: tuple[Result, ...]
    stored: Quality
    reference: Drawn
    dead: tuple[Layer, ...]
    pairs: tuple[Pair, ...]


def calibrate(
    bundle: Bundle, reference: Bundle, heard: Clips, held: Clips, options: Options, *, notebook: Notebook, bar: Bar[Any]
) -> Calibration:
    """Calibrate on the voices `heard`, and judge on the voices `held`, of which none should be among the others.

    `reference`: whose portraits are the truth; `bundle` itself, or what it was before its weights were stored small.
    Raises BundleInvalid, BackendFailed (a tensor that is not finite), OutputUnwritable (the notebook).
    """
    bench = _Bench(bundle, reference, options)
    bench.observe(heard, notebook, bar)
    trials = bench.trials(heard)
    known = trials, bench.reference(trials)
    plans = {family: bench.methods(family, *known) for family in options.families}
    first = options.families[0]
    found = bench.sensitivities(first, plans[first], trials[:ALONE], notebook=notebook, bar=bar)
    groups = bench.groups(first, plans[first], trials[:ALONE], bar)
    judge = Judge.shipped()
    order = worst_first(found)
    for family in bar(options.families, "plans"):
        plans[family] = bench.search(family, plans[family], order, known, judge)
    pairs = gate_pairs(bundle, held, options)
    judged = pairs, bench.reference(pairs)
    results = [bench.judged(family, plans[family], judged, judge) for family in bar(options.families, "gate")]
    stored = compare(judged[1], bench.draw(pairs, {}), judge)
    layers = {stage: tuple(every) for stage, every in bench.layers.items()}
    return Calibration(layers, found, groups, tuple(results), stored, judged[1], bench.dead(), tuple(pairs))


def split(clips: Clips) -> tuple[Clips, Clips]:
    """Every second of the clips that differ: to calibrate on, and to judge by."""
    different = {hashlib.sha256(window.tobytes()).digest(): window for window in clips.windows}
    windows = tuple(different.values())
    halves = windows[0::2], windows[1::2]
    first, second = (
        Clips(half, 0, hashlib.sha256(b"".join(window.tobytes() for window in half)).hexdigest()) for half in halves
    )
    return dataclasses.replace(first, refused=clips.refused), second


def gate_pairs(bundle: Bundle, held: Clips, options: Options) -> list[Pair]:
    """Each voice with as many seeds as it takes, at the bundle's default steps; voices in turn are kept together."""
    if not held.windows:
        return []
    seeds = -(-options.pairs // len(held.windows))
    steps, first = bundle.manifest.default_steps, GATE_SEED + options.seed
    return [
        Pair(window, first + index * seeds + seed, steps)
        for index, window in enumerate(held.windows)
        for seed in range(seeds)
    ]


def command_key(bundle: Bundle, heard: Clips, held: Clips, options: Options) -> dict[str, Any]:
    """What the results of a calibration hang on, for its notebook and its report."""
    versions = {name: version for name, version in package_versions().items() if version}
    told = {"bundle": bundle.identity, "heard": heard.digest, "held": held.digest, "versions": versions}
    return {**told, "options": json.loads(json.dumps(dataclasses.asdict(options)))}


class _Bench:
    """The float graphs of a bundle, what was observed in them, and graphs quantised from them."""

    def __init__(self, bundle: Bundle, reference: Bundle, options: Options) -> None:
        self._bundle, self._options = bundle, options
        self._graphs: dict[str, ModelProto] = float_graphs(bundle, options.also)
        self.layers = {stage: layers_of(graph, stage, options.also) for stage, graph in self._graphs.items()}
        self._watched = {stage: _watched(model, self.layers[stage]) for stage, model in self._graphs.items()}
        self._norms = {stage: smooth.smoothable(self._graphs[stage], self.layers[stage]) for stage in STAGES}
        self._seen = Activations(self._watched)
        self._float = {stage: open_graph(bundle.files[stage], stage) for stage in STAGES}
        self._truth = Sampler.of(reference.manifest, reference.files)

    def observe(self, heard: Clips, notebook: Notebook, bar: Bar[Any]) -> None:
        """Smooth the linears, then see what all tensors hold."""
        columns = {(stage, name) for stage, norms in self._norms.items() for name in norms}
        if columns:
            outliers = Activations({stage: list(norms) for stage, norms in self._norms.items()}, columns)
            self._watch(outliers, heard, SMOOTHED_OVER, (notebook, "outliers.npz"), bar)
            for stage, norms in self._norms.items():
                found = {name: one.columns for name, one in outliers.tensors[stage].items() if one.columns is not None}
                smooth.smooth(self._graphs[stage], norms, found)
        self._watch(self._seen, heard, self._options.portraits, (notebook, "activations.npz"), bar)

    def _watch(self, seen: Activations, heard: Clips, count: int, note: tuple[Notebook, str], bar: Bar[Any]) -> None:
        """Draw portraits and let `seen` look, from where an interrupted run stopped."""
        notebook, name = note
        kept = notebook.read(name)
        if kept is not None:
            try:
                seen.restore(kept)
            except (ValueError, KeyError, OSError):
                log.warning("%s cannot be read; its portraits are drawn again", name)
        watched = {stage: list(tensors) for stage, tensors in seen.tensors.items()}
        graphs = {stage: observable(graph, watched[stage]) for stage, graph in self._graphs.items()}
        sampler = Sampler.of(self._bundle.manifest, graphs)
        for index in bar(range(seen.done, count), "observing portraits"):
            sampler.draw([self._portrait(heard, index)], seen.see)
            seen.done = index + 1
            if seen.done % KEPT_EVERY == 0 or seen.done == count:
                notebook.write(name, seen.to_bytes())

    def _portrait(self, heard: Clips, index: int) -> Pair:
        """The voices in turn, each as it is and spoilt in turn, the numbers of steps in turn."""
        kinds, tables = list(KINDS.values()), sorted(self._bundle.manifest.step_tables)
        round_, voice = divmod(index, len(heard.windows))
        rng = np.random.default_rng([self._options.seed, index])
        pcm = kinds[(round_ + voice) % len(kinds)](heard.windows[voice], rng)
        return Pair(pcm, self._options.seed + index, tables[(index // len(kinds)) % len(tables)])

    def trials(self, heard: Clips) -> list[Pair]:
        """A few pairs to choose by: voices in turn, as they are and spoilt in turn."""
        steps = self._bundle.manifest.default_steps
        first = self._options.portraits
        return [dataclasses.replace(self._portrait(heard, first + index), steps=steps) for index in range(TRIALS)]

    def reference(self, pairs: Sequence[Pair]) -> Drawn:
        """The portraits that are the truth."""
        return self._truth.draw(pairs) if pairs else _nothing(self._bundle)

    def dead(self) -> tuple[Layer, ...]:
        """The layers that read nothing but zeros, or as good as that."""
        return tuple(
            layer
            for stage, layers in self.layers.items()
            for layer in layers
            if not spans(self._seen.tensors[stage][layer.source].extremes)
        )

    def ranges(self, stage: str, method: str) -> dict[str, Range]:
        """The range of every tensor of a stage by one method."""
        return {name: METHODS[method](one) for name, one in self._seen.tensors[stage].items()}

    def quantised(self, family: str, stage: str, method: str, chosen: Collection[str]) -> bytes:
        """A stage with the layers named in `chosen` in eight bits."""
        graph, layers = self._graphs[stage], self.layers[stage]
        model = quantise(graph, family, layers, chosen, self.ranges(stage, method))
        return model.SerializeToString(deterministic=True)

    def draw(self, pairs: Sequence[Pair], graphs: Mapping[str, bytes]) -> Drawn:
        """Portraits of the bundle with some stages replaced."""
        sessions = {**self._float, **{stage: open_graph(data, stage) for stage, data in graphs.items()}}
        return Sampler(self._bundle.manifest, sessions).draw(pairs) if pairs else _nothing(self._bundle)

    def methods(self, family: str, trials: Sequence[Pair], reference: Drawn) -> Plan:
        """For each stage the method whose ranges alone keep the portraits best, with all its layers quantised."""
        chosen = {s: frozenset(one.name for one in layers if not one.keep) for s, layers in self.layers.items()}
        names = list(METHODS) if self._options.method == "auto" else [self._options.method]
        methods = {}
        for stage in STAGES:
            damage = {}
            for method in names if len(names) > 1 else ():
                drawn = self.draw(trials, {stage: self.quantised(family, stage, method, chosen[stage])})
                damage[method] = -np.mean([psnr(a, b) for a, b in zip(reference.images, drawn.images, strict=True)])
            methods[stage] = min(damage, key=lambda name: damage[name]) if damage else names[0]
            log.info("%s, %s: ranges by %s", family, stage, methods[stage])
        return Plan(methods, chosen)

    def sensitivities(
        self, family: str, plan: Plan, trials: Sequence[Pair], *, notebook: Notebook, bar: Bar[Any]
    ) -> dict[str, Sensitivity]:
        """Each layer alone in eight bits, those that are kept by default too, by "stage: name"."""
        kept, steps = _noted(notebook), self._bundle.manifest.default_steps
        every = [(stage, layer) for stage in STAGES for layer in self.layers[stage]]
        dead, found = set(self.dead()), {}
        floats = self.draw(trials, {})
        for stage, layer in bar(every, "layers"):
            if layer in dead:
                continue
            operations = operations_of(layer, self._seen) * (steps if stage == "unet" else 1)
            if str(layer) in kept:
                values = kept[str(layer)]
                found[str(layer)] = Sensitivity(layer, operations, tuple(values["psnr"]), values["damage"])
                continue
            graph = self.quantised(family, stage, plan.methods[stage], {layer.name})
            one = sensitivity_of(layer, operations, floats, self.draw(trials, {stage: graph}))
            found[str(layer)] = one
            kept[str(layer)] = {"psnr": one.psnr, "damage": one.damage}
            notebook.write("sensitivities.json", json.dumps(kept).encode())
        return found

    def groups(self, family: str, plan: Plan, trials: Sequence[Pair], bar: Bar[Any]) -> dict[str, tuple[float, ...]]:
        """Each group of layers together in eight bits, those that are kept by default too."""
        members: dict[tuple[str, str], set[str]] = {}
        for stage, layers in self.layers.items():
            for layer in layers:
                members.setdefault((stage, layer.group), set()).add(layer.name)
        floats, found = self.draw(trials, {}), {}
        for (stage, group), names in bar(members.items(), "groups"):
            drawn = self.draw(trials, {stage: self.quantised(family, stage, plan.methods[stage], names)})
            pairs = zip(floats.images, drawn.images, strict=True)
            found[f"{stage}: {group}"] = tuple(psnr(a, b) for a, b in pairs)
        return found

    def search(
        self, family: str, plan: Plan, order: Sequence[str], trials: tuple[Sequence[Pair], Drawn], judge: Judge
    ) -> Plan:
        """The plan that gives as few layers as possible back to float32 and meets the gate on the trials."""
        pairs, reference = trials
        usable = {str(layer): layer for layers in self.layers.values() for layer in layers if not layer.keep}

        def plan_of(names: Collection[str]) -> Plan:
            kept = [usable[name] for name in names]
            return Plan(plan.methods, {s: frozenset(one.name for one in kept if one.stage == s) for s in STAGES})

        def misses(names: frozenset[str]) -> Sequence[str]:
            drawn = self.draw(pairs, self.graphs(family, plan_of(names)))
            return STRICTER.misses(compare(reference, drawn, judge))

        names = search([name for name in order if name in usable], misses)
        return plan_of(names or ())

    def graphs(self, family: str, plan: Plan) -> dict[str, bytes]:
        """The stages of which a plan quantises something."""
        return {
            stage: self.quantised(family, stage, plan.methods[stage], names)
            for stage, names in plan.chosen.items()
            if names
        }

    def judged(self, family: str, plan: Plan, pairs: tuple[Sequence[Pair], Drawn], judge: Judge) -> Result:
        """A plan's graphs on the voices that were held back, and what happens if simply everything is quantised."""
        graphs = self.graphs(family, plan)
        drawn = self.draw(pairs[0], graphs)
        quality = compare(pairs[1], drawn, judge)
        every = Plan(
            dict.fromkeys(STAGES, "minmax"), {s: frozenset(x.name for x in ls) for s, ls in self.layers.items()}
        )
        plain = compare(pairs[1], self.draw(pairs[0], self.graphs(family, every)), judge)
        misses = Gate(pairs=self._options.pairs).misses(quality) if graphs else [NOTHING]
        return Result(family, graphs, plan, quality, tuple(misses), drawn, plain)


def _noted(notebook: Notebook) -> dict[str, Any]:
    """What was kept of single layers; what cannot be read is measured again."""
    try:
        kept = json.loads(notebook.read("sensitivities.json") or b"{}")
        return {
            name: {"psnr": list(map(float, one["psnr"])), "damage": float(one["damage"])} for name, one in kept.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("sensitivities.json cannot be read; its layers are measured again")
        return {}


def _watched(model: ModelProto, layers: Sequence[Layer]) -> list[str]:
    """What layers read and give, and what stands between them: sums, and ReLUs that merge with a layer."""
    known = {tensor.name for tensor in model.graph.initializer}
    names = {name for layer in layers for name in (layer.source, layer.result)}
    between = [node for node in model.graph.node if node.op_type in ("Add", "Relu")]
    names.update(name for node in between for name in (*node.input, *node.output) if name not in known)
    return sorted(names & set(_floats(model)))


def _floats(model: ModelProto) -> Iterator[str]:
    """The activations of a graph that can be float32; sums of shapes are not."""
    from onnx import TensorProto, shape_inference

    inferred = shape_inference.infer_shapes(model)
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            yield value.name


def _nothing(bundle: Bundle) -> Drawn:
    image, latent = bundle.manifest.image, bundle.manifest.latent
    steps = bundle.manifest.default_steps + 1
    shape = (0, steps, latent.channels, latent.height, latent.width)
    return Drawn(np.zeros((0, image.height, image.width, 3), np.uint8), np.zeros(shape, np.float32))
