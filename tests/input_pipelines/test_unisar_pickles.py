"""UniSAR's pickles: the published split by hand; a pickle that runs code is refused."""

import collections
import pathlib
import pickle

import numpy as np
import pandas as pd
import pytest

from configs import lcr_ser
from core.errors import UserError
from experiments.methods import open_experiment
from experiments.resolve import resolve
from input_pipelines import candidates, prepare
from input_pipelines.dataset import Dataset
from input_pipelines.log_checks import validate_log
from input_pipelines.readers import restricted_pickle, unisar_pickles
from input_pipelines.splits import check_leakage, split_log

# User 0 clicks 1..6; 3 and 4 in one batch. Session 1 is before all, session 2 at the time of 5.
USERS = {
    2: {
        "rec_his": [7, 8, 9],
        "rec_his_ts": [5, 6, 7],
        "src_session_his": [],
        "src_session_his_ts": [],
    },
    0: {
        "rec_his": [1, 2, 3, 4, 5, 6],
        "rec_his_ts": [10.0, 20.0, 30.0, 30.0, 40.0, 50.0],
        "src_session_his": [1, 2],
        "src_session_his_ts": [5.0, 40.0],
    },
}
SESSIONS = {
    "keyword": np.array([[0, 0, 0], [4, 2, 0], [3, 0, 0]]),
    "pos_items": np.array([[0, 0], [2, 9], [0, 0]]),
}
ITEMS = {"caption": np.zeros((121, 50), np.int64), "first_level_category_id": np.zeros(121)}


def frame(rows, negatives):
    """rows: (user, item, rec_his, src_session_his)."""
    table = pd.DataFrame(
        {
            "user_id": [r[0] for r in rows],
            "item_id": [r[1] for r in rows],
            "neg_items": [list(range(10, 10 + negatives)) for _ in rows],
            "rec_his": [r[2] for r in rows],
            "src_session_his": [r[3] for r in rows],
        }
    )
    # Names of columns as pandas 1 and 2 keep them.
    table.columns = pd.Index(list(table.columns), dtype=object)
    return table


TRAIN = frame([(0, 2, 1, 1), (0, 3, 2, 1), (0, 4, 3, 1), (2, 8, 1, 0)], 4)
VALIDATION = frame([(0, 5, 4, 2)], 99)
TEST = frame([(2, 9, 2, 0), (0, 6, 5, 2)], 99)


def write(folder, protocol=4, **changed):
    values = {
        "vocab/user_vocab": USERS,
        "vocab/src_session_vocab_np": SESSIONS,
        "vocab/item_vocab_np": ITEMS,
        "dataset/rec_train": TRAIN,
        "dataset/rec_val": VALIDATION,
        "dataset/rec_test": TEST,
    }
    for name in values:
        path = folder / f"{name}.pkl"
        path.parent.mkdir(parents=True, exist_ok=True)
        value = changed.get(path.stem, values[name])
        path.write_bytes(pickle.dumps(value, protocol=protocol))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "raw")


def test_the_log_and_its_split_by_hand(folder):
    log = unisar_pickles.read_unisar(str(folder))
    validate_log(log)
    assert log.user_ids.tolist() == ["", "0", "2"] and log.num_items == 120
    assert log.rec_items.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert log.word_ids.tolist() == [4, 2, 3] and log.word_offsets.tolist() == [0, 2, 3]
    assert log.click_items.tolist() == [2, 9] and log.click_offsets.tolist() == [0, 2, 2]
    parts = split_log(log, "published")
    check_leakage(log, parts)
    # The target 4's published history ends with 3 of its own batch, which is cut.
    assert parts.train.target_row.tolist() == [1, 2, 3, 7]
    assert parts.train.rec_end.tolist() == [1, 2, 2, 7]
    assert parts.train.search_end.tolist() == [1, 1, 1, 2]
    # The session at the time of the target 5 is cut as well; the target 6 sees both.
    assert parts.validation.target_row.tolist() == [4]
    assert parts.validation.search_end.tolist() == [1]
    assert parts.test.target_row.tolist() == [8, 5]
    assert parts.test.rec_end.tolist() == [8, 5] and parts.test.search_end.tolist() == [2, 2]
    assert parts.training_rows.tolist() == [0, 1, 2, 3, 6, 7]
    assert parts.train.user.tolist() == [1, 1, 1, 2]


