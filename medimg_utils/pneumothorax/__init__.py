"""Pneumothorax in chest radiographs, after Gooßen et al. 2019 (arXiv 1907.07324).

`dataset` reads the releases, `preprocess` leads to the network and back, `models` holds
the network and its loss, `experiment` trains, evaluates and predicts; `simulate` writes
releases from real anatomy.
"""
