"""The example of the README's first screen, as it is run by hand."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_fsdp2_trainer_to_tensor_parallel_engine() -> None:
    """Ten optimizer steps; after each, the engine checks every bit of its slices and of its logits."""
    script = ROOT / "examples" / "pytorch" / "run.py"
    path = os.pathsep.join([str(ROOT / "python" / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 steps of a trainer of 4 processes in an engine of 2: every bit as it should be" in done.stdout
    assert done.stdout.count("every bit verified") == 10