def test_sessions_with_nothing_in_them_are_left_out_and_prefixes_follow(folder, tmp_path):
    # Sessions 3 and 4 of the table have neither words nor items; user 0 has them first, between
    # the two others and last, user 2 has nothing else.
    empty = {
        "keyword": np.concatenate([SESSIONS["keyword"], np.zeros((2, 3), np.int64)]),
        "pos_items": np.concatenate([SESSIONS["pos_items"], np.zeros((2, 2), np.int64)]),
    }
    users = {
        2: USERS[2] | {"src_session_his": [3], "src_session_his_ts": [1]},
        0: USERS[0]
        | {"src_session_his": [3, 1, 4, 2, 3], "src_session_his_ts": [1.0, 5.0, 6.0, 40.0, 41.0]},
    }
    raw = write(
        tmp_path / "empty",
        user_vocab=users,
        src_session_vocab_np=empty,
        # Prefixes that count the empty sessions: what session 1 and 2 were the end of before.
        rec_train=frame([(0, 2, 1, 1), (0, 3, 2, 2), (0, 4, 3, 3), (2, 8, 1, 1)], 4),
        rec_val=frame([(0, 5, 4, 4)], 99),
        rec_test=frame([(2, 9, 2, 1), (0, 6, 5, 5)], 99),
    )
    log = unisar_pickles.read_unisar(str(raw))
    validate_log(log)
    plain = unisar_pickles.read_unisar(str(folder))
    assert log.search_offsets.tolist() == plain.search_offsets.tolist() == [0, 0, 2, 2]
    assert log.search_times.tolist() == plain.search_times.tolist() == [5, 40]
    assert log.word_ids.tolist() == plain.word_ids.tolist()
    assert log.reading == {"searches_left_out_as_empty": 4} and plain.reading == {}
    parts = split_log(log, "published")
    check_leakage(log, parts)
    # The first target's prefix holds an empty session alone.
    assert parts.train.search_end.tolist() == [0, 1, 1, 2]
    assert parts.validation.search_end.tolist() == [1]
    assert parts.test.search_end.tolist() == [2, 2]


def test_published_negatives_are_the_lists_named_so(folder, tmp_path):
    cache = str(tmp_path / "cache")
    log, directory = prepare.prepare_log("unisar_pickles", str(folder), cache, {})
    assert log.hash == unisar_pickles.read_unisar(str(folder)).hash
    parts = split_log(log, "published")
    lists = candidates.evaluation_candidates(log, parts, "test", "published99", 0, directory)
    assert lists.tolist() == [[9, *range(10, 109)], [6, *range(10, 109)]]
    drawn = candidates.evaluation_candidates(log, parts, "test", "neg99", 0, directory)
    assert drawn[:, 0].tolist() == [9, 6] and not np.array_equal(drawn, lists)
    by_time = split_log(log, "global_time")
    with pytest.raises(UserError, match="published99, found global_time of unisar_pickles"):
        candidates.evaluation_candidates(log, by_time, "test", "published99", 0, directory)


def test_the_config_opens_on_it(folder, tmp_path):
    config = lcr_ser.get_config("unisar_pickles")
    config.data_dir, config.cache_dir = str(folder), str(tmp_path / "cache")
    data = Dataset(resolve(config))
    open_experiment(config, data)
    batch, *_ = data.sampled("test", "published99")
    assert batch["candidates"].shape == (256, 100) and batch["mask"].sum() == 2


def test_other_data_has_no_published_split():
    log = prepare.READERS["csv_log"].read(str(pathlib.Path(__file__).parents[1] / "data/csv_log"))
    with pytest.raises(UserError, match="a split that came with csv_log, found none"):
        split_log(log, "published")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_reads_alike(folder, tmp_path, protocol):
    other = write(tmp_path / "other", protocol, user_vocab=collections.defaultdict(dict, USERS))
    digits = unisar_pickles.read_unisar(str(other)).hash
    assert digits == unisar_pickles.read_unisar(str(folder)).hash


