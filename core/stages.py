"""Names the stages of training, and orders them."""

from __future__ import annotations

import re

# The stage of what is fitted at once, without chance.
FITTED = "fit"
STAGE_TITLES = {
    "train": "after training",
    "rl": "after RL",
    "control": "control: as long without RL",
    FITTED: "fitted",
    "identifiers": "identifiers",
    "general": "general training",
    "pseudo_queries": "training on pseudo-queries",
    "joint": "joint training",
    "rank": "after learning to rank",
    "latent_sft": "latent_sft",
    "latent_rl": "latent_rl",
}
# CRS: M_sft^0, M_rl^0, M_sft^1, ...; then its variant without RL, by round.
_ROUND = re.compile(r"(sft_only|sft|rl)_(\d{1,6})")
_LOOPS = {"sft": (1, 0), "rl": (1, 1), "sft_only": (2, 0)}


def stage_order(stage: str) -> tuple[int, int, int, str]:
    """Returns a key that sorts stages in the order in which a run trains them."""
    if stage == "align":
        return 0, 0, 0, ""
    if round_name := _ROUND.fullmatch(stage):
        loop, place = _LOOPS[round_name[1]]
        return loop, int(round_name[2]), place, ""
    known = list(STAGE_TITLES)
    return 3, known.index(stage) if stage in known else len(known), 0, stage


def stage_title(stage: str) -> str:
    """Returns what a table calls a stage."""
    return STAGE_TITLES.get(stage, stage)
