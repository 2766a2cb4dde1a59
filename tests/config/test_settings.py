import dataclasses
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aikoryu.config import BatchSettings, ConfigError, NatsSettings, ServerSettings, Settings, describe, load

DEFAULTS = {key: default for key, default, _, _ in describe()}


def variable(key: str) -> str:
    return "AIKORYU_" + key.replace(".", "_").upper()


def value_of(settings: Settings, key: str) -> object:
    group, _, name = key.partition(".")
    return getattr(getattr(settings, group), name)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_no_source_gives_the_defaults() -> None:
    assert load(environ={}) == Settings()
    assert {key: value_of(Settings(), key) for key in DEFAULTS} == DEFAULTS


def test_the_listing_covers_every_field_and_says_what_it_means() -> None:
    fields = [
        f"{group.name}.{item.name}"
        for group in dataclasses.fields(Settings)
        for item in dataclasses.fields(getattr(Settings(), group.name))
    ]
    assert [key for key, *_ in describe()] == fields
    assert all(allowed and doc.endswith(".") for _, _, allowed, doc in describe())


def test_the_listing_is_enough_to_write_a_file() -> None:
    lines: dict[str, list[str]] = {}
    for key, default, _, _ in describe():
        group, _, name = key.partition(".")
        lines.setdefault(group, []).append(f"{name} = {json.dumps(default)}")
    file = Path("all.toml")
    file.write_text("".join(f"[{group}]\n" + "\n".join(own) + "\n" for group, own in lines.items()))
    assert load(file, {}) == Settings()


@given(in_file=st.booleans(), in_environ=st.booleans(), in_flags=st.booleans())
def test_flags_win_over_variables_and_these_over_the_file(in_file: bool, in_environ: bool, in_flags: bool) -> None:
    file = Path("some.toml")
    file.write_text("[batch]\n" + "max_rows = 1\n" * in_file)
    environ = {"AIKORYU_BATCH_MAX_ROWS": "2"} if in_environ else {}
    flags = {"batch.max_rows": 3} if in_flags else {}
    expected = 3 if in_flags else 2 if in_environ else 1 if in_file else 4096
    assert load(file, environ, flags).batch.max_rows == expected


def test_the_file_is_the_argument_else_the_named_one_else_the_one_here() -> None:
    for number, name in enumerate(["argument.toml", "named.toml", "aikoryu.toml"], start=1):
        Path(name).write_text(f"[cpu]\nthreads = {number}\n")
    named = {"AIKORYU_CONFIG": "named.toml"}
    assert load(Path("argument.toml"), named).cpu.threads == 1
    assert load(environ=named).cpu.threads == 2
    assert load(environ={}).cpu.threads == 3


def test_text_becomes_numbers_and_lists_only_where_a_source_has_nothing_else() -> None:
    environ = {"AIKORYU_BATCH_WINDOW_S": "2e-3", "AIKORYU_MODELS_EMBED": "a, b", "AIKORYU_WORKER_OPERATIONS": ""}
    settings = load(environ=environ, flags={"cpu.slots": "3"})
    assert settings.batch.window_s == 0.002
    assert settings.models.embed == ("a", "b")
    assert settings.worker.operations == ()
    assert settings.cpu.slots == 3

    Path("aikoryu.toml").write_text('[cpu]\nslots = "3"\n')
    with pytest.raises(ConfigError, match=r"cpu\.slots = '3'"):
        load(environ={})


@given(key=st.sampled_from(sorted(DEFAULTS)), text=st.text() | st.floats().map(str) | st.integers().map(str))
def test_any_text_is_either_taken_or_refused_by_name(key: str, text: str) -> None:
    refusal = ""
    try:
        value = value_of(load(environ={variable(key): text}), key)
    except ConfigError as error:
        refusal = str(error)
    if refusal:
        assert refusal.startswith(f"{key} = ")
        assert f"the variable {variable(key)}, " in refusal
    else:
        assert type(value) is type(DEFAULTS[key])


