"""`datafree synthesize`: a pack made, gone on with, shared among processes, harmed, and used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from datafree.api import make_pack
from datafree.cli import main
from datafree.export import export_pt2
from datafree.graph import ModelGraph
from datafree.graph.doors import open_model
from datafree.pack import open_pack
from datafree.recipes.settings import from_yaml
from datafree.run import read_ledger
from datafree.spec import InputSpec
from datafree.synthesize import DEFAULT
from datafree.synthesize.gaussian import Gaussian

JOB = ["synthesize", "bundled:digits", "--synthesizer", "gaussian", "--set", "batch=8"]
NETS = """
import torch
from torch import nn

def build(eats=1, classes=7, size=16):
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(eats, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, classes))

def colours():
    return build(3)

def maps():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
"""
EATS = ["--input", "1,16,16", "--mean", "0.3051", "--std", "0.3189"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A finished pack of 20 images in 3 batches. Tests that change it copy it first."""
    out = tmp_path_factory.mktemp("made") / "pack"
    assert main([*JOB, "--count", "20", "-q", "-o", str(out)]) == 0
    return out


@pytest.fixture
def pack(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "pack")
    return tmp_path / "pack"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    (tmp_path / "nets_of_packs.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def again(folder: Path, *more: str, count: int = 20) -> int:
    return main([*JOB, "--count", str(count), "-q", "-o", str(folder), *more])


def contents(folder: Path) -> dict[str, bytes]:
    """What a pack is: its files but for the ledger, and its description but for how it was called."""
    files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    about = {key: value for key, value in json.loads(files["pack.json"]).items() if key != "command"}
    kept = {name: held for name, held in files.items() if "ledger" not in name}
    return {**kept, "pack.json": json.dumps(about).encode()}


def explained(capsys) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("datafree: ")]
    assert "Remedy: " in line
    return line


def test_a_pack_is_whole_and_says_where_it_comes_from(made):
    names = {"settings.yaml", "ledger.jsonl", "pack.json", "soft_labels.safetensors", "contact_sheet.png", "images"}
    assert {path.name for path in made.iterdir()} == names
    pack = open_pack(made)
    assert len(pack) == 20
    assert pack.images.shape == (20, 1, 16, 16)
    assert [shard["images"] for shard in pack.about["shards"]] == [8, 8, 4]
    image, answer = pack[3]
    assert torch.equal(image, pack.images[3])
    assert answer.shape == (10,)
    assert torch.equal(torch.cat(list(pack.batches(7))), pack.images)
    assert [len(batch) for batch in pack.batches(7)] == [7, 7, 6]
    (teacher,) = pack.about["teachers"]
    assert teacher["model"] == "bundled:digits"
    assert len(teacher["weights_sha256"]) == 64
    assert teacher["statistics"]["loss"] == pytest.approx(teacher["statistics"]["noise"], rel=0.2), "it is noise"
    assert len(teacher["statistics"]["layers"]) == 9
    assert pack.about["method"]["name"] == "gaussian"
    assert pack.about["seed"] == 0
    assert "torch" in pack.about["made_with"]
    assert Image.open(made / "contact_sheet.png").size == (5 * 98 + 2, 4 * 98 + 2), "20 images of 16 pixels, times 6"


def test_soft_labels_are_what_the_teacher_answers(made):
    pack = open_pack(made)
    assert torch.allclose(pack.logits(), open_model("bundled:digits")(pack.images), atol=1e-4)
    with pytest.raises(ValueError, match="not 1"):
        pack.logits(1)


def test_the_same_command_makes_the_same_pack(made, pack):
    assert again(pack) == 0
    assert contents(pack) == contents(made)
    (entry,) = [entry for entry in read_ledger(pack / "ledger.jsonl") if entry["event"] == "synthesized"]
    assert entry["found"] == 3


