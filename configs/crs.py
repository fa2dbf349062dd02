"""Configures CRS: the whole cycle of alignment, distillation and the self-evolving loop.

Paper: Towards Context-aware Reasoning-enhanced Generative Searching in E-commerce.
Command: python -m launch.train --config=configs/crs.py:DATASET[,SIZE] --config.data_dir=DIR \
  --config.model.checkpoint=Q, with Q a folder of Qwen3-0.6B. Without Q the network starts from
scratch with a tokenizer of its own. Without a data set it is qilin, and without a folder the
embedded sample: the tiny decoder, in minutes on a CPU.
`--config.rl.algorithm=grpo` trains with plain GRPO instead of R-GRPO (Table 3). "ours" means that
the paper does not give the value.

SIZE: 1.7b or 4b of Qwen3 instead of 0.6b; `tiny` is a run from scratch for a CPU.
amazon_beauty: searches are semi-synthetic, a query is an item's category path, and items' texts
leave their categories out. trivago: typed searches and filters, places, what was shown and not
clicked; few of the hotels are seen by more than one user, so that ranking the whole catalogue says
little there, and `search/impressions` ranks the hotels that the search has shown.
"""

from ml_collections import config_dict

from configs import choices, defaults

DATASETS = {
    "amazon_beauty": {},
    "qilin": {
        # A sample of 750 items.
        "on_sample.overrides": {
            # Its notes without a click and its hours are drawn at random: they would tell nothing,
            # and cost time.
            "data": {
                "clicks": 2,
                "history": 3,
                "train_examples": 3200,
                "unclicked": 0,
                "query_time": False,
            },
            "semantic_ids": {"codes": (16, 16, 16)},
            "vocabulary": {"size": 600},
            "prompts": {"max_prompt": 120, "max_reasoning": 16, "max_answer": 40},
            "model": {"size": "tiny", "dtype": "float32", "remat": False},
            "sft": {"batch_size": 64, "row_length": 160},
            "align": {"epochs": 5.0, "learning_rate": 2e-2},
            "distill": {"examples": 3200, "epochs": 2.0, "learning_rate": 2e-2},
            "rl": {
                "steps": 20,
                "learning_rate": 1e-4,
                "batch_size": 16,
                "trajectories": 4,
                "answers": 5,
                "length_limit": 16,
            },
            "evolve": {
                "iterations": 2,
                "corpus": 1000,
                "rl_sample": 192,
                "epochs": 2.0,
                "learning_rate": 5e-4,
            },
            "eval": {"batch_size": 128, "validation_users": 128},
            "loop": {"log_every": 5},
        }
    },
    # Four facts in a chain tell the item, fewer nothing: 16 items of 4 topics.
    "hard_sample": {
        "on_sample.overrides": {
            "data": {
                "clicks": 1,
                "history": 1,
                "train_examples": 0,
                "unclicked": 0,
                "query_time": False,
                "times": "none",
            },
            "semantic_ids": {"codes": (8, 4, 4)},
            "vocabulary": {"size": 600},
            "prompts": {"max_prompt": 42, "max_reasoning": 12, "max_answer": 18},
            "model": {"size": "tiny", "dtype": "float32", "remat": False},
            "sft": {"batch_size": 32, "row_length": 60},
            "align": {"epochs": 1.0, "learning_rate": 5e-3},
            # Six epochs leave a seed at the guess (docs/results.md).
            "distill": {"from_data": True, "epochs": 12.0, "learning_rate": 1e-2},
            "rl": {
                "steps": 60,
                "learning_rate": 3e-4,
                "batch_size": 64,
                "trajectories": 8,
                "answers": 5,
                "length_limit": 6,
                "constrained": True,
            },
            "evolve": {
                "iterations": 1,
                "corpus": 1000,
                "rl_cases": "all",
                "epochs": 2.0,
                "learning_rate": 1e-3,
            },
            "eval": {"batch_size": 200, "validation_users": 200},
            "loop": {"log_every": 10},
        }
    },
    "trivago": {
        "eval.search_protocols": ("catalogue", "impressions"),
        "eval.selection": "ndcg@10/search/impressions",
    },
}
for _name in ("qilin", "hard_sample"):
    # LatentR3's first stage has the searches and the updates that CRS distils on.
    _distil = DATASETS[_name]["on_sample.overrides"]["distill"]
    DATASETS[f"{_name},latentr3"] = {
        "on_sample.overrides.latent_sft": {
            "examples": _distil.get("examples", 0),
            "epochs": _distil["epochs"],
            "learning_rate": 2e-2,
        },
        # At a noise of 1.5 and a rate of 1e-3 the reward falls from -1.7 to -26 (docs/results.md).
        "on_sample.overrides.latent_rl": {
            "steps": 80,
            "learning_rate": 1e-4,
            "batch_size": 64,
            "noise": 0.1,
        },
    }
