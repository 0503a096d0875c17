"""Where the runs are kept: the setting, the default, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from lossd.configuration.settings import SECRETS, Settings
from lossd.recorder.place import kept, url

PASSWORD = "hunter2-hunter2"


def test_the_default_is_a_file_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert url(Settings()) == f"{tmp_path}/.local/share/lossd/runs.db"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert url(Settings()) == f"{tmp_path}/data/lossd/runs.db"
    monkeypatch.setenv("LOSSD_RUNS", "")
    assert url(Settings()) == f"{tmp_path}/data/lossd/runs.db", "an empty variable is none"


def test_a_user_without_a_home_has_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert url(Settings()) is None
    assert kept(Settings()), "requests about runs say what is missing"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/var/lib/runs.db", "/var/lib/runs.db"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgres://u@h/d", "postgres://u@h/d"),
    ],
)
def test_a_place_is_a_file_or_postgresql(monkeypatch: pytest.MonkeyPatch, value: str, expected: str) -> None:
    monkeypatch.setenv("LOSSD_RUNS", value)
    assert url(Settings()) == expected
    assert kept(Settings())


def test_a_relative_file_lies_in_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOSSD_RUNS", "runs.db")
    assert url(Settings()) == f"{tmp_path}/runs.db"


def test_off_keeps_no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSD_RUNS", "off")
    assert not kept(Settings())


@pytest.mark.parametrize("scheme", ["mysql", "sqlite+aiosqlite", "redis", "http", "postgresql+asyncpg"])
def test_another_database_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("LOSSD_RUNS", f"{scheme}://user:{PASSWORD}@host/runs")
    with pytest.raises(ValidationError, match="name a file, or postgresql://") as refused:
        Settings()
    assert PASSWORD not in str(refused.value)


def test_a_password_is_not_shown_and_no_option_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSD_RUNS", f"postgresql://user:{PASSWORD}@host/runs")
    settings = Settings()
    assert PASSWORD not in repr(settings) + str(settings.model_dump()) + settings.model_dump_json()
    assert "runs" in SECRETS, "other users can read a command line"
