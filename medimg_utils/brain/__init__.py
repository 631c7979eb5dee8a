"""Brain tumours in multimodal MR, after Weninger et al. 2019 (LNCS 11384, 3-12).

`simulate` writes releases from real anatomy: `phantom` makes a healthy brain, `tumour`
lets a glioma grow in it, `scan` takes its four MR images.
"""
