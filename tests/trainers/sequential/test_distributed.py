import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


SCRIPT = Path(__file__).with_name("run.py")
SETTINGS = ("ce", "sce", "masked", "llm_cf", "stream", "bce")


def result(folder):
    return json.loads((folder / "result.json").read_text()), load_file(folder / "model.safetensors")


@pytest.mark.distributed
def test_two_processes_take_the_steps_of_one_where_the_last_batch_is_not_full(tmp_path, launch):
    launch(SCRIPT, tmp_path / "one", 8, processes=1)
    launch(SCRIPT, tmp_path / "two", 4)
    for setting in SETTINGS:
        one, weights = result(tmp_path / "one" / setting)
        two, other_weights = result(tmp_path / "two" / setting)
        assert (one["processes"], two["processes"]) == (1, 2)
        assert len(one["losses"]) == {"ce": 4, "bce": 18}.get(setting, 6)
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-5), setting
        assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-5), setting
        for tensor, weight in weights.items():
            torch.testing.assert_close(other_weights[tensor], weight, atol=2e-5, rtol=1e-5)
