"""The studies of the paper: one file each, made to be copied and changed.

A study's file has a docstring, whose first line `--list` shows, and

    SETTINGS             fields that the study fixes, over the preset; `--set` may change them
    trials(base)         the trials: the base with some fields changed, without seeds and data sets
    cell(trial)          the row and the column of a trial in the table
    ROWS, COLUMNS        each a pair: what the axis is called, its values in order (None: as the trials bring them)

and, where it wants them,

    table(trial)         which table the trial stands in; without it, one table a data set
    METRICS              what the tables show, `("test_top1",)`; one table each
    WITHIN               what is compared, "table" (all cells), "column", "row" or "nothing"
    references(base)     more trials that stand below the tables, beside the baselines: a dict of name and trial
    curve(trial)         the line to which its probe accuracy by epoch belongs, or None; one line each in the curves

A search has, in place of trials, cell, ROWS and COLUMNS,

    suggest(trial, base) one configuration, chosen with Optuna's `trial.suggest_...`
    TRIALS, GENERATION   how many, and how many of them are chosen at a time
    AROUND               fields that are varied around the base's value, so that `--set` moves the range

A union of studies has `STUDIES`, their names, and in `FIRST_ONLY` those that run on the first of several data sets
alone unless `--grid-everywhere` says otherwise. Trials that several of them ask for are trained once.
"""
