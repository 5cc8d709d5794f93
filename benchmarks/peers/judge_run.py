"""A run of the judge beside a client that does nothing but wait, against a server that answers in a fixed 50 ms.

With 64 requests in flight that server allows 1,280 a second, and `limit` is what a bare client over kept connections
reaches of it: the same requests, made beforehand, nothing read from the answers. `run` is all of a run: prompts,
requests, verdicts with probabilities, answers on the disk, half as many on their way there as are in flight; `strict`
the same where each holds its place until it is kept (50 ms are not much beside a disk's 5). `resumed_share` is what
taking as many judgements from the store instead costs, as a share of that run's time, and `per_second_possible` what
the limit allows by its definition. It ends with one JSON object.

    python -m benchmarks.peers.judge_run [--games 12000] [--stored 100000] [--rounds 5]
"""

import argparse
import asyncio
import json
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import median

from benchmarks.side_by_side import alternate, report, seconds
from posttrain.core.errors import WorkError
from posttrain.core.serving import free_port
from posttrain.llm_judge.comparisons import Comparison, Game
from posttrain.llm_judge.judgements import Decision, Judgement, judgement_keys
from posttrain.llm_judge.judges.chat import ChatJudge, ChatSettings
from posttrain.llm_judge.judges.completions import ChatServer
from posttrain.llm_judge.protocols import load_protocol
from posttrain.llm_judge.running.limits import Limits, LimitSettings
from posttrain.llm_judge.running.runner import Report, judge_games
from posttrain.llm_judge.store import Store

SECONDS, AT_ONCE, UNKEPT = 0.05, 64, 32
PROTOCOL = load_protocol("alpaca")


def main() -> None:
    """Prints games a second of all, and what resuming costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--games", type=int, default=12_000, help="games a round")
    parser.add_argument("--stored", type=int, default=100_000, help="judgements that a run is resumed with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    wish = parser.parse_args()
    if wish.serve:
        # epoll waits for whole milliseconds, one more than was asked for; select does not.
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
            runner.run(serve(wish.serve))
        return
    numbers = count()
    with _server() as port, tempfile.TemporaryDirectory() as folder:
        some = games(wish.games)
        bodies = requests(some)
        sides = {
            "run": lambda: run(some, port, Path(folder) / f"{next(numbers)}.db", UNKEPT),
            "strict": lambda: run(some, port, Path(folder) / f"{next(numbers)}.db"),
            "limit": lambda: asyncio.run(bare(bodies, port)),
        }
        rates = alternate(sides, wish.rounds, work=wish.games)
        store, many = Path(folder) / "many.db", games(wish.stored)
        fill(store, many, port)
        resumed = median(seconds(lambda: run(many, port, store)) for _ in range(wish.rounds))
    possible = AT_ONCE / SECONDS
    report(
        "judge_run",
        rates,
        "limit",
        "games/s",
        games=wish.games,
        stored=wish.stored,
        per_second_possible=possible,
        share_of_possible=round(median(rates["run"]) / possible, 3),
        resumed_seconds=round(resumed, 3),
        resumed_share=round(resumed / (wish.stored / median(rates["run"])), 4),
    )


def games(number: int) -> list[Game]:
    """Both orders of comparisons with answers of some 200 words, each different."""
    answer = "The answer goes on for some time with words that say little and are here to be read. " * 11
    comparisons = (
        Comparison(questions=(f"What is {n}?",), answers_a=(f"{n} {answer}",), answers_b=(f"{answer} {n}",))
        for n in range(number // 2)
    )
    return [game for comparison in comparisons for game in PROTOCOL.games(comparison)]


def run(some: Sequence[Game], port: int, store: Path, unkept: int = 0) -> Report:
    """Judges them all."""

    async def judge_all() -> Report:
        limits = Limits(LimitSettings(concurrency=AT_ONCE, unkept=unkept))
        async with _judge(port, limits) as judge:
            with Store(store) as opened:
                return await judge_games(some, judge, opened, limits)

    done = asyncio.run(judge_all())
    assert done.complete, done.failure_line()
    return done


def fill(store: Path, some: Sequence[Game], port: int) -> None:
    """Puts a judgement of each game into the store."""
    identity = _judge(port, Limits()).identity
    decision = Decision("m", 0.8, "m", 800, 1, None, 0.05)
    keys = judgement_keys(identity, some)
    with Store(store) as opened:
        opened.put_many(
            [(Judgement(key, identity, game.order, decision, 0.0), game) for key, game in zip(keys, some, strict=True)]
        )


def _judge(port: int, limits: Limits) -> ChatJudge:
    server = ChatServer(limits, base_url=f"http://127.0.0.1:{port}/v1")
    return ChatJudge(ChatSettings(model="m"), PROTOCOL, server)


def requests(some: Sequence[Game]) -> list[bytes]:
    """What a run sends, whole."""
    prompts = ([message.model_dump() for message in PROTOCOL.render(game).messages] for game in some)
    bodies = (json.dumps({"messages": messages}).encode() for messages in prompts)
    return [b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body) for body in bodies]


async def bare(bodies: Sequence[bytes], port: int) -> None:
    """The requests from as many connections as a run has, each sent when the one before is answered."""
    waiting = iter(bodies)

    async def ask() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for body in waiting:
            writer.write(body)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        writer.close()

    await asyncio.gather(*(ask() for _ in range(AT_ONCE)))


async def serve(port: int) -> None:
    """Answers every request the same, `SECONDS` after it came."""
    label, other = PROTOCOL.verdict_tokens[0], PROTOCOL.verdict_tokens[-1]
    top = [{"token": label, "logprob": -0.2}, {"token": other, "logprob": -1.7}]
    choice = {
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": label},
        "logprobs": {"content": [top[0] | {"top_logprobs": top}]},
    }
    body = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 800, "completion_tokens": 1}}).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    answer, loop = head.encode() + body, asyncio.get_running_loop()

    class Fixed(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.received = transport, b""

        def data_received(self, data: bytes) -> None:
            self.received += data
            head, end, rest = self.received.partition(b"\r\n\r\n")
            if end and len(rest) >= int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
                self.received = b""
                loop.call_later(SECONDS, self.transport.write, answer)  # type: ignore[attr-defined]

    await (await loop.create_server(Fixed, "127.0.0.1", port)).serve_forever()


@contextmanager
def _server() -> Iterator[int]:
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "benchmarks.peers.judge_run", "--serve", str(port)]) as process:
        try:
            for _ in range(200):
                try:
                    asyncio.run(bare(requests(games(2)), port))
                    break
                except OSError:
                    time.sleep(0.1)
            else:
                raise WorkError(f"the scripted judge on port {port} did not answer within 20 s")
            yield port
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
