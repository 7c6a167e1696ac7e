"""clar: re-run, extend and trust the ablations of contrastive learning of auditory representations.

Data flows config -> clips -> augment -> features -> encoder -> head -> loss -> probe -> result -> table, and
modules import along that chain, never back. `clar.trainer` and all before it know neither Ray nor MLflow.
"""

__version__ = "0.1.0"
