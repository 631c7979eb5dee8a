"""stub."""


def measure_releases():
    """Stub."""
    return {}