VARIANTS = {
    "": {},
    "1.7b": {"model.size": "1.7b"},
    "4b": {"model.size": "4b"},
    # One round of Amazon Beauty in hours on a CPU core (docs/results.md).
    "tiny": {
        "data.history": 5,
        "data.train_examples": 40_000,
        "vocabulary.size": 2000,
        "prompts.max_prompt": 160,
        "prompts.max_reasoning": 24,
        "prompts.max_answer": 48,
        "model.size": "tiny",
        "model.dtype": "float32",
        "model.remat": False,
        "sft.row_length": 256,
        "align.learning_rate": 2e-2,
        "distill.examples": 6400,
        "distill.learning_rate": 5e-3,
        "rl.steps": 20,
        "rl.learning_rate": 1e-4,
        "rl.trajectories": 4,
        "rl.answers": 5,
        "rl.length_limit": 24,
        "evolve.iterations": 1,
        "evolve.corpus": 1000,
        "evolve.rl_sample": 192,
        "evolve.learning_rate": 5e-4,
        "eval.batch_size": 128,
        "eval.validation_users": 256,
    },
    # LatentR3 (arXiv 2505.19092) from the same alignment: crs_jax/baselines/latentr3.py. "Theirs"
    # is the released code, on Qwen2.5-1.5B.
    "latentr3": {
        "method": "latentr3",
        "distill": None,
        "rl": None,
        "evolve": None,
        "prompts.max_reasoning": None,
        "thoughts": {"count": 1, "rope_theta": 1000.0},  # theirs
        # CRS's searches and updates of distillation; their rate.
        "latent_sft": {"examples": 2000, "epochs": 1.0, "learning_rate": 3e-4, "evals": 1},
        "latent_rl": {
            "steps": 200,  # as CRS's; theirs: one epoch
            "evals": 1,
            "learning_rate": 1e-4,  # of theirs from 1e-5 to 5e-4
            "batch_size": 256,  # theirs
            "trajectories": 8,  # theirs
            "noise": 1.5,  # theirs, where it is not in root mean squares of a thought
            "updates_per_rollout": 1,  # theirs
            "clip_low": 0.2,  # theirs
            "clip_high": 0.28,  # theirs
            "warmup": 0.05,
            "weight_decay": 0.0,
            "clip_norm": 1.0,
        },
    },
}


