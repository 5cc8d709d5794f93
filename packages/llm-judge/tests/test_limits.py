"""Rates let through what they promise, in order, and lose nothing to those who leave; money is never overspent."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.errors import RequestError
from posttrain.llm_judge.running.limits import LATENESS, BudgetSpent, Limits, LimitSettings, Money, Rate


class FakeTime:
    """A clock that moves only when somebody sleeps."""

    def __init__(self, late=0.0):
        self.now, self.late = 100.0, late

    def clock(self):
        return self.now

    async def sleep(self, seconds):
        until = self.now + seconds + self.late
        await asyncio.sleep(0)
        self.now = max(self.now, until)


def starts(rate, time, amounts):
    """When each amount was let through, in seconds from the beginning."""

    async def go():
        began, times = time.now, []
        for amount in amounts:
            await rate.acquire(amount)
            times.append(time.now - began)
        return times

    return asyncio.run(go())


def test_sixty_a_minute_are_one_a_second_without_a_burst():
    time = FakeTime()
    times = starts(Rate(60, time.clock, time.sleep), time, [1] * 4)
    assert times == pytest.approx([0, 1, 2, 3])


def test_tokens_push_the_next_request_back_by_their_number():
    time = FakeTime()
    # 6000 a minute are 100 a second: after 250, 2.5 s pass; after 50, half a second.
    assert starts(Rate(6000, time.clock, time.sleep), time, [250, 50, 1]) == pytest.approx([0, 2.5, 3.0])


def test_late_timers_do_not_lower_the_rate():
    time = FakeTime(late=0.002)
    times = starts(Rate(60_000, time.clock, time.sleep), time, [1] * 3001)
    assert 3.0 <= times[-1] <= 3.01


def test_an_idle_minute_is_not_saved_up():
    time = FakeTime()
    rate = Rate(60, time.clock, time.sleep)
    starts(rate, time, [1])
    time.now += 600
    assert starts(rate, time, [1, 1, 1]) == pytest.approx([0, 1 - LATENESS, 2 - LATENESS])


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 50), min_size=2, max_size=30), st.floats(10, 5000))
def test_any_stretch_of_time_has_its_share_at_most(amounts, per_minute):
    time = FakeTime(late=0.001)
    times = starts(Rate(per_minute, time.clock, time.sleep), time, amounts)
    for first in range(len(times)):
        for last in range(first, len(times)):
            share = (times[last] - times[first] + LATENESS) * per_minute / 60
            assert sum(amounts[first:last]) <= share + 1e-6


def test_what_a_request_took_less_is_given_back():
    time = FakeTime()
    rate = Rate(60, time.clock, time.sleep)
    starts(rate, time, [10])
    rate.correct(-7)
    assert starts(rate, time, [1, 1]) == pytest.approx([3, 4])


def test_who_leaves_while_waiting_takes_nothing_and_order_is_kept():
    async def go():
        rate, let_through = Rate(60 / 0.2), []  # one in 0.2 s
        began = asyncio.get_running_loop().time()

        async def wait(name):
            await rate.acquire()
            let_through.append(name)

        tasks = [asyncio.create_task(wait(name)) for name in "abcde"]
        while not let_through:
            await asyncio.sleep(0)
        tasks[1].cancel()  # at the head of the line
        tasks[3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return let_through, asyncio.get_running_loop().time() - began

    names, seconds = asyncio.run(go())
    assert names == ["a", "c", "e"]
    assert seconds >= 0.4


def test_money_stops_before_the_request_that_may_exceed_it():
    async def go():
        money = Money(1.0)
        for _ in range(9):
            money.settle(await money.reserve(0.1), 0.1)
        money.settle(await money.reserve(0.1), 0.05)  # cheaper than feared
        with pytest.raises(BudgetSpent, match=r"0\.9500 of 1\.0000 are spent"):
            await money.reserve(0.1)
        money.settle(await money.reserve(0.05), 0.05)  # exactly the rest
        return money.spent

    assert asyncio.run(go()) == pytest.approx(1.0)


def test_money_in_flight_is_waited_for():
    async def go():
        money = Money(1.0)
        first = await money.reserve(0.9)
        second = asyncio.create_task(money.reserve(0.5))
        await asyncio.sleep(0.01)
        assert not second.done()
        money.settle(first, 0.2)
        assert await asyncio.wait_for(second, 1) == 0.5
        third = asyncio.create_task(money.reserve(0.7))
        await asyncio.sleep(0.01)
        money.settle(0.5, 0.5)
        with pytest.raises(BudgetSpent):
            await third

    asyncio.run(go())


def test_money_needs_prices_only_where_it_is_limited():
    async def go():
        free = Money()
        free.settle(await free.reserve(None), None)
        assert not free.known
        with pytest.raises(RequestError, match="prices"):
            await Money(1.0).reserve(None)

    asyncio.run(go())


def test_requests_at_once_are_limited_and_given_back_whatever_happens():
    async def go():
        limits, inside, most = Limits(LimitSettings(concurrency=3, max_cost=1.0)), 0, 0
        go_on = asyncio.Event()

        async def ask(number):
            nonlocal inside, most
            async with limits.request(10, 0.1) as use:
                inside += 1
                most = max(most, inside)
                try:
                    await go_on.wait()
                finally:
                    inside -= 1
                if number % 3 == 0:
                    raise ValueError
                use.cost = 0.01

        tasks = [asyncio.create_task(ask(number)) for number in range(12)]
        while inside < 3:
            await asyncio.sleep(0)
        tasks[1].cancel()
        go_on.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with limits.request(1, 0.9):  # nothing stayed reserved
            pass
        return most, limits.money.spent

    most, spent = asyncio.run(go())
    assert most == 3
    assert spent == pytest.approx(7 * 0.01)
