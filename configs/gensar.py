"""Configures GenSAR's joint training, and TIGER and DSI on the same network.

Paper: GenSAR, Unifying Balanced Search and Recommendation with Generative Retrieval (RecSys 2025).
Command: python -m launch.train --config=configs/gensar.py:DATASET[,VARIANT] \
  --config.data_dir=DIR [--config.identifiers=W], with W the workdir of
configs/gensar_identifiers.py:DATASET; without it identifiers are trained first. Without a data set
it is qilin, and without a folder the embedded sample. "Released" means the settings that the
paper's authors published.

VARIANT: `tiger` is TIGER (NeurIPS 2023): semantic identifiers, recommendation alone; `dsi` is DSI
(NeurIPS 2022): searches by their query alone, and items by their text. `lc_rec` is LC-Rec (ICDE
2024) as far as it needs no text that a language model wrote; `p5_cid` P5-CID (SIGIR-AP 2023);
`dsi_qg` DSI-QG (arXiv 2206.10128); `genre` GENRE (ICLR 2021); `ltrgr` LTRGR (AAAI 2024) on `dsi`;
`webultron` WebUltron (TKDE 2023); `genret` GenRet (NeurIPS 2023). All have GenSAR's network,
prompts, histories, tries, beams and candidates; docs/gensar.md says what each keeps of its paper
and how to give it GenSAR's number of updates. Table 5's ablations:
--config.prompts.behaviour_tokens=none, or a rate of 0 for nrip, nsqp, nsip, desc2id or id2desc of
--config.mixture.

amazon_electronics has the paper's own settings, for an accelerator: T5-small in bfloat16, 8,192
examples an update. Departures from the paper there, unless the setting in brackets is given:
- Collaborative vectors are factors of the training clicks; the paper's are the item vectors of a
  trained UniSAR (identifier_vectors.collaborative, or such identifiers).
- Pseudo-queries are the rarest words of an item's text; the paper's are Doc2query's, one an item
  (prompts.pseudo_queries).
- The network starts from scratch, with pieces trained on this catalogue; the paper's is a
  pre-trained T5 with its own pieces (model.checkpoint).
"""

from ml_collections import config_dict

from configs import (
    choices,
    defaults,
    genre_identifiers,
    genret_identifiers,
    gensar_identifiers,
    p5_cid_identifiers,
    webultron_identifiers,
)

DATASETS = {
    "amazon_beauty": {},
    "amazon_electronics": {
        # The identifiers are those that their own command trains.
        **{
            f"identifier_{key}": value
            for key, value in gensar_identifiers.DATASETS["amazon_electronics"].items()
        },
        "model.size": "t5-small",  # released, from scratch here
        "model.dtype": "bfloat16",
        "vocabulary.pieces": 32_000,  # as many as T5's own
        "train.batch_size": 8192,  # released: 8 x 64 x 16
        "train.accumulate": 16,  # released
        "train.epochs": 200.0,  # released
        "train.learning_rate": 1e-3,  # released
        "train.warmup": 0.01,  # released
        "train.relative_rate": False,  # released
        "train.evals": 40,
        "eval.validation_users": 5000,
        "eval.test_users": 0,  # everyone
    },
    "qilin": {
        # A sample of 750 items.
        "on_sample.overrides": {
            "data": {"clicks": 2},
            "identifier_model": {"codes": 32},
            "identifier_train": {"epochs": 200, "batch_size": 256},
            "vocabulary": {"pieces": 1500},
            "model": {"size": "sample"},
            "train": {"batch_size": 128, "epochs": 0.5, "evals": 2},
            "eval": {"validation_users": 200, "test_users": 500},
        }
    },
    "qilin,dsi": {"on_sample.overrides.train.epochs": 5.0},  # its prompts are short
    "qilin,genret": {"on_sample.overrides.identifier_levels": genret_identifiers.ON_SAMPLE},
}
# What a text or its query is the only prompt of, and what knows nothing of searches.
_SEARCH_ALONE = {
    "prompts.search_without": "history",
    "eval.protocols": (),
    "eval.selection": "ndcg@5/search/neg99/exact",
}
_CLICKS_ALONE = {"data.use_search": False, "eval.search_protocols": ()}
_TASKS = ("nrip", "nsip", "nsqp", "pseudo_query", "desc2id", "id2desc")
_ONE_FORM = {
    "prompts.identifiers": "semantic",
    "prompts.behaviour_tokens": "none",
    # In place of train.epochs, such as GenSAR's own number of updates; 0 leaves it to these.
    "train.updates": 0,
}
_ONE_KIND = {
    "identifier_model.sources": ("semantic",),
    **_ONE_FORM,
}


