"""All of the paper's tables: augmentations on the first data set, inputs and losses on all that are given."""

STUDIES = ("augmentations", "inputs", "losses")
FIRST_ONLY = ("augmentations",)
