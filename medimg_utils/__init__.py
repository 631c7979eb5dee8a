"""Helper package of the book Deep learning-assisted medical image analysis."""
