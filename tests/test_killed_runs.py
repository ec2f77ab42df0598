"""What kills recipes at random moments finds nothing lost; here once, by hand 50 times over all trainers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_is_not(tmp_path):
    script, log = Path(__file__).with_name("killed_runs.py"), tmp_path / "log.jsonl"
    words = [sys.executable, script, "--trials", "1", "--only", "sequential", "--log", log]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    (trial,) = map(json.loads, log.read_text().splitlines())
    assert trial["kills"] >= 0 and trial["differs"] == []
