"""Eight bits for a fused net: why accuracy is lost, what helps, and files for two engines."""

from __future__ import annotations

from reparam.deploy.engines.int8 import AUTO, TARGETS, Target
from reparam.lab.quantizing.arithmetic import Arithmetic
from reparam.lab.quantizing.aware import finish_qat, prepare_qat
from reparam.lab.quantizing.correcting import correct_biases
from reparam.lab.quantizing.diagnosing import Diagnosis, LayerDiagnosis, diagnose
from reparam.lab.quantizing.equalizing import Equalisation, equalize
from reparam.lab.quantizing.quantizer import quantize
from reparam.lab.quantizing.result import QuantizeResult, Score
from reparam.lab.quantizing.samples import (
    Evaluation,
    Samples,
    Source,
    labelled_batches,
    read_samples,
)
from reparam.lab.quantizing.targets import check_target

__all__ = [
    "AUTO",
    "TARGETS",
    "Arithmetic",
    "Diagnosis",
    "Equalisation",
    "Evaluation",
    "LayerDiagnosis",
    "QuantizeResult",
    "Samples",
    "Score",
    "Source",
    "Target",
    "check_target",
    "correct_biases",
    "diagnose",
    "equalize",
    "finish_qat",
    "labelled_batches",
    "prepare_qat",
    "quantize",
    "read_samples",
]
