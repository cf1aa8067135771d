"""Where Hydra finds the configurations of this package, as groups such as ``nemo_merge/merge``.

The folder ``nemo_merge`` beside this file is a link to ``configs/`` of the repository; a wheel has the files.
"""
