"""What goes wrong is told in one line with its remedy, by an exit code, and leaves nothing half-done."""

from __future__ import annotations

import json
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from datafree.bundled import weights_path
from datafree.cli import main
from datafree.cli.failure import Interrupted, resumable
from datafree.report import write_report

NETS = '''
import torch
from torch import nn

def build():
    from datafree.bundled.digits import build
    return build()

def broken():
    raise RuntimeError("no such luck")

def number():
    return 3

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        y = self.conv(x)
        return y if y.sum() > 0 else -y

class Dead(nn.Module):
    """gamma = 0, gamma < 0, variance = 0."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn, self.head = nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Linear(8, 10)
        with torch.no_grad():
            self.bn.running_mean.uniform_(-1, 1)
            self.bn.running_var.uniform_(0.5, 2)
            self.bn.weight[0], self.bn.weight[1], self.bn.running_var[2] = 0.0, -1.5, 0.0

    def forward(self, x):
        return self.head(torch.relu(self.bn(self.conv(x))).mean((2, 3)))
'''
EATS = ["--input", "1,16,16", "--mean", "0.3", "--std", "0.3"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with networks of the user's own and checkpoints of all sorts."""
    (tmp_path / "nets_of_mine.py").write_text(NETS)
    good = load_file(weights_path("digits"))
    name = "stages.0.conv1.weight"
    (tmp_path / "cut.safetensors").write_bytes(weights_path("digits").read_bytes()[:3000])
    save_file({**good, name: torch.full_like(good[name], float("nan"))}, tmp_path / "nan.safetensors")
    save_file({**good, name: good[name][:5].contiguous()}, tmp_path / "shape.safetensors")
    save_file({key: value for key, value in good.items() if key != name}, tmp_path / "missing.safetensors")
    torch.save(dict(good), tmp_path / "good.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:3000])
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "cut.pt2").write_bytes(b"PK\x03\x04 no more")
    (tmp_path / "a_file").write_text("not a folder")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("mine")
    (tmp_path / "odd.yaml").write_text("recipe: closed_form\nwieghts: 4\n")
    (tmp_path / "torn.yaml").write_text("recipe: [closed_form\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("nets_of_mine", None)


class Evil:
    """Unpickling it would leave a trace."""

    def __reduce__(self):
        return (Path.touch, (Path("evil_ran"),))


DIGITS = ["compress", "bundled:digits"]
MINE = ["compress", "nets_of_mine:build", *EATS]
TABLE = {
    "bits too many": ([*DIGITS, "--weights", "9"], "weights = 9"),
    "bits too few": ([*DIGITS, "--activations", "1"], "activations = 1"),
    "bits no number": ([*DIGITS, "--weights", "four"], "--weights four"),
    "ratio of all": ([*DIGITS, "--prune", "1.0"], "ratio = 1.0"),
    "ratio negative": ([*DIGITS, "--prune", "-0.1"], "ratio = -0.1"),
    "ratio no number": ([*DIGITS, "--prune", "nan"], "ratio = nan"),
    "recipe": ([*DIGITS, "--recipe", "closd_form"], "did you mean 'closed_form'"),
    "target": ([*DIGITS, "--target", "onnxruntim"], "did you mean 'onnxruntime'"),
    "setting": ([*DIGITS, "--set", "critereon.name=l1"], "did you mean 'criterion'"),
    "method": ([*DIGITS, "--set", "criterion.name=shur"], "did you mean 'schur'"),
    "override": ([*DIGITS, "--set", "weights"], "name=value"),
    "job by --set": ([*DIGITS, "--set", "seed=3"], "--seed"),
    "device": ([*DIGITS, "--device", "toaster"], "toaster"),
    "option": ([*DIGITS, "--wieghts", "8"], "--weights"),
    "model's form": (["compress", "resnet18"], "is not a model"),
    "bundled name": (["compress", "bundled:digitz"], "did you mean digits"),
    "weights for a model": (["compress", "good.pt"], "--checkpoint good.pt"),
    "no such file": (["compress", "nothing.pt2", *EATS], "nothing.pt2"),
    "cut exported program": (["compress", "cut.pt2", *EATS], "cut.pt2"),
    "no module": (["compress", "nets_of_nobody:build", *EATS], "no module"),
    "no function": (["compress", "nets_of_mine:biuld", *EATS], "nets_of_mine:biuld"),
    "function that raises": (["compress", "nets_of_mine:broken", *EATS], "no such luck"),
    "function of no model": (["compress", "nets_of_mine:number", *EATS], "returned a int"),
    "unknown input": (["compress", "nets_of_mine:build"], "--input"),
    "input no shape": (["compress", "nets_of_mine:build", "--input", "1,16"], "--input 1,16"),
    "input no number": (["compress", "nets_of_mine:build", "--input", "a,b,c"], "--input a,b,c"),
    "input negative": (["compress", "nets_of_mine:build", "--input", "1,-1,16"], "--input 1,-1,16"),
    "input of other channels": (
        ["compress", "nets_of_mine:build", "--input", "3,16,16", "--mean", "0", "--std", "1"],
        "--input",
    ),
    "std zero": (
        ["compress", "nets_of_mine:build", "--input", "1,16,16", "--mean", "0", "--std", "0"],
        "std must be positive",
    ),
    "mean of other channels": (
        ["compress", "nets_of_mine:build", "--input", "1,16,16", "--mean", "0,0", "--std", "1"],
        "mean has 2",
    ),
    "dynamic control flow": (["compress", "nets_of_mine:Branching", *EATS], "torch.export says"),
    "checkpoint absent": ([*MINE, "--checkpoint", "nothing.safetensors"], "nothing.safetensors"),
    "checkpoint cut": ([*MINE, "--checkpoint", "cut.safetensors"], "cut.safetensors"),
    "checkpoint pickle cut": ([*MINE, "--checkpoint", "cut.pt"], "cut.pt"),
    "checkpoint malicious": ([*MINE, "--checkpoint", "evil.pt"], "evil.pt"),
    "checkpoint NaN": ([*MINE, "--checkpoint", "nan.safetensors"], "not finite"),
    "checkpoint shape": ([*MINE, "--checkpoint", "shape.safetensors"], "stages.0.conv1.weight"),
    "checkpoint missing": ([*MINE, "--checkpoint", "missing.safetensors"], "stages.0.conv1.weight"),
    "settings absent": ([*DIGITS, "--settings", "nothing.yaml"], "nothing.yaml"),
    "settings misspelt": ([*DIGITS, "--settings", "odd.yaml"], "did you mean 'weights'"),
    "settings torn": ([*DIGITS, "--settings", "torn.yaml"], "line"),
}


def explained(capsys) -> str:
    """The one line on stderr."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("datafree: ")]
    assert len(lines) == 1
    assert "Remedy: " in lines[0]
    return lines[0]


@pytest.mark.parametrize("case", TABLE)
def test_bad_input_is_refused(case, here, capsys):
    arguments, needle = TABLE[case]
    assert main([*arguments, "--quiet", "--out", "new/out"]) == 2
    assert needle in explained(capsys)
    assert not (here / "new").exists(), "a refused job leaves nothing behind"
    assert not (here / "evil_ran").exists()


@pytest.mark.parametrize(
    ("out", "needle"),
    [
        ("a_file", "it is a file"),
        ("a_file/out", "Not a directory"),
        ("full", "not empty"),
        ("/proc/nowhere", "/proc/nowhere"),
    ],
)
def test_a_folder_that_cannot_be_ours_is_refused(out, needle, here, capsys):
    assert main(["compress", "bundled:digits", "--quiet", "--out", out]) == 2
    assert needle in explained(capsys)
    assert (here / "full" / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["compress", "bundled:digits"], "--out"),
        (["compress", "--out", "new"], "no model"),
        (["evaluate", "full", "--data", "a_file"], "holds no run"),
        (["evaluate", "full"], "--data"),
        (["report", "full"], "ledger.jsonl"),
        (["export", "bundled:digits"], "--out"),
        (["export", "bundled:digits", "--out", "x.tflite"], ".onnx"),
        (["list", "prun"], "did you mean 'prune'"),
        (["show", "squamt"], "did you mean 'squant'"),
        (["show", "prune/squant"], "squant"),
        (["compres"], "compres"),
    ],
)
def test_other_commands_refuse_alike(arguments, needle, here, capsys):
    assert main(arguments) == 2
    assert needle in explained(capsys)


def test_refusals_are_json_where_json_was_asked_for(here, capsys):
    assert main([*DIGITS, "--weights", "9", "--json", "--out", "new"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["exit_code"] == 2
    assert set(found["error"]) == {"what", "why", "remedy"}


def test_dead_negative_and_constant_channels_are_no_obstacle(here, capsys):
    assert main(["compress", "nets_of_mine:Dead", *EATS, "--prune", "0.25", "--quiet", "--out", "dead"]) == 0
    assert "1 of 8 channels" in _doctor(capsys, "nets_of_mine:Dead") or "2 of 8 channels" in _doctor(
        capsys, "nets_of_mine:Dead"
    )


def _doctor(capsys, model: str) -> str:
    capsys.readouterr()
    assert main(["doctor", model, *EATS]) == 0
    return capsys.readouterr().out


def test_our_own_fault_has_code_1_and_keeps_its_trace(here, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a fault\nof ours")

    monkeypatch.setattr("datafree.evaluate.compare.cost", fail)
    assert main(["compress", "bundled:digits", "--quiet", "--out", "out"]) == 1
    line = explained(capsys)
    assert "a fault of ours" in line
    trace = Path(line.split("its trace is in ")[1].split(". Remedy")[0])
    assert "RuntimeError" in trace.read_text()
    trace.unlink()
    assert "compare with the original" in write_report(here / "out").read_text(), "what was done so far is reported"


def test_an_interrupt_has_code_130(here, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("datafree.api.compression.open_model", interrupt)
    assert main(["compress", "bundled:digits", "--quiet", "--out", "out"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_an_interrupt_says_what_is_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt), resumable(tmp_path):
        raise KeyboardInterrupt
    for name in ("reconstructed/00000-0123456789ab", "reconstructed/00001-0123456789ab", "trained/0123456789ab"):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with pytest.raises(Interrupted, match=r"2 blocks, 1 training$"), resumable(tmp_path):
        raise KeyboardInterrupt


def test_a_full_disk_leaves_no_half_of_a_file(here):
    """No file may grow beyond 40 kB here, as if the disk were full: the settings fit, the graphs do not."""

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    command = [sys.executable, "-m", "datafree", "compress", "bundled:digits", "--quiet", "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=little_room)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "was not written" in done.stderr
    left = {path.name for path in (here / "out").iterdir()}
    assert left <= {"settings.yaml", "ledger.jsonl"}
