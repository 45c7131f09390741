"""What several test files share: the fixture corpus and one tiny system trained on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests that import it themselves report nothing either

CORPUS = Path(__file__).parent / "data" / "corpus"


def train(stage, run):
    """`s2f-train STAGE --config tiny` on the fixture corpus, as a process of its own that a test may kill."""
    command = [sys.executable, "-m", "training", stage, "--config", "tiny", "--corpus", str(CORPUS), "--out", str(run)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Run folder of a finished tiny training; do not write into it."""
    run = tmp_path_factory.mktemp("trained")
    process = train("all", run)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return run
