"""The whole chain: a corpus is trained on, exported, and a clip of speech becomes a marked portrait."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

import runtime
from runtime.bundle import manifest_to_json, parse_manifest, read_bundle

SPEECH = Path(__file__).parents[1] / "examples" / "woman.wav"


def run(*command):
    return subprocess.run([sys.executable, "-m", *map(str, command)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", params=["auto", "diffusion"])
def bundle(trained, tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    result = run("export", trained, "-o", folder, "--arm", request.param)
    assert result.returncode == 0, result.stderr
    return folder


def test_trained_weights_become_a_portrait(bundle, tmp_path):
    out = tmp_path / "portrait.png"
    result = run("runtime", "generate", SPEECH, "-o", out, "--bundle", bundle, "--steps", 4, "--seed", 3)
    assert result.returncode == 0, result.stderr
    with Image.open(out) as image:
        assert image.size == (32, 32)
        assert np.asarray(image).std() > 1
        assert "trainedAlgorithmicMedia" in str(image.info)
        assert "woman" not in str(image.info)


def test_exported_bundle_says_what_it_is(bundle):
    read = read_bundle(bundle)
    assert parse_manifest(manifest_to_json(read.manifest)) == read.manifest
    card = (bundle / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "A voice does not determine a face" in card
    assert "fixture for tests" in card
    assert "CC0" in card
    assert "Apache-2.0 for the weights" in read.manifest.licence
    assert "feature loss used in pre-training: laplacian-pyramid" in card, "where the config asks for the pyramid"
    few = "shortcut" in {table.solver for table in read.manifest.step_tables.values()}
    assert few == read.manifest.guidance.fixed == (not read.manifest.history)
    assert f"- arm: {'shortcut' if few else 'diffusion'}, " in card
    assert run("runtime", "verify", bundle).returncode == 0


def test_seeds_and_voices_change_the_shipped_model_s_portrait():
    """The shipped bundle, because sixteen tiny steps teach a network too little of voices."""
    with runtime.load() as pipeline:
        first, again, other_seed = (pipeline.generate(SPEECH, steps=4, seed=seed).image for seed in (0, 0, 1))
        other_voice = pipeline.generate(SPEECH.with_name("man.wav"), steps=4, seed=0).image
    assert np.array_equal(first, again)
    for other in (other_seed, other_voice):
        assert np.abs(first.astype(int) - other).mean() > 2  # grey levels
