"""What a compressed network may cost at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits that all hold together; None: no limit.

    size: bytes of `student.onnx`; size_share: the same as a share of the original's float32 file, (0, 1]
    macs: multiply-accumulates as a share of the original's, (0, 1]
    speedup: times as fast as the original's float32 file, at least; latency_ms: milliseconds of one input
    """

    size: int | None = None
    size_share: float | None = None
    macs: float | None = None
    speedup: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        for name in ("size", "speedup", "latency_ms"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        for name in ("size_share", "macs"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} is a share of the original, above 0 and at most 1; got {value}")

    @property
    def timed(self) -> bool:
        """Whether anything must be run to tell if it holds."""
        return self.speedup is not None or self.latency_ms is not None
