"""Answers over HTTP are those of the recommender, and what cannot be answered is refused in one sentence."""

import asyncio
import math

import pytest

from hf_rec.recommenders.token_path import token_path
from hf_rec.serving.app import RecommenderServer
from hf_rec.serving.served_model import ItemTitles


ROUNDING = 1e-5  # of float32 scores around 10 in batches of unlike padding


def test_a_list_is_that_of_the_recommender(serve, models):
    recommender = models[0].loaded.recommender
    expected = recommender.recommend([[100, 104]], k=4, exclude=[102], allow=[100, 101, 102, 103, 110])

    async def use(client):
        body = {"history": [100, 104], "k": 4, "exclude": [102], "allow": [100, 101, 102, 103, 110]}
        return (await client.post("/recommend", json=body)).json()

    answer = serve(use)
    assert [item["item_id"] for item in answer["items"]] == expected.item_ids[0]
    for item, score in zip(answer["items"], expected.scores[0], strict=True):
        assert item["score"] == pytest.approx(float(score), abs=ROUNDING)
        assert item["probability"] == pytest.approx(math.exp(score), rel=1e-4)
        assert item["title"] == recommender.catalog.titles[recommender.catalog.row(item["item_id"])]
    assert answer["certified"] == bool(expected.certified[0]) and answer["nan_scores"] == 0
    assert (answer["model"], answer["version"]) == ("msl", models[0].loaded.version)


def test_scores_come_in_the_order_of_the_candidates(serve, models):
    expected = models[0].loaded.recommender.score([[107]], [111, 100, 106])[0]

    async def use(client):
        return (await client.post("/score", json={"history": ["107"], "candidates": [111, 100, "106"]})).json()

    items = serve(use)["items"]
    assert [item["item_id"] for item in items] == [111, 100, 106]
    assert [item["score"] for item in items] == pytest.approx(expected.tolist(), abs=ROUNDING)


def test_requests_that_come_together_share_batches_and_get_their_own_answers(serve, models):
    recommender = models[0].loaded.recommender
    bodies = [
        {"history": [100 + (3 * n) % 12] * (n % 4), "k": 2 + n % 2, "exclude": [100 + n % 12]} for n in range(12)
    ]
    for n, body in enumerate(bodies):
        if n % 5 == 0:
            body |= {"allow": [100, 101, 102, 103, 104, 111], "exclude": []}

    async def use(client):
        answers = await asyncio.gather(*(client.post("/recommend", json=body) for body in bodies))
        return [answer.json() for answer in answers], (await client.get("/metrics")).text

    answers, metrics = serve(use, {"max_batch": 4})
    for body, answer in zip(bodies, answers, strict=True):
        alone = recommender.recommend(
            [body["history"]], k=body["k"], exclude=body["exclude"] or None, allow=body.get("allow")
        )
        assert [item["item_id"] for item in answer["items"]] == alone.item_ids[0]
        scores = [item["score"] for item in answer["items"]]
        assert scores == pytest.approx(alone.scores[0].tolist(), abs=ROUNDING)
        assert answer["certified"] == bool(alone.certified[0])
    batches = int(metrics.split('hf_rec_batch_requests_count{model="msl"} ')[1].split()[0])
    assert 3 <= batches < 12
    assert 'hf_rec_requests_total{path="/recommend",status="200"} 12' in metrics


def test_one_request_that_the_model_refuses_fails_alone(serve, models, monkeypatch):
    recommender = models[0].loaded.recommender
    encode = recommender.prompt.encode_history

    def refuse(history):
        if len(history) == 3:
            raise ValueError("no room for three")
        return encode(history)

    monkeypatch.setattr(recommender.prompt, "encode_history", refuse)

    async def use(client):
        bodies = [{"history": [100] * n, "k": 2} for n in range(5)]
        return await asyncio.gather(*(client.post("/recommend", json=body) for body in bodies))

    answers = serve(use)
    assert [answer.status_code for answer in answers] == [200, 200, 200, 422, 200]
    assert answers[3].json() == {"detail": "no room for three"}


def test_the_path_of_an_item_sums_to_its_score(serve, models):
    recommender = models[0].loaded.recommender

    async def use(client):
        return (await client.post("/path", json={"history": [100, 108], "item_id": 102})).json()

    answer = serve(use)
    expected = float(recommender.score([[100, 108]], [102])[0][0])
    assert answer["score"] == pytest.approx(expected, abs=1e-4)
    assert sum(step["log_probability"] for step in answer["steps"]) == pytest.approx(expected, abs=1e-4)
    assert "".join(step["token"] for step in answer["steps"]).strip() == "Alien 3"
    root = answer["steps"][0]
    total = root["probability"] + sum(other["probability"] for other in root["others"])
    assert 0 < total <= 1 + 1e-6 and len(root["others"]) == min(5, root["num_children"] - 1)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_children_of_every_step_share_the_whole_probability(kind, tiny_lm, recommender_of):
    recommender = recommender_of(tiny_lm(kind))
    steps = token_path(recommender, [100, 108], 107, most_others=1000)
    for step in steps:
        assert step.num_children == 1 + len(step.others)
        assert step.token.probability + sum(other.probability for other in step.others) == pytest.approx(1, abs=1e-5)
    assert sum(step.token.log_probability for step in steps) == pytest.approx(
        float(recommender.score([[100, 108]], [107])[0][0]), abs=1e-4
    )


