"""How a command with several processes ends."""

import subprocess
import sys

import pytest
import torch

from hf_rec.processes import end_processes


@pytest.fixture
def calls(monkeypatch):
    """What is done to a process group that seems to be there."""
    from accelerate import PartialState

    calls = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(PartialState, "wait_for_everyone", lambda self: calls.append("wait"))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: calls.append("leave"))
    return calls


def test_a_process_waits_for_the_others_before_it_leaves_the_group(calls):
    end_processes()
    assert calls == ["wait", "leave"]


def test_every_command_ends_so(calls, tmp_path, monkeypatch):
    from hf_rec.cli import main

    (tmp_path / "empty").mkdir()
    assert main.main(["report", str(tmp_path / "empty"), "--out", str(tmp_path / "report")]) == 2
    assert calls == []  # the launcher ends the others where one fails
    monkeypatch.setattr(main, "build_parser", lambda: Parser())
    assert main.main([]) == 0
    assert calls == ["wait", "leave"]


class Parser:
    """A command that does nothing."""

    command, debug = "nothing", False

    def parse_args(self, argv):
        return self

    def run(self, args):
        pass


def test_a_process_of_its_own_ends_without_loading_torch():
    code = "import sys; from hf_rec.processes import end_processes; end_processes(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
