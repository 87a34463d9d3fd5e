"""The README's commands are the ones that run: its test command is the one of .ci/run, its `datafree` verbs exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from house.source import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    """Lines of the shell blocks, without comments."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, flags=re.S)
    return [
        line.strip() for block in blocks for line in block.splitlines() if line.strip() and not line.startswith("#")
    ]


def test_the_test_command_is_the_one_that_ci_runs():
    (command,) = [line for line in commands(README) if "pytest" in line]
    assert command in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")


def test_ci_is_executable():
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)


def test_every_verb_of_the_readme_exists():
    lines = [part.strip() for line in commands(README) for part in line.split("&&")]
    verbs = {line.split()[1] for line in lines if line.startswith("datafree ")}
    assert "demo" in verbs
    for verb in sorted(verbs):
        run = [sys.executable, "-c", "from datafree.cli import main; main()", verb, "--help"]
        done = subprocess.run(run, capture_output=True, text=True)
        assert done.returncode == 0, f"datafree {verb}: {done.stderr}"


def test_links_of_the_documentation_lead_somewhere():
    for page in [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}, which is not there"
