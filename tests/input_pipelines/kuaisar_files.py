"""Small KuaiSAR files with the published columns, written by hand."""

import pathlib

REC_HEADER = (
    "user_id,item_id,playing_time,duration_ms,time,timestamp,click,forward,like,follow,search,"
    "search_item_related"
)
SRC_HEADER = (
    "user_id,search_session_id,search_session_time,search_session_timestamp,keyword,search_source,"
    "item_id,click_cnt,item_type"
)
ITEM_HEADER = "item_id,caption,author_id,item_type,upload_time,upload_type"
CLOCK = "2023-05-22 15:53:20"


def rec_row(user, item, time, click):
    return f"{user},{item},60792.0,45400.0,{CLOCK},{time},{click},0,0,0,0,0"


def src_row(user, session, time, keyword, item, click, kind="VIDEO"):
    return f'{user},{session},{CLOCK},{time},"{keyword}",USER_INPUT,{item},{click},{kind}'


def item_row(item):
    return f'{item},"[1, 213, 24]",10,NORMAL,2023-04-22,LongImport'


def write(folder: pathlib.Path, rec=None, src=None, items=None) -> pathlib.Path:
    """The tiny set of the tests, with any table replaced by other rows."""
    rec = rec if rec is not None else REC
    src = src if src is not None else SRC
    items = items if items is not None else ITEMS
    folder.mkdir(parents=True, exist_ok=True)
    for name, header, rows in (
        ("rec_inter", REC_HEADER, rec),
        ("src_inter", SRC_HEADER, src),
        ("item_features", ITEM_HEADER, items),
    ):
        (folder / f"{name}.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


# User 7 sees 11, 12, 13 in one batch at 2000 and clicks two of them; 99 is in no feature file.
REC = [
    rec_row(7, 10, "1000.0", 1),
    rec_row(7, 11, "2000.0", 1),
    rec_row(7, 12, "2000.0", 0),
    rec_row(7, 13, "2000.0", 1),
    rec_row(7, 99, "3e3", 1),
    rec_row(7, 14, "4000.0", 1),
    rec_row(9, 10, "1500.0", 1),
    rec_row(9, 11, "2500.0", 0),
]
# Session 1 of user 7 clicks a video twice and a user profile; session 2 nothing; session 3 has no
# word; user 9's session carries the same number as one of user 7's.
SRC = [
    src_row(7, 1, "1500.0", "[20, 34, 3]", 11, 1),
    src_row(7, 1, "1500.0", "[20, 34, 3]", 12, 0),
    src_row(7, 1, "1500.0", "[20, 34, 3]", 500, 2, "USER"),
    src_row(7, 1, "1500.0", "[20, 34, 3]", 11, 1),
    src_row(7, 2, "2000.0", "[5]", 12, 0),
    src_row(7, 2, "2000.0", "[5]", 13, 0),
    src_row(7, 3, "2500.0", "[]", 14, 1),
    src_row(9, 1, "100.0", "[34,20]", 10, 0),
]
ITEMS = [item_row(i) for i in (10, 11, 12, 13, 14, 500, 77)]
