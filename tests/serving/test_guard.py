"""What stands before the application: the token, and bodies that are large or slow."""

import asyncio

import pytest

from hf_rec.serving.app import RecommenderServer
from hf_rec.serving.guard import Guard
from hf_rec.serving.metrics import Metrics
from hf_rec.serving.settings import ServeSettings


class EndlessBody:
    """A client that sends chunks for ever, without a length; it counts them."""

    def __init__(self, chunk):
        self.chunk, self.sent = chunk, 0

    async def __call__(self):
        self.sent += 1
        return {"type": "http.request", "body": self.chunk, "more_body": True}


async def answers_of(guard, receive, headers=()):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/recommend", "headers": list(headers)}
    await guard(scope, receive, send)
    return sent


def guard_of(**settings):
    async def app(scope, receive, send):
        raise AssertionError("a refused request reaches no application")

    return Guard(app, ServeSettings(**settings), Metrics(), ["/recommend"], [])


def test_a_body_without_a_length_is_refused_as_soon_as_it_is_too_large():
    client = EndlessBody(b"x" * 65536)
    start, body = asyncio.run(answers_of(guard_of(max_body=2**20), client))
    assert start["status"] == 413 and b"1048576 bytes" in body["body"]
    assert client.sent == 17
    assert (b"connection", b"close") in start["headers"]


def test_a_body_of_100_mb_is_refused_by_its_length_before_it_is_read():
    client = EndlessBody(b"x")
    start, _ = asyncio.run(answers_of(guard_of(), client, [(b"content-length", b"104857600")]))
    assert start["status"] == 413 and client.sent == 0


def test_a_body_that_does_not_come_in_time_is_refused():
    async def never():
        await asyncio.Event().wait()

    start, body = asyncio.run(answers_of(guard_of(read_timeout=0.01), never))
    assert start["status"] == 408 and b"0.01 seconds" in body["body"]


def test_a_client_that_leaves_is_counted_as_a_bad_request():
    async def gone():
        return {"type": "http.disconnect"}

    guard = guard_of()
    start, _ = asyncio.run(answers_of(guard, gone))
    assert start["status"] == 400
    assert 'hf_rec_requests_total{path="/recommend",status="400"} 1' in guard.metrics.text()


def test_the_whole_application_refuses_large_bodies(serve):
    async def use(client):
        return await client.post("/recommend", content=b" " * 2000)

    assert serve(use, {"max_body": 1999}).status_code == 413


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic secret", "Bearer secre", "Bearer sécret"])
def test_without_the_token_nothing_is_told(serve, header):
    async def use(client):
        headers = {} if header is None else {"Authorization": header.encode()}
        paths = ("/models", "/items", "/metrics", "/nowhere")
        got = [await client.get(path, headers=headers) for path in paths]
        return [*got, await client.post("/recommend", json={"history": []}, headers=headers)]

    for answer in serve(use, token="secret"):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "secret" not in answer.text


def test_the_token_opens_the_server_and_health_needs_none(serve):
    async def use(client):
        headers = {"Authorization": "bearer secret"}
        return [await client.get("/models", headers=headers), await client.get("/health")]

    assert [answer.status_code for answer in serve(use, token="secret")] == [200, 200]


def test_paths_that_are_not_there_count_as_one(serve):
    async def use(client):
        for path in ("/a", "/b"):
            await client.get(path)
        return (await client.get("/metrics")).text

    metrics = serve(use)
    assert 'hf_rec_requests_total{path="other",status="404"} 2' in metrics


def test_metrics_are_written_as_prometheus_reads_them():
    metrics = Metrics()
    metrics.count("asked_total", path='a"b\\\n')
    for value in (0.5, 1.0, 7.0):
        metrics.observe("seconds", value, (1.0, 2.0), path="/")
    assert metrics.text([("waiting", {}, 3)]).splitlines() == [
        "# TYPE asked_total counter",
        'asked_total{path="a\\"b\\\\\\n"} 1',
        "# TYPE seconds histogram",
        'seconds_bucket{path="/",le="1.0"} 2',
        'seconds_bucket{path="/",le="2.0"} 2',
        'seconds_bucket{path="/",le="+Inf"} 3',
        'seconds_sum{path="/"} 8.5',
        'seconds_count{path="/"} 3',
        "# TYPE waiting gauge",
        "waiting 3",
    ]


@pytest.mark.parametrize("name", ["max_batch", "max_k", "read_timeout"])
def test_limits_of_nothing_are_refused(name):
    with pytest.raises(ValueError, match=name):
        ServeSettings(**{name: 0})


def test_the_docs_page_loads_nothing_from_elsewhere(serve, models):
    async def use(client):
        paths = ("/docs", "/docs.js", "/page.css", "/openapi.json", "/")
        return [await client.get(path) for path in paths]

    *files, api, page = serve(use)
    assert all(answer.status_code == 200 and "//" not in answer.text.replace("// ", "") for answer in files)
    assert {"/recommend", "/score", "/items", "/health"} <= set(api.json()["paths"])
    assert page.status_code == 404, "no page unless it is asked for"
    assert RecommenderServer(models, page=True)
