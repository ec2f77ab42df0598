"""The HTTP application: routes, their limits, and what they answer."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse

from hf_rec.recommenders.contract import RawId
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.serving.batching import Batcher, Overloaded
from hf_rec.serving.guard import Guard
from hf_rec.serving.metrics import SIZES, Metrics
from hf_rec.serving.page_files import DOCS_FILES, PAGE_FILES, PAGE_FOLDER
from hf_rec.serving.schemas import (
    Choice,
    Health,
    Item,
    ItemsAnswer,
    ModelAnswer,
    ModelsAnswer,
    PathAnswer,
    PathRequest,
    RecommendAnswer,
    RecommendRequest,
    Refusal,
    ReloadAnswer,
    ReloadRequest,
    ScoreAnswer,
    ScoredItem,
    ScoreRequest,
    Step,
)
from hf_rec.serving.served_model import LoadedModel, ServedModel
from hf_rec.serving.settings import ServeSettings
from hf_rec.serving.work import PathWork, RecommendWork, ScoreWork, Work


logger = logging.getLogger("uvicorn.error")  # where the server writes what happens to it
MOST_FOUND = 100  # items of one answer to a query
_LONGEST_QUERY = 200
_LONGEST_DETAIL = 500
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal} for status in (400, 401, 404, 408, 413, 422, 503, 504)
}


class RecommenderServer:
    """
    Some models, a queue for each, and the routes that ask them.

    Args:
        models (`list` of [`ServedModel`]): With different names; the first one answers where a request names none.
        settings ([`ServeSettings`], *optional*): Limits.
        token (`str`, *optional*): What clients must send; without it everybody may ask.
        page (`bool`, *optional*, defaults to `False`): Serve the page for people at `/`.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        settings: ServeSettings | None = None,
        token: str | None = None,
        page: bool = False,
    ):
        self.models = {model.name: model for model in models}
        if not models or len(self.models) < len(models):
            names = [model.name for model in models]
            raise ValueError(f"`models` must be at least one, with a name each of its own, got {names}.")
        self.settings = settings or ServeSettings()
        self.token = token
        self.metrics = Metrics()
        self._page = page
        self._batchers: dict[str, Batcher] = {}

    def application(self) -> Any:
        """The ASGI application, with its guard."""
        api = FastAPI(
            title="hf_rec",
            description="Next items for a history. Ids are the raw ids of the catalog: find them with GET /items.",
            lifespan=self._lifespan,
            docs_url=None,  # FastAPI's pages load scripts from elsewhere
            redoc_url=None,
        )
        api.add_exception_handler(RequestValidationError, _invalid)
        api.add_exception_handler(Exception, _failed)
        self._add_routes(api)
        files = DOCS_FILES | (PAGE_FILES if self._page else {})
        for path, name in files.items():
            api.add_api_route(path, _file_sender(name), include_in_schema=False)
        paths = {getattr(route, "path", "") for route in api.routes}
        open_paths = {"/health", "/openapi.json", *files}
        return Guard(api, self.settings, self.metrics, paths, open_paths, self.token)

    def _add_routes(self, api: FastAPI) -> None:
        for path, method, answer in (
            ("/recommend", self.recommend, RecommendAnswer),
            ("/score", self.score, ScoreAnswer),
            ("/path", self.path, PathAnswer),
            ("/reload", self.reload, ReloadAnswer),
        ):
            api.add_api_route(path, method, methods=["POST"], response_model=answer, responses=_REFUSALS)
        api.add_api_route("/items", self.items, response_model=ItemsAnswer, responses=_REFUSALS)
        api.add_api_route("/models", self.list_models, response_model=ModelsAnswer)
        api.add_api_route("/health", self.health, response_model=Health)
        api.add_api_route("/metrics", self.prometheus, response_class=PlainTextResponse)

    @asynccontextmanager
    async def _lifespan(self, api: FastAPI) -> AsyncIterator[None]:
        for name in self.models:
            self._batchers[name] = Batcher(self.settings, partial(self._note_batch, name))
            self._batchers[name].start()
        yield
        await asyncio.gather(*(batcher.close() for batcher in self._batchers.values()))

    async def recommend(self, request: RecommendRequest) -> RecommendAnswer:
        """The best next items after a history."""
        model, loaded = self._model(request.model)
        self._check_size("k", request.k, self.settings.max_k)
        self._check_history(loaded, request.history, request.timestamps)
        _check_items(loaded, request.exclude, "exclude")
        _check_items(loaded, request.allow or [], "allow")
        num_beams = self.settings.num_beams
        if loaded.recommender.is_exact or num_beams is None:
            num_beams = None
        else:
            num_beams = max(num_beams, request.k)
        work = RecommendWork(
            loaded.recommender,
            request.history,
            request.k,
            request.exclude or None,
            request.allow,
            request.timestamps,
            num_beams,
        )
        found = await self._ask(model.name, work)
        items = [_scored(loaded, *pair) for pair in zip(found.item_ids, found.scores, strict=True)]
        return RecommendAnswer(
            model=model.name,
            version=loaded.version,
            items=items,
            certified=found.certified,
            nan_scores=found.nan_scores,
        )

    async def score(self, request: ScoreRequest) -> ScoreAnswer:
        """Scores of given items after a history: the numbers that lists are ranked by."""
        model, loaded = self._model(request.model)
        self._check_size("candidates", len(request.candidates), self.settings.max_history, "items")
        self._check_history(loaded, request.history, request.timestamps)
        _check_items(loaded, request.candidates, "candidates")
        work = ScoreWork(loaded.recommender, request.history, request.candidates, request.timestamps)
        scores = await self._ask(model.name, work)
        items = [_scored(loaded, *pair) for pair in zip(request.candidates, scores.tolist(), strict=True)]
        return ScoreAnswer(model=model.name, version=loaded.version, items=items)

    async def path(self, request: PathRequest) -> PathAnswer:
        """How a language model spells an item: each token of its path, against what else may stand there."""
        model, loaded = self._model(request.model)
        language = _language_model(loaded)
        if language is None:
            kind = type(loaded.recommender).__name__
            raise HTTPException(422, f"`model` {model.name!r} is a {kind}, which spells no items.")
        self._check_history(loaded, request.history, None)
        _check_items(loaded, [request.item_id], "item_id")
        steps = await self._ask(model.name, PathWork(language, request.history, request.item_id))
        return PathAnswer(
            model=model.name,
            version=loaded.version,
            item=Item(item_id=request.item_id, title=loaded.title(request.item_id)),
            score=sum(step.token.log_probability for step in steps),
            steps=[
                Step(
                    token=step.token.text,
                    probability=step.token.probability,
                    log_probability=step.token.log_probability,
                    num_children=step.num_children,
                    others=[Choice(token=other.text, probability=other.probability) for other in step.others],
                )
                for step in steps
            ],
        )

    async def items(
        self,
        query: Annotated[str, Query(max_length=_LONGEST_QUERY, description="words of a title, or an id")] = "",
        limit: Annotated[int, Query(ge=1, le=MOST_FOUND)] = 20,
        model: str | None = None,
    ) -> ItemsAnswer:
        """Items whose title holds every word of the query, or whose id it is."""
        _, loaded = self._model(model)
        rows = await asyncio.to_thread(loaded.titles.find, query, limit)
        ids = [loaded.recommender.catalog.ids[row] for row in rows]
        return ItemsAnswer(items=[Item(item_id=item_id, title=loaded.title(item_id)) for item_id in ids])

    async def reload(self, request: ReloadRequest) -> ReloadAnswer:
        """Read the folder of a model again. No request is lost: the old model answers until the new one can."""
        if self.token is None:
            raise HTTPException(403, "A server without a token is reloaded by the signal SIGHUP alone.")
        model, _ = self._model(request.model)
        try:
            changed = await asyncio.to_thread(self._reload, model)
        except (ValueError, OSError) as error:
            raise HTTPException(422, f"The old model stays: {error}"[:_LONGEST_DETAIL]) from error
        return ReloadAnswer(model=model.name, version=model.loaded.version, changed=changed)

    def reload_all(self) -> None:
        """Read all folders again, one after another; what fails is logged, and its old model stays."""
        for model in self.models.values():
            try:
                self._reload(model)
            except Exception as error:  # also memory that does not hold two models: the others are read all the same
                logger.error("%s was not reloaded, its old model stays: %s", model.name, error)

    async def list_models(self) -> ModelsAnswer:
        """The models of this server, and its limits."""
        answers = []
        for name, model in self.models.items():
            recommender = model.loaded.recommender
            answers.append(
                ModelAnswer(
                    model=name,
                    version=model.loaded.version,
                    kind=type(recommender).__name__,
                    num_items=len(recommender.catalog),
                    is_exact=recommender.is_exact,
                    has_paths=_language_model(model.loaded) is not None,
                )
            )
        return ModelsAnswer(models=answers, max_k=self.settings.max_k, max_history=self.settings.max_history)

    async def health(self) -> Health:
        """For whoever watches the server; needs no token."""
        return Health(status="ok")

    async def prometheus(self) -> str:
        """Counts and times in the text form of Prometheus."""
        waiting = [("hf_rec_waiting", {"model": name}, len(batcher)) for name, batcher in self._batchers.items()]
        return self.metrics.text(waiting)

    def _note_batch(self, name: str, size: int) -> None:
        self.metrics.observe("hf_rec_batch_requests", size, SIZES, model=name)

    def _reload(self, model: ServedModel) -> bool:
        result = "failed"
        try:
            changed = model.reload()
            result = "changed" if changed else "same"
        finally:
            self.metrics.count("hf_rec_reloads_total", model=model.name, result=result)
        logger.info("%s: %s, version %s", model.name, result, model.loaded.version)
        return changed

    def _model(self, name: str | None) -> tuple[ServedModel, LoadedModel]:
        """The model of a request, and what it holds at this moment."""
        model = next(iter(self.models.values())) if name is None else self.models.get(name)
        if model is None:
            raise HTTPException(404, f"`model` must be one of {', '.join(self.models)}, got {str(name)[:99]!r}.")
        return model, model.loaded

    def _check_size(self, name: str, size: int, most: int, of: str = "") -> None:
        if size > most:
            has = f"has {size} {of}, more than" if of else f"is {size}, more than"
            raise HTTPException(422, f"`{name}` {has} the {most} that this server takes.")

    def _check_history(self, loaded: LoadedModel, history: list[RawId], timestamps: list[int] | None) -> None:
        self._check_size("history", len(history), self.settings.max_history, "items")
        if timestamps is not None and len(timestamps) != len(history):
            raise HTTPException(
                422, f"`timestamps` has {len(timestamps)} times for the {len(history)} items of `history`."
            )
        _check_items(loaded, history, "history")

    async def _ask(self, name: str, work: Work) -> Any:
        try:
            return await self._batchers[name].ask(work)
        except Overloaded:
            raise HTTPException(
                503, "Too many requests wait for this model, or the server stops. Try again.", {"Retry-After": "1"}
            ) from None
        except TimeoutError:
            raise HTTPException(504, f"No answer within {self.settings.answer_timeout:g} seconds.") from None
        except ValueError as error:  # what only the model can judge, e.g. a prompt that it has no room for
            raise HTTPException(422, str(error)[:_LONGEST_DETAIL]) from error