def test_the_names_of_older_versions_read_alike(folder, tmp_path):
    old = write(tmp_path / "old", 2)
    path = old / "dataset" / "rec_train.pkl"
    content = path.read_bytes()
    for new, older in (
        (b"cpandas\nDataFrame\n", b"cpandas.core.frame\nDataFrame\n"),
        (b"cpandas\nRangeIndex\n", b"cpandas.core.indexes.range\nRangeIndex\n"),
        (b"cpandas\nIndex\n", b"cpandas.core.indexes.base\nIndex\n"),
        (b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"),
    ):
        content = content.replace(new, older)
    assert b"pandas.core.frame" in content and b"numpy._core" not in content
    path.write_bytes(content)
    digits = unisar_pickles.read_unisar(str(old)).hash
    assert digits == unisar_pickles.read_unisar(str(folder)).hash


class Attack:
    """A pickle of it calls a function with arguments while it loads."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("name", ["user_vocab", "src_session_vocab_np", "rec_train", "rec_test"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_runs_code_is_refused_and_nothing_is_executed(tmp_path, name, protocol):
    import os

    mark = tmp_path / "mark"
    attack = {"x": Attack(os.system, f"touch {mark}")}
    raw = write(tmp_path / "raw", protocol, **{name: attack})
    with pytest.raises(UserError, match=r"a call of (posix|nt)\.system; nothing of it was run"):
        unisar_pickles.read_unisar(str(raw))
    assert not mark.exists()
    # The attack is real: an ordinary load runs it.
    pickle.loads(pickle.dumps(attack))
    assert mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1+1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cpandas\nread_pickle\n(S'x'\ntR.",
        b"cpandas.core.frame\nDataFrame.eval\n(S'x'\ntR.",
        # Protocol 4 looks dotted names up attribute by attribute.
        b"\x80\x04\x8c\x11pandas.core.frame\x8c\x0eDataFrame.eval\x93.",
        b"c_codecs\ndecode\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct.__self__\n.",
    ],
)
def test_no_other_name_is_admitted(tmp_path, content):
    path = tmp_path / "x.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="nothing of it was run"):
        restricted_pickle.load_pickle(path)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("user_vocab", [1], "a dict of users with rec_his, .* found list"),
        ("user_vocab", {0: {"rec_his": [1]}}, "a dict of users with rec_his"),
        ("user_vocab", {0: USERS[0] | {"rec_his_ts": [1]}}, "one time an event of each user"),
        ("user_vocab", {0: USERS[0] | {"rec_his": [1.5] * 6}}, "whole numbers as rec_his"),
        (
            "user_vocab",
            {0: USERS[0] | {"rec_his_ts": [10, 20, 30, 30, 29, 50]}},
            "rec_his_ts in time order",
        ),
        ("user_vocab", {0: USERS[0] | {"rec_his": [1, 2, 3, 4, 5, 121]}}, "items from 1 to 120"),
        ("user_vocab", {0: USERS[0]}, "users of user_vocab.pkl in .*found 2 in row 4"),
        ("src_session_vocab_np", {"keyword": np.zeros((3, 2))}, "keyword and pos_items"),
        ("item_vocab_np", np.zeros(3), "a dict of columns"),
        ("rec_train", TRAIN.drop(columns="rec_his"), "a frame with user_id"),
        ("rec_train", frame([(0, 2, 3, 1)], 4), "item 2 of row 1 at place 3 .* found 4"),
        ("rec_train", frame([(0, 2, 6, 1)], 4), "a list that ends before"),
        ("rec_train", frame([(0, 2, 1, 7)], 4), "src_session_his within the user's list"),
        ("rec_val", frame([(0, 5, 4, 2)], 112), "neg_items from 1 to 120 .* found 121 in row 1"),
        ("rec_test", frame([(0, 6, 5, 2)], 99).assign(neg_items=[[6] * 99]), "found 6 in row 1"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, name, value, found):
    raw = write(tmp_path / "raw", **{name: value})
    with pytest.raises(UserError, match=found) as error:
        unisar_pickles.read_unisar(str(raw))
    assert "\n" not in str(error.value)


def test_the_padding_user_is_no_user_and_counts_are_checked(folder, tmp_path):
    empty = {name: [] for name in USERS[2]}
    padded = write(tmp_path / "padded", user_vocab={1: empty, **USERS})
    digits = unisar_pickles.read_unisar(str(padded)).hash
    assert digits == unisar_pickles.read_unisar(str(folder)).hash
    unisar_pickles.read_unisar(str(folder), published_counts={"users": 2, "items": 120})
    with pytest.raises(UserError, match=r"otherwise, found users 2 \(of 3\); download"):
        unisar_pickles.read_unisar(str(folder), published_counts={"users": 3, "items": 120})


def test_missing_and_truncated_files(folder):
    path = folder / "dataset" / "rec_val.pkl"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"a whole pickle at .*rec_val\.pkl"):
        unisar_pickles.read_unisar(str(folder))
    path.unlink()
    with pytest.raises(UserError, match=r"expected dataset/rec_val\.pkl in .* no such file"):
        unisar_pickles.raw_files(str(folder))


def with_rows(table, **changed):
    return {**table, **{name: np.asarray(rows) for name, rows in changed.items()}}


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        # 2^32 + 2 is item 2, and 2^32 + 4 word 4, in 32 bits.
        (
            {"src_session_vocab_np": with_rows(SESSIONS, pos_items=[[0], [2**32 + 2], [0]])},
            "pos_items from 0 to 120 .*found 4294967298",
        ),
        (
            {"src_session_vocab_np": with_rows(SESSIONS, keyword=[[0], [2**32 + 4], [3]])},
            "keyword from 0 to 16777216 .*found 4294967300",
        ),
        ({"src_session_vocab_np": with_rows(SESSIONS, keyword=3)}, "a dict with keyword and"),
        ({"user_vocab": {0: {**USERS[0], "rec_his": 3}}}, "a dict of users with rec_his"),
        ({"item_vocab_np": {"caption": None}}, "a dict of columns"),
        ({"user_vocab": {0: {name: [] for name in USERS[0]}}}, "clicks in rec_his .*found none"),
        # Beside the place of a user who is not the first they have no 64 bits.
        ({"rec_test": TEST.assign(rec_his=2**63 - 1)}, "place 9223372036854775807"),
        ({"rec_test": TEST.assign(src_session_his=2**63 - 1)}, "src_session_his within"),
    ],
)
def test_numbers_that_are_no_rows_of_the_log_are_refused(tmp_path, changed, found):
    with pytest.raises(UserError, match=found):
        unisar_pickles.read_unisar(str(write(tmp_path / "raw", **changed)))


def test_a_message_shows_the_first_values_of_a_long_list(tmp_path):
    users = {0: {**USERS[0], "rec_his": [*range(1000), None]}}
    with pytest.raises(UserError, match=r"found \[0, 1, 2, 3, 4, 5, ...\];"):
        unisar_pickles.read_unisar(str(write(tmp_path / "raw", user_vocab=users)))
