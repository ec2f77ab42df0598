"""Requests that wait for one model, answered together by its thread."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hf_rec.serving.settings import ServeSettings
from hf_rec.serving.work import Work


_MOST_PAUSES = 10


class Overloaded(Exception):
    """More requests wait for a model than may."""


@dataclass(eq=False)
class _Job:
    work: Work
    answer: asyncio.Future


class Batcher:
    """
    The queue of one model. While the model works, requests pile up; then it takes the oldest one, and with it all that
    can be answered in the same call. A batch whose call fails is answered one by one, so that a request that cannot
    be answered fails alone.

    Args:
        settings ([`ServeSettings`]): `max_batch`, `batch_wait`, `max_waiting` and `answer_timeout`.
        on_batch (`Callable[[int], None]`, *optional*): Told the size of each batch.
    """

    def __init__(self, settings: ServeSettings, on_batch: Callable[[int], None] | None = None):
        self.settings = settings
        self._on_batch = on_batch
        self._waiting: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hf_rec-model")
        self._task: asyncio.Task | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        """Begin to answer; called in the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._answer_all())

    async def ask(self, work: Work) -> Any:
        """
        The answer to a request.

        Raises:
            `Overloaded`: Where too many wait, or the server is about to stop.
            `TimeoutError`: Where the answer takes too long. A request that still waits is then dropped.
        """
        if self._closing or len(self._waiting) >= self.settings.max_waiting:
            raise Overloaded
        job = _Job(work, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._wake.set()
        return await asyncio.wait_for(job.answer, self.settings.answer_timeout)

    async def close(self) -> None:
        """Answer what waits, and take no more."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def _answer_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            await self._gather()
            jobs = self._take()
            if not jobs:
                if self._closing:
                    return
                self._wake.clear()
                continue
            if self._on_batch is not None:
                self._on_batch(len(jobs))
            answers = await loop.run_in_executor(self._thread, _answers, [job.work for job in jobs])
            for job, answer in zip(jobs, answers, strict=True):
                if job.answer.done():  # nobody waits any longer
                    continue
                if isinstance(answer, Exception):
                    job.answer.set_exception(answer)
                else:
                    job.answer.set_result(answer)

    async def _gather(self) -> None:
        """Wait as long as requests keep coming, a few pauses at most: who was answered together asks again."""
        for _ in range(_MOST_PAUSES):
            waiting = len(self._waiting)
            if self._closing or waiting >= self.settings.max_batch:
                return
            await asyncio.sleep(self.settings.batch_wait)
            if len(self._waiting) == waiting:
                return

    def _take(self) -> list[_Job]:
        """The oldest request, and those behind it that go with it; the others keep their places."""
        alive = [job for job in self._waiting if not job.answer.done()]
        taken = [job for job in alive if job.work.key == alive[0].work.key][: self.settings.max_batch]
        self._waiting = deque(job for job in alive if job not in taken)
        return taken


def _answers(batch: list[Work]) -> list[Any]:
    """One answer, or the exception in its place, for each request."""
    try:
        return type(batch[0]).answers(batch)
    except Exception as error:
        return [error] if len(batch) == 1 else [_answers([work])[0] for work in batch]
