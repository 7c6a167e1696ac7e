"""The sweeps: one file each, made to be copied and changed.

A sweep's file has a docstring, whose first line `--list` shows, and

    SETTINGS             fields that the study fixes, over the preset; `--set` may change them
    trials(base)         the trials: the base with some fields changed, without seeds
    cell(trial)          the row and the column of a trial in the table
    ROWS, COLUMNS        each a pair: what the axis is called, its values in order
"""
