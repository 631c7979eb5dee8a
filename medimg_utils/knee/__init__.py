"""Knee MR: abnormality, ACL tear, meniscal tear, after Bien et al. 2018 (MRNet).

`dataset` reads the releases, `standardise` makes grey values comparable, `preprocess`
leads to the network, `models` holds the networks, `experiment` trains, evaluates and
predicts, `localise` measures where a network looks; `simulate` writes releases from real
anatomy.
"""
