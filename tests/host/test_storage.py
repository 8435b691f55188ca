"""Saved inversions: the same edit from a file, found in both folders, and refused where they do not
belong."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import pathlib
import re
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import graphs
import unets
from pivot_edit.core.errors import PivotError
from pivot_edit.core.recipe import Recipe
from pivot_edit.core.storage import write
from pivot_edit.core.trajectory import Trajectory
from pivot_edit.host.tasks import storage
from pivot_edit.host.tasks.editing import edit
from pivot_edit.host.tasks.inversion import invert_latent, with_correction
from pivot_edit.inversion import Ddim, NegativePrompt
from pivot_edit.nodes import PivotEditExtension
from pivot_edit.nodes.storage import PivotLoadInversion, PivotSaveInversion
from tools.client import Client, Graph, ServerError
from tools.server import Server

NAME = "pivot/inversion_00001_.safetensors [output]"


@pytest.fixture(scope="module", params=["SD15", "SDXL"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Any:
    return unets.build(kind, shallow=True)


@pytest.fixture(scope="module")
def texts(kind: str) -> dict[str, Any]:
    return {
        name: unets.conditioning(kind, seed)
        for seed, name in enumerate(("source", "target", "negative"))
    }


@pytest.fixture(scope="module")
def trajectory(model: Any, texts: dict[str, Any]) -> Trajectory:
    with torch.inference_mode():
        made = invert_latent(
            model, unets.latent(8, 16), texts["source"], 3, "reference", Ddim(), False
        )[0]
        return with_correction(made, NegativePrompt(interpolation=0.25))


@pytest.fixture
def small() -> Trajectory:
    latents = torch.randn(3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return Trajectory(
        torch.tensor([0.0, 1.0, 2.0]).double(), latents, "ddim", "a model", "a text", "a cat"
    )


def test_the_edit_from_a_file_is_the_same_bit_for_bit(folders, model, texts, trajectory) -> None:
    name, report = storage.save(trajectory, storage.PREFIX, False)
    loaded, told = storage.load(name, model, unets.latent(8, 16))
    assert (
        name == NAME and (folders / "output" / "pivot" / "inversion_00001_.safetensors").is_file()
    )
    for text in (report, told):
        assert (
            f"{NAME}, " in text and "3 steps, ddim, cfg 1, negative_prompt, latent 1x4x8x16" in text
        )
    assert "full precision, saved by Pivot Edit " in told
    before, after = (
        edit(model, one, **texts, cfg=5.0, correction="auto") for one in (trajectory, loaded)
    )
    assert torch.equal(before[0]["samples"], after[0]["samples"])
    assert torch.equal(before[1]["samples"], after[1]["samples"])
    assert before[2] == after[2] and "negative_prompt" in after[2]


def test_half_precision_says_what_it_costs(folders, small) -> None:
    name, report = storage.save(small, storage.PREFIX, True)
    loaded, told = storage.load(name)
    error = float((loaded.latents - small.latents).norm() / small.latents.norm())
    assert (
        report.endswith(f"half precision, relative error of latents {error:.1e}")
        and 1e-4 < error < 5e-4
    )
    assert "half precision" in told
    nulls = torch.randn(2, 1, 5, 6, generator=torch.Generator().manual_seed(1))
    optimised = dataclasses.replace(small, extras={"nulls": nulls})
    assert ", relative error of nulls 2" in storage.save(optimised, storage.PREFIX, True)[1]


def test_every_save_takes_the_next_number(folders, small) -> None:
    names = [storage.save(small, "kept", False)[0] for _ in range(3)]
    assert names == [f"kept_0000{i}_.safetensors [output]" for i in (1, 2, 3)]
    assert sorted(path.name for path in (folders / "output").iterdir()) == [
        name[:-9] for name in names
    ]


@pytest.mark.parametrize(
    ("prefix", "stem"),
    [
        ("", "inversion"),
        (".", "inversion"),
        ("deep/..", "inversion"),
        ("pivot/", "pivot/inversion"),
        ("pivot//", "pivot/inversion"),
        ("deep/er/", "deep/er/inversion"),
        ("%width%/", "64/inversion"),
    ],
)
def test_a_prefix_without_a_last_part_names_a_folder(folders, small, prefix, stem) -> None:
    names = [storage.save(small, prefix, False)[0] for _ in range(3)]
    assert names == [f"{stem}_0000{i}_.safetensors [output]" for i in (1, 2, 3)]
    assert storage.listed() == names


def test_a_number_that_another_process_takes_is_not_taken_again(
    folders, small, monkeypatch
) -> None:
    """ComfyUI counts the files; before this save is written another one has the number."""
    first = storage.save(small, "kept", False)[0]
    counted = (str(folders / "output"), "kept", 1, "", "kept")
    monkeypatch.setattr("folder_paths.get_save_image_path", lambda *args: counted)
    assert storage.save(small, "kept", False)[0] == "kept_00002_.safetensors [output]"
    assert storage.load(first)[0].prompt == "a cat"


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("x" * 300, r"a name that the file system can hold, but got 'xxx.*File name too long"),
        ("x" * 240, "a name that the file system can hold"),
        ("x" * 300 + "/kept", "a name that the file system can hold"),
        ("a.txt/kept", "folders on the way to the file, but got 'a.txt/kept': Not a directory"),
        ("a.txt/deep/kept", "folders on the way to the file"),
        ("a.txt/", "A file has that name: choose another one"),
        ("full/kept", "a folder that can be used, but got 'full/kept': No space left"),
    ],
)
def test_what_the_file_system_refuses_is_explained(
    folders, small, monkeypatch, prefix, message
) -> None:
    (folders / "output" / "a.txt").touch()
    (folders / "output" / "full").mkdir()

    def fsync(number: int) -> None:
        if prefix.startswith("full"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(PivotError, match=message) as caught:
        storage.save(small, prefix, False)
    assert caught.value.where == storage.SAVE
    assert [path for path in (folders / "output").rglob("*") if path.is_file()] == [
        folders / "output" / "a.txt"
    ]


def test_a_start_clears_what_a_killed_save_left(folders) -> None:
    (folders / "output" / "deep").mkdir()
    left = folders / "output" / "deep" / f".{'0' * 32}.part"
    left.touch()
    os.utime(left, (0, 0))
    asyncio.run(PivotEditExtension().on_load())
    assert not left.exists()


def test_a_prompt_of_its_own_takes_the_remembered_ones_place(folders, small) -> None:
    kept, own = (
        storage.load(storage.save(small, "kept", False, text)[0])[0] for text in ("", "a dog")
    )
    assert (kept.prompt, own.prompt) == ("a cat", "a dog")


def test_both_folders_are_listed_and_nothing_else(folders, small, tmp_path_factory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere / "own.safetensors", small)
    write(folders / "input" / "b.safetensors", small)
    (folders / "input" / "deep" / "er").mkdir(parents=True)
    write(folders / "input" / "deep" / "er" / "a.safetensors", small)
    write(folders / "temp" / "t.safetensors", small)
    (folders / "input" / "c.png").write_bytes(b"picture")
    save_file({"weight": torch.zeros(2)}, folders / "input" / "lora.safetensors", {"format": "pt"})
    (folders / "input" / "empty.safetensors").touch()
    (folders / "input" / "folder.safetensors").mkdir()
    (folders / "output" / "link.safetensors").symlink_to(elsewhere / "own.safetensors")
    (folders / "output" / "linked").symlink_to(elsewhere)
    (folders / "output" / "circle.safetensors").symlink_to("circle.safetensors")
    (folders / "output" / "nothing.safetensors").symlink_to("missing.safetensors")
    saved = storage.save(small, storage.PREFIX, False)[0]
    assert storage.listed() == ["b.safetensors", "deep/er/a.safetensors", saved]
    for name in storage.listed():
        assert storage.load(name)[0].prompt == "a cat"


def test_the_list_follows_the_folders(folders, small) -> None:
    assert storage.listed() == []
    path = folders / "input" / "a.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    assert storage.listed() == []
    path.unlink()
    write(path, small)
    assert storage.listed() == ["a.safetensors"]
    shutil.rmtree(folders / "input")
    assert storage.listed() == []


ESCAPES = [
    "../secret.safetensors",
    "deep/../../secret.safetensors",
    "../secret.safetensors [output]",
    "/etc/passwd",
    "{base}/secret.safetensors",
    "{base}/output/../secret.safetensors [output]",
    "link.safetensors",
    "linked/secret.safetensors",
    "link.safetensors [output]",
    "with\0zero.safetensors",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_a_name_that_leads_out_is_refused_even_if_it_is_an_inversion(folders, small, name) -> None:
    write(folders / "secret.safetensors", small)
    for folder in ("input", "output"):
        (folders / folder / "deep").mkdir()
        (folders / folder / "link.safetensors").symlink_to(folders / "secret.safetensors")
        (folders / folder / "linked").symlink_to(folders)
    name = name.format(base=folders)
    for use in (storage.load, storage.find, storage.stamp):
        with pytest.raises(
            PivotError, match=r"a name inside of .* in Load Inversion\. (Use no absolute|Links)"
        ):
            use(name)
    assert "a name inside of" in PivotLoadInversion.validate_inputs(name)


@pytest.mark.parametrize(
    "name",
    ["", "missing.safetensors", "missing.safetensors [output]", "t.safetensors [temp]", "deep"],
)
def test_a_name_of_no_file_is_refused(folders, small, name) -> None:
    write(folders / "temp" / "t.safetensors", small)
    (folders / "input" / "deep").mkdir()
    with pytest.raises(PivotError, match="which is not there in Load Inversion"):
        storage.load(name)
    assert "which is not there" in PivotLoadInversion.validate_inputs(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "a file's name as text, but got None in Load Inversion"),
        (5, "a file's name as text, but got 5"),
        (["a", "b", "c"], "a file's name as text"),
        ({"a": 1}, "a file's name as text"),
        ("x" * 300, "a name that the file system can hold.*File name too long in Load Inversion"),
        ("x" * 70_000, "a name that the file system can hold"),
        ("a.txt/b.safetensors", "which is not there in Load Inversion"),
        ("\ud800.safetensors", "a file's name of whole characters, but got half of one"),
    ],
)
def test_what_no_file_can_be_called_is_refused(folders, name, message) -> None:
    (folders / "input" / "a.txt").touch()
    for use in (storage.load, storage.find, storage.stamp):
        with pytest.raises(PivotError, match=message):
            use(name)
    assert re.search(message, str(PivotLoadInversion.validate_inputs(name)))


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (None, "filename_prefix as text, but got None in Save Inversion"),
        (["a"], "filename_prefix as text"),
        ("\ud800", "filename_prefix of whole characters"),
    ],
)
def test_a_prefix_is_text(folders, small, prefix, message) -> None:
    with pytest.raises(PivotError, match=message):
        storage.save(small, prefix, False)


def test_a_prompt_of_half_characters_is_not_saved(folders, small) -> None:
    with pytest.raises(PivotError, match="prompt of whole characters.* in Save Inversion"):
        storage.save(small, "kept", False, "a cat \udc80")
    assert not list((folders / "output").iterdir())


@pytest.mark.parametrize(
    "prefix", ["../outside", "/etc/outside", "linked/outside", "a/../../outside", "with\0zero"]
)
def test_nothing_is_saved_outside_of_the_output_folder(folders, small, prefix) -> None:
    (folders / "output" / "linked").symlink_to(folders)
    with pytest.raises(PivotError, match="a name inside of .* in Save Inversion"):
        storage.save(small, prefix, False)
    assert not list(folders.glob("outside*"))


@pytest.mark.parametrize(
    "name", ["big/inv", "deep/big/er/inv", "big", "big/../big/inv", "link/big/inv"]
)
def test_a_link_that_leads_out_is_named_as_one(folders, small, name) -> None:
    """ComfyUI 0.30.0 does not follow it either, and 0.16.3 does."""
    (folders / "disk" / "er").mkdir(parents=True)
    (folders / "output" / "deep").mkdir()
    (folders / "output" / "link").symlink_to("deep")
    for place in ("big", "deep/big"):
        (folders / "output" / place).symlink_to(folders / "disk")
    message = f"'big' is a link to {folders}/disk in Save Inversion.*--output-directory"
    with pytest.raises(PivotError, match=message):
        storage.save(small, f"{name}/x", False)
    with pytest.raises(PivotError, match=f"'big' is a link to {folders}/disk in Load Inversion"):
        storage.load(f"{name}.safetensors [output]" if name != "big" else "big [output]")
    assert not list((folders / "disk").rglob("*.safetensors"))


def test_a_link_outside_of_the_folder_is_not_named(folders, small) -> None:
    (folders / "disk").mkdir()
    (folders / "big").symlink_to(folders / "disk")
    with pytest.raises(PivotError, match="Use no absolute path and no '..'"):
        storage.save(small, "../big/x", False)


def test_links_within_the_folder_and_the_folder_itself_as_a_link_are_followed(
    folders, small, monkeypatch
) -> None:
    (folders / "disk" / "real").mkdir(parents=True)
    (folders / "disk" / "link").symlink_to("real")
    (folders / "big").symlink_to(folders / "disk")
    monkeypatch.setattr("folder_paths.output_directory", str(folders / "big"))
    name = storage.save(small, "link/inv", False)[0]
    assert (folders / "disk" / "real" / "inv_00001_.safetensors").is_file()
    assert storage.load(name)[0].prompt == "a cat"
    with pytest.raises(PivotError, match="Use no absolute path"):
        storage.save(small, "../inv", False)


def test_another_model_is_refused(folders, model, kind, texts, trajectory) -> None:
    name = storage.save(trajectory, storage.PREFIX, False)[0]
    with pytest.raises(
        PivotError, match="the model the inversion was made with .* in Load Inversion"
    ):
        storage.load(name, unets.build(kind, seed=1, shallow=True))
    assert torch.equal(storage.load(name, model)[0].latents, trajectory.latents)


@pytest.mark.parametrize("size", [(8, 8, 1), (16, 8, 1), (8, 16, 2)])
def test_another_size_is_refused(folders, trajectory, size) -> None:
    name = storage.save(trajectory, storage.PREFIX, False)[0]
    with pytest.raises(PivotError, match=r"size \[1, 4, 8, 16\], but got .* in Load Inversion"):
        storage.load(name, latent=unets.latent(*size))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe("sorcery"), "correction to be one of .* but got 'sorcery' in Load Inversion"),
        (
            Recipe("direct", {"strength": 2}),
            "options of direct to be one of .* but got 'strength' in Load Inversion",
        ),
        (
            Recipe("direct", {"scale": "much"}),
            "option scale of direct to be a finite number, but got 'much' in Load Inversion",
        ),
        (Recipe("direct", {"every": 1e30}), "option every of direct to be a whole number"),
        (Recipe("direct", {"scale": 2.0}), "scale between 0 and 1"),
        (Recipe("null_text"), "an inversion with optimised embeddings"),
    ],
)
def test_a_correction_that_cannot_be_is_refused(folders, small, recipe, message) -> None:
    write(folders / "input" / "a.safetensors", dataclasses.replace(small, correction=recipe))
    with pytest.raises(PivotError, match=message):
        storage.load("a.safetensors")


def test_a_step_rule_that_nobody_knows_is_refused(folders, small) -> None:
    stepper = Recipe("ancestral", {"eta": 1.0})
    write(folders / "input" / "a.safetensors", dataclasses.replace(small, stepper=stepper))
    with pytest.raises(PivotError, match="step rule to be one of .*, but got 'ancestral' in Load"):
        storage.load("a.safetensors")


def test_through_the_nodes(folders, trajectory, model) -> None:
    saved = PivotSaveInversion.execute(trajectory, storage.PREFIX, False, "a cat")
    assert saved.args == (trajectory, NAME) and saved.args[0] is trajectory
    assert NAME in saved.ui.as_dict()["text"][0]
    (choice,) = [entry for entry in PivotLoadInversion.define_schema().inputs if entry.id == "file"]
    assert choice.options == [NAME]
    assert PivotLoadInversion.validate_inputs(NAME) is True
    loaded = PivotLoadInversion.execute(NAME, model, unets.latent(8, 16))
    assert torch.equal(loaded.args[0].latents, trajectory.latents)
    assert loaded.args[0].correction == trajectory.correction
    assert loaded.args[1] == "a cat" and loaded.ui.as_dict()["text"] == (loaded.args[2],)


def test_a_changed_file_has_another_fingerprint(folders, small) -> None:
    name = storage.save(small, storage.PREFIX, False)[0]
    first = PivotLoadInversion.fingerprint_inputs(name, model=None)
    assert first == PivotLoadInversion.fingerprint_inputs(name)
    path = storage.find(name)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert first != PivotLoadInversion.fingerprint_inputs(name)


def saving(client: Client, steps: int) -> Graph:
    graph = graphs.starter(client, steps=steps)
    values = {
        "inversion": [graphs.node(graph, "PivotDDIMInversion"), 0],
        "filename_prefix": "api/kept",
    }
    graph["40"] = {
        "class_type": "PivotSaveInversion",
        "inputs": {**values, "half_precision": False},
    }
    return graph


def loading(graph: Graph, name: str) -> Graph:
    """The graph with the file in the inversion's place, and the file's prompt as the source
    prompt."""
    graph = {key: value for key, value in graph.items() if key != "40"}
    graph[graphs.node(graph, "PivotDDIMInversion")] = {
        "class_type": "PivotLoadInversion",
        "inputs": {"file": name, "model": [graphs.node(graph, "PivotToyModel"), 0]},
    }
    graphs.inputs(graph, "PivotPromptPair")["source_prompt"] = [
        graphs.node(graph, "PivotLoadInversion"),
        1,
    ]
    return graph


@pytest.mark.server
def test_saved_in_one_run_and_loaded_in_the_next(client: Client, server: Server) -> None:
    graph = saving(client, 4)
    first = client.run(graph)
    name = first.texts["40"][0].split(",")[0]
    assert (
        name
        in client.object_info("PivotLoadInversion")["PivotLoadInversion"]["input"]["required"][
            "file"
        ][1]["options"]
    )
    again = loading(graph, name)
    second = client.run(again)
    (before,), (after,) = (
        first.images[graphs.node(graph, "PivotCompare")],
        second.images[graphs.node(again, "PivotCompare")],
    )
    assert before.tobytes() == after.tobytes()
    third = client.run(again)
    assert graphs.node(again, "PivotLoadInversion") in third.cached
    path = next(server.base.rglob(pathlib.Path(name.removesuffix(" [output]")).name))
    other = next(
        value for key, value in client.run(saving(client, 5)).texts.items() if key == "40"
    )[0]
    shutil.copy(path.with_name(pathlib.PurePosixPath(other.split(" [")[0]).name), path)
    assert graphs.node(again, "PivotLoadInversion") in client.run(again).executed


@pytest.mark.server
@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "missing.safetensors [output]"]
)
def test_a_bad_name_is_refused_before_anything_runs(client: Client, name: str) -> None:
    with pytest.raises(ServerError, match="a name inside of|which is not there") as caught:
        client.run(loading(saving(client, 4), name))
    assert caught.value.node_class == "PivotLoadInversion"
