"""Rows of results.json as a run writes them, for tests that make results by hand."""

ROW = {
    "stage": "train",
    "split": "test",
    "protocol": "full",
    "step": 1,
    "examples": 2,
    "metrics": {},
    "selected_on": "ndcg@5/full on validation",
    "data": "d",
    "data_hash": "h",
    "data_split": "leave_one_out",
    "candidates_seed": 0,
    "seed": 0,
    "commit": "c0ffee",
    "device": "2 CPU cores",
}


def row(**entries):
    return ROW | entries
