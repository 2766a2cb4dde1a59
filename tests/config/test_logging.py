import datetime
import json
import logging
import sys
import time
from collections.abc import Iterator

import pytest
import structlog

from aikoryu.config import LogSettings, configure_logging, keep_off_stdout


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


@pytest.fixture
def _in_tokyo() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_in_tokyo")
def test_json_is_one_object_a_line_with_utc_time(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(format="json"))
    structlog.get_logger("aikoryu.bus").warning("slow\nconsumer", dropped=3, subject="a.b")
    (line,) = lines(capsys)
    entry = json.loads(line)
    when = datetime.datetime.fromisoformat(entry.pop("timestamp"))
    assert entry == {
        "event": "slow\nconsumer",
        "level": "warning",
        "logger": "aikoryu.bus",
        "dropped": 3,
        "subject": "a.b",
    }
    assert when.utcoffset() == datetime.timedelta(0)
    assert abs(datetime.datetime.now(datetime.UTC) - when) < datetime.timedelta(minutes=1)


def test_the_standard_library_goes_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(format="json"))
    logging.getLogger("nats.aio.client").error("nats: %s", "encountered error")
    (line,) = lines(capsys)
    entry = json.loads(line)
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {"event": "nats: encountered error", "level": "error", "logger": "nats.aio.client"}


def test_bound_context_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(format="json"))
    with structlog.contextvars.bound_contextvars(batch=7):
        structlog.get_logger().info("run")
        logging.getLogger("x").info("run")
    assert [json.loads(line)["batch"] for line in lines(capsys)] == [7, 7]


@pytest.mark.parametrize(
    ("level", "kept"),
    [("debug", ["debug", "info", "error"]), ("info", ["info", "error"]), ("error", ["error"]), ("critical", [])],
)
def test_what_is_below_the_level_is_dropped(level: str, kept: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(level=level, format="json"))  # type: ignore[arg-type]
    for name in ("debug", "info", "error"):
        getattr(structlog.get_logger(), name)("event")
        getattr(logging.getLogger("x"), name)("event")
    assert [json.loads(line)["level"] for line in lines(capsys)] == [name for name in kept for _ in range(2)]


@pytest.mark.parametrize("form", ["console", "json"])
def test_an_exception_shows_its_traceback_but_no_variables(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(format=form))  # type: ignore[arg-type]

    def fail(password: str) -> None:
        raise ValueError("broken")

    for log in (structlog.get_logger(), logging.getLogger("x")):
        try:
            fail("hunter2".upper())
        except ValueError:
            log.exception("failed")
        text = capsys.readouterr().err
        assert "ValueError: broken" in text
        assert "in fail" in text
        assert "HUNTER2" not in text
        assert form == "console" or len(text.splitlines()) == 1


@pytest.mark.parametrize(("terminal", "is_json"), [(True, False), (False, True)])
def test_auto_is_for_people_on_a_terminal_else_json(
    terminal: bool, is_json: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    configure_logging(LogSettings())
    structlog.get_logger().info("started", port=4222)
    (line,) = lines(capsys)
    assert line.startswith("{") == is_json
    assert ("\x1b[" in line) == terminal


def test_console_has_no_colours_in_a_file_or_when_told_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_logging(LogSettings(format="console"))
    structlog.get_logger().info("started", port=4222)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    configure_logging(LogSettings(format="console"))
    structlog.get_logger().info("started", port=4222)
    written = lines(capsys)
    assert len(written) == 2
    assert all("started" in line and "port=4222" in line and "\x1b" not in line for line in written)


def test_a_second_call_replaces_the_first_and_leaves_other_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    other = logging.NullHandler()
    logging.getLogger().addHandler(other)
    configure_logging(LogSettings(format="json"))
    configure_logging(LogSettings(format="json", level="error"))
    structlog.get_logger().error("once")
    structlog.get_logger().info("never")
    assert len(lines(capsys)) == 1
    assert other in logging.getLogger().handlers


@pytest.fixture
def _as_imported() -> Iterator[None]:
    before = structlog.get_config() if structlog.is_configured() else None
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    if before is not None:
        structlog.configure(**before)


@pytest.mark.usefixtures("_as_imported")
def test_program_that_sets_nothing_up_has_its_output_for_itself(capsys: pytest.CaptureFixture[str]) -> None:
    keep_off_stdout(LogSettings(format="json", level="warning"))
    structlog.get_logger("aikoryu.bus").info("connected")
    structlog.get_logger("aikoryu.bus").warning("connection lost", server="x")
    (line,) = lines(capsys)
    assert json.loads(line).items() >= {"event": "connection lost", "level": "warning", "server": "x"}.items()


@pytest.mark.usefixtures("_as_imported")
def test_what_a_program_has_set_up_stays(capsys: pytest.CaptureFixture[str]) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(), processors=[structlog.processors.JSONRenderer()])
    keep_off_stdout(LogSettings())
    structlog.get_logger().info("mine")
    assert capsys.readouterr().out == '{"event": "mine"}\n'
