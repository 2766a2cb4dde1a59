"""The examples run as their own words say."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import nats
import pytest

from aikoryu.cli import main

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
COMMAND = [sys.executable, "-W", "error"]


def run(example: str, url: str) -> list[str]:
    done = subprocess.run([*COMMAND, EXAMPLES / example, url], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_own_operation_is_short_and_answers_as_it_says(up: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (EXAMPLES / "own_operation.py").read_text()
    docstring, code = text.split('"""', 2)[1:]
    assert len(code.splitlines()) <= 15
    command = re.search(r"aikoryu (call .*)", docstring)
    assert command is not None
    assert main([*command[1].replace("'", "").split(), "--nats", up]) == 0
    answer = capsys.readouterr().out.strip()
    assert f"prints {answer}." in docstring


def test_first_agent(up: str) -> None:
    lines = run("first_agent.py", up)
    assert lines[0] == "embedding: (384,) float32"
    fire, soup = (float(line.split()[1].rstrip(":")) for line in lines[2:4])
    assert fire > 0.4 > soup
    assert lines[4:] == [
        "products: [[[0.0, 0.0], [0.0, 0.0]], [[2.0, 2.0], [2.0, 2.0]], [[8.0, 8.0], [8.0, 8.0]]]",
        "sums: (1000, 8) 16000.0",
        "part: [0, 1, 2, 3]",
        "part: [10, 11, 12, 13]",
        "part: [20, 21, 22, 23]",
        "refused: column 'b' (T[*,k,j?]): dimension k is 2, but another column has 3",
    ]


def test_plain_client(up: str) -> None:
    lines = run("plain_client.py", up)
    assert lines[0] == "product: (2.0, 1.0, 4.0, 3.0) of shape [2, 2]"
    rows = [row for line in lines[1:] for row in json.loads(line.removeprefix("rows ").split(" embedded")[0])]
    assert sorted(rows) == [0, 1, 2]


def test_plain_client_without_a_server_says_what_to_start() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"nats://127.0.0.1:{unused.getsockname()[1]}"
        done = subprocess.run([*COMMAND, EXAMPLES / "plain_client.py", url], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r".*: start `aikoryu up` in another terminal\n", done.stderr)


TYPED = re.findall(r"```sh\nnats req (\S+) '(.*)'\n```\n\n```json\n(.*)\n```", (EXAMPLES / "by_hand.md").read_text())


@pytest.mark.parametrize(("subject", "payload", "answer"), TYPED)
async def test_frames_typed_by_hand(up: str, subject: str, payload: str, answer: str) -> None:
    connection = await nats.connect(up)
    try:
        message = await connection.request(subject, payload.encode(), timeout=30)
    finally:
        await connection.close()
    told: dict[str, Any] = json.loads(message.data)
    by = told.pop("by")
    assert told == json.loads(answer)
    assert by is None or by["engine"] == "cpu"


def test_there_are_frames_typed_by_hand() -> None:
    assert len(TYPED) == 3


def printed(example: str, *arguments: str) -> list[str]:
    """What an example of agents prints; its log is on stderr."""
    command = [*COMMAND, str(EXAMPLES / example), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


TEAM = {
    "Why does nobody reach the web server?": ("network", "When nobody reaches a server,"),
    "How do I get back the table that I dropped by accident?": ("database", "A dropped table comes back"),
    "What is there for lunch today?": ("kitchen", "Today there is tomato soup for lunch."),
}


def test_team_compares_words_where_there_is_no_worker() -> None:
    assert answered_by_team() == {"network": 0.2, "database": 0.3, "kitchen": 0.5}


def test_team_compares_meanings_with_the_workers_that_are_there(up: str) -> None:
    sure = answered_by_team("--nats", up)
    assert min(sure.values()) > 0.5


def test_team_starts_a_worker() -> None:
    sure = answered_by_team("--worker")
    assert min(sure.values()) > 0.5


def answered_by_team(*arguments: str) -> dict[str, float]:
    """How sure who answered is, once each question has been answered by whom it concerns."""
    lines = printed("team.py", *arguments)
    sure = {}
    for question, answer, (asked, (expert, text)) in zip(lines[::2], lines[1::2], TEAM.items(), strict=True):
        assert question == asked
        told = re.fullmatch(rf"  {expert} \((0\.\d\d)\): {text}.*", answer)
        assert told is not None, answer
        sure[expert] = float(told[1])
    return sure


def test_gateway_lets_the_model_go_when_its_reader_leaves() -> None:
    patient, done, hasty, let_go = printed("gateway.py")
    assert patient == "A patient reader: 1 2 3 4 5 6 7 8 9 10 "
    assert done == "The model is done after 10 of 10 tokens"
    assert hasty == "A hasty one: 1 2 3 "
    made = re.fullmatch(r"The model is let go after (\d+) of 1000000 tokens", let_go)
    assert made is not None
    assert int(made[1]) < 1000


def test_counter_loses_nothing_when_it_moves() -> None:
    answered, counted = printed("counter.py")
    told = re.fullmatch(r"4 processes answered (\d+) calls of 8 keys", answered)
    assert told is not None, answered
    assert counted == f"{told[1]} are counted: none was lost, none counted twice"


@pytest.mark.parametrize("example", ["team.py", "counter.py", "gateway.py"])
def test_examples_of_agents_are_of_a_length_to_read(example: str) -> None:
    assert len((EXAMPLES / example).read_text().splitlines()) <= 120
