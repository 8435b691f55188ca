"""What PIE-Bench's runner asks the server for, what it stores, and what it does when things go
wrong."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from PIL import Image

from bench.methods import Settings
from bench.pie import __main__ as command
from bench.pie import editing, toyset
from bench.pie.dataset import Entry, PieError, read
from bench.pie.editing import Plan, Runner, asked, prepared
from bench.pie.store import Store
from tools.client import Client, Graph, Interrupted, JobFailed, Result, ServerError

PLAN = Plan(
    "direct", "p2p_blend", Settings(steps=4, mode="refine", cross_end=0.4, self_end=0.6), 2.0, 128
)
NOWHERE = pathlib.Path("nowhere.png")


def entry(
    source: str = "a cat, sitting", target: str = "a dog, sitting", words: str = "cat dog"
) -> Entry:
    return Entry("0", NOWHERE, source, target, "", "1", tuple(words.split()), ())


# -- what is asked for
# -------------------------------------------------------------------------------------


def test_blend_words_are_the_sources_and_the_targets_and_the_second_is_weighted() -> None:
    wish = asked(entry(), PLAN, "cat.png")
    assert (wish.case.blend_words, wish.case.weights, wish.control, wish.note) == (
        "source: cat, target: dog",
        "dog: 2",
        "p2p_blend",
        "",
    )
    assert asked(entry(words="sitting sitting"), PLAN, "").case.blend_words == (
        "source: sitting, target: sitting"
    )


def test_without_blend_words_it_is_plain_p2p() -> None:
    wish = asked(entry(words=""), PLAN, "")
    assert (wish.control, wish.case.blend_words, wish.case.weights) == ("p2p", "", "")
    assert wish.note == "no blend words"


def test_words_that_do_not_occur_are_left_out_and_told() -> None:
    wish = asked(entry(words="cat wolf"), PLAN, "")
    assert (wish.case.blend_words, wish.case.weights, wish.note) == (
        "source: cat",
        "",
        "not in the prompts: wolf",
    )
    wish = asked(entry(words="fox wolf"), PLAN, "")
    assert (wish.control, wish.note) == ("p2p", "not in the prompts: fox, wolf; no blend words")


def test_a_word_of_the_source_alone_is_not_weighted_in_the_target() -> None:
    assert asked(entry(words="cat cat"), PLAN, "").case.weights == ""


def test_the_weight_belongs_to_prompt_to_prompt_and_can_be_left_out() -> None:
    assert asked(entry(), dataclasses.replace(PLAN, word_weight=1.0), "").case.weights == ""
    assert asked(entry(), dataclasses.replace(PLAN, control="masactrl"), "").case.weights == ""


def test_parentheses_are_text() -> None:
    case = asked(entry(target="a dog (big) sitting"), PLAN, "").case
    assert case.target == "a dog \\(big\\) sitting"


def test_the_commands_defaults_are_those_of_the_reference() -> None:
    plan = command.plan_of(
        command.parser().parse_args(["folder", "--checkpoint", "sd14.safetensors"])
    )
    settings = plan.settings
    assert (settings.cfg, settings.steps, settings.mode) == (7.5, 50, "refine")
    assert (settings.cross_end, settings.self_end, settings.self_limit, plan.word_weight) == (
        0.4,
        0.6,
        0.25,
        2.0,
    )
    assert (plan.method, plan.control, plan.size, plan.checkpoint) == (
        "direct",
        "p2p_blend",
        512,
        "sd14.safetensors",
    )


@pytest.mark.parametrize("wrong", [["--size", "100"], ["--steps", "0"], ["--limit", "0"]])
def test_numbers_that_no_model_takes_are_refused(wrong: list[str]) -> None:
    with pytest.raises(PieError, match="expected --"):
        command.plan_of(command.parser().parse_args(["folder", *wrong]))


def test_a_picture_is_cut_to_its_middle_square(tmp_path: pathlib.Path) -> None:
    picture = Image.new("RGB", (768, 512), "red")
    picture.paste("blue", (128, 0, 640, 512))
    picture.save(tmp_path / "wide.png")
    made = prepared(dataclasses.replace(entry(), picture=tmp_path / "wide.png"), 512)
    assert made.size == (512, 512) and made.getcolors() == [(512 * 512, (0, 0, 255))]


def test_at_a_smaller_size_a_pixel_is_edited_when_any_that_it_stands_for_is(
    tmp_path: pathlib.Path,
) -> None:
    runs = (512 * 203 + 77, 1)
    Image.new("RGB", (512, 512)).save(tmp_path / "source.png")
    one = dataclasses.replace(entry(), picture=tmp_path / "source.png", runs=runs)
    store = Store(tmp_path / "out", {})
    store.keep("0", Image.new("RGB", (128, 128)))
    mask = command.pair_of(one, store, 128).mask
    assert mask[203 // 4, 77 // 4] and mask[1:-1, 1:-1].sum() == 1
    assert mask[0].all() and mask[-1].all() and mask[:, 0].all() and mask[:, -1].all()
    with pytest.raises(PieError, match=r"expected 512 x 512 pixels in .*0\.png, got \(128, 128\)"):
        command.pair_of(one, store, 512)


# -- the store
# ---------------------------------------------------------------------------------------------


def test_a_case_is_done_when_it_has_its_picture_and_its_line(tmp_path: pathlib.Path) -> None:
    store = Store(tmp_path, {"cfg": 7.5})
    store.keep("a", Image.new("RGB", (8, 8)), rows=3.0)
    store.fail("b", "refused")
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")  # killed between picture and line
    again = Store(tmp_path, {"cfg": 7.5})
    assert [again.done(name) for name in "abc"] == [True, False, False]
    assert [again.failed(name) for name in "abc"] == [False, True, False]
    again.picture("a").unlink()
    assert not again.done("a")
    assert not list(tmp_path.glob(".*"))


def test_a_torn_line_is_taken_out_and_the_next_one_is_whole(tmp_path: pathlib.Path) -> None:
    Store(tmp_path, {}).keep("a", Image.new("RGB", (8, 8)))
    with (tmp_path / "cases.jsonl").open("a") as file:
        file.write('{"id": "b", "ro')
    store = Store(tmp_path, {})
    assert set(store.records) == {"a"}
    store.keep("b", Image.new("RGB", (8, 8)))
    assert [
        json.loads(line)["id"] for line in (tmp_path / "cases.jsonl").read_text().splitlines()
    ] == ["a", "b"]


def test_other_settings_are_refused(tmp_path: pathlib.Path) -> None:
    Store(tmp_path, {"cfg": 7.5, "steps": 50})
    with pytest.raises(
        PieError, match=r"holds pictures made with cfg 7\.5, now 3\.0; give another --out"
    ):
        Store(tmp_path, {"cfg": 3.0, "steps": 50})


# -- the runner
# --------------------------------------------------------------------------------------------


class Server:
    """Stands for a client: every graph is answered at once, or as `answers` says; one raised ends
    the run."""

    def __init__(self, **answers: ServerError) -> None:
        self.answers, self.asked = answers, list[str]()

    def system_stats(self) -> dict[str, Any]:
        return {"system": {"comfyui_version": "0.0"}}

    def upload(self, picture: Image.Image, name: str) -> str:
        return name

    def run_all(self, graphs: Iterable[Graph]) -> Iterator[Result | JobFailed]:
        for graph in graphs:
            self.asked.append(graph["image"]["inputs"]["image"])
            error = self.answers.get(f"case{self.asked[-1].removesuffix('.png')[-1]}")
            if error is None:
                control = "p2p_blend" if "p2p_blend" in graph else "p2p"
                texts = {f"{control}.report": ["3.5 UNet rows a step"]}
                yield Result("", images={control: [Image.new("RGB", (128, 128))]}, texts=texts)
            elif isinstance(error, JobFailed):
                yield error
            else:
                raise error


@pytest.fixture
def entries(tmp_path: pathlib.Path) -> list[Entry]:
    toyset.write(tmp_path / "data", 6)
    return read(tmp_path / "data")


def run(server: Server, entries: list[Entry], folder: pathlib.Path) -> Store:
    store = Store(folder, {})
    Runner(server, PLAN, store).run(entries, lambda line: None)  # type: ignore[arg-type]
    return store


def test_all_cases_are_asked_for_and_stored(entries: list[Entry], tmp_path: pathlib.Path) -> None:
    server = Server()
    store = run(server, entries, tmp_path / "out")
    assert all(store.done(one.id) for one in entries)
    assert server.asked == [f"pivot_pie_128_{one.id}.png" for one in entries]
    assert store.records[entries[0].id] == {"id": entries[0].id, "rows": 3.5, "comfyui": "0.0"}
    assert store.records[entries[2].id]["note"] == "no blend words"


def test_a_refused_case_is_stored_and_the_others_go_on(
    entries: list[Entry], tmp_path: pathlib.Path
) -> None:
    store = run(
        Server(case1=JobFailed("too long", "pair", "PivotPromptPair")), entries, tmp_path / "out"
    )
    assert store.failed(entries[1].id) and sum(store.done(one.id) for one in entries) == 5
    assert store.records[entries[1].id]["error"] == "node pair (PivotPromptPair): too long"


def test_a_damaged_picture_is_stored_as_failed(
    entries: list[Entry], tmp_path: pathlib.Path
) -> None:
    for one in (entries[0], entries[5]):
        one.picture.write_bytes(b"no picture")
    store = run(Server(), entries, tmp_path / "out")
    assert "cannot be read" in store.records[entries[5].id]["error"]
    assert [store.done(one.id) for one in entries] == [False, True, True, True, True, False]


@pytest.mark.parametrize(
    "error", [ServerError("it is gone"), Interrupted("interrupted", "edit", "PivotEditSampler")]
)
def test_a_server_that_stops_ends_the_run_and_nothing_is_blamed(
    entries: list[Entry], tmp_path: pathlib.Path, error: ServerError
) -> None:
    with pytest.raises(type(error)):
        run(Server(case2=error), entries, tmp_path / "out")
    assert list(Store(tmp_path / "out", {}).records) == [entries[0].id, entries[1].id]


def test_an_unknown_checkpoint_is_refused_before_the_run() -> None:
    class Declared(Client):
        def object_info(self, node_class: str = "") -> dict[str, Any]:
            return {node_class: {"input": {"required": {"ckpt_name": [["sd14.safetensors"]]}}}}

    with Declared("http://127.0.0.1:1") as client:
        editing.check_checkpoint(client, "sd14.safetensors")
        editing.check_checkpoint(client, "")
        with pytest.raises(
            PieError, match=r"no checkpoint other; the server offers sd14\.safetensors"
        ):
            editing.check_checkpoint(client, "other")


def test_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "stop_on_signals", lambda: None)
    assert command.main(["/nowhere"]) == 1
    said = capsys.readouterr()
    assert (
        said.err == "error: no mapping_file.json in /nowhere; give the benchmark's folder\n"
        and not said.out
    )
