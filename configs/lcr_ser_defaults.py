"""Every setting of LCR-SER, with where its value comes from; experiments override what differs.

"UniSAR" means the published settings of UniSAR (SIGIR 2024), whose protocol LCR-SER follows.
"ours" means that neither paper gives the value; docs/CHOICES.md says what each rests on.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.dataset = ""
    config.data_dir = ""  # the raw files; empty: the embedded sample, where there is one
    config.cache_dir = "~/.cache/lcrsr"  # prepared data
    config.seed = 0

    config.data = config_dict.ConfigDict()
    config.data.split = "leave_one_out"  # or "global_time"
    config.data.rec_length = 30  # last events kept of each kind (UniSAR)
    config.data.search_length = 30
    config.data.words = 8  # of a query
    config.data.clicks = 5  # of a search (UniSAR)
    config.data.segmenter = "characters"  # of Chinese queries; or "jieba"
    config.data.use_search = True  # False: the same model, blind to searches
    config.data.train_negatives = 4  # UniSAR
    config.data.candidates_seed = 0  # of the saved evaluation lists, one for every model
    config.data.max_validation = 5000  # users

    config.model = config_dict.ConfigDict()
    config.model.width = 64  # UniSAR
    config.model.ffn_width = 64
    config.model.heads = 2  # UniSAR
    config.model.layers = 1  # UniSAR
    config.model.max_steps = 3  # K of Eq. 2-7 (paper: 1..5 swept)
    config.model.dropout = 0.1  # UniSAR
    config.model.block = "post_ln"  # or "printed": Eq. 1 and 4 literally
    config.model.self_context = "symmetric"  # or "printed": Eq. 5 with its erratum
    config.model.attention = "bilinear"  # of Eq. 8; or "scaled_dot", "mean"
    config.model.mlp_widths = (200, 80)  # UniSAR
    config.model.init_scale = 0.1  # ours: of the tables' rows at the start
    config.model.dtype = "float32"  # of the computation; or "bfloat16"

    config.pretrain = config_dict.ConfigDict()
    config.pretrain.batch_size = 1024  # UniSAR
    config.pretrain.max_epochs = 30.0
    config.pretrain.evals_per_epoch = 1.0
    config.pretrain.learning_rate = 1e-3  # UniSAR, Adam
    config.pretrain.min_learning_rate = 1e-6  # UniSAR
    config.pretrain.plateau_factor = 0.1  # the scheduler's own default
    config.pretrain.plateau_patience = 3  # UniSAR
    config.pretrain.stop_patience = 5  # UniSAR
    config.pretrain.active_steps = 3
    config.pretrain.recommendation = "bce"  # Eq. 11; or "cross_entropy" over the candidates
    config.pretrain.table_update = "touched_rows"  # or "dense": Adam over whole tables
    config.pretrain.lambda_tcl = 0.1  # ours
    config.pretrain.lambda_l2 = 1e-5  # UniSAR on Amazon
    config.pretrain.margin = 0.1  # ours
    config.pretrain.distance = "cosine"  # ours
    config.pretrain.stop_gradient = "both"  # ours; "none" is the printed form
    config.pretrain.user_dropout = 0.01  # READINGS

    config.rl = config_dict.ConfigDict()
    config.rl.enabled = True  # False: pre-training only
    config.rl.examples = 20_000  # users' histories rolled out; the control trains on as many
    config.rl.batch_size = 128  # ours
    config.rl.evals = 5  # evaluations over the stage
    config.rl.negatives = 99  # candidates of a rollout beside the target
    config.rl.trajectories = 8  # N of Eq. 13; ours
    config.rl.gamma = 0.3  # Eq. 14, relative to the RMS of h^(0); ours
    config.rl.reward = "hr@1"  # the paper's
    config.rl.policy = "softmax"  # over the candidates; or "sigmoid"
    config.rl.lambda_kl = 0.1  # Eq. 15; ours
    config.rl.learning_rate = 1e-4  # ours
    config.rl.updates_per_rollout = 1  # updates between snapshots of pi_old
    config.rl.clip_eps = 0.0  # 0: no clipping, as printed
    config.rl.trainable = "dense"  # or "all" (as printed), "reasoning"

    config.eval = config_dict.ConfigDict()
    config.eval.metrics = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10")
    config.eval.selection = "ndcg@5/neg99"  # on validation
    config.eval.batch_size = 256
    config.eval.full_batch_size = 64

    config.loop = config_dict.ConfigDict()
    config.loop.log_every = 20  # updates
    config.loop.checkpoint_every = 500  # updates, beside one at every evaluation
    return config
