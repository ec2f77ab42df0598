"""Another model takes the place of one that answers, and no request is lost."""

import asyncio
import os
import shutil

import pytest

from hf_rec.hub import save_control
from hf_rec.recommenders.controls import PopularityRecommender
from hf_rec.serving.app import RecommenderServer
from hf_rec.serving.served_model import ServedModel


@pytest.fixture
def link(popularity_folder, tiny_catalog, tmp_path):
    """A link to a model, and what makes it lead to another one, whose best item is 111."""
    rows = [{"history": [0], "target": 11, "supervise_from": 1}]
    save_control(tmp_path / "newer", PopularityRecommender(tiny_catalog, rows))
    os.symlink(popularity_folder, tmp_path / "current")

    def switch(target=tmp_path / "newer"):
        os.symlink(target, tmp_path / "next")
        os.replace(tmp_path / "next", tmp_path / "current")

    return tmp_path / "current", switch


HEADERS = {"Authorization": "Bearer secret"}


def test_requests_on_both_sides_of_a_reload_are_all_answered(serve, link):
    folder, switch = link
    model = ServedModel("model", folder)
    old = model.loaded.version

    async def use(client):
        async def ask():
            answer = await client.post("/recommend", json={"history": [], "k": 1}, headers=HEADERS)
            body = answer.json()
            return answer.status_code, body["version"], body["items"][0]["item_id"]

        before = [asyncio.ensure_future(ask()) for _ in range(10)]
        switch()
        reload = asyncio.ensure_future(client.post("/reload", json={}, headers=HEADERS))
        while not reload.done():
            before.append(asyncio.ensure_future(ask()))
            await asyncio.sleep(0)
        again = await client.post("/reload", json={"model": "model"}, headers=HEADERS)
        metrics = (await client.get("/metrics", headers=HEADERS)).text
        return await asyncio.gather(*before), (await reload).json(), again.json(), await ask(), metrics

    answers, reloaded, again, after, metrics = serve(use, models=[model], token="secret")
    new = model.loaded.version
    assert new != old and reloaded == {"model": "model", "version": new, "changed": True}
    assert again["changed"] is False
    assert set(answers) <= {(200, old, 103), (200, new, 111)} and answers[0] == (200, old, 103)
    assert after == (200, new, 111)
    assert 'hf_rec_reloads_total{model="model",result="changed"} 1' in metrics


def test_the_old_model_stays_where_the_new_one_is_damaged(serve, link, tmp_path, caplog):
    folder, switch = link
    model = ServedModel("model", folder)
    old = model.loaded
    shutil.copytree(tmp_path / "newer", tmp_path / "damaged")
    (tmp_path / "damaged" / "catalog.jsonl").write_text("{}\n")
    switch(tmp_path / "damaged")

    async def use(client):
        refused = await client.post("/reload", json={}, headers=HEADERS)
        return refused, await client.post("/recommend", json={"history": [], "k": 1}, headers=HEADERS)

    refused, answer = serve(use, models=[model], token="secret")
    assert refused.status_code == 422 and "The old model stays" in refused.json()["detail"]
    assert model.loaded is old
    assert answer.json()["items"][0]["item_id"] == 103


def test_a_model_that_cannot_be_reloaded_keeps_no_other_from_it(popularity_folder, monkeypatch, caplog):
    first, second = ServedModel("first", popularity_folder), ServedModel("second", popularity_folder)
    monkeypatch.setattr(first, "reload", raising(RuntimeError("out of memory")))
    asked = []
    monkeypatch.setattr(second, "reload", lambda: asked.append("second"))
    RecommenderServer([first, second]).reload_all()
    assert asked == ["second"] and "out of memory" in caplog.text


def raising(error):
    def call():
        raise error

    return call
