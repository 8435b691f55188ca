"""Writes `workflows/*.json`, what the web page opens, from `workflows/api/*.json`, what the API
takes.

`python -m bench.workflows` needs ComfyUI for the nodes' declarations;
`tests/host/test_workflows.py` checks that both forms say the same. Nodes are placed in columns by
their distance from the inputs.
"""

from __future__ import annotations

import asyncio
import json
import pathlib
from typing import Any

from tools import install
from tools.pack import part

Graph = dict[str, dict[str, Any]]
API = install.ROOT / "workflows" / "api"
COLUMN, GAP, ROW, HEAD = 340, 40, 26, 60
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def declarations() -> dict[str, Any]:
    """The declaration of every node class of this host and of the pack, as `/object_info` gives
    it."""
    install.import_comfy()
    import nodes

    asyncio.run(nodes.init_builtin_extra_nodes())
    classes = {
        **nodes.NODE_CLASS_MAPPINGS,
        **{kind.define_schema().node_id: kind for kind in pack_nodes()},
    }
    return {name: _declaration(kind) for name, kind in classes.items()}


def pack_nodes() -> list[Any]:
    """The pack's node classes."""
    return list(part("nodes").NODES)


def _declaration(kind: Any) -> dict[str, Any]:
    if hasattr(kind, "GET_SCHEMA"):
        kind.GET_SCHEMA()
    groups = kind.INPUT_TYPES()
    inputs = {**groups.get("required", {}), **groups.get("optional", {})}
    outputs = list(kind.RETURN_TYPES)
    return {
        "inputs": inputs,
        "outputs": outputs,
        "names": list(getattr(kind, "RETURN_NAMES", None) or outputs),
    }


def to_page(graph: Graph, known: dict[str, Any]) -> dict[str, Any]:
    """The page's form of an API graph."""
    links: list[list[Any]] = []
    nodes = {
        key: _page_node(key, graph[key], known, place)
        for key, place in _places(graph, known).items()
    }
    for key, node in graph.items():
        for slot, entry in enumerate(nodes[key]["inputs"]):
            value = node["inputs"].get(entry["name"])
            if not _is_link(value):
                continue
            origin, output = value
            entry["link"] = len(links) + 1
            nodes[origin]["outputs"][output]["links"].append(entry["link"])
            links.append([entry["link"], int(origin), output, int(key), slot, entry["type"]])
    return {
        "last_node_id": max(map(int, graph)),
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def to_api(page: dict[str, Any], known: dict[str, Any]) -> Graph:
    """The API form of a page's workflow: the inverse of `to_page`."""
    origin = {link[0]: [str(link[1]), link[2]] for link in page["links"]}
    graph: Graph = {}
    for node in page["nodes"]:
        declared = known[node["type"]]["inputs"]
        widgets = [
            each
            for name in declared
            if _is_widget(declared[name])
            for each in _widgets(name, declared[name])
        ]
        values = dict(zip(widgets, node["widgets_values"], strict=True))
        linked = {entry["name"]: origin[entry["link"]] for entry in node["inputs"] if entry["link"]}
        graph[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": {name: linked.get(name, values.get(name)) for name in declared},
            "_meta": {"title": node["title"]},
        }
    return graph


def _page_node(
    key: str, node: dict[str, Any], known: dict[str, Any], place: list[int]
) -> dict[str, Any]:
    declared = known[node["class_type"]]
    inputs, values = [], []
    for name, spec in declared["inputs"].items():
        value = node["inputs"].get(name)
        if _is_widget(spec):
            shown = _default(spec) if value is None or _is_link(value) else value
            values += [shown, "fixed"][: len(_widgets(name, spec))]
            if _is_link(value):
                inputs.append(
                    {"name": name, "type": _type(spec), "widget": {"name": name}, "link": None}
                )
        else:
            inputs.append({"name": name, "type": _type(spec), "link": None})
    outputs = [
        {"name": name, "type": kind, "links": [], "slot_index": slot}
        for slot, (name, kind) in enumerate(
            zip(declared["names"], declared["outputs"], strict=True)
        )
    ]
    return {
        "id": int(key),
        "type": node["class_type"],
        "title": node["_meta"]["title"],
        "pos": place,
        "size": [COLUMN - GAP, _height(node, known)],
        "flags": {},
        "order": int(key) - 1,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": {"Node name for S&R": node["class_type"]},
        "widgets_values": values,
    }


def _places(graph: Graph, known: dict[str, Any]) -> dict[str, list[int]]:
    """Positions in pixels: a column for each distance from the start, nodes below each other."""
    below: dict[int, int] = {}
    places = {}
    for key in sorted(graph, key=int):
        column = _depth(graph, key)
        top = below.get(column, 0)
        places[key] = [column * COLUMN, top]
        below[column] = top + _height(graph[key], known) + HEAD
    return places


def _depth(graph: Graph, key: str) -> int:
    origins = [value[0] for value in graph[key]["inputs"].values() if _is_link(value)]
    return 1 + max((_depth(graph, origin) for origin in origins), default=-1)


def _height(node: dict[str, Any], known: dict[str, Any]) -> int:
    declared = known[node["class_type"]]
    tall = sum(
        5 for spec in declared["inputs"].values() if len(spec) > 1 and spec[1].get("multiline")
    )
    picture = 10 if node["class_type"] in ("LoadImage", "PivotCompare") else 0
    return ROW * (1 + tall + picture + len(declared["inputs"]) + len(declared["outputs"]))


def _is_link(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )


def _type(spec: Any) -> str:
    return "COMBO" if isinstance(spec[0], list) else str(spec[0])


def _is_widget(spec: Any) -> bool:
    return _type(spec) in WIDGETS and not (len(spec) > 1 and spec[1].get("forceInput"))


def _widgets(name: str, spec: Any) -> list[str]:
    """The widgets that the page makes of an input: a seed has a second one, what becomes of it
    after a run."""
    controlled = len(spec) > 1 and spec[1].get("control_after_generate")
    return [name, f"{name} afterwards"] if controlled else [name]


def _default(spec: Any) -> Any:
    return spec[1].get("default", "") if len(spec) > 1 else ""


def write(path: pathlib.Path, known: dict[str, Any]) -> pathlib.Path:
    """Write the page's form of one API file beside the `api` folder; returns its path."""
    page = to_page(json.loads(path.read_text()), known)
    target = path.parent.parent / path.name
    target.write_text(json.dumps(page, indent=2) + "\n")
    return target


if __name__ == "__main__":
    all_known = declarations()
    for source in sorted(API.glob("*.json")):
        print(write(source, all_known).relative_to(install.ROOT))
