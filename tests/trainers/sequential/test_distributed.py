import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


SCRIPT = Path(__file__).with_name("run.py")


def launch(folder, batch_size, processes):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = command if processes > 1 else [sys.executable]
    subprocess.run(
        [*command, str(SCRIPT), str(folder), str(batch_size)],
        check=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def result(folder):
    return json.loads((folder / "result.json").read_text()), load_file(folder / "model.safetensors")


@pytest.mark.distributed
def test_two_processes_take_the_steps_of_one(tmp_path):
    launch(tmp_path / "one", 8, processes=1)
    launch(tmp_path / "two", 4, processes=2)
    for loss in ("ce", "sce", "bce"):
        one, weights = result(tmp_path / "one" / loss)
        two, other_weights = result(tmp_path / "two" / loss)
        assert (one["processes"], two["processes"]) == (1, 2)
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
        for name, weight in weights.items():
            torch.testing.assert_close(other_weights[name], weight, atol=2e-4, rtol=2e-3)
