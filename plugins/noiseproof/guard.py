"""GuardMixin: every adopted trainer stops on NaN before a weight is touched, and writes a receipt."""

from typing import Any


class GuardMixin:
    """Innermost mixin, on even for an empty block."""

    def setup(self: Any) -> None:
        """Write the receipt."""
