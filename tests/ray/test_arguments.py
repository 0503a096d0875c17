"""The arguments of ``serve run lossd.ray:app``; no Ray is needed to check them."""

from __future__ import annotations

from typing import Any

import pytest

from lossd.configuration.preflight import StartError
from lossd.ray.arguments import Arguments, ReplicaPlacement


def test_arguments_of_the_command_line_are_texts() -> None:
    found = Arguments.of({"replicas": "4", "device": "cuda", "gpus": "1", "per_node": "1", "queue_bytes": "8GiB"})
    assert found.placement == ReplicaPlacement(replicas=4, gpus=1, per_node=1)
    assert found.settings == {"device": "cuda", "queue_bytes": "8GiB"}


def test_each_device_that_is_a_gpu_gets_one() -> None:
    assert Arguments.of({"device": "cuda:0,cuda:1"}).placement.gpus == 2
    assert Arguments.of({"device": "cuda", "gpus": 0.5}).placement.gpus == 0.5
    assert Arguments.of({}).placement.gpus == 0


def test_files_are_looked_for_on_the_nodes() -> None:
    assert Arguments.of({"api_keys_file": "/on/each/node"}).settings == {"api_keys_file": "/on/each/node"}


def test_the_environment_of_this_machine_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSD_DEVICE", "cuda")
    assert Arguments.of({}).placement.gpus == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"replica": 4}, "replica is not an argument, did you mean replicas?"),
        ({"queue_byte": "8GiB"}, "queue_byte is not an argument, did you mean queue_bytes?"),
        ({"zzz": 1}, "zzz is not an argument (arguments: replicas, max_replicas,"),
        ({"port": 9000}, "port is not lossd's to set under Ray: use http_options of Serve"),
        ({"fronts": 2}, "fronts is not lossd's to set under Ray: use replicas"),
        ({"replicas": "0"}, "replicas: at least 1 is expected, found '0'"),
        ({"queue_bytes": "much"}, "queue_bytes: a size in bytes is expected, such as 64MiB, found 'much'"),
        ({"replicas": 4, "max_replicas": 2}, "max_replicas is 2, fewer than replicas, 4"),
        ({"gpus": 1}, "device=cpu and gpus=1 disagree: write device=cuda gpus=1, or device=cpu"),
        ({"device": "cuda", "gpus": 0}, "device=cuda and gpus=0 disagree"),
        (
            {"api_key": "a-secret-of-a-team"},
            "an API key would be visible to all users of the cluster: set LOSSD_API_KEY",
        ),
        ({"runs": "/tmp/runs.db"}, "is a file, which each replica would have for itself"),
        ({"runs": "postgresql://lossd:secret@db/runs"}, "would be visible to all users of the cluster: set LOSSD_RUNS"),
    ],
)
def test_a_wrong_argument_is_refused_in_words(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(StartError) as refused:
        Arguments.of(arguments)
    assert words in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("place", ["off", "postgresql://lossd@db/runs", "postgresql:///runs?host=/run/postgresql"])
def test_runs_may_be_in_a_database(place: str) -> None:
    assert Arguments.of({"runs": place}).settings == {"runs": place}
