"""Holds the library's version; `setup.cfg` reads it from here."""

VERSION = "0.2.0"