def test_a_control_spells_nothing(serve):
    async def use(client):
        return await client.post("/path", json={"model": "popularity", "history": [], "item_id": 102})

    answer = serve(use)
    assert answer.status_code == 422 and "PopularityRecommender" in answer.json()["detail"]


def test_items_are_found_by_words_and_ids(tiny_catalog):
    titles = ItemTitles(tiny_catalog)
    assert titles.find("alien", 10) == [0, 1, 2]
    assert titles.find("ALIEN 3", 10) == [2]
    assert titles.find("105", 10) == [5]
    assert titles.find("escape great", 10) == [7]
    assert titles.find("fly the", 10) == [5, 6]
    assert titles.find("七人", 1) == [8]
    assert titles.find("  ", 3) == [0, 1, 2]


def test_models_and_limits_are_told(serve):
    async def use(client):
        return (await client.get("/models")).json(), (await client.get("/items?query=fly&limit=1")).json()

    told, found = serve(use, {"max_k": 7})
    assert [(entry["model"], entry["has_paths"]) for entry in told["models"]] == [("msl", True), ("popularity", False)]
    assert told["max_k"] == 7
    assert found == {"items": [{"item_id": 105, "title": "The Fly"}]}


BAD = {
    "k of 0": ("/recommend", {"history": [100], "k": 0}, 422, "`k`"),
    "k of -1": ("/recommend", {"history": [100], "k": -1}, 422, "`k`"),
    "k of a billion": ("/recommend", {"history": [100], "k": 10**9}, 422, "`k` is 1000000000, more than the 100"),
    "k of true": ("/recommend", {"history": [100], "k": True}, 422, "`k`"),
    "no history": ("/recommend", {}, 422, "`history`"),
    "a history of one id": ("/recommend", {"history": "100"}, 422, "`history`"),
    "an id that is a list": ("/recommend", {"history": [[100]]}, 422, "`history"),
    "an unknown id": ("/recommend", {"history": [100, "nobody"]}, 422, "Item 'nobody' is not among the 12 items"),
    "an unknown excluded id": ("/recommend", {"history": [], "exclude": [1]}, 422, "`exclude`: Item 1"),
    "an unknown allowed id": ("/recommend", {"history": [], "allow": [1]}, 422, "`allow`: Item 1"),
    "100,000 events": ("/recommend", {"history": [100] * 100_000}, 422, "`history` has 100000 items, more than"),
    "times for other events": ("/recommend", {"history": [100], "timestamps": [1, 2]}, 422, "`timestamps` has 2"),
    "an unknown field": ("/recommend", {"history": [], "beams": 5}, 422, "`beams`"),
    "an unknown model": ("/recommend", {"history": [], "model": "x" * 9999}, 404, "msl, popularity"),
    "no candidates": ("/score", {"history": [], "candidates": []}, 422, "`candidates`"),
    "too many candidates": ("/score", {"history": [], "candidates": [100] * 1001}, 422, "`candidates` has 1001"),
    "a reload without a token": ("/reload", {}, 403, "SIGHUP"),
}


def test_what_cannot_be_answered_is_refused_in_one_sentence(serve):
    async def use(client):
        return {name: await client.post(path, json=body) for name, (path, body, *_) in BAD.items()}

    for name, answer in serve(use).items():
        _, _, status, words = BAD[name]
        assert answer.status_code == status, name
        assert words in answer.json()["detail"] and len(answer.text) < 600, name


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"history": [], "k": NaN}', b"[" * 50_000, b'{"k": ' + b"9" * 6000 + b"}"],
    ids=["empty", "cut", "a list", "no text", "NaN", "deep", "a long number"],
)
def test_what_is_no_json_is_refused(serve, body):
    async def use(client):
        return await client.post("/recommend", content=body, headers={"Content-Type": "application/json"})

    answer = serve(use)
    assert answer.status_code in (400, 422)
    assert isinstance(answer.json()["detail"], str)


def test_another_type_of_body_is_no_request(serve):
    async def use(client):
        return await client.post("/recommend", content=b'{"history": []}', headers={"Content-Type": "text/plain"})

    assert serve(use).status_code == 422  # so a page of another place cannot send one unasked


def test_a_script_in_a_title_is_json_text(serve, models, monkeypatch):
    catalog = models[0].loaded.recommender.catalog
    monkeypatch.setattr(catalog, "titles", ["<script>alert(1)</script>", *catalog.titles[1:]])

    async def use(client):
        return await client.post("/score", json={"history": [], "candidates": [100]})

    answer = serve(use)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert answer.json()["items"][0]["title"] == "<script>alert(1)</script>"


def test_names_of_models_differ(models):
    with pytest.raises(ValueError, match="a name each"):
        RecommenderServer([models[0], models[0]])
    with pytest.raises(ValueError, match="at least one"):
        RecommenderServer([])
