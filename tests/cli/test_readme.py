"""What README shows of the SDK runs, and answers as it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from .conftest import ROOT, Start

README = (ROOT / "README.md").read_text("utf-8")
SECTION = README.split("## The SDK on one screen")[1].split("\n## ")[0]
AGENTS, CALLS = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)[:2]
SERVER = "nats://127.0.0.1:4222"


def test_screen_of_the_sdk(up: str, start: Start, tmp_path: Path) -> None:
    team = tmp_path / "team.py"
    team.write_text(AGENTS.replace(SERVER, up), "utf-8")
    command = [sys.executable, "-W", "error", str(team)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as agents:
        try:
            assert agents.stderr is not None
            assert "agents ready" in agents.stderr.readline()
            typed, reply = re.findall(r"\$ aikoryu (.*)\n(.*)\n", SECTION)[0]
            call = start(*typed.replace("'", "").split(maxsplit=3), "--nats", up)
            assert call.end() == 0, call.words
            told, shown = json.loads(call.words), json.loads(reply.replace("…", ""))
            assert (told["text"], round(told["sure"], 2)) == (shown["text"], shown["sure"])

            lines = "".join(f"    {line}\n" for line in CALLS.replace(SERVER, up).splitlines())
            done = subprocess.run(
                [sys.executable, "-W", "error", "-c", f"{PREAMBLE}{lines}{EPILOGUE}"], capture_output=True, text=True
            )
            assert (done.returncode, done.stderr) == (0, "")
            product, refused, answer = done.stdout.splitlines()
            assert product == "[[2.]]"
            assert refused.startswith("column 'b'")
            assert answer == "When nobody reaches a server, look at the firewall. (2, 384) (2, 384) (2,)"
        finally:
            agents.terminate()
        assert agents.wait() == 0


PREAMBLE = "import asyncio\nimport aikoryu\n\nasync def main():\n"
EPILOGUE = "    print(answer.text, vectors.shape, rows['x'].shape, scores.shape)\n\nasyncio.run(main())\n"