def _language_model(loaded: LoadedModel) -> LanguageModelRecommender | None:
    recommender = loaded.recommender
    if isinstance(recommender, LanguageModelRecommender):
        return recommender
    searched = getattr(recommender, "searched", None)  # that of a fused one
    return searched if isinstance(searched, LanguageModelRecommender) else None


def _check_items(loaded: LoadedModel, item_ids: list[RawId], argument: str) -> None:
    try:
        loaded.recommender.catalog.rows(item_ids)
    except ValueError as error:
        raise HTTPException(422, f"`{argument}`: {error}"[:_LONGEST_DETAIL]) from error


def _scored(loaded: LoadedModel, item_id: RawId, score: float) -> ScoredItem:
    finite = score if math.isfinite(score) else None
    is_log = isinstance(loaded.recommender, LanguageModelRecommender)
    return ScoredItem(
        item_id=loaded.recommender.catalog.ids[loaded.recommender.catalog.row(item_id)],
        title=loaded.title(item_id),
        score=finite,
        probability=math.exp(finite) if is_log and finite is not None else None,
    )


def _file_sender(name: str) -> Any:
    async def send() -> FileResponse:
        return FileResponse(PAGE_FOLDER / name)

    return send


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """What is wrong with a request, in one sentence a field, without repeating what may be long or no JSON."""
    faults = []
    for fault in getattr(error, "errors", list)()[:3]:
        place = ".".join(str(part) for part in fault["loc"][1:3])
        faults.append(f"`{place or 'body'}`: {fault['msg']}")
    return JSONResponse({"detail": "; ".join(faults)[:_LONGEST_DETAIL]}, 422)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "The model failed on this request; the log of the server says why."}, 500)
