"""The settings that every method shares, with where a value comes from; configs override these.

"UniSAR" means the published settings of UniSAR (SIGIR 2024), whose protocol LCR-SER follows.
"ours" means that no paper gives the value; docs/decisions.md says what each rests on.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.method = ""  # lcr_ser, or a baseline of lcrsr/baselines
    config.dataset = ""
    config.data_dir = ""  # the raw files; empty: the embedded sample, where there is one
    config.cache_dir = "~/.cache/lcrsr"  # prepared data
    config.seed = 0

    # Devices: copies of the tables, and parts that each copy is cut into by rows; batches are cut
    # over all of them. -1 takes the devices that the other leaves; 1 x 1 is one device.
    config.mesh = config_dict.ConfigDict()
    config.mesh.data = 1
    config.mesh.model = 1

    config.data = config_dict.ConfigDict()
    config.data.split = "leave_one_out"  # or "global_time"
    config.data.rec_length = 30  # last events kept of each kind (UniSAR)
    config.data.search_length = 30
    config.data.words = 8  # of a query
    config.data.clicks = 5  # of a search (UniSAR)
    config.data.segmenter = "characters"  # of Chinese queries; or "jieba"
    config.data.use_search = True  # False: the same model, blind to searches
    # Of the training searches that led to an item, added to its vector: the control that has the
    # searches' content without search histories. Needs table_update="dense".
    config.data.item_words = 0
    # UniSAR. 0 leaves it to the batch where all of it shares them: `negatives_for` in
    # lcrsr/ranker_experiment.py.
    config.data.train_negatives = 4
    config.data.candidates_seed = 0  # of the saved evaluation lists, one for every model
    config.data.max_validation = 5000  # users
    # Latest clicks and searches of each user that the workdir keeps, for lcrsr.Recommender without
    # the data; -1 keeps all. 0 by default: a workdir that is passed on tells what nobody did.
    config.data.kept_events = 0

    config.train = config_dict.ConfigDict()
    # 0 leaves it to the size of the log: `batch_for` in lcrsr/ranker_experiment.py.
    config.train.batch_size = 0
    # Consecutive targets of a user that share one encoding of his events, at most; 1: none do.
    config.train.targets_per_window = 1
    config.train.max_epochs = 30.0  # 0 leaves it to the size of the log: `epochs_for` there
    config.train.evals_per_epoch = 1.0
    config.train.learning_rate = 1e-3  # UniSAR, Adam
    config.train.min_learning_rate = 1e-6  # UniSAR
    config.train.schedule = "plateau"  # of the rate, as below; or "cosine", over all epochs
    config.train.plateau_factor = 0.1  # the scheduler's own default
    config.train.plateau_patience = 3  # UniSAR
    config.train.stop_patience = 5  # UniSAR
    config.train.start = "random"  # of the rows of items and words; or "spectral"
    config.train.table_update = "touched_rows"  # or "dense": Adam over whole tables
    config.train.lambda_l2 = 1e-5  # UniSAR on Amazon
    config.train.user_dropout = 0.01  # ours; not tuned

    config.eval = config_dict.ConfigDict()
    config.eval.metrics = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10")
    config.eval.protocols = ("neg99", "full")  # of the test split; also "neg99pop"
    config.eval.selection = "ndcg@5/neg99"  # on validation
    config.eval.batch_size = 256
    config.eval.full_batch_size = 64

    config.loop = config_dict.ConfigDict()
    config.loop.log_every = 20  # updates
    config.loop.checkpoint_every = 500  # updates, beside one at every evaluation
    # Beside metrics.jsonl; also "wandb" and "mlflow", which pip install -e '.[wandb]' brings.
    config.loop.writers = ("tensorboard",)
    return config


def without(config: config_dict.ConfigDict, *keys: str) -> None:
    """Takes out what a method does not read, so that setting it is refused and not ignored."""
    for key in keys:
        section, _, name = key.rpartition(".")
        del (config[section] if section else config)[name]
