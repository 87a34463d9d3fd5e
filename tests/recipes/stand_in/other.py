"""Of another kind."""

from datafree.spec import method


@method
class Other:
    """Does not speak."""

    size: int = 1
