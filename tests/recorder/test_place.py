"""Where the runs are kept: the setting, the default, and what is said of a wrong one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from lossd.configuration.preflight import StartError, check_needs
from lossd.configuration.settings import SECRETS, Settings
from lossd.engine import worker_process
from lossd.recorder.place import check, kept, url

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


def refused(place: Path | str) -> str:
    """The sentence with which the service does not start."""
    with pytest.raises(StartError) as raised:
        check(Settings(runs=str(place)))
    return str(raised.value)


def test_a_folder_that_is_not_there_is_refused_before_the_start(tmp_path: Path) -> None:
    assert refused(tmp_path / "typo" / "runs.db") == (
        f"LOSSD_RUNS: the folder {tmp_path}/typo does not exist; create it, or name another file"
    )
    assert not (tmp_path / "typo").exists()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert f"name a file in it, such as {tmp_path}/runs.db" in refused(tmp_path)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as root, who may write everywhere; so the system's answer is another's."""
    monkeypatch.setattr("lossd.recorder.place.os.access", lambda path, mode: False)
    assert "cannot be written by this user; name another file, or change its owner" in refused(tmp_path / "runs.db")


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw - ext4 disk rw\n2 1 0:2 / {tmp_path} rw - nfs4 server:/ rw\n")
    monkeypatch.setattr("lossd.recorder.files.MOUNTS", mounts)
    sentence = refused(tmp_path / "runs.db")
    assert "is on a network file system (nfs4)" in sentence
    assert "a disk of this machine, or to postgresql://" in sentence


@pytest.mark.parametrize("place", ["", "off", "postgresql://user@host/runs"])
def test_other_places_are_not_looked_at(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default may be impossible: the service works without, and requests about runs say why they do not."""
    monkeypatch.setenv("HOME", "/proc/no")
    check(Settings(runs=place))


def test_a_file_in_a_folder_is_accepted_and_not_made(tmp_path: Path) -> None:
    check(Settings(runs=str(tmp_path / "runs.db")))
    assert not list(tmp_path.iterdir())


def test_postgresql_without_its_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossd.configuration.preflight.find_spec", lambda module: None)
    with pytest.raises(StartError, match=r"pip install 'lossd\[postgres\]'") as raised:
        check_needs(Settings(runs=f"postgresql://user:{PASSWORD}@host/runs"))
    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (f"mysql://user:{PASSWORD}@host/runs", "name a file, or postgresql://"),
        ("/no/such/folder/runs.db", "the folder /no/such/folder does not exist"),
    ],
)
def test_the_command_ends_with_one_sentence(place: str, words: str) -> None:
    environment = {**os.environ, "LOSSD_RUNS": place}
    command = [sys.executable, "-m", "lossd.cli", "serve", "--port", "0"]
    ended = worker_process.subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert PASSWORD not in ended.stderr


def test_help_shows_no_password_and_no_option_for_one() -> None:
    environment = {**os.environ, "LOSSD_RUNS": f"postgresql://user:{PASSWORD}@host/runs"}
    command = [sys.executable, "-m", "lossd.cli", "serve", "--help"]
    shown = worker_process.subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout
    assert "--runs-per-key" in shown
    assert "--runs " not in shown
    assert PASSWORD not in shown
