"""Ratings in: files, ids, titles, splits and features.

`Ratings` and `Dataset` live here, with the readers that make them from files, the splits that divide them and the
features that describe users and items.  This package imports only `mfrec.errors`, `mfrec.options` and `mfrec.sparse`.
"""