@given(
    key=st.sampled_from(sorted(DEFAULTS)),
    value=st.none() | st.booleans() | st.binary() | st.dictionaries(st.text(), st.text()) | st.tuples(st.integers()),
)
def test_a_value_of_a_wrong_type_is_refused(key: str, value: object) -> None:
    assume(not (type(value) is type(DEFAULTS[key]) is bool))
    with pytest.raises(ConfigError, match=f"{key} = .*, from the command line, is not allowed: give "):
        load(environ={}, flags={key: value})


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("server.port", 65536, "a whole number at least 0 and at most 65535"),
        ("server.host", "0.0.0.0", "one of 127.0.0.1, ::1, localhost"),
        ("bus.timeout_s", 0, "a number above 0 and at most 86400"),
        ("batch.window_s", float("nan"), "a number at least 0 and at most 60"),
        ("bus.namespace", "a.b", "letters, digits, - and _"),
        ("bus.namespace", "a\n", "letters, digits, - and _"),
        ("worker.name", "a.b", "letters, digits, - and _, or nothing"),
        ("worker.name", "a*", "letters, digits, - and _, or nothing"),
        ("bus.reply_prefixes", [], "a list of 1 or more, each words of letters"),
        ("bus.reply_prefixes", ["_INBOX.>"], "a list of 1 or more, each words of letters"),
        ("nats.url", "http://127.0.0.1", "nats://host:port or tls://host:port"),
        ("log.level", "INFO", "one of debug, info, warning, error, critical"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_what_is_allowed(key: str, value: object, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ={}, flags={key: value})
    assert str(caught.value).startswith(f"{key} = {value!r}, from the command line, is not allowed: give {allowed}")


def test_a_wrong_value_is_refused_even_where_a_stronger_source_overrides_it() -> None:
    with pytest.raises(ConfigError, match="the variable AIKORYU_CPU_SLOTS"):
        load(environ={"AIKORYU_CPU_SLOTS": "none"}, flags={"cpu.slots": 2})


def test_a_group_made_by_hand_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"batch\.max_rows = 0, from the program, is not allowed: give a whole"):
        BatchSettings(max_rows=0)
    assert type(BatchSettings(window_s=1).window_s) is float


def test_unknown_names_are_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"AIKORYU_NATS_ULR, from the environment, .* AIKORYU_NATS_URL$"):
        load(environ={"AIKORYU_NATS_ULR": "nats://h"})
    with pytest.raises(ConfigError, match=r"batch\.window, from the command line, .* batch\.window_s$"):
        load(environ={}, flags={"batch.window": 1})
    for text, name in [("[nats]\npasword = 'x'", "nats.pasword"), ("[natz]\n", "natz"), ("nats = 1", "nats")]:
        Path("aikoryu.toml").write_text(text)
        with pytest.raises(ConfigError, match=rf"^{name}, from the file aikoryu\.toml, .* nats\."):
            load(environ={})


def test_other_variables_are_none_of_our_business() -> None:
    assert load(environ={"NATS_URL": "nats://elsewhere", "AIKORYU": "x", "PATH": ""}) == Settings()


@pytest.mark.parametrize("content", [b"[nats", b"[nats]\nuser = '\xff'\n", None])
def test_a_file_that_cannot_be_read_is_named(content: bytes | None) -> None:
    if content is not None:
        Path("broken.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"the file broken\.toml"):
        load(environ={"AIKORYU_CONFIG": "broken.toml"})


def test_passwords_are_never_shown() -> None:
    settings = load(environ={"AIKORYU_NATS_PASSWORD": "hunter2"})
    assert settings.nats.password == "hunter2"
    assert "hunter2" not in repr(settings)
    for flags in ({"nats.password": ["hunter2"]}, {"nats.url": "nats://bob:hun/hunter2@host:4222"}):
        with pytest.raises(ConfigError) as caught:
            load(environ={}, flags=flags)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__context__ is None


def test_settings_are_frozen_and_travel_to_other_processes() -> None:
    settings = Settings(nats=NatsSettings(user="bob"), server=ServerSettings(port=0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.nats.user = "eve"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert hash(settings) == hash(dataclasses.replace(settings))
