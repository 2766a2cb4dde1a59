"""The benchmarks of packets run, count right, and are rendered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aikoryu.netio.capture import open_capture
from aikoryu.netio.capture_flows import capture_flows
from aikoryu.netio.classify import compile_rules
from aikoryu.netio.dissect import dissect
from aikoryu.netio.packets import Error, Tunnel
from aikoryu.netio.rule_formats import read_rules

from .benchmark_runs import ROOT, run, sample
from .gpu import host_kernels


@pytest.fixture(autouse=True)
def from_the_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def test_own_capture_is_the_same_each_time_and_has_all_its_kinds() -> None:
    from benchmarks.packets_captures import own_packets

    blob, index = own_packets(2000)
    assert (blob == own_packets(2000)[0]).all()
    packets = dissect(blob, index.offset, index.captured, index.link, index.wire)
    assert (packets.error == Error.NONE).all()
    assert set(packets.outer.version.tolist()) == {4, 6}
    assert set(packets.inner.protocol.tolist()) == {6, 17}
    assert set(packets.tunnel.tolist()) == {Tunnel.NONE, Tunnel.VXLAN}
    assert set(packets.vlan_outer.tolist()) == {100, 0xFFFF}


def test_a_tiled_capture_has_so_many_packets_and_each_tile_flows_of_its_own(tmp_path: Path) -> None:
    from benchmarks.packets_captures import own_tiles

    tiles, counts, columns = own_tiles(500), [], []
    for packets in (500, 1000, 1200):
        path = tmp_path / f"{packets}.pcap"
        tiles.write(path, packets)
        with open_capture(path) as capture:
            index = capture.index
            assert (len(index), capture.truncated) == (packets, False)
            assert (np.diff(index.time_ns) >= 0).all()
            columns.append(dissect(capture.blob, index.offset, index.captured, index.link, index.wire))
            counts.append(sum(len(flows) for flows in capture_flows(capture)))
    assert counts[1] == 2 * counts[0]
    assert (columns[2].inner.sport[:500] == columns[2].inner.sport[500:1000]).all()
    assert (columns[2].inner.src_low[:500] != columns[2].inner.src_low[500:1000]).all()
    data, ends = tiles.frames()
    assert (len(data), len(ends)) == (ends[-1], 501)


@pytest.mark.parametrize("name", ["acl1", "fw1", "ipc1"])
def test_rule_sets_are_made_from_their_seed(name: str) -> None:
    from benchmarks.packets_rules import KeyColumns, make

    rules = make(name, 300)
    assert len(rules) == 300
    assert rules == make(name, 300)
    assert len({(rule.source, rule.destination, rule.source_ports, rule.destination_ports) for rule in rules}) > 150
    keys = KeyColumns.drawn(rules, 3000, "cpu")
    found = compile_rules(rules).classify(keys.host())
    assert len(set(found.tolist())) > 100
    assert (KeyColumns.drawn(rules, 3000, "cpu").host().source_low == keys.host().source_low).all()
    assert len(keys.first(7).host()) == 7


def test_rules_and_keys_are_written_as_dpdk_reads_them(tmp_path: Path) -> None:
    from benchmarks.packets_acl import Acl
    from benchmarks.packets_rules import KeyColumns, make

    rules = make("ipc1", 200)
    keys = KeyColumns.drawn(rules, 50, "cpu").host()
    Acl(tmp_path, rules, keys)
    found = read_rules((tmp_path / "rules").read_text(), "classbench")
    assert (found.source == rules.source).all()
    assert (found.destination_port_high == rules.destination_port_high).all()
    assert (found.protocol_mask == rules.protocol_mask).all()
    trace = np.loadtxt(tmp_path / "trace", dtype=np.uint64)
    assert (trace[:, 1] == keys.destination_low).all()
    assert (trace[:, 4] == keys.protocol).all()


def test_dpdk_gives_our_answers(tmp_path: Path) -> None:
    from benchmarks import packets_acl
    from benchmarks.packets_rules import KeyColumns, make

    if why := packets_acl.missing():
        pytest.skip(why)
    rules = make("fw1", 200)
    keys = KeyColumns.drawn(rules, 2000, "cpu").host()
    acl = packets_acl.Acl(tmp_path, rules, keys)
    assert acl.answers() == compile_rules(rules).classify(keys).tolist()
    assert acl.rate((0,), 0.001) > 0


def test_the_set_in_which_a_figure_is_least_counts() -> None:
    from benchmarks.packets_goals import ACL_CORES, judged

    samples = {
        "acl1-1000": {"aikoryu": [sample(rows_per_s=9e8)], ACL_CORES: [sample(rows_per_s=1e8)]},
        "fw1-1000": {"aikoryu": [sample(rows_per_s=8e8)], ACL_CORES: [sample(rows_per_s=3e8)]},
        "resident-own": {"aikoryu": [sample(rows_per_s=2e8)]},
        "resident-mixed": {"aikoryu": [sample(rows_per_s=1e8)]},
    }
    rate, ratio, packets = judged(samples, on_device=True)
    assert (rate["got"], rate["against"], rate["verdict"]) == (8e8, "fw1", "goal met")
    assert (ratio["got"], ratio["against"], ratio["verdict"]) == (2.667, "fw1", "short")
    assert (packets["got"], packets["against"], packets["verdict"]) == (1e8, "mixed", "short")


def test_peers_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import packets_reading

    monkeypatch.setattr(
        packets_reading, "peer_versions", lambda: {"dpkt": "1", "scapy": None, "nfstream": None, "tshark": None}
    )
    able, skipped = packets_reading.entrants()
    assert [peer.name for peer in able] == ["dpkt"]
    assert skipped["nfstream"] == "not installed: nfstream"
    assert skipped[packets_reading.TSHARK] == "not installed: tshark"


def test_packets_that_a_reader_loses_are_faults(tmp_path: Path) -> None:
    from benchmarks.packets_captures import own_tiles
    from benchmarks.packets_reading import ours

    path = tmp_path / "short.pcap"
    own_tiles(300).write(path, 300)
    assert ours("dissect", path, 300, 2)["mismatches"] == 0
    assert ours("dissect", path, 310)["mismatches"] == 10


def test_benchmark_of_packets_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKET_TEST_DATA", str(tmp_path))  # the same wherever it runs
    path = tmp_path / "packets.json"
    done = run(
        *("benchmarks.packets", "--rounds", "1", "--packets", "3000", "--keys", "2000", "--rules", "1000"),
        *("--json", str(path)),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    by = result["samples"]["read-own"]
    for name in ("aikoryu, 1 process", "aikoryu, 2 processes", "aikoryu, flows"):
        assert by[name][0]["rows_per_s"] > 0, done.stderr
        assert by[name][0]["mismatches"] == 0
    assert result["samples"]["fw1-1000"]["aikoryu"][0]["rows_per_s"] > 0
    assert result["rule_sets"]["fw1-1000"] == "generated"
    assert "the mixed capture" in result["skipped"]
    assert set(result["peers"]) == {"dpkt", "nfstream", "scapy", "tshark"}
    _renders({"packets": result}, tmp_path)


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> Any:
    torch = pytest.importorskip("torch", reason="needs the extra `worker`")
    from aikoryu.gpu.device import open_device
    from aikoryu.gpu.packets.kernels import PacketKernels

    if request.param == "host" and host_kernels.COMPILER is None:
        pytest.skip("needs a C++ compiler")
    if request.param == "gpu" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = open_device("cpu" if request.param == "host" else "cuda:0", threads=1)
    device.open()
    if request.param == "host":
        return PacketKernels(device, host_kernels.compiled())
    pytest.importorskip("cupy")
    return PacketKernels.on(device)


def test_benchmark_of_packets_on_a_device_runs(kernels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import packets_captures, packets_cuda, packets_rules

    monkeypatch.setattr(packets_captures, "MIXED", tmp_path / "none")
    monkeypatch.setattr(packets_rules, "FOLDER", tmp_path)
    monkeypatch.setenv("PACKET_TEST_DATA", str(tmp_path))
    sizes = packets_cuda.Sizes(
        rounds=1,
        least_s=0.001,
        rules=(1000,),
        keys=3000,
        packet_bytes=1,
        capture_packets=500,
        packet_rules=1000,
        flows=600,
        batch=200,
        batches=2,
        processes=2,
        fronts=1,
        window_s=0.3,
        cpu_keys=1000,
        cpu_s=0.01,
    )
    path = tmp_path / "packets-cuda.json"
    packets_cuda.Run(kernels, sizes, path).measure(packets_cuda.FIGURES)
    result = json.loads(path.read_text())
    assert all("DPDK" in what for what in result["skipped"]), result["skipped"]
    for shape, by in result["samples"].items():
        for name, rounds in by.items():
            assert (rounds[0]["mismatches"], rounds[0]["errors"]) == (0, 0), (shape, name, rounds)
            assert rounds[0]["rows_per_s"] > 0, (shape, name)
    shapes = {"resident-own", "host-own", "flows-uniform", "flows-zipf", "nats", "acl1-1000", "fw1-1000", "ipc1-1000"}
    assert result["samples"].keys() == shapes
    assert result["samples"]["fw1-1000"].keys() >= {"aikoryu", "aikoryu on all cores"}
    assert result["stages"]["nats"]["aikoryu"]["device"]["mean_us"] > 0
    assert len(result["figures"]) == 9
    _renders({"packets-cuda": result}, tmp_path)


def _renders(results: dict[str, dict[str, Any]], folder: Path) -> None:
    from benchmarks import packets_plot, packets_table

    assert "| goal | aim | measured |" in packets_table.section(results)
    text = "".join(packets_table.page(results))
    for result in results.values():
        for shape in result["medians"]:
            about = result["shapes"][shape]
            assert (f"{about['set']}, {about['rules']:,} rules" if "rules" in about else about["title"]) in text
    pytest.importorskip("matplotlib")
    packets_plot.draw(results, folder)
    plots = [packets_plot.LOOKUPS, packets_plot.RATES] if "packets-cuda" in results else [packets_plot.LOOKUPS]
    assert list(packets_plot.there(results)) == plots
    for name in plots:
        assert (folder / name).read_text().startswith("<?xml")
        assert f"({name})" in text


def test_readme_without_figures_of_packets_says_so() -> None:
    from benchmarks import headlines, packets_table

    assert headlines.packets({}) == headlines.ABSENT_PACKETS
    assert packets_table.section({}) == ""
    assert list(packets_table.page({})) == []


def test_drift_is_that_of_the_last_departure_and_errors_those_between_two() -> None:
    from benchmarks.replay_drift import figures

    due = np.arange(1001, dtype=np.int64) * 1_000_000
    late = due + 5_000_000
    assert figures(due, late)["drift_ms"] == 0.0
    late[-1] += 400_000
    late[500] += 3_000_000
    found = figures(due, late)
    assert (found["drift_ms"], found["drift_median_ms"]) == (0.4, 0.0)
    assert (found["p50_ms"], found["p99_ms"], found["max_ms"]) == (0.0, 0.0, 3.0)
    assert figures(due, due + np.arange(1001) * 2000)["drift_ms"] == 2.0


def test_benchmark_of_drift_runs_in_a_second(tmp_path: Path) -> None:
    path = tmp_path / "replay_drift.json"
    done = run("benchmarks.replay_drift", "--seconds", "1", "--rate", "50", "--json", str(path))
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    (found,) = result["samples"]["schedule"]["aikoryu"]
    assert (found["errors"], found["unanswered"]) == (0, 0)
    assert found["drift_ms"] < 1000
    assert [one["goal"] for one in result["figures"]] == [1, 1]
    _sections(result)


def _sections(result: dict[str, Any]) -> None:
    from benchmarks import packets_table

    assert "replay at 1 ×: drift" in packets_table.section({"replay_drift": result})
