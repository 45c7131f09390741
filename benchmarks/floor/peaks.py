"""What this machine can do at best: matrix products per precision, and copies in cache and in memory.

A matrix product is measured in every engine that is here, as a chain of products with constant weights in one graph, so
that a conversion at its borders (bfloat16, eight bits) weighs little; the best engine and size are the peak, and it
says which. Eight bits are uint8 by int8 with Q/DQ around every product, as in the graphs of `calibration` for x86.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from benchmarks.gpu.parts import JSON
from runtime.backends.openvino import package as openvino_package
from runtime.variants import multiplies_int8

SIZES = (384, 768, 1536)
LINKS = 8
SECONDS = 0.4
COPIES = {"cache": 1 << 20, "memory": 1 << 27}
"""Bytes that each thread copies: within its second-level cache or near it, and far beyond any cache."""

Run = Callable[[], object]


def peaks(threads: int, sizes: tuple[int, ...] = SIZES, seconds: float = SECONDS) -> JSON:
    """{"products": precision → engine → GFLOP/s by size, "gflops": precision → the best, "best": … and where,
    "copies_gb_s": {"cache", "memory"}: bytes read and written}."""
    products: dict[str, dict[str, dict[str, float]]] = {}
    for size in sizes:
        for engine, precision, run in _engines(size, threads):
            rate = 2 * size**3 * LINKS / best_seconds(run, seconds) / 1e9
            products.setdefault(precision, {}).setdefault(engine, {})[str(size)] = round(rate, 1)
    best = {precision: _best(by_engine) for precision, by_engine in products.items()}
    return {
        "threads": threads,
        "products": products,
        "gflops": {precision: rate for precision, (rate, _) in best.items()},
        "best": {precision: where for precision, (_, where) in best.items()},
        "copies_gb_s": {name: _copy(size, threads, seconds) for name, size in COPIES.items()},
    }


def best_seconds(run: Run, seconds: float) -> float:
    """The shortest of the calls of so many seconds, three at least: a peak is what the machine can, not its habit."""
    run()
    spent: list[float] = []
    end = time.perf_counter() + seconds
    while len(spent) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        run()
        spent.append(time.perf_counter() - begin)
    return min(spent)


def chain(size: int, links: int = LINKS, *, quantised: bool = False) -> bytes:
    """x float32 [size, size] times `links` constant matrices, as an ONNX file; the numbers neither grow nor shrink.

    `quantised`: each product is of uint8 and int8, a scale for each column of a matrix, and its result is uint8.
    """
    rng = np.random.default_rng(0)
    matrices = [(rng.standard_normal((size, size)) / size**0.5).astype(np.float32) for _ in range(links)]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(links)]
    weights = {f"w{i}": matrix for i, matrix in enumerate(matrices)}
    if quantised:
        nodes, weights = _in_eight_bits(nodes, weights)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in ("x0", nodes[-1].output[0])
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(onnx.ModelProto.SerializeToString(model))


def _in_eight_bits(
    products: list[NodeProto], matrices: dict[str, np.ndarray]
) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
    """Q/DQ before every product and after the last, and on every matrix. Activations reach ±4."""
    nodes, constants = [], {"scale": np.array(1 / 32, np.float32), "middle": np.array(128, np.uint8)}

    def pair(name: str) -> str:
        given = ["scale", "middle"]
        nodes.append(helper.make_node("QuantizeLinear", [name, *given], [f"{name}_integers"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_integers", *given], [f"{name}_back"]))
        return f"{name}_back"

    for product in products:
        x, matrix = product.input
        scale = np.abs(matrices[matrix]).max(axis=0) / np.float32(127)
        given = [f"{matrix}_integers", f"{matrix}_scale", f"{matrix}_zero"]
        values = (np.round(matrices[matrix] / scale).astype(np.int8), scale, np.zeros(len(scale), np.int8))
        constants.update(zip(given, values, strict=True))
        nodes.append(helper.make_node("DequantizeLinear", given, [matrix], axis=1))
        nodes.append(helper.make_node("MatMul", [pair(x), matrix], list(product.output)))
    pair(products[-1].output[0])
    return nodes, constants


def _best(by_engine: dict[str, dict[str, float]]) -> tuple[float, str]:
    return max((rate, f"{engine}, {size}") for engine, sizes in by_engine.items() for size, rate in sizes.items())


def _engines(size: int, threads: int) -> Iterator[tuple[str, str, Run]]:
    x = np.random.default_rng(1).standard_normal((size, size)).astype(np.float32)
    chains = {"fp32": chain(size), **({"int8": chain(size, quantised=True)} if multiplies_int8() else {})}
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        for precision, data in chains.items():
            session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            yield "onnxruntime", precision, functools.partial(session.run, None, {"x0": x})
    if importlib.util.find_spec("openvino"):
        core = openvino_package().Core()
        known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        for precision, data in {**chains, **({"bf16": chains["fp32"]} if "BF16" in known else {})}.items():
            hints = {
                "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
                "INFERENCE_NUM_THREADS": str(threads),
            }
            model = core.compile_model(core.read_model(data), "CPU", {"PERFORMANCE_HINT": "LATENCY", **hints})
            request = model.create_infer_request()
            yield "openvino", precision, functools.partial(request.infer, {"x0": x}, share_inputs=True)


def _copy(size: int, threads: int, seconds: float) -> float:
    """GB/s read and written by so many threads, each with buffers of its own."""
    pairs = [(np.ones(size, np.uint8), np.zeros(size, np.uint8)) for _ in range(threads)]
    repeats = max(1, (1 << 26) // size)

    def work(pair: tuple[np.ndarray, np.ndarray]) -> None:
        for _ in range(repeats):
            np.copyto(pair[1], pair[0])

    with ThreadPoolExecutor(threads) as pool:
        spent = best_seconds(lambda: list(pool.map(work, pairs)), seconds)
    return round(2 * size * repeats * threads / spent / 1e9, 1)
