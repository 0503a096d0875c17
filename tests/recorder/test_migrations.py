"""Every schema that ever was opens, and the migrations make the tables that the code uses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hatchling.builders.wheel import WheelBuilder
from sqlalchemy.engine import Connection

from lossd.recorder.database import _upgrade
from lossd.recorder.schema import METADATA, VERSION, VERSION_TABLE, VERSIONS
from lossd.recorder.store import Store
from lossd_client.errors import BatchConflict, DuplicateRows, RunSealed
from recorder.reports import batch, count_one, document, state

ROOT = Path(__file__).parents[2]
SCHEMAS = sorted((Path(__file__).parent / "schemas").glob("*.db"))


def scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", "lossd.recorder:migrations")
    return ScriptDirectory.from_config(config)


def test_each_schema_has_a_database_in_the_tests() -> None:
    revisions = [script.revision for script in scripts().walk_revisions()]
    assert revisions[0] == VERSION
    assert sorted(revisions) == [path.stem for path in SCHEMAS], "run tests/recorder/schemas/make.py"


def storage(connection: Connection) -> list[tuple[str, str]]:
    """How PostgreSQL keeps each column of states."""
    if connection.dialect.name != "postgresql":
        return []
    kept = "SELECT attname, attstorage FROM pg_attribute WHERE attrelid = 'states'::regclass AND attnum > 0"
    return sorted(map(tuple, connection.exec_driver_sql(kept)))


def test_a_new_database_and_the_migrations_have_the_tables_that_the_code_uses(url: str) -> None:
    """Those of a new database are dropped, and made again by all migrations."""
    options = {"version_table": VERSION_TABLE, "compare_type": True, "compare_server_default": True}

    def described(connection: Connection) -> tuple[Any, ...]:
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), METADATA)
        version = connection.exec_driver_sql(f"SELECT * FROM {VERSION_TABLE}").all()
        inspected = sa.inspect(connection)
        keys = {name: inspected.get_pk_constraint(name) for name in (*METADATA.tables, VERSION_TABLE)}
        unique = inspected.get_unique_constraints("runs")
        return (
            differences,
            version,
            keys,
            unique,
            inspected.get_columns(VERSION_TABLE)[0]["nullable"],
            storage(connection),
        )

    def migrated(connection: Connection) -> None:
        METADATA.drop_all(connection)
        VERSIONS.drop(connection)
        _upgrade(connection, None, "it")

    store = Store(url)
    store.open()
    new = store._run(described)
    store._run(migrated)
    assert new[0] == []
    assert store._run(described) == new
    store.close()


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_a_database_of_each_schema_opens_and_goes_on(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    store = Store(str(copy))
    store.open()
    first = path.stem == "0001"
    how: dict[str, Any] = {"groups": 0} if first else {}  # it is of before there were groups
    assert {run["name"] for run in store.list("ann", tag="commit:4f1c", dataset="digits@1")["runs"]} == {
        f"{name}-{identity}" for name in ("open", "sealed") for identity in ("position", "id", "batch")
    }
    for identity in ("position", "id", "batch"):
        run = store.find("ann", f"open-{identity}")
        assert (run["rows"], run["batches"], run["created"]) == (12, 3, 1_800_000_000.0)
        assert run["entries"] == (None if first else 12)
        assert run["content_hash"] == ("blake3" if path.stem >= "0003" else "sha256")
        assert store.merged(run["id"])[1] == state(identity, tuple(range(12)), **how)
        assert not count_one(store, batch(run["id"], "b1", range(4, 8), identity, **how))["created"]
        with pytest.raises(BatchConflict):
            count_one(store, batch(run["id"], "b1", range(4, 8), identity, **how, content=1))
        if identity != "batch":
            with pytest.raises(DuplicateRows, match="b2"):
                count_one(store, batch(run["id"], "x", range(11, 13), identity, **how))
        assert count_one(store, batch(run["id"], "b3", range(12, 16), identity, **how))["created"]
        assert [entry["entries"] for entry in store.batches(run["id"])["batches"]] == 3 * [None if first else 4] + [4]
        assert store.find("ann", run["name"])["entries"] == (None if first else 16)
        assert store.seal(run["id"], store.merged(run["id"])[0]["revision"], 16, {}, {})["status"] == "sealed"
        done = store.find("ann", f"sealed-{identity}")
        assert done["result"] == {"metrics": {"accuracy": 0.5}}
        assert done["summary"] == {"accuracy": 0.5}
        with pytest.raises(RunSealed):
            count_one(store, batch(done["id"], "b3", range(12, 16), identity, **how))
    assert store.create("ann", "new", document(), "d")[0]["content_hash"] == "blake3"
    assert not store.tidy()
    store.close()
    again = Store(str(copy))
    again.open()
    assert again.find("ann", "open-id")["status"] == "sealed"
    again.close()


def test_the_wheel_has_the_migrations() -> None:
    built = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    folder = ROOT / "service/lossd/recorder/migrations"
    files = {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {str(path.relative_to(ROOT / "service")) for path in files} <= built
    assert any(path.suffix == ".mako" for path in files)
