import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file


SCRIPT = Path(__file__).with_name("run.py")


def run(launch, folder, batch_size, processes, *zero_stage):
    launch(SCRIPT, folder, batch_size, *zero_stage, processes=processes)
    assert not (folder / "ref").exists()
    lists = pq.read_table(folder / "own_lists" / "lists.parquet").to_pylist()
    return json.loads((folder / "result.json").read_text()), lists, load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, launch):
    return run(launch, tmp_path_factory.mktemp("one"), 8, 1)


@pytest.mark.distributed
@pytest.mark.parametrize("zero_stage", [None, 2], ids=["ddp", "zero-2"])
def test_two_processes_take_the_steps_of_one_against_a_frozen_adapter(tmp_path, launch, one_process, zero_stage):
    if zero_stage is not None:
        pytest.importorskip("deepspeed")
    one, lists, weights = one_process
    two, other_lists, other_weights = run(launch, tmp_path, 4, 2, *([] if zero_stage is None else [zero_stage]))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert other_lists == lists and len(lists) == 19
    for entry, other in zip(one["logs"], two["logs"], strict=True):
        assert other == pytest.approx(entry, rel=1e-3, abs=1e-5)
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-3, abs=1e-6)
    for name, weight in weights.items():
        torch.testing.assert_close(other_weights[name], weight, atol=2e-4, rtol=2e-3)
