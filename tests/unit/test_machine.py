"""What a run says of its machine."""

import sys

import pytest
import torch

from datafree.run import machine

MODULE = sys.modules["datafree.run.machine"]  # the package's name of the same spelling is the function

CORE = "processor\t: {}\nmodel name\t: {}\nflags\t\t: fpu sse2 avx2{}\n\n"


@pytest.mark.parametrize(
    ("flags", "told"),
    [("", "AVX2,"), (" avx512_vnni avx512_bf16", "AVX2 VNNI BF16,"), (" avx_vnni avx_vnni_int8", "AVX2 VNNI,")],
)
def test_a_machine_says_what_decides_how_fast_integers_are(flags, told, tmp_path, monkeypatch):
    table = tmp_path / "cpuinfo"
    table.write_text(CORE.format(0, "A Processor", flags) + CORE.format(1, "A Processor", flags))
    monkeypatch.setattr(MODULE, "Path", lambda _: table)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert f" {told}" in machine()
    assert machine().startswith("A Processor, ")


def test_a_system_without_a_table_of_processors_has_its_vectors_told(tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "Path", lambda _: tmp_path / "none")
    assert f", {torch.backends.cpu.get_cpu_capability()}, " in machine()
