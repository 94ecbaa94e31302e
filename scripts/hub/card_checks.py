# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Finds metadata in a model card that the Hub is known to refuse, without asking it."""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from common.errors import UserError


# Identifiers of https://huggingface.co/docs/hub/repositories-licenses. The Hub adds to its list, so an unknown one is
# refused only where it is plainly one of these, spelled otherwise; the Hub itself decides on the rest.
LICENSES = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2
    llama3.3 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql
    unknown unlicense wtfpl zlib
""".split()


class _UniqueKeyLoader(yaml.SafeLoader):
    """The Hub's YAML reader refuses a key that comes twice; Python's takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen and isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem=f"`{key_node.value}` comes twice", problem_mark=key_node.start_mark)
            seen.add(key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node))
        return super().construct_mapping(node, deep)


def check_card(path: Path) -> list[str]:
    """
    Refuses metadata of a README.md that the Hub is known to refuse, and names file, field and fix. Returns remarks on
    metadata that the Hub accepts but that is probably wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}).") from None
    block = REGEX_YAML_BLOCK.search(text)
    if block is None:
        if text.lstrip().startswith("---"):
            raise UserError(f"{path}: the metadata that begins with --- does not end; close it with a line ---.")
        return ["no metadata; the Hub takes it, but shows no license, task or tags"]
    try:
        data = yaml.load(block[2], Loader=_UniqueKeyLoader)  # noqa: S506  a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = block[1].count("\n") + error.problem_mark.line + 1
        raise UserError(f"{path}, line {line}: the metadata is not YAML: {error.problem}.") from None
    if data is None:
        return ["empty metadata; the Hub takes it, but shows no license, task or tags"]
    if not isinstance(data, dict):
        raise UserError(f"{path}: the metadata is a {type(data).__name__}; it must be lines of `field: value`.")
    problems = [*_field_problems(data), *license_problems(data), *_results_problems(data)]
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    remarks = []
    for name in _as_list(data.get("license")):
        if name not in LICENSES:
            remarks.append(f"`license: {name}` is none that this script knows; the Hub has the last word")
    if "other" in _as_list(data.get("license")) and not data.get("license_name"):
        remarks.append("`license: other` goes with a `license_name`, and with a LICENSE file or a `license_link`")
    return remarks


def _as_list(value) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _field_problems(data: dict) -> Iterator[str]:
    for name in ("pipeline_tag", "library_name", "license_name", "license_link", "model_name"):
        if name in data and not (isinstance(data[name], str) and data[name]):
            yield f"`{name}` must be a text, got {data[name]!r}."
    for name in ("license", "base_model", "datasets", "language", "metrics", "tags"):
        if name not in data:
            continue
        if data[name] in (None, "", []):
            yield f"`{name}` is empty; fill it in or delete the line."
        for index, value in enumerate(_as_list(data[name])):
            if not isinstance(value, str):
                yield f"`{name}[{index}]` must be a text, got {value!r}; put it in quotes."
    for name in ("datasets", "base_model"):
        for index, value in enumerate(_as_list(data.get(name))):
            if isinstance(value, str) and value and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", value):
                yield f"`{name}[{index}]` is {value!r}; it must be an id on the Hub, NAME or OWNER/NAME, not a path."
    if "tags" in data and isinstance(data["tags"], str):
        yield "`tags` must be a list, one `- tag` a line."


def license_problems(data: dict) -> Iterator[str]:
    known = {_bare(name): name for name in LICENSES}
    for name in _as_list(data.get("license")):
        if not isinstance(name, str) or name in LICENSES:
            continue
        if _bare(name) in known:
            yield f"`license` is {name!r}, which the Hub does not know; write {known[_bare(name)]!r}."


def _bare(name: str) -> str:
    """Apache-2.0, apache 2.0 and Apache License 2.0 are one."""
    return re.sub(r"license|version|[^a-z0-9+]", "", name.lower())


def _results_problems(data: dict) -> Iterator[str]:
    """`model-index`: the results, whose form the Hub checks closely."""
    index = data.get("model-index", [])
    if not isinstance(index, list):
        yield "`model-index` must be a list, one entry a model."
        return
    for i, model in enumerate(index):
        where = f"model-index[{i}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            yield f"`{where}.name` must be a text."
        if not isinstance(model, dict) or not isinstance(model.get("results"), list):
            yield f"`{where}.results` must be a list."
            continue
        for j, result in enumerate(model["results"]):
            yield from _result_problems(result, f"{where}.results[{j}]")


def _result_problems(result, where: str) -> Iterator[str]:
    if not isinstance(result, dict):
        yield f"`{where}` must have `task`, `dataset` and `metrics`."
        return
    needed = {"task": ("type",), "dataset": ("type", "name")}
    for part, names in needed.items():
        fields = result.get(part)
        for name in names:
            if not isinstance(fields, dict) or not (isinstance(fields.get(name), str) and fields[name]):
                yield f"`{where}.{part}.{name}` must be a text."
        for name in ("config", "split", "revision"):
            if isinstance(fields, dict) and not isinstance(fields.get(name, ""), str):
                yield f"`{where}.{part}.{name}` must be a text, got {fields[name]!r}; put it in quotes."
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        yield f"`{where}.metrics` must be a list of at least one metric."
        return
    for k, metric in enumerate(metrics):
        if not isinstance(metric, dict) or not isinstance(metric.get("type"), str):
            yield f"`{where}.metrics[{k}].type` must be a text."
        if not isinstance(metric, dict) or metric.get("value") is None:
            yield f"`{where}.metrics[{k}].value` is missing."