def _only(*tasks: str) -> dict[str, int]:
    """Returns rates that take every example of some tasks, and none of the others."""
    return {f"mixture.{task}": -1 if task in tasks else 0 for task in (*_TASKS, *tasks)}


_DSI = {
    **_ONE_KIND,
    **_SEARCH_ALONE,
    **_only("nsip", "desc2id"),
    "train.row_targets": 64,
}
VARIANTS = {
    "gensar": {},
    "tiger": {
        **_ONE_KIND,
        **_CLICKS_ALONE,
        **_only("nrip"),
        "train.row_targets": 40,  # its prompts are short: with 32 the targets fill first
    },
    "dsi": _DSI,
    "lc_rec": {
        **_ONE_KIND,  # four levels of text codes, the last balanced: as released
        **_CLICKS_ALONE,
        **_only("nrip", "desc2id", "id2desc"),
        # The two halves of its fusion: every example with one of them, an epoch; ours.
        "mixture.next_text": 10_000,
        "mixture.told_history": 10_000,
        "train.row_targets": 64,
    },
    "p5_cid": {
        **_ONE_FORM,
        **_CLICKS_ALONE,
        **_only("nrip"),
        "identifier_method": "p5_cid_identifiers",
        "identifier_model": p5_cid_identifiers.MODEL,
        "identifier_vectors": None,
        "identifier_train": None,
        "train.row_targets": 40,
    },
    "dsi_qg": {
        **_ONE_KIND,
        **_SEARCH_ALONE,
        **_only("nsip", "pseudo_search"),  # never a text
        "train.row_targets": 64,
    },
    "genre": {
        **_ONE_FORM,
        **_SEARCH_ALONE,
        **_only("nsip"),
        "identifier_method": "genre_identifiers",
        "identifier_model": genre_identifiers.MODEL,
        "identifier_vectors": None,
        "identifier_train": None,
        "train.row_targets": 128,
        "train.label_smoothing": 0.1,  # released
        "eval.length_penalty": 1.0,  # released
    },
    "webultron": {
        **_ONE_FORM,
        **_SEARCH_ALONE,
        **_only("nsip"),  # of its last stage
        "mixture.pseudo_search": 0,  # of the stage before it
        "method": "webultron",
        "identifier_method": "webultron_identifiers",
        "identifier_model": webultron_identifiers.MODEL,
        "identifier_vectors": webultron_identifiers.VECTORS,
        "identifier_train": None,
        "shares": {"general": 0.25, "pseudo_queries": 0.5},  # released: 10, 20 and 10 epochs
        "train.row_targets": 256,  # 24 codes an identifier
    },
    "genret": {
        **_ONE_FORM,
        **_SEARCH_ALONE,
        **_only("nsip", "pseudo_search", "desc2id"),
        "identifier_method": "genret_identifiers",
        "identifier_levels": genret_identifiers.LEVELS,
        "model.dropout_rate": genret_identifiers.DROPOUT_RATE,  # one network learns both
        "identifier_model": None,
        "identifier_vectors": None,
        "identifier_train": None,
        "train.row_targets": 64,
    },
    "ltrgr": {
        **_DSI,  # as in CRS
        "method": "ltrgr",
        "rank": {
            "searches": 4096,  # whose beams are made; ours
            "candidates": 30,  # the paper's beams for training hold 100 to 200
            "batch_size": 64,
            "updates": 256,  # ours, beside those of the generator
            "evals": 4,
            "learning_rate": 1e-2,  # a third of the generator's, as released
            "margin": 1.0,  # nats; ours
            "random_margin": 1 / 3,  # a third of the margin, as released
            "cross_entropy": 1.0,  # ours
            "ranking": 1.0,  # 0: as many further updates without the ranking loss, a control
        },
    },
}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set."""
    config, identifiers = defaults.get_config(), gensar_identifiers.method()
    config.method = "gensar"
    defaults.without(config, "train", "data.words", "data.item_words", "data.train_negatives")
    config.identifiers = ""  # folder of an identifier table; empty: made with these settings
    config.identifier_vectors = identifiers.vectors
    config.identifier_model = identifiers.model
    config.identifier_train = identifiers.train

    config.data.rec_length = 5  # released: at most 5 + 5 events
    config.data.search_length = 5

    config.vocabulary = config_dict.ConfigDict()
    # A SentencePiece model; empty: spiece.model of the checkpoint, or trained on titles, queries.
    config.vocabulary.pieces_model = ""
    config.vocabulary.pieces = 4000  # of a trained one; ours

    config.prompts = config_dict.ConfigDict()
    config.prompts.max_inputs = 256  # tokens; ours
    config.prompts.max_targets = 32
    config.prompts.behaviour_tokens = "decoder"  # READINGS; or "encoder" (3.4.2), "none" (Table 5)
    config.prompts.identifiers = "both"  # or one kind for both tasks: "semantic", "collaborative"
    # Controls: search prompts, in training and evaluation, without their "query" or "history".
    config.prompts.search_without = "nothing"
    config.prompts.phrasings = 10  # released
    config.prompts.pseudo_queries = ""  # item TAB query a line; empty: rare words of the titles

    # Examples an epoch: -1 for all, 0 for none; released. Both identifiers of an item count.
    config.mixture = config_dict.ConfigDict()
    config.mixture.nrip = -1
    config.mixture.nsip = 100_000
    config.mixture.nsqp = 1_000
    config.mixture.pseudo_query = 1_000
    config.mixture.desc2id = 2_000
    config.mixture.id2desc = 2_000

    # The size for CPUs: 2 + 2 layers of width 128; the paper's is "t5-small".
    config.model = config_dict.ConfigDict()
    config.model.size = "cpu"
    # A pre-trained T5 of that size and version: a folder of Hugging Face safetensors, or of T5X;
    # empty: from scratch. It goes with the released rates below.
    config.model.checkpoint = ""
    config.model.dropout_rate = 0.1  # T5
    config.model.dtype = "float32"  # or "bfloat16"

    config.train = config_dict.ConfigDict()
    config.train.batch_size = 256  # examples; released: 8 x 64 x 16
    config.train.accumulate = 1
    config.train.row_inputs = 256  # tokens of a packed row; ours
    config.train.row_targets = 32
    config.train.epochs = 10.0  # released: 200
    config.train.evals = 10  # over the run
    # Falls as a cosine to 0. Released: 1e-3, a warm-up of .01 and no relative_rate, to fine-tune a
    # pre-trained T5; from scratch one run of it ended a whole epoch below what relative rates had
    # after a quarter (Amazon Beauty, docs/decisions.md).
    config.train.learning_rate = 3e-2
    config.train.warmup = 0.05
    config.train.relative_rate = True
    config.train.weight_decay = 1e-7  # released
    config.train.clip_norm = 1.0  # ours

    config.eval.beam = 30  # the paper
    config.eval.protocols = ("neg99", "full")
    config.eval.search_protocols = ("bm25_99", "full")
    config.eval.selection = "ndcg@5/neg99/exact"
    config.eval.validation_users = 1000  # chosen by data.candidates_seed; 0 for all
    config.eval.test_users = 2000
    config.eval.batch_size = 64
    config.eval.full_batch_size = 64
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("gensar", method(), choice, DATASETS, VARIANTS)
