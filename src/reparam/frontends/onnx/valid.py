"""Whether an ONNX model is one that can be read: whole, valid, of versions that onnx knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam.errors import InputError
from reparam.frontends.onnx.constants import DEFAULT_DOMAINS
from reparam.frontends.onnx.inputs import FIRST_SEPARATE_INITIALIZERS
from reparam.frontends.onnx.nodes import sorted_model
from reparam.frontends.onnx.shapes import skeleton
from reparam.frontends.onnx.tensors import onnx_module

if TYPE_CHECKING:
    from onnx import ModelProto


def check_readable(model: ModelProto) -> int:
    """Check a model and return the version of its operations of the default domain.

    Raises:
        InputError: It is not whole, not valid, or says no version that onnx knows.

    """
    if not model.ir_version or not model.graph.output:
        raise InputError(
            "this is not a whole ONNX model: it has no IR version or no outputs; the file it comes "
            "from may be cut short, or no ONNX file"
        )
    opset = _known_versions(model)
    why = complaint(model, any_order=True)
    if why is not None:
        raise InputError(f"this is not a valid ONNX model, onnx.checker says: {why}")
    return opset


def complaint(model: ModelProto, *, any_order: bool = False) -> str | None:
    """What ``onnx.checker`` has against the graph of a model; its weights need no check."""
    onnx = onnx_module()
    bare = sorted_model(skeleton(model)) if any_order else skeleton(model)
    # Before version 4 weights had to be inputs, too; some converters forgot, and no runtime minds.
    bare.ir_version = max(bare.ir_version, FIRST_SEPARATE_INITIALIZERS)
    inputs = {value.name for value in bare.graph.input}
    # The checker looks for the files of weights that lie outside; inputs do as well.
    for tensor in [t for t in bare.graph.initializer if t.data_location == 1]:
        bare.graph.initializer.remove(tensor)
        if tensor.name not in inputs:
            bare.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    # Converters leave out the shapes of outputs, which every runtime takes.
    for value in (*bare.graph.input, *bare.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(bare)
    except onnx.checker.ValidationError as error:
        return str(error).strip().partition("\n")[0]
    return None


def _known_versions(model: ModelProto) -> int:
    onnx = onnx_module()
    newest = onnx.defs.onnx_opset_version()
    if model.ir_version > onnx.IR_VERSION:
        raise InputError(
            f"the model has IR version {model.ir_version}; onnx {onnx.__version__} knows versions "
            f"up to {onnx.IR_VERSION}: install a newer onnx"
        )
    versions = [o.version for o in model.opset_import if o.domain in DEFAULT_DOMAINS]
    if not versions:
        raise InputError(
            "the model does not say which opset its operations are of (opset_import has no entry "
            "for the default domain); the file it comes from may be cut short"
        )
    opset = int(versions[0])
    if not 1 <= opset <= newest:
        raise InputError(
            f"the model has opset {opset}; onnx {onnx.__version__} knows opsets 1 to {newest}: "
            f"install a newer onnx, or export with opset_version={newest}"
        )
    return opset