def method() -> config_dict.ConfigDict:
    """Returns what does not depend on the data set; sizes are the paper's where it gives them."""
    config = defaults.get_config()
    config.method = "crs"
    defaults.without(
        config,
        *("train", "data.words", "data.item_words", "data.train_negatives"),
        *("data.rec_length", "data.search_length", "eval.protocols", "eval.full_batch_size"),
    )

    config.data.split = "by_user"  # the paper, 4.1.3
    config.data.history = 10  # the latest interactions (the paper, 4.1.1)
    config.data.times = "log"  # in its own unit; "none": an order alone
    config.data.query_time = True  # the hour of the query, in logs whose times are dates
    # Shown and not clicked, the first on the page of each search of a history, in logs that have
    # them. Ours: an id takes a token a level, so more of them would cost older events their place.
    config.data.unclicked = 5
    config.data.profiles = True  # what the log knows of the user, if anything
    config.data.train_examples = 0  # clicks of training searches; 0 for all

    config.vectors = config_dict.ConfigDict()
    # "tfidf_svd"; "minilm" (needs the extra [text]); the folder of a BERT, XLM-R or
    # Qwen3-Embedding; or a name for the package sentence-transformers (the paper's: BGE).
    config.vectors.semantic = "tfidf_svd"
    config.vectors.width = 128  # of the offline default, as GenSAR's
    config.vectors.sketch_width = 64
    config.vectors.sketch_share = 0.1

    config.semantic_ids = config_dict.ConfigDict()
    config.semantic_ids.codes = (256, 256, 256)  # the paper: 512 for All-100K, 256
    config.semantic_ids.last_codes = 0  # of the de-duplication level; 0: as many as needed
    # The workdir of an earlier run: items that had an id there keep it, new ones join.
    config.semantic_ids.extend = ""

    config.vocabulary = config_dict.ConfigDict()
    # A tokenizer.json; empty: the checkpoint's, or trained on titles and queries.
    config.vocabulary.tokenizer = ""
    config.vocabulary.size = 4000  # of a trained one

    config.prompts = config_dict.ConfigDict()
    # Tokens; ours. What does not fit is left out: the oldest events, then ends of long texts.
    config.prompts.max_prompt = 1024
    config.prompts.max_reasoning = 512  # </think> included; ours
    config.prompts.max_answer = 128  # of an item's context

    config.model = config_dict.ConfigDict()
    config.model.size = "0.6b"  # the paper
    config.model.checkpoint = ""  # safetensors of Qwen3, a file or folder; empty: from scratch
    config.model.rope_theta = 1e6  # as config.json beside a checkpoint has it
    config.model.norm_epsilon = 1e-6
    config.model.lora_rank = 0
    config.model.lora_alpha = 16.0
    config.model.dtype = "bfloat16"
    config.model.remat = True

    # AdamW of every stage; ours, the paper says Adam.
    config.sft = config_dict.ConfigDict()
    config.sft.batch_size = 64  # examples
    config.sft.row_length = 2048  # tokens of a packed row
    config.sft.warmup = 0.05
    config.sft.weight_decay = 0.0
    config.sft.clip_norm = 1.0

    config.align = config_dict.ConfigDict()
    config.align.epochs = 1.0
    config.align.learning_rate = 1e-4
    config.align.evals = 1

    config.distill = config_dict.ConfigDict()
    # A file of traces, or the folder of a Qwen3 that writes them; both empty: templates do.
    config.distill.traces = ""
    config.distill.teacher = ""
    config.distill.from_data = False  # True: the traces are traces.jsonl in the data's folder
    config.distill.examples = 2000  # that a teacher is asked about
    config.distill.epochs = 1.0
    config.distill.learning_rate = 1e-5
    config.distill.evals = 1

    config.rl = config_dict.ConfigDict()
    config.rl.algorithm = "r_grpo"  # or "grpo"
    config.rl.steps = 200  # rollouts an iteration
    config.rl.evals = 1
    config.rl.learning_rate = 1e-6
    config.rl.batch_size = 16  # prompts a rollout
    config.rl.trajectories = 8  # G
    config.rl.answers = 10  # K
    config.rl.updates_per_rollout = 1
    config.rl.temperature = 1.0
    config.rl.top_p = 1.0
    config.rl.length_limit = 256  # L of Eq. 4
    config.rl.accuracy_weights = (1.0, 0.75, 0.5)  # w of Eq. 5, above the length's maximum of 1
    config.rl.prefix_accuracy = False  # printed
    config.rl.constrained = False  # else Eq. 6 is always 1
    config.rl.clip_eps = 0.2
    config.rl.kl_weight = 0.01
    config.rl.mask_correct_when_negative = False
    config.rl.weight_decay = 0.0
    config.rl.clip_norm = 1.0

    config.evolve = config_dict.ConfigDict()
    config.evolve.iterations = 3  # the paper, Table 3
    config.evolve.corpus = 0  # training searches that cases are collected from; 0 for all
    # Eq. 2. "all": the right cases too, which reinforcement by wrong ones alone forgets
    # (docs/results.md).
    config.evolve.rl_cases = "incorrect"
    config.evolve.rl_sample = 0  # of these cases; 0 for all
    config.evolve.epochs = 1.0  # of the SFT in the loop
    config.evolve.learning_rate = 1e-5
    config.evolve.evals = 1
    config.evolve.sft_only = True  # the variant without RL (4.3) too

    config.eval.metrics = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10")
    # Or "impressions": the items that the target's search has shown, in logs that have them.
    config.eval.search_protocols = ("catalogue",)
    config.eval.selection = "ndcg@10/search/catalogue"
    config.eval.beam = 10  # READINGS
    config.eval.batch_size = 64
    config.eval.validation_users = 1000  # searches, chosen by data.candidates_seed; 0 for all
    config.eval.test_users = 0
    return config


def get_config(choice: str = "qilin") -> config_dict.ConfigDict:
    return choices.configure("crs", method(), choice, DATASETS, VARIANTS)
