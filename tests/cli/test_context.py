"""`aikoryu context` against an owner of this process, on a server; and its picture."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from aikoryu.agents import connect
from aikoryu.agents.bus import Bus, open_transport
from aikoryu.agents.context import Context
from aikoryu.agents.models import Models
from aikoryu.bus.server import EmbeddedServer
from aikoryu.cli import context_reach, main
from aikoryu.cli.context_picture import draw
from aikoryu.cli.context_reach import Edge, Reach, cosine, places_of, reach_of
from aikoryu.config import NatsSettings, ServerSettings, Settings

from ..agents.fake_context import FakeOwner

SVG = "{http://www.w3.org/2000/svg}"


@dataclass
class Served:
    """A graph `team` on a server: bo and cy hear ada, di hears bo, ada hears di, ed has links only.

    Attributes:
        url: the server's.
        bus: asks from this process.
        team: the graph.
    """

    url: str
    bus: Bus
    team: Context

    async def run(self, *arguments: str) -> int:
        """Run `aikoryu context …` in a thread of its own; its exit status."""
        return await asyncio.to_thread(main, ["context", *arguments, "--nats", self.url])


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        settings = Settings(nats=NatsSettings(url=server.url))
        transport = await open_transport(settings)
        await FakeOwner(transport, {}).start()
        await transport.flush()
        async with connect(settings=settings) as bus:
            team = bus.context("team")
            for number, name in enumerate(("ada", "bo", "cy", "di")):
                await team.put(name, np.eye(4)[number], version=100 + number)
            await team.link_many(["ada", "ada", "bo", "di"], ["bo", "cy", "di", "ada"], [2, 0.5, 1, 1])
            await team.link("ada", "ed", 0.25)
            yield Served(server.url, bus, team)
        await transport.close()


async def test_stats_and_show_without_an_agent_are_figures(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert await served.run("stats", "team") == 0
    figures = capsys.readouterr().out
    assert re.search(r"^agents +4$", figures, re.M)
    assert re.search(r"^residual +0\.0005$", figures, re.M)
    assert await served.run("show", "team") == 0
    assert capsys.readouterr().out == figures
    assert await served.run("stats", "team", "--json") == 0
    assert json.loads(capsys.readouterr().out)["edges"] == 5


async def test_show_tells_of_an_agent_and_its_links(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert await served.run("show", "team", "ada") == 0
    about, heard, hearers = capsys.readouterr().out.split("\n\n")
    assert re.search(r"^version +100$", about, re.M)
    assert re.search(r"^own context +length 1\.0000$", about, re.M)
    assert re.search(r"^blended +length 0\.\d{4}, 0\.\d{4} alike$", about, re.M)
    assert [line.split() for line in heard.splitlines()] == [["HEARS", "WEIGHT"], ["di", "1"]]
    assert [line.split() for line in hearers.splitlines()] == [
        ["HEARD", "BY", "WEIGHT"],
        ["bo", "2"],
        ["cy", "0.5"],
        ["ed", "0.25"],
    ]
    assert await served.run("show", "team", "ed") == 0
    assert "it has put nothing" in capsys.readouterr().out


async def test_route_by_text_and_by_vector(
    served: Served, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def embed(self: Models, text: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        assert text == "Who is like cy?"
        return np.float32([0, 0, 1, 0])  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(Models, "embed", embed)
    assert await served.run("route", "team", "--text", "Who is like cy?", "-k", "1") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["AGENT", "cy"]
    np.save(tmp_path / "bo.npy", np.eye(4)[1])
    assert await served.run("route", "team", "--vector", str(tmp_path / "bo.npy")) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][:2] == ["AGENT", "bo"]


async def test_plot_draws_whom_a_context_reaches(
    served: Served, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "ada.svg"
    assert await served.run("plot", "team", "ada", "-o", str(path)) == 0
    assert capsys.readouterr().out == f"{path}: 4 agents hear ada, directly or over others\n"
    told = [each.text for each in ElementTree.parse(path).iter(f"{SVG}title")]
    alike = sorted(each.partition(",")[0] for each in told if each and "alike" in each)
    assert alike == ["bo", "cy", "di", "ed"]
    assert "di hears bo, weight 1" in told


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["stats", "a team"], "use 1 to 64 letters"),
        (["stats", "other"], "graph 'other' is not there: put something"),
        (["show", "team", "zoe"], "knows no agent 'zoe'"),
        (["route", "team", "--vector", "none.npy"], "none.npy cannot be read"),
        (["plot", "team", "zoe", "-o", "zoe.svg"], "no context of 'zoe'"),
        (["plot", "team", "ada", "-o", "no/such/ada.svg"], "cannot be written"),
        (["plot", "team", "ada", "-o", "ada.png"], "ends in .svg"),
    ],
)
async def test_what_is_wrong_is_a_sentence(
    served: Served,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    why: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert await served.run(*arguments) == 1
    assert why in capsys.readouterr().err


async def test_one_who_hears_is_one(served: Served, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for source, target in (("ada", "cy"), ("ada", "ed")):
        await served.team.unlink(source, target)
    await served.team.unlink("bo", "di")
    path = tmp_path / "ada.svg"
    assert await served.run("plot", "team", "ada", "-o", str(path)) == 0
    assert capsys.readouterr().out == f"{path}: 1 agent hears ada, directly or over others\n"


async def test_vector_is_one(served: Served, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.save(tmp_path / "two.npy", np.eye(2))
    (tmp_path / "text.npy").write_text("text")
    for name in ("two", "text"):
        assert await served.run("route", "team", "--vector", str(tmp_path / f"{name}.npy")) == 1
    said = capsys.readouterr().err
    assert "two.npy holds no vector" in said
    assert "text.npy cannot be read" in said


async def test_reach_is_by_the_fewest_links_and_the_heaviest(served: Served) -> None:
    await served.team.link("cy", "di", 3.0)
    reach = await reach_of(served.team, "ada")
    assert reach.hops == {"ada": 0, "bo": 1, "cy": 1, "ed": 1, "di": 2}
    assert {edge[:2] for edge in reach.edges if edge.is_branch} == {
        ("ada", "bo"),
        ("ada", "cy"),
        ("ada", "ed"),
        ("cy", "di"),
    }
    assert {edge[:2] for edge in reach.edges if not edge.is_branch} == {("bo", "di"), ("di", "ada")}
    blended, own = await served.team.get("bo"), await served.team.get("ada", what="own")
    assert reach.alike["bo"] == pytest.approx(cosine(blended.vector, own.vector))
    assert reach.left_out == 0


async def test_crowd_leaves_room_for_those_farther_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_reach, "MOST_AGENTS", (3, 4))
    monkeypatch.setattr(context_reach, "HOPS", 2)
    reach = await reach_of(served.team, "ada")
    assert (reach.hops, reach.left_out) == ({"ada": 0, "bo": 1, "cy": 1, "di": 2}, 1)


def crowd() -> Reach:
    """24 agents around one, every third heard by two others; two of them know nothing."""
    hops, edges = {"the one": 0}, []
    for number in range(24):
        hops[f"near-{number}"] = 1
        edges.append(Edge("the one", f"near-{number}", 1.0 + number, is_branch=True))
    for number in range(16):
        hops[f"far-{number}"] = 2
        edges.append(Edge(f"near-{number // 2 * 3}", f"far-{number}", 0.5, is_branch=True))
    edges.append(Edge("near-1", "near-2", 9.0, is_branch=False))
    alike: dict[str, float | None] = {name: 1 - (number - 1) / 80 for number, name in enumerate(hops)}
    return Reach("team", "the one", 1234, hops, edges, alike | {"near-3": None, "far-0": None}, 7)


def test_branches_stand_apart_and_before_those_they_reach() -> None:
    reach = crowd()
    places = places_of(reach, 0.2)
    near = sorted(
        (place.angle - place.room / 2, place.angle + place.room / 2) for name, place in places.items() if "near" in name
    )
    assert all(one[1] <= other[0] + 1e-9 for one, other in itertools.pairwise(near))
    for number in range(16):
        behind, before = places[f"far-{number}"], places[f"near-{number // 2 * 3}"]
        assert abs(behind.angle - before.angle) <= before.room / 2
        assert before.has_branches


def test_picture_says_what_it_shows() -> None:
    root = ElementTree.fromstring(draw(crowd()))
    texts = {each.text for each in root.iter(f"{SVG}text")}
    assert "Whom the one reaches" in texts
    assert "Graph team at epoch 1,234: 40 agents within 2 hops; 7 more are left out" in texts
    assert {"1 hop", "2 hops", "near-7", "far-15", "nothing yet"} <= texts
    fills = {}
    for dot in root.iter(f"{SVG}circle"):
        title = dot.find(f"{SVG}title")
        if title is not None and title.text is not None:
            fills[title.text.partition(",")[0]] = dot.get("fill")
    assert fills["near-3"] == fills["far-0"] == "#ffffff"
    assert fills["near-0"] == "#1e2a5c"
    assert fills["the one"] == "#24292f"
    assert len(set(fills.values())) > 30
    assert {"0.5", "0.75", "1"} <= texts
    widths = {each.find(f"{SVG}title").text: float(each.get("stroke-width")) for each in root.iter(f"{SVG}path")}  # type: ignore[union-attr, arg-type]
    assert widths["near-23 hears the one, weight 24"] > widths["near-0 hears the one, weight 1"]
    assert widths["near-2 hears near-1, weight 9"] < widths["near-8 hears the one, weight 9"]


def test_names_are_text_and_are_cut_where_there_is_no_room() -> None:
    name = "<b>&" + "x" * 60 + ">"
    reach = Reach(
        "team", "ada", 1, {"ada": 0, name: 1}, [Edge("ada", name, 1.0, is_branch=True)], {"ada": 1.0, name: 0.5}
    )
    root = ElementTree.fromstring(draw(reach))
    texts = [each.text or "" for each in root.iter(f"{SVG}text")]
    (shown, _) = (text for text in texts if text.startswith("<b>&"))
    assert shown.startswith("<b>&xxx")
    assert shown.endswith("xxx>")
    assert "…" in shown
    assert len(shown) < 30


def test_what_points_elsewhere_is_the_least_of_the_scale() -> None:
    edges = [Edge("ada", "bo", 1.0, is_branch=True), Edge("ada", "cy", 1.0, is_branch=True)]
    reach = Reach("team", "ada", 1, {"ada": 0, "bo": 1, "cy": 1}, edges, {"ada": 1.0, "bo": -0.5, "cy": 0.21})
    texts = {each.text for each in ElementTree.fromstring(draw(reach)).iter(f"{SVG}text")}
    assert {"0 or less", "0.15", "0.3"} <= texts


def test_agent_alone_is_a_picture_too() -> None:
    root = ElementTree.fromstring(draw(Reach("team", "ada", 1, {"ada": 0}, [], {"ada": None})))
    assert "Graph team at epoch 1: nobody hears it" in [each.text for each in root.iter(f"{SVG}text")]
