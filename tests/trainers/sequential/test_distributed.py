import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


SCRIPT = Path(__file__).with_name("run.py")


def result(folder):
    return json.loads((folder / "result.json").read_text()), load_file(folder / "model.safetensors")


@pytest.mark.distributed
def test_two_processes_take_the_steps_of_one(tmp_path, launch):
    launch(SCRIPT, tmp_path / "one", 8, processes=1)
    launch(SCRIPT, tmp_path / "two", 4)
    for loss in ("ce", "sce", "bce"):
        one, weights = result(tmp_path / "one" / loss)
        two, other_weights = result(tmp_path / "two" / loss)
        assert (one["processes"], two["processes"]) == (1, 2)
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
        for name, weight in weights.items():
            torch.testing.assert_close(other_weights[name], weight, atol=2e-4, rtol=2e-3)
