"""Holds what LCR-SER is compared with: each a `lcrsr.ranker.Ranker` or a fitted scorer of its
own.
"""
