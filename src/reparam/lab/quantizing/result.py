"""What quantizing came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reparam.deploy.engines.int8 import right_on
from reparam.deploy.engines.program import Axes
from reparam.lab.quantizing.diagnosing import Diagnosis
from reparam.lab.quantizing.equalizing import Equalisation
from reparam.lab.quantizing.scoring import Score

__all__ = ["QuantizeResult"]


@dataclass(frozen=True)
class QuantizeResult:
    """What was written, and how it compares with the float net in its engine.

    Attributes:
        path: The file (of OpenVINO's two, the ``.xml``).
        format: Name of the format.
        engine: The engine that it was judged in.
        score: Accuracy and agreement there.
        diagnosis: What rounding does to each layer, with the remedies applied; ``None`` if it was
            not asked for.
        quantized: Paths of the layers that the file holds in integers.
        kept_float: Paths of the layers that were to stay in float.
        target: The processors that it was made for; the name of one of
            :data:`reparam.lab.quantizing.TARGETS`.
        weight_bits: 8; or 7, which every processor adds up right.
        equalised: Where channels were equalised.
        bias_corrected: Whether biases were corrected.
        calibration: What the ranges were read off.
        input_shape: Shape of one sample, without the batch.
        dynamic_axes: For each input, the names of its variable dimensions by position.
        metadata: What the file says about itself.
        size_bytes: Size of the file or files.
        float_bytes: Bytes of the parameters of the float net.
        seconds: Time it took.
    """

    path: Path
    format: str
    engine: str
    score: Score
    diagnosis: Diagnosis | None
    quantized: tuple[str, ...]
    kept_float: tuple[str, ...]
    target: str
    weight_bits: int
    equalised: tuple[Equalisation, ...]
    bias_corrected: bool
    calibration: str
    input_shape: tuple[int, ...]
    dynamic_axes: Axes
    metadata: dict[str, str]
    size_bytes: int
    float_bytes: int
    seconds: float

    @property
    def right_on(self) -> str:
        """The processors on which the file computes what its numbers say, in words."""
        return right_on(self.weight_bits)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as a dictionary that JSON can hold."""
        axes = [{str(i): name for i, name in each.items()} for each in self.dynamic_axes]
        whole = asdict(self) | {"path": self.path.name, "dynamic_axes": axes}
        return whole | {"score": self.score.as_dict()}

    def __str__(self) -> str:
        """One line for a person."""
        size = f"{self.size_bytes / 1e6:.2f} MB"
        return f"{self.path.name} ({self.format}, int8, {size}) in {self.engine}: {self.score}"
