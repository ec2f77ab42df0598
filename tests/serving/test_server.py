"""A real server on the loopback: clients that are slow, a stop that loses nothing."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading

import pytest

from hf_rec.cli import main as cli
from hf_rec.cli.serve import TOKEN_VARIABLE, named_models, read_token
from hf_rec.serving.app import RecommenderServer
from hf_rec.serving.server import make_server
from hf_rec.serving.settings import ServeSettings


@contextlib.contextmanager
def running(models, token=None, page=False, **settings):
    """Port of a server in a thread of this process, and what makes it stop."""
    application = RecommenderServer(models, ServeSettings(**settings), token, page)
    server = make_server(application, "127.0.0.1", 0, log_level="error")
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()

    def stop():
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()

    try:
        yield listening.getsockname()[1], stop
    finally:
        stop()


def post(port, body, results=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/recommend", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    if results is not None:
        results.append(found)
    return found


def test_a_server_answers_refuses_the_slow_and_the_large_and_stops_in_order(models):
    with running(models, read_timeout=0.3) as (port, stop):
        # A head and a body that trickle, and one that never ends: each is ended by the server, not by the client
        slow_head, slow_body, endless = (socket.create_connection(("127.0.0.1", port), 60) for _ in range(3))
        slow_head.sendall(b"GET /health HTTP/1.1\r\n")
        slow_body.sendall(b"POST /recommend HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        endless.sendall(b"POST /recommend HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(ConnectionError):  # the server refuses it long before all 100 MB are sent
            for _ in range(1600):
                endless.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        assert b" 408 " in slow_body.recv(4096)
        assert slow_head.recv(4096) == b""
        status, answer = post(port, {"history": [100], "k": 3})
        assert status == 200 and len(answer["items"]) == 3
        for client in (slow_head, slow_body, endless):
            client.close()


def test_what_has_begun_is_answered_before_the_server_stops(models, monkeypatch):
    recommender, entered, go_on = models[1].loaded.recommender, threading.Event(), threading.Event()
    recommend = recommender.recommend

    def held(*args, **kwargs):
        entered.set()
        assert go_on.wait(60)
        return recommend(*args, **kwargs)

    monkeypatch.setattr(recommender, "recommend", held)
    results = []
    with running(models) as (port, stop):
        ask = threading.Thread(target=post, args=(port, {"model": "popularity", "history": [], "k": 1}, results))
        ask.start()
        assert entered.wait(60)
        stopping = threading.Thread(target=stop)
        stopping.start()
        go_on.set()
        ask.join(60)
        stopping.join(60)
        assert results[0][0] == 200 and results[0][1]["items"][0]["item_id"] == 103
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), 5)


def test_models_are_named_by_their_folder_or_by_flag(tmp_path, monkeypatch):
    (tmp_path / "msl").mkdir()
    (tmp_path / "a=b").mkdir()
    words = [str(tmp_path / "msl"), f"old={tmp_path}/msl", "user/repo", str(tmp_path / "a=b")]
    assert list(named_models(words)) == ["msl", "old", "repo", "a=b"]
    with pytest.raises(ValueError, match="Name them"):
        named_models(["user/repo", "other/repo"])
    with pytest.raises(ValueError, match="NAME=one"):
        named_models(["=x"])


def test_the_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, "of the environment")
    assert read_token(None) == "of the environment"
    (tmp_path / "token").write_text("of the file\n")
    assert read_token(tmp_path / "token") == "of the file"
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        read_token(tmp_path / "token")


def test_the_command_refuses_before_it_loads(tmp_path, capsys, monkeypatch):
    words = ["serve", "--model", str(tmp_path / "none")]
    assert cli.main([*words, "--max-k", "0"]) == cli.BAD_INPUT
    assert "`max_k` must be at least 1" in capsys.readouterr().err
    assert cli.main(["serve", "--model", str(tmp_path)]) == cli.BAD_INPUT
    assert "is no recommender" in capsys.readouterr().err
    monkeypatch.setattr("hf_rec.cli.serve._EXTRA", ("no_such_module",))
    assert cli.main(words) == cli.BAD_INPUT
    assert "pip install hf_rec[serve]" in capsys.readouterr().err
