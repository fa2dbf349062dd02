"""Reads how a checkpoint makes a vector of a text, from the files of sentence-transformers.

modules.json names the parts; 1_Pooling/config.json says which states make the vector,
sentence_bert_config.json how long a text may be, config_sentence_transformers.json what stands
before queries and documents. A user's settings fill what the files leave open; where both speak
they must agree.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Any

from core.errors import UserError
from core.files import read_json
from core.settings import CountOrNone, Settings, one_of

# Which states make a text's vector: of the first token, the mean of all, of the last token.
FIRST, MEAN, LAST = "first", "mean", "last"
_MODES = {"cls": FIRST, "mean": MEAN, "lasttoken": LAST}
_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_MODULES, _TRANSFORMER, _POOLING, _NORMALIZE = (
    "modules.json",
    "Transformer",
    "Pooling",
    "Normalize",
)
_PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}
# A query's instruction, which its makers want changed with the task.
_INSTRUCTION = ("Instruct: ", "\nQuery:")
_AGAIN = "download the whole folder again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSettings(Settings):
    """Says what a checkpoint's own files may leave open; what is empty or 0 is theirs to say.

    Attributes:
      pooling: 'first' token (BGE), 'mean' of all tokens (MiniLM, E5) or 'last' token (Qwen3).
      query_prefix, document_prefix: stand before the texts.
      dimensions: of the vectors that are kept, for encoders trained to be cut; 0 for all.
    """

    pooling: Annotated[str, one_of("", FIRST, MEAN, LAST)] = ""
    query_prefix: str = ""
    document_prefix: str = ""
    dimensions: CountOrNone = 0


@dataclasses.dataclass(frozen=True)
class SentenceSettings:
    """Says how a checkpoint makes a vector of a text.

    Attributes:
      folder: of config.json, the tensors and tokenizer.json.
      pooling: of FIRST, MEAN, LAST.
      query_prefix, document_prefix: stand before the texts.
      most_tokens: of a text; None where the files do not say.
      lowercase: whether texts become lower case before they are split.
    """

    folder: pathlib.Path
    pooling: str
    query_prefix: str
    document_prefix: str
    most_tokens: int | None
    lowercase: bool


def read_sentence_settings(
    folder: str | pathlib.Path, settings: EncoderSettings, *, key: str
) -> SentenceSettings:
    """Joins what the files of a checkpoint say with a user's settings.

    Args:
      key: of the config's section, for messages.

    Raises:
      UserError: a file is malformed or asks for what is not here; the settings contradict the
        files; or neither says the pooling.
    """
    folder = pathlib.Path(folder)
    transformer, pooling_folder = _parts(folder)
    file = pooling_folder / "config.json"
    pooling = settings.pooling
    if file.is_file():
        told = _pooling(file)
        if pooling and pooling != told:
            raise UserError(
                f"expected {key}.pooling of {told!r}, as {file} says, found {pooling!r}; set it to "
                f"{told!r} or leave it empty"
            )
        pooling = told
    if not pooling:
        raise UserError(
            f"expected {file}, which says how states make a vector, found no such file; set "
            f"{key}.pooling to {FIRST!r}, {MEAN!r} or {LAST!r}"
        )
    query, document = _prefixes(folder, settings, key)
    most_tokens, lowercase = _lengths(transformer)
    return SentenceSettings(transformer, pooling, query, document, most_tokens, lowercase)


def _json(file: pathlib.Path, kind: type = dict) -> Any:
    return read_json(str(file), "the settings of a text encoder", _AGAIN, kind=kind)


def _parts(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the folders of the network and of the pooling, which modules.json may name."""
    file = folder / _MODULES
    places = {_TRANSFORMER: folder, _POOLING: folder / "1_Pooling"}
    if not file.is_file():
        return places[_TRANSFORMER], places[_POOLING]
    for module in _json(file, list):
        kind = str(module.get("type", "") if isinstance(module, dict) else module).split(".")[-1]
        if kind not in (_TRANSFORMER, _POOLING, _NORMALIZE):
            raise UserError(
                f"expected modules of {_TRANSFORMER}, {_POOLING} and {_NORMALIZE} in {file}, found "
                f"{kind[:60]!r}; pass another encoder"
            )
        place = module.get("path", "")
        if not isinstance(place, str) or (place and place != pathlib.PurePath(place).name):
            raise UserError(
                f"expected a folder's name beside {file} for {kind}, found {str(place)[:60]!r}; "
                f"{_AGAIN}"
            )
        places[kind] = folder / place
    return places[_TRANSFORMER], places[_POOLING]


def _pooling(file: pathlib.Path) -> str:
    said = _json(file)
    modes = said.get("pooling_mode")
    if modes is None:
        modes = [mode for name, mode in _OLD_MODES.items() if said.get(name)]
    modes = modes if isinstance(modes, list) else [modes]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise UserError(
            f"expected one pooling of {', '.join(_MODES)} in {file}, found "
            f"{', '.join(map(str, modes))[:60] or 'none'}; pass another encoder"
        )
    if said.get("include_prompt", True) is not True:
        raise UserError(
            f"expected a pooling over the whole text in {file}, found include_prompt of "
            f"{str(said['include_prompt'])[:60]}; pass another encoder"
        )
    return _MODES[modes[0]]


def _prefixes(folder: pathlib.Path, settings: EncoderSettings, key: str) -> tuple[str, str]:
    file = folder / "config_sentence_transformers.json"
    said = _json(file) if file.is_file() else {}
    prompts = said.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise UserError(f"expected prompts of texts in {file}, found others; {_AGAIN}")
    prefixes = []
    for use, names in _PROMPTS.items():
        default = said.get("default_prompt_name")
        names = (*names, default) if isinstance(default, str) else names
        told = next((prompts[name] for name in names if name in prompts), "")
        own = getattr(settings, f"{use}_prefix")
        if own and told and own != told and not (_instructs(own) and _instructs(told)):
            raise UserError(
                f"expected {key}.{use}_prefix of {told!r}, as {file} says, found {own[:80]!r}; "
                "leave it empty, or change the file"
            )
        prefixes.append(own or told)
    return prefixes[0], prefixes[1]


def _instructs(prefix: str) -> bool:
    return prefix.startswith(_INSTRUCTION[0]) and prefix.endswith(_INSTRUCTION[1])


def _lengths(folder: pathlib.Path) -> tuple[int | None, bool]:
    """Returns the tokens of a text at most, and whether texts become lower case."""
    lengths = []
    lowercase = False
    for name, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        file = folder / name
        said = _json(file) if file.is_file() else {}
        if key == "max_seq_length":
            lowercase = said.get("do_lower_case") is True
        length = said.get(key)
        # Files without a limit have a number such as 1e30.
        if isinstance(length, (int, float)) and not isinstance(length, bool):
            if length < 1:
                raise UserError(f"expected {key} above 0 in {file}, found {length}; {_AGAIN}")
            lengths.append(length)
    return (int(min(lengths[0], 2**31)) if lengths else None), lowercase