def test_processes_make_the_pack_that_one_would(made, tmp_path):
    pack = tmp_path / "pack"
    job = {"count": 20, "synthesizer": "gaussian", "batch": 8, "world": 2}
    assert make_pack("bundled:digits", pack, rank=1, **job) is None
    assert not (pack / "pack.json").exists()
    assert len(list((pack / "images").iterdir())) == 1
    assert make_pack("bundled:digits", pack, rank=0, **job) is not None
    assert contents(pack) == contents(made)
    assert (pack / "ledger.1.jsonl").is_file()


def test_a_later_call_finds_the_parts_of_processes_that_are_gone(made, tmp_path, monkeypatch):
    pack = tmp_path / "pack"
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert again(pack) == 0
    assert not (pack / "pack.json").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert again(pack) == 0
    assert contents(pack) == contents(made)


def test_processes_at_once_neither_wait_nor_quarrel(made, tmp_path):
    command = [sys.executable, "-m", "datafree", *JOB, "--count", "20", "-q", "--json", "-o", str(tmp_path / "pack")]
    place = [{**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for env in place]
    said = [json.loads(process.communicate()[0]) for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert any("shards" in document for document in said), "whoever was last finished the pack"
    assert {path.name for path in (tmp_path / "pack").iterdir()} == {
        *(p.name for p in made.iterdir()),
        "ledger.1.jsonl",
    }
    assert torch.equal(open_pack(tmp_path / "pack").images, open_pack(made).images)


def test_threads_are_part_of_the_settings(made, pack, tmp_path, capsys):
    before = torch.get_num_threads()
    assert again(pack, "--threads", str(before + 1)) == 2
    assert "other settings" in explained(capsys)
    assert again(tmp_path / "new", "--threads", str(before + 1)) == 0
    assert open_pack(tmp_path / "new").about["threads"] == before + 1
    assert torch.get_num_threads() == before, "put back"
    assert again(tmp_path / "new", count=30) == 0, "going on takes the number the pack was begun with"
    assert open_pack(tmp_path / "new").about["threads"] == before + 1


def test_a_method_that_refuses_a_teacher_leaves_the_folder_free_for_another(here, capsys):
    job = ["synthesize", "nets_of_packs:maps", *EATS, "--count", "4", "-q", "-o", "out"]
    assert main(job) == 2
    assert "no BatchNorm" in explained(capsys)
    assert main([*job, "--synthesizer", "gaussian"]) == 0


def test_more_images_enlarge_a_pack_and_fewer_do_not_shrink_it(made, pack, capsys):
    assert again(pack, count=30) == 0
    assert torch.equal(open_pack(pack).images[:16], open_pack(made).images[:16])
    assert len(open_pack(pack)) == 30
    assert len(list((pack / "images").iterdir())) == 4, "the short last batch of before is gone"
    assert again(pack, count=8) == 2
    assert "30 images already" in explained(capsys)
    assert len(open_pack(pack)) == 30


@pytest.mark.parametrize("name", ["images", "soft_labels.safetensors", "pack.json", "contact_sheet.png"])
def test_what_is_damaged_is_refused_and_then_made_again(made, pack, name, capsys):
    path = sorted((pack / "images").iterdir())[1] if name == "images" else pack / name
    path.write_bytes(path.read_bytes()[:-40])
    if name in ("images", "pack.json"):
        assert main(["compress", "bundled:digits", "--images", str(pack), "-q", "-o", str(pack.parent / "x")]) == 2
        assert path.name in explained(capsys)
    if name != "contact_sheet.png":
        with pytest.raises(Exception, match=r"is damaged|cannot be read"):
            _ = open_pack(pack).images, open_pack(pack).logits()
    assert again(pack) == 0
    assert contents(pack) == contents(made)
    notes = [entry["text"] for entry in read_ledger(pack / "ledger.jsonl") if entry["event"] == "note"]
    assert len(notes) == (name == "images")


def test_other_settings_do_not_overwrite_a_pack(made, pack, capsys):
    assert again(pack, "--seed", "1") == 2
    assert "other settings" in explained(capsys)
    assert contents(pack) == contents(made)
    assert again(pack, "--seed", "1", "--force") == 0
    assert not torch.equal(open_pack(pack).images, open_pack(made).images)
    assert len(list((pack / "images").iterdir())) == 3


def test_an_interrupt_keeps_what_is_made_and_says_how_to_go_on(made, tmp_path, capsys, monkeypatch):
    whole, calls = Gaussian.synthesize, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, *args)

    monkeypatch.setattr(Gaussian, "synthesize", interrupted)
    pack = tmp_path / "pack"
    assert again(pack) == 130
    line = explained(capsys)
    assert "2 batches" in line
    assert "same command" in line
    with pytest.raises(Exception, match="no finished pack"):
        open_pack(pack)
    assert again(pack) == 0
    assert len(calls) == 5, "one batch was missing; the other call is the noise that its loss is compared with"
    assert contents(pack) == contents(made)


def test_out_of_time_there_is_a_smaller_pack_that_can_be_enlarged(made, tmp_path, monkeypatch, capsys):
    pack = tmp_path / "pack"
    with monkeypatch.context() as patch:
        patch.setattr("datafree.run.run.Run.seconds_left", lambda self: 0.0)
        assert again(pack, "--minutes", "1") == 0
    assert "Time was up after 1 of 3 batches" in capsys.readouterr().out
    assert len(open_pack(pack)) == 8
    assert again(pack) == 0
    assert torch.equal(open_pack(pack).images, open_pack(made).images)


def test_several_teachers_answer_each(here, capsys):
    job = ["synthesize", "bundled:digits", "nets_of_packs:build", "--synthesizer", "gaussian", *EATS]
    assert main([*job, "--count", "4", "-q", "--json", "-o", "two"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [teacher["model"] for teacher in found["teachers"]] == ["bundled:digits", "nets_of_packs:build"]
    pack = open_pack("two")
    assert pack.about["teachers"][1]["inputs"]["mean"] == [0.3051]
    assert pack.logits(0).shape == (4, 10)
    assert pack.logits(1).shape == (4, 7)


def test_each_teacher_may_be_told_its_own_input(here):
    job = ["synthesize", "bundled:digits", "nets_of_packs:build", "--synthesizer", "gaussian", "--input", "-"]
    own = ["--input", "1,16,16", "--mean", "-", "--mean", "0.5", "--std", "-", "--std", "0.25"]
    assert main([*job, *own, "--count", "4", "-q", "-o", "two"]) == 0
    pack = open_pack("two")
    assert [teacher["inputs"]["mean"] for teacher in pack.about["teachers"]] == [[0.3051], [0.5]]
    assert pack.inputs.mean == (0.3051,)
    pixels = pack.images * pack.inputs.std[0] + pack.inputs.mean[0]
    student = open_model("nets_of_packs:build", inputs={"shape": (1, 16, 16), "mean": (0.5,), "std": (0.25,)})
    assert torch.allclose(pack.logits(1), student((pixels - 0.5) / 0.25), atol=1e-4)


def test_a_network_of_no_logits_and_no_statistics_is_served(here, capsys):
    job = ["synthesize", "nets_of_packs:maps", "--synthesizer", "gaussian", *EATS, "--count", "4", "-o", "maps"]
    assert main([*job, "-q"]) == 0
    assert "no BatchNorm" in capsys.readouterr().out
    pack = open_pack("maps")
    assert pack.about["teachers"][0]["statistics"]["loss"] is None
    with pytest.raises(Exception, match="no soft labels"):
        pack.logits()


TABLE = {
    "no model": (["synthesize", "-o", "new"], "no model"),
    "no folder": (["synthesize", "bundled:digits"], "--out"),
    "count": ([*JOB, "-o", "new", "--count", "0"], "--count 0"),
    "minutes": ([*JOB, "-o", "new", "--minutes", "-1"], "-1"),
    "method": (["synthesize", "bundled:digits", "-o", "new", "--synthesizer", "gausian"], "did you mean 'gaussian'"),
    "setting": ([*JOB, "-o", "new", "--set", "bach=3"], "did you mean 'batch'"),
    "value": ([*JOB, "-o", "new", "--set", "batch=0"], "batch = 0"),
    "job's own": ([*JOB, "-o", "new", "--set", "seed=3"], "--seed"),
    "device": ([*JOB, "-o", "new", "--device", "quantum"], "quantum"),
    "sizes": (["synthesize", "bundled:digits", "nets_of_packs:colours", "--input", "3,16,16", "--mean", "0",
               "--std", "1", "-o", "new"], "--input"),
    "checkpoints": ([*JOB, "-o", "new", "--checkpoint", "-", "--checkpoint", "-"], "2 checkpoints do not fit 1"),
    "means": ([*JOB, "-o", "new", "--mean", "0", "--mean", "1"], "--mean stands 2 times for 1 model"),
    "threads": ([*JOB, "-o", "new", "--threads", "0"], "--threads 0"),
    "no checkpoint": ([*JOB, "-o", "new", "--checkpoint", "none.pt"], "none.pt"),
    "file": ([*JOB, "-o", "nets_of_packs.py"], "it is a file"),
    "rights": ([*JOB, "-o", "/proc/nowhere"], "/proc/nowhere"),
    "no pack": (["compress", "bundled:digits", "--images", "nowhere", "-o", "new"], "no finished pack"),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_bad_input_is_refused(case, here, capsys):
    arguments, needle = TABLE[case]
    assert main([*arguments, "-q"]) == 2
    assert needle in explained(capsys)
    assert not (here / "new").exists(), "a refused job leaves nothing behind"


def test_teachers_of_other_sizes_are_refused(here, capsys):
    small = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).eval()
    spec = InputSpec(shape=(1, 8, 8), mean=(0.0,), std=(1.0,))
    export_pt2(ModelGraph.trace(small, spec), here / "small.pt2")
    assert main([*JOB, "small.pt2", "--mean", "0", "--std", "1", "-q", "-o", "new"]) == 2
    line = explained(capsys)
    assert "[1, 16, 16]" in line
    assert "[1, 8, 8]" in line


@pytest.mark.parametrize("environment", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "first", "WORLD_SIZE": "2"}])
def test_a_process_that_does_not_know_its_place(environment, here, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert again(here / "new") == 2
    assert "process" in explained(capsys)


HOSTILE = {
    "no object": "[1, 2]",
    "another format": '{"format": "tar"}',
    "escaping file": None,
    "numbers that do not add up": None,
    "infinite std": None,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_pack_json_that_says_what_cannot_be(case, pack, capsys):
    path = pack / "pack.json"
    about = json.loads(path.read_text())
    if case == "escaping file":
        about["shards"][0]["file"] = "images/../../secret.safetensors"
    elif case == "numbers that do not add up":
        about["images"] = 10**12
    elif case == "infinite std":
        about["inputs"]["std"] = [0.0]
    path.write_text(HOSTILE[case] or json.dumps(about))
    assert main(["compress", "bundled:digits", "--images", str(pack), "-q", "-o", str(pack.parent / "out")]) == 2
    assert "pack.json cannot be read" in explained(capsys)
    assert again(pack) == 0, "made anew from the shards that are there"
    assert len(open_pack(pack)) == 20


def test_a_full_disk_loses_nothing(made, tmp_path):
    """No file may grow beyond 8 kB here, as if the disk were full: the settings fit, a batch does not."""
    import resource

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))

    command = [sys.executable, "-m", "datafree", *JOB, "--count", "20", "-q", "-o", str(tmp_path / "pack")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=little_room)
    assert done.returncode == 2, done.stderr
    assert "was not written" in done.stderr
    assert "Traceback" not in done.stderr
    assert again(tmp_path / "pack") == 0
    assert contents(tmp_path / "pack") == contents(made)


def test_the_help_names_the_default(capsys):
    assert main(["synthesize", "--help"]) == 0
    assert f"{DEFAULT} unless said" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_settings_tell_what_was_made(made):
    settings = from_yaml((made / "settings.yaml").read_text())
    assert settings["synthesizer"] == {"name": "gaussian", "batch": 8}
    assert settings["count"] == 20
