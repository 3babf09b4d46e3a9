"""The pace of looking after a host, and who is told of what."""

from __future__ import annotations

import asyncio
import contextlib
import os

from swarm_agent.network import mend
from swarm_agent.network.mend import Mender, NetworkTrouble


class Host:
    """Counts looks; ``found`` is what each comes to."""

    def __init__(self) -> None:
        self.news, self._write = os.pipe()
        self.looks = 0
        self.found = NetworkTrouble({}, frozenset())
        self.told: list[tuple[frozenset[str], frozenset[str]]] = []
        self.mender = Mender(asyncio.Lock(), self.look)
        self.mender.tell(lambda gone, networks: self.told.append((gone, networks)))

    def stir(self) -> None:
        os.write(self._write, b"x")

    async def look(self) -> NetworkTrouble:
        self.looks += 1
        os.set_blocking(self.news, False)
        with contextlib.suppress(BlockingIOError):
            os.read(self.news, 1000)
        if self.found.gone == {"bug"}:
            raise KeyError("bug")
        return self.found

    async def looks_reach(self, number: int) -> None:
        async with asyncio.timeout(10):
            while self.looks < number:
                await asyncio.sleep(0.01)


def test_news_is_looked_at_at_once_but_not_more_often_than_the_pace() -> None:
    async def story() -> None:
        host = Host()
        await host.mender.start(host.news)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        host.stir()
        await host.looks_reach(1)
        assert loop.time() - begun < mend.TICK_S / 2
        for _ in range(3):
            host.stir()
            await host.looks_reach(host.looks + 1)
        assert loop.time() - begun > 3 * mend.PAUSE_S
        before = host.looks
        await host.looks_reach(before + 1)  # without any news
        await host.mender.stop()
        host.stir()
        after = host.looks
        await asyncio.sleep(2 * mend.SETTLE_S)
        assert host.looks == after

    asyncio.run(story())


def test_trouble_is_told_when_it_comes_and_when_it_ends() -> None:
    async def story() -> None:
        host = Host()
        host.found = NetworkTrouble({"app": "app is broken"}, frozenset({"vp1"}))
        await host.mender.start(host.news)
        host.stir()
        await host.looks_reach(1)
        host.found = NetworkTrouble({"app": "app is broken"}, frozenset())
        host.stir()
        await host.looks_reach(2)
        assert host.mender.trouble() == host.mender.trouble(["other", "app"]) == "app is broken"
        assert host.mender.trouble(["other"]) == ""
        host.found = NetworkTrouble({}, frozenset({"bug"}))
        host.stir()
        await host.looks_reach(3)
        assert host.mender.trouble() == "app is broken", "a look that failed says nothing"
        host.found = NetworkTrouble({}, frozenset())
        host.stir()
        await host.looks_reach(4)
        await asyncio.sleep(0)
        assert host.mender.trouble() == ""
        await host.mender.stop()
        assert host.told == [(frozenset({"vp1"}), frozenset({"app"})), (frozenset(), frozenset({"app"}))]

    asyncio.run(story())
