"""Anatomy, deformation and the physics that turns anatomy into simulated exams."""
