"""GenSAR's joint training on Amazon Electronics, raw public files, with the paper's own settings.

Command: python -m launch.train --config=configs/gensar_amazon_electronics.py \
  --config.data_dir=DIR, with DIR holding the reviews, meta, query and qrels files of the category,
and --config.identifiers=W the workdir of configs/gensar_identifiers_amazon_electronics.py; without
it identifiers are trained first. For an accelerator: T5-small in bfloat16, 8,192 examples an
update.

Departures from the paper, unless the setting in brackets is given:
- Collaborative vectors are factors of the training clicks; the paper's are the item vectors of a
  trained UniSAR (identifier_vectors.collaborative, or such identifiers).
- Pseudo-queries are the rarest words of an item's text; the paper's are Doc2query's, one an item
  (prompts.pseudo_queries).
- The network starts from scratch, with pieces trained on this catalogue; the paper's is a
  pre-trained T5 with its own pieces (model.checkpoint).
"""

from ml_collections import config_dict

from configs import (
    datasets,
    defaults,
    gensar_identifiers_amazon_electronics,
    gensar_qilin,
)


def get_config(system: str = "gensar") -> config_dict.ConfigDict:
    config = datasets.amazon_raw(gensar_qilin.method(defaults.get_config(), system))
    identifiers = gensar_identifiers_amazon_electronics.get_config()
    config.identifier_vectors = identifiers.vectors
    config.identifier_train = identifiers.train
    config.model.size = "t5-small"  # released, from scratch here
    config.model.dtype = "bfloat16"
    config.vocabulary.pieces = 32_000  # as many as T5's own
    config.train.batch_size = 8192  # released: 8 x 64 x 16
    config.train.accumulate = 16  # released
    config.train.epochs = 200.0  # released
    config.train.learning_rate = 1e-3  # released
    config.train.warmup = 0.01  # released
    config.train.relative_rate = False  # released
    config.train.evals = 40
    config.eval.validation_users = 5000
    config.eval.test_users = 0  # everyone
    return config
