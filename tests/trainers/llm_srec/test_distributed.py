import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


SCRIPT = Path(__file__).with_name("run.py")


def run(launch, folder, batch_size, processes):
    launch(SCRIPT, folder, batch_size, processes=processes)
    vectors = load_file(folder / "item_index.safetensors")["vectors"]
    return json.loads((folder / "result.json").read_text()), load_file(folder / "model.safetensors"), vectors


@pytest.mark.distributed
def test_two_processes_take_the_steps_of_one_though_every_term_couples_rows(tmp_path, launch):
    spec = importlib.util.spec_from_file_location("llm_srec_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_frozen(tmp_path / "frozen")
    one, weights, vectors = run(launch, tmp_path / "one", batch_size=8, processes=1)
    two, other_weights, other_vectors = run(launch, tmp_path / "two", batch_size=4, processes=2)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(other_weights[name], weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other_vectors, vectors, atol=1e-4, rtol=1e-3)
    assert two["sharded_error"] < 1e-4
