"""A server of tiny models in this process, and a client that reaches it without a socket."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from hf_rec.data.prompts.next_item import Prompt
from hf_rec.hub import save_control, save_recommender
from hf_rec.recommenders.controls import PopularityRecommender
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.serving.app import RecommenderServer
from hf_rec.serving.served_model import ServedModel
from hf_rec.serving.settings import ServeSettings
from hf_rec.trie.item_trie import ItemTrie


@pytest.fixture(scope="session")
def language_folder(tiny_catalog, bpe_tokenizer, tiny_lm, tmp_path_factory):
    """A saved language model over the films."""
    folder = tmp_path_factory.mktemp("serving") / "msl"
    prompt = Prompt(bpe_tokenizer, tiny_catalog)
    save_recommender(
        folder,
        catalog=tiny_catalog,
        kind="language_model",
        prompt=prompt,
        trie=ItemTrie.build(prompt.encode_items()),
        tokenizer=bpe_tokenizer,
        model=tiny_lm(),
    )
    return folder


@pytest.fixture
def recommender_of(tiny_catalog, bpe_tokenizer):
    """`recommender_of(model)`: a recommender of the films."""

    def make(model):
        prompt = Prompt(bpe_tokenizer, tiny_catalog)
        trie = ItemTrie.build(prompt.encode_items()).csr()
        return LanguageModelRecommender(model, bpe_tokenizer, tiny_catalog, prompt, trie)

    return make


@pytest.fixture(scope="session")
def popularity_folder(tiny_catalog, tmp_path_factory):
    """A saved control over the films: row 3 was chosen most, then row 5."""
    folder = tmp_path_factory.mktemp("serving") / "popularity"
    rows = [{"history": [0], "target": target, "supervise_from": 1} for target in (3, 3, 3, 5, 5)]
    save_control(folder, PopularityRecommender(tiny_catalog, rows))
    return folder


@pytest.fixture(scope="session")
def models(language_folder, popularity_folder):
    """Both, loaded; tests that reload make their own."""
    return [ServedModel("msl", language_folder, device="cpu"), ServedModel("popularity", popularity_folder)]


@asynccontextmanager
async def client_of(server):
    """An httpx client of a running server."""
    import httpx

    app = server.application()
    async with app.app.router.lifespan_context(app.app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            yield client


@pytest.fixture
def serve(models):
    """
    `serve(use, settings={}, models=..., **options)`: what `use(client)` returns, a coroutine that talks to a server.
    """

    def run(use, settings=None, models=models, **options):
        async def talk():
            server = RecommenderServer(models, ServeSettings(**(settings or {})), **options)
            async with client_of(server) as client:
                return await use(client)

        return asyncio.run(talk())

    return run
