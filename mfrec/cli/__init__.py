"""The command line: parses arguments, calls the library, prints the result.

It may import everything below it.  Modules of verbs hold their options, which import nothing heavy, so that help and
errors of usage answer at once; torch, pandas and the rest are imported by the functions that do the work.
"""
