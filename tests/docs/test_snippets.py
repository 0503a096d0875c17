"""What the pages say is done, and happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.snippets import ROOT, Wrong, blocks, check, documents, furnish
from serving import Running, running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with a store of its own: commands of the pages open the user's."""
    with running(engine="inline", compiled=False, runs=str(tmp_path_factory.mktemp("runs") / "runs.db")) as service:
        yield service


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_does_what_the_page_says(document: Path, service: Running, tmp_path: Path) -> None:
    furnish(tmp_path)
    check(document.read_text(), service.url, tmp_path)


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("```rust\nfn main() {}\n```\n", "neither run nor cut"),
        ("```json\n{}\n```\n", "neither run nor cut"),
        ("```sh\nfalse\n```\n", "ended with 1"),
        ("```sh\necho two\n```\n```text\nthree\n```\n", "three"),
        ('```sh\necho \'{"loss": 0.1375}\'\n```\n```json\n{"loss": 0.1376}\n```\n', "0.1376"),
        ("```sh\nmake coffee\n```\n", "make knows no coffee"),
        ("```sh\nlossd serve --prot 8000\n```\n", "prot"),
        ("<!-- not run: needs a cluster -->\n```sh\nlossd brew\n```\n", "brew"),
        ("```python\nprint(1 + 1)  # 3\n```\n", "3"),
        ("```python\nprint(1)\nprint(2)  # 2\n```\n", "some prints"),
        (
            '```python\nimport lossd\nlossd.evaluate("mse", [1.0], [[1.0]])\n```\n```text\nMissingInput: …\n```\n',
            "Shape",
        ),
        ("<!-- client/examples/curl/evaluate.sh#json -->\n```sh\ncurl\n```\n", "behind the file"),
    ],
)
def test_a_page_that_lies_is_found_out(page: str, complaint: str, service: Running, tmp_path: Path) -> None:
    with pytest.raises(Wrong, match=complaint):
        check(page, service.url, tmp_path)


def test_the_way_out_needs_its_reason() -> None:
    (block,) = blocks("<!-- not run: -->\n```sh\ntrue\n```\n")
    assert not block.excused


def test_numbers_are_compared_to_six_digits_and_no_fewer(service: Running, tmp_path: Path) -> None:
    page = "```sh\necho value 0.123456789 and more\n```\n```text\n{}\n```\n"
    check(page.format("value 0.1234567 and …"), service.url, tmp_path)
    check(page.format("value 0.1234568 and more"), service.url, tmp_path)
    with pytest.raises(Wrong):
        check(page.format("value 0.12346 and more"), service.url, tmp_path)
