"""Makes a config of a method's file from what stands after its colon: DATASET[,VARIANT].

A method's file has `DATASETS`, which says what each data set changes, and `VARIANTS`, whose first
is taken where none is named. Both hold dotted keys and values. What a data set changes for one
variant alone stands in `DATASETS` under "DATASET,VARIANT".
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import config_dict

from configs import datasets

Changes = Mapping[str, Any]
# Of a method that has one form alone.
ONE_FORM: Mapping[str, Changes] = {"": {}}


def configure(
    file: str,
    config: config_dict.ConfigDict,
    choice: str,
    changes: Mapping[str, Changes],
    variants: Mapping[str, Changes] = ONE_FORM,
) -> config_dict.ConfigDict:
    """Returns a method's config for a data set and a variant.

    A variant's values stay on the embedded sample, whatever the sample's own are. It may replace a
    whole section by another dictionary, or take it out by None; then neither the data set nor the
    sample changes any of its keys.

    Args:
      file: name of the method's file, without `.py`.
      config: what does not depend on either; it is changed.
      choice: "DATASET", or "DATASET,VARIANT" in any order.
      changes: the file's `DATASETS`.
      variants: the file's `VARIANTS`.

    Raises:
      ValueError: no such data set or variant; says which there are.
      KeyError: a data set changes a key that the config does not have.
    """
    dataset, variant = parse(file, choice, names(changes), variants)
    config = getattr(datasets, dataset)(config)
    whole = {key for key in variants[variant] if key in config and "." not in key}
    whole &= {key for key in whole if isinstance(config[key], config_dict.ConfigDict)}
    for key, value in variants[variant].items():
        section, name = _place(config, key)
        if value is None:
            del section[name]
        else:
            section[name] = config_dict.ConfigDict(value) if isinstance(value, dict) else value
    of_both = changes.get(choice_of(dataset, variant), {}) if variant else {}
    for key, value in {**changes[dataset], **of_both}.items():
        if key.partition(".")[0] in whole:
            continue
        section, name = _place(config, key)
        if name not in section and not key.startswith("on_sample.overrides."):
            raise KeyError(f"{file}.py has no {key} for {dataset} to change")
        section[name] = config_dict.ConfigDict(value) if isinstance(value, dict) else value
    if "on_sample" not in config:
        return config
    overrides = config.on_sample.overrides
    for section_name in whole & set(overrides):
        del overrides[section_name]
    for key in variants[variant]:
        section_name, _, name = key.partition(".")
        if name in overrides.get(section_name, {}):
            del overrides[section_name][name]
    return datasets.for_sample(config)


def names(changes: Mapping[str, Changes]) -> list[str]:
    """Returns the data sets of a file's `DATASETS`."""
    return [key for key in changes if "," not in key]


def choice_of(dataset: str, variant: str) -> str:
    """Returns what stands after the colon for both."""
    return f"{dataset},{variant}" if variant else dataset


def parse(
    file: str, choice: str, known: Collection[str], variants: Collection[str]
) -> tuple[str, str]:
    """Returns the data set and the variant of a choice, which may name them in any order.

    Args:
      known: data sets that the file has.
      variants: its variants; the first is taken where none is named.

    Raises:
      ValueError: one that the file does not have, or no data set; says which there are.
    """
    words = choice.split(",")
    found = [word for word in words if word in known]
    others = [word for word in words if word not in known]
    if len(found) == 1 and all(word in variants and word for word in others) and len(others) < 2:
        return found[0], others[0] if others else next(iter(variants))
    form, listed = "DATASET", f"a data set of {', '.join(sorted(known))}"
    if named := [variant for variant in variants if variant]:
        form, listed = "DATASET[,VARIANT]", f"{listed} and a variant of {', '.join(named)}"
    meant = [
        near[0]
        for word in others
        if word not in variants and (near := difflib.get_close_matches(word, [*known, *named], 1))
    ]
    raise ValueError(
        f"expected configs/{file}.py:{form} with {listed}, found {choice!r}"
        + (f" (did you mean {', '.join(meant)}?)" if meant else "")
    )


def _place(config: config_dict.ConfigDict, key: str) -> tuple[config_dict.ConfigDict, str]:
    """Returns the section that holds a dotted key, and the key's own name in it."""
    *sections, name = key.split(".")
    return functools.reduce(lambda section, part: section[part], sections, config), name
