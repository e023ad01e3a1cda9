"""What is measured of a prediction."""

from __future__ import annotations

__all__ = ["NAN"]

NAN = -1  # the scores hold a NaN, which is no prediction: as good as a wrong one
