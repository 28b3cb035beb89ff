"""The switchboard as a plain object on one event loop, and trials that ask it; no Ray."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from search.seats import Switchboard

ORDER = {"id": "t00000", "number": 0, "kind": "plan"}
OTHER = {"id": "t00001", "number": 1, "kind": "plan"}


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, timeout=10))


async def asked(board: Switchboard, order: dict[str, Any], progress: Any) -> asyncio.Task[bool | None]:
    """A seat's report whose question has reached the board."""
    task = asyncio.create_task(board.report(order["id"], progress))
    await board_settles()
    return task


async def board_settles() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_an_order_goes_to_a_seat_and_its_reports_to_the_trial() -> None:
    async def story() -> None:
        board = Switchboard()
        taking = asyncio.create_task(board.take("seat-0"))
        await board.submit(ORDER)
        assert await taking == ORDER
        report = await asked(board, ORDER, 1)
        assert await board.next_message(ORDER["id"]) == {"progress": 1}
        assert not report.done(), "the seat waits for the answer"
        await board.answer(ORDER["id"], True)
        assert await report is True
        await board.finish(ORDER["id"], {"result": "model"})
        assert await board.next_message(ORDER["id"]) == {"done": True}
        assert await board.collect(ORDER["id"]) == {"result": "model"}

    run(story())


def test_orders_are_taken_once_and_in_turn() -> None:
    async def story() -> None:
        board = Switchboard()
        seats = [asyncio.create_task(board.take(f"seat-{index}")) for index in range(2)]
        await board_settles()
        await board.submit(ORDER)
        await board.submit(OTHER)
        assert [await seat for seat in seats] == [ORDER, OTHER]

    run(story())


def test_a_stopped_plan_ends_at_its_report_and_its_seat_takes_the_next() -> None:
    async def story() -> None:
        board = Switchboard()
        await board.submit(ORDER)
        await board.submit(OTHER)
        await board.take("seat-0")
        report = await asked(board, ORDER, 1)
        await board.abandon(ORDER["id"])
        assert await report is False
        assert await board.report(ORDER["id"], 2) is False, "a seat that did not hear of it hears now"
        await board.finish(ORDER["id"], {"result": "late"})
        assert await board.take("seat-0") == OTHER

    run(story())


def test_a_plan_that_is_set_aside_hears_that_it_ends_for_now() -> None:
    async def story() -> None:
        board = Switchboard()
        await board.submit(ORDER)
        await board.take("seat-0")
        report = await asked(board, ORDER, 1)
        await board.abandon(ORDER["id"], for_now=True)
        assert await report is None

    run(story())


def test_an_order_abandoned_in_the_queue_is_never_delivered() -> None:
    async def story() -> None:
        board = Switchboard()
        await board.submit(ORDER)
        await board.submit(OTHER)
        await board.abandon(ORDER["id"])
        assert await board.take("seat-0") == OTHER

    run(story())


def test_a_restarted_seat_gets_its_unfinished_order_again() -> None:
    async def story() -> None:
        board = Switchboard()
        await board.submit(ORDER)
        await board.submit(OTHER)
        await board.take("seat-0")
        assert await board.take("seat-1") == OTHER
        assert await board.take("seat-0") == ORDER
        assert await board.next_message(ORDER["id"]) == {"restarted": True}

    run(story())


def test_what_kills_its_worker_each_time_is_an_error_and_the_seat_goes_on() -> None:
    async def story() -> None:
        board = Switchboard()
        await board.submit(ORDER)
        await board.submit(OTHER)
        assert [await board.take("seat-0") for _ in range(4)] == [ORDER, ORDER, ORDER, OTHER]
        messages = [await board.next_message(ORDER["id"]) for _ in range(3)]
        assert messages == [{"restarted": True}, {"restarted": True}, {"done": True}]
        assert "died 3 times" in (await board.collect(ORDER["id"]))["error"]

    run(story())


def test_a_worker_that_dies_while_it_asks_leaves_no_question_open() -> None:
    """The trial read the dead worker's report; its answer must not reach the new worker's first report."""

    async def story() -> None:
        board = Switchboard()
        await board.submit(ORDER)
        await board.take("seat-0")
        dead = await asked(board, ORDER, "of the dead worker")
        assert await board.next_message(ORDER["id"]) == {"progress": "of the dead worker"}
        dead.cancel()
        await board.take("seat-0")
        await board.answer(ORDER["id"], True)
        assert await board.next_message(ORDER["id"]) == {"restarted": True}
        report = await asked(board, ORDER, "of the new one")
        assert await board.next_message(ORDER["id"]) == {"progress": "of the new one"}
        assert not report.done()
        await board.answer(ORDER["id"], True)
        assert await report is True

    run(story())


def test_a_trial_that_is_started_again_gets_the_open_report_again() -> None:
    async def story() -> None:
        board = Switchboard()
        await board.submit(ORDER)
        await board.take("seat-0")
        report = await asked(board, ORDER, 1)
        assert await board.next_message(ORDER["id"]) == {"progress": 1}
        await board.submit(ORDER)
        assert await board.next_message(ORDER["id"]) == {"progress": 1}
        await board.answer(ORDER["id"], True)
        assert await report is True

    run(story())


def test_a_trial_that_is_started_again_after_the_end_hears_of_the_end() -> None:
    async def story() -> None:
        board = Switchboard()
        await board.submit(ORDER)
        await board.take("seat-0")
        await board.finish(ORDER["id"], {"result": 1})
        assert await board.next_message(ORDER["id"]) == {"done": True}
        await board.submit(ORDER)
        assert await board.next_message(ORDER["id"]) == {"done": True}

    run(story())


def test_closing_sends_everybody_home() -> None:
    async def story() -> None:
        board = Switchboard()
        await board.submit(ORDER)
        await board.take("seat-0")
        idle = asyncio.create_task(board.take("seat-1"))
        report = await asked(board, ORDER, 1)
        await board.submit(OTHER)
        await board_settles()
        assert await idle == OTHER
        waiting = asyncio.create_task(board.take("seat-2"))
        await board_settles()
        await board.close()
        assert await report is None, "suspended: it goes on from its checkpoint some other time"
        assert await board.report(OTHER["id"], 1) is None
        assert await waiting is None
        assert await board.take("seat-0") is None

    run(story())


def test_an_order_is_finished_once() -> None:
    async def story() -> None:
        board = Switchboard()
        await board.submit(ORDER)
        await board.take("seat-0")
        await board.finish(ORDER["id"], {"result": "first"})
        await board.finish(ORDER["id"], {"result": "second"})
        assert await board.collect(ORDER["id"]) == {"result": "first"}

    run(story())


def test_a_plan_under_way_learns_between_its_reports_that_it_is_over() -> None:
    async def story() -> None:
        board = Switchboard()
        for order in (ORDER, OTHER):
            await board.submit(order)
            await board.take(f"seat-of-{order['id']}")
            assert await board.is_wanted(order["id"]) is True
        await board.abandon(ORDER["id"])
        assert await board.is_wanted(ORDER["id"]) is False
        await board.close()
        assert await board.is_wanted(OTHER["id"]) is None

    run(story())
