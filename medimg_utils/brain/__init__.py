"""Brain tumours in multimodal MR and survival, after Weninger et al. 2019 (LNCS 11384).

`simulate` writes releases from real anatomy: `phantom` makes a healthy brain, `tumour`
lets a glioma grow in it, `scan` takes its four MR images.  `dataset` reads the releases,
`preprocess` leads to the networks and back, `models` holds the two 3-D U-Nets and their
losses, `inference` the ways through them, `survival` the regressions, `evaluation` the
measures; `experiment` trains, evaluates and predicts.
"""
