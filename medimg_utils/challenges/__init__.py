"""What stands between a trained network and a patient, as experiments.

Decisions and worklists, variance of designs, attribution and shortcuts, readers and
privacy. The experiments use the networks, the exams and the stored answers of the
three use cases; the chapters in ``book/challenges/`` read their results.
"""
