"""Item texts: read where a source has them, kept in the order of the log, never the categories."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from core.errors import UserError
from input_pipelines.data_card import describe
from input_pipelines.log import RawEvents, build_log
from input_pipelines.log_checks import validate_log
from input_pipelines.prepared_log import load_log, save_log
from input_pipelines.readers import amazon_beauty, csv_log, qilin_files
from input_pipelines.sample import generator


def events(**more):
    return RawEvents(
        click_user=["u"] * 3,
        click_item=["b", "a", "c"],
        click_time=[1, 2, 3],
        search_user=[],
        search_time=[],
        search_words=[],
        search_clicks=[],
        **more,
    )


def test_texts_survive_a_save_and_stand_in_item_order(tmp_path):
    # Item c has none; x is no item of the log; 锅 takes three bytes.
    log = build_log("toy", events(item_texts={"a": "锅", "b": "red pot", "x": "none"}))
    save_log(log, str(tmp_path / "log"))
    loaded = load_log(str(tmp_path / "log"))
    assert loaded.item_ids.tolist() == ["", "a", "b", "c"]
    assert loaded.item_texts() == log.item_texts() == ["锅", "red pot", ""]


def test_texts_change_no_hash_and_a_log_without_says_so(tmp_path):
    log = build_log("toy", events())
    assert log.hash == build_log("toy", events(item_texts={"a": "pot"})).hash
    save_log(log, str(tmp_path / "log"))
    with pytest.raises(UserError, match="expected item texts in the log of toy, found none"):
        load_log(str(tmp_path / "log")).item_texts()


def test_amazon_beauty_takes_title_brand_and_description_and_no_category(tmp_path):
    records = [
        {"item": 0, "query_ids": [0], "title": " Pot ", "brand": "Acme", "description": "Red."},
        {"item": 1, "query_ids": [], "title": None, "categories": [["Beauty", "Pots"]]},
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (tmp_path / "sequences.tsv").write_text("0\t0 1\n")
    (tmp_path / "queries.tsv").write_text("0\tpots\n")
    log = amazon_beauty.read_amazon_beauty(str(tmp_path))
    assert log.item_texts() == ["Pot Acme Red.", ""]


def test_facts_survive_a_save_stand_in_item_order_and_change_no_hash(tmp_path):
    facts = {"a": {"title": "锅", "price": "3.50"}, "c": {}, "x": {"brand": "none"}}
    log = build_log("toy", events(item_facts=facts))
    assert log.hash == build_log("toy", events()).hash
    save_log(log, str(tmp_path / "log"))
    loaded = load_log(str(tmp_path / "log"))
    assert [loaded.facts(item) for item in range(4)] == [{}, facts["a"], {}, {}]
    assert describe(loaded)["items_with_facts"] == 1
    assert build_log("toy", events()).facts(1) == {}
    validate_log(loaded)
    for wrong in ({"fact_bytes": None}, {"fact_offsets": loaded.fact_offsets[:-1]}):
        with pytest.raises(UserError, match="prepare the data again"):
            validate_log(dataclasses.replace(loaded, **wrong))


def test_amazon_beauty_knows_title_brand_and_price(tmp_path):
    records = [
        {"item": 0, "query_ids": [0], "title": " Pot ", "brand": "Acme", "price": 6.8},
        {"item": 1, "query_ids": [], "title": "Pan", "brand": "", "price": None},
        {"item": 2, "query_ids": [], "title": None, "price": float("nan"), "categories": [["B"]]},
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (tmp_path / "sequences.tsv").write_text("0\t0 1 2\n")
    (tmp_path / "queries.tsv").write_text("0\tpots\n")
    log = amazon_beauty.read_amazon_beauty(str(tmp_path))
    facts = [log.facts(item) for item in (1, 2, 3)]
    assert facts == [{"title": "Pot", "brand": "Acme", "price": "6.80"}, {"title": "Pan"}, {}]


def test_titles_of_a_csv_log(tmp_path):
    (tmp_path / "clicks.csv").write_text("user,item,time\nu,a,1\nu,b,2\n")
    (tmp_path / "searches.csv").write_text("user,session,time,query,clicked_items\n")
    with pytest.raises(UserError, match="found none in its source"):
        csv_log.read_csv_log(str(tmp_path)).item_texts()
    (tmp_path / "items.csv").write_text("item,title\nc,red pot\na,blue drum\n")
    assert csv_log.read_csv_log(str(tmp_path)).item_texts() == ["blue drum", "", "red pot"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_note_texts_of_wanted_notes(tmp_path, suffix):
    table = pd.DataFrame(
        {
            "note_title": ["one", "two", None],
            "note_content": ["first", " ", "third"],
            "note_idx": [1, 2, 3],
            "note_embedding": ["[0.1]", "[0.2]", "[0.3]"],
        }
    )
    if suffix == "csv":
        table.to_csv(tmp_path / "notes.csv", index=False)
    else:
        (tmp_path / "notes").mkdir()
        table.to_parquet(tmp_path / "notes" / "0.parquet")
    texts = qilin_files.read_note_texts(str(tmp_path), np.array([2, 3, 9]))
    assert texts == {"2": "two", "3": "third"}
    assert qilin_files.read_note_texts(str(tmp_path / "none"), np.array([1])) is None


def test_a_notes_table_without_titles_is_named(tmp_path):
    (tmp_path / "notes.csv").write_text("note_idx,note_content\n1,pot\n")
    with pytest.raises(UserError, match=r"column note_title in .*notes\.csv"):
        qilin_files.read_note_texts(str(tmp_path), np.array([1]))


def test_the_sample_names_topic_and_brand(tmp_path):
    structure = generator.Structure()
    generator.write_sample(str(tmp_path / "s"), num_users=3, seed=0)
    wanted = np.arange(structure.num_items)
    texts = qilin_files.read_note_texts(str(tmp_path / "s"), wanted)
    assert len(texts) == structure.num_items
    # Item 28: topic 1, brand 0, the fourth of its cell.
    assert texts["28"].startswith("sneakers of brand0 no3 sneakers")
    assert len({text.split(" of ")[0] for text in texts.values() if " of " in text}) == 24
