"""A team that routes questions: a router asks every expert, waits for a quorum, and answers with whoever is surest.

python examples/team.py                       # starts a server of its own
python examples/team.py --worker              # and a worker: experts compare meanings instead of words
python examples/team.py --nats nats://host    # on a server that runs already, with the workers it has
"""

import argparse
import asyncio
import re
import sys
from contextlib import AsyncExitStack

import aikoryu as ai
from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import ServerSettings

QUESTIONS = [
    "Why does nobody reach the web server?",
    "How do I get back the table that I dropped by accident?",
    "What is there for lunch today?",
]
FACTS = {
    "network": ["When nobody reaches a server, look at the firewall's last change.", "Cables break at the plug."],
    "database": ["A dropped table comes back from the backup of last night.", "An index makes a slow query fast."],
    "kitchen": ["Today there is tomato soup for lunch.", "The coffee machine is on the second floor."],
    "legal": ["Contracts are signed by two people."],
}


class Question(ai.Message):
    text: str


class Answer(ai.Message):
    """What an expert says, and how well that suits the question: 1 at the most."""

    text: str
    sure: float
    expert: str = ""


class Expert(ai.Agent):
    """Knows a few facts, and says the one that suits a question best."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.facts = FACTS[name]

    @ai.handler(deadline_s=10.0, idempotent=True)
    async def ask(self, question: Question, call: ai.Call) -> Answer:
        if self.name == "legal":
            await asyncio.sleep(3600)  # out of office: the others are enough
        sure = await likeness(call.bus, question.text, self.facts)
        best = max(range(len(sure)), key=sure.__getitem__)
        return Answer(text=self.facts[best], sure=sure[best], expert=self.name)


class Router(ai.Agent):
    """Knows nothing itself, but who may."""

    @ai.handler(deadline_s=20.0, priority="interactive", idempotent=True)
    async def ask(self, question: Question, call: ai.Call) -> Answer:
        experts = await call.agents(capabilities={"answer"})
        # Whoever has not answered when all but one have is not waited for: its call is cancelled, wherever it runs.
        answers = await call.gather([each.ask(question) for each in experts], quorum=len(experts) - 1)
        best = max(answers, key=lambda answer: answer.sure)  # of agents found by what they can do: maps with attributes
        return Answer(text=best.text, sure=best.sure, expert=best.expert)


async def likeness(bus: ai.Bus, text: str, others: list[str]) -> list[float]:
    """How much each of the others is like a text: in meaning where a worker is there, in words where none is."""
    try:
        # What is asked in the same moment shares a batch, whichever expert asks, in whichever process.
        first, *rest = await asyncio.gather(*map(bus.models.embed, [text, *others]))
        return [float(first @ each) for each in rest]
    except ai.NoWorker:
        words = words_of(text)
        return [len(words & words_of(other)) / len(words | words_of(other)) for other in others]


def words_of(text: str) -> set[str]:
    return set(re.findall(r"\w{4,}", text.lower()))


async def start_worker(url: str, stack: AsyncExitStack) -> None:
    """A worker as a process of its own, as on another machine; the first start loads torch, which takes seconds."""
    command = [sys.executable, "-m", "aikoryu.cli", "worker", "--nats", url]
    worker = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    if not await worker.stdout.readline():  # it says when it serves
        sys.exit("the worker did not start: its words are above")
    stack.push_async_callback(worker.wait)
    stack.callback(worker.terminate)


async def main(url: str, worker: bool) -> None:
    async with AsyncExitStack() as stack:
        if not url:
            url = (await stack.enter_async_context(EmbeddedServer(ServerSettings(port=0)))).url
        if worker:
            await start_worker(url, stack)

        app = ai.App(url)
        app.add(Router, "router", capabilities={"route"})
        for name in FACTS:
            app.add(Expert(name), name, capabilities={"answer"})
        bus = await stack.enter_async_context(app)

        router = bus.agents.get("router", Router)  # with its class: replies are what its handlers declare
        answers = await asyncio.gather(*(router.ask(Question(text=text)) for text in QUESTIONS))
        for question, answer in zip(QUESTIONS, answers, strict=True):
            print(f"{question}\n  {answer.expert} ({answer.sure:.2f}): {answer.text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--nats", metavar="URL", default="", help="a server that runs already")
    parser.add_argument("--worker", action="store_true", help="start a worker, too")
    options = parser.parse_args()
    asyncio.run(main(options.nats, options.worker))
