"""README.md says of speed what the committed JSON says."""

from __future__ import annotations

import pytest

from benchmarks import readme


def test_the_readme_is_what_its_script_makes() -> None:
    document = readme.README.read_text(encoding="utf-8")
    made = readme.rewritten(document, {name: make() for name, make in readme.PARTS.items()})
    assert made == document, "run python -m benchmarks.readme"
    assert readme.rewritten(made, {"headline": "1 ms"}).count("1 ms<!-- headline: end -->") == 1
    assert readme.PICTURE.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "document",
    [
        "nothing",
        "<!-- gate: begin -->",
        "<!-- gate: end --> <!-- gate: begin -->",
        "<!-- gate: begin --> <!-- gate: end --> <!-- gate: end -->",
    ],
)
def test_markers_that_are_not_there(document: str) -> None:
    with pytest.raises(ValueError, match="gate"):
        readme.rewritten(document, {"gate": "text"})


def test_a_part_is_put_in_as_it_is() -> None:
    begin, end = "<!-- gate: begin -->", "<!-- gate: end -->"
    made = readme.rewritten(f"a {begin} old {end} b", {"gate": r"\1 \g<0> new"})
    assert made == f"a {begin}\n\n\\1 \\g<0> new\n\n{end} b"
