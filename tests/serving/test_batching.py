"""The queue of a model: batches, order, what waits too long, and its end."""

import asyncio
import threading
from dataclasses import dataclass

import pytest

from hf_rec.serving.batching import Batcher, Overloaded
from hf_rec.serving.settings import ServeSettings


@dataclass(eq=False)
class Echo:
    """Answers its value once the gate is open."""

    value: int
    gate: threading.Event
    key: str = "one"

    @staticmethod
    def answers(batch):
        assert batch[0].gate.wait(30)
        return [work.value for work in batch]


def talk(use, **settings):
    """What `use(batcher, sizes)` returns; a thread of the model is never left waiting."""

    async def run():
        sizes = []
        batcher = Batcher(ServeSettings(**settings), sizes.append)
        batcher.start()
        result = await use(batcher, sizes)
        await batcher.close()
        return result

    return asyncio.run(run())


def asked(batcher, works):
    return [asyncio.ensure_future(batcher.ask(work)) for work in works]


async def until(condition):
    while not condition():
        await asyncio.sleep(0)


def test_what_waits_while_the_model_works_goes_into_one_batch_by_key_in_order():
    async def use(batcher, sizes):
        gate = threading.Event()
        first = asked(batcher, [Echo(0, gate)])
        await until(lambda: sizes == [1])
        keys = ["one", "two", "one", "two", "one"]
        rest = asked(batcher, [Echo(n, gate, key) for n, key in enumerate(keys, start=1)])
        await until(lambda: len(batcher) == 5)
        gate.set()
        return await asyncio.gather(*first, *rest), sizes

    answers, sizes = talk(use, max_batch=2, batch_wait=0)
    assert answers == [0, 1, 2, 3, 4, 5]
    assert sizes == [1, 2, 2, 1]  # 1 with 3, 2 with 4, then 5


def test_a_full_queue_takes_no_more():
    async def use(batcher, sizes):
        gate = threading.Event()
        working = asked(batcher, [Echo(0, gate)])
        await until(lambda: sizes == [1])
        waiting = asked(batcher, [Echo(1, gate), Echo(2, gate)])
        await until(lambda: len(batcher) == 2)
        with pytest.raises(Overloaded):
            await batcher.ask(Echo(3, gate))
        gate.set()
        return await asyncio.gather(*working, *waiting)

    assert talk(use, max_waiting=2, batch_wait=0) == [0, 1, 2]


def test_a_request_that_waited_too_long_is_not_worked_on():
    async def use(batcher, sizes):
        gate = threading.Event()
        slow = asked(batcher, [Echo(0, gate)])
        await until(lambda: sizes == [1])
        late = asked(batcher, [Echo(1, gate, "late")])
        for task in (*slow, *late):
            with pytest.raises(TimeoutError):
                await task
        gate.set()
        return await asyncio.gather(*asked(batcher, [Echo(2, gate)])), sizes

    answers, sizes = talk(use, answer_timeout=0.05, batch_wait=0)
    assert answers == [2] and sizes == [1, 1]


def test_closing_answers_what_waits_and_takes_no_more():
    async def run():
        gate = threading.Event()
        batcher = Batcher(ServeSettings(batch_wait=0))
        batcher.start()
        asks = asked(batcher, [Echo(n, gate) for n in range(5)])
        await until(lambda: len(batcher) < 5)
        closing = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher.ask(Echo(9, gate))
        gate.set()
        await closing
        return await asyncio.gather(*asks)

    assert asyncio.run(run()) == [0, 1, 2, 3, 4]
