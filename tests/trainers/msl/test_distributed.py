import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


SCRIPT = Path(__file__).with_name("run.py")


def run(launch, folder, batch_size, processes):
    launch(SCRIPT, folder, batch_size, processes=processes)
    return json.loads((folder / "result.json").read_text()), load_file(folder / "model.safetensors")


@pytest.mark.distributed
def test_two_processes_take_the_steps_of_one(tmp_path, launch):
    one, weights = run(launch, tmp_path / "one", batch_size=8, processes=1)
    two, other_weights = run(launch, tmp_path / "two", batch_size=4, processes=2)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["tau"] == pytest.approx(one["tau"], rel=1e-6)
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(other_weights[name], weight, atol=2e-4, rtol=2e-3)
