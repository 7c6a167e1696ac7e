"""All of the paper's tables: augmentations, inputs and losses, for the data sets given."""

STUDIES = ("augmentations", "inputs", "losses")
