"""Why something is left as it is: one enumeration, and the only place where a reason is worded.

Code decides on kinds and never on words; ``str(reason)`` is for a person.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

__all__ = ["Reason", "Refusal", "Why"]

_DETAIL = re.compile(r"\[([^\[\]|]*)(?:\|([^\[\]|]*))?\]")
"""``[what holds for one place]``, or ``[that|what is said in its place of many]``."""


class Why(enum.Enum):
    """Kinds of reasons. Each value is the sentence, with the reason's arguments in braces.

    Brackets hold what is of one place alone; the general sentence is without it.

    Calling a kind makes a reason of it.

    >>> reason = Why.TIED(to="head.weight")
    >>> reason.kind is Why.TIED, str(reason)
    (True, 'its weight is tied to that of head.weight')
    >>> reason.general
    'its weight is tied to another'

    """

    # What the algebra refuses.
    BRANCHES_DIFFER = (
        "branches differ in {what}[: {left} ({first}) against {right} ({second}){hint}]"
    )
    CHANNELS_DIFFER = (
        "channels do not match[: {expected} expected by the second ({outer}) against {given} given "
        "by the first ({inner})]"
    )
    DIMENSIONS_DIFFER = "spatial dimensions do not match[: {outer} against {inner}]"
    BIAS_THROUGH_PADDING = (
        "a bias is seen through zero padding: the second[ ({outer})] pads its input with zeros, "
        "where the first[ ({inner})] with its bias would not be zero"
    )
    PADDED_SECOND_KERNEL = (
        "a padded second kernel: the second[ ({outer})] pads its input with zeros, where the "
        "first[ ({inner})] still meets its own input and would not be zero"
    )
    NO_SCALE = (
        "batch norm has no scale: the smallest variance + eps is[ {found:g} with eps={eps:g}; "
        "needed more than| not more than] zero"
    )
    INEXACT = "[{found}|one layer would not be exact]"

    # What an operation itself says.
    NOT_INITIALISED = "its weight is not initialised yet (a lazy layer)"
    NOT_FINITE = "its [{what}|weight] has numbers that are not finite"
    NOT_FLOATING = "the numbers of its [{what}|weight] are not real floating point"
    NOT_CONSTANT = "its [{what} has a ]weight [that is|is] not constant"
    OVERRIDABLE = (
        "callers may change the weight[ of its {what}]: [{name}|it] has a default and is listed as "
        "an input, too; freeze the inputs that have defaults to fold it"
    )
    QUANTISED_WEIGHT = (
        "[the weight of its {what}|its weight] is stored in integers (DequantizeLinear)"
    )
    TURNED_INPUT = "it reads its input transposed (transA={value})"
    ADDEND_OF_ROWS = (
        "it adds a matrix[ of shape {shape}], whose rows differ; needed one number for each of its "
        "[{outputs} ]outputs, or one for all"
    )
    NO_STATISTICS = "its batch norm keeps no running statistics, so it depends on the batch"
    NORM_IN_TRAINING = "its batch norm is in training mode; {remedy}"
    DROPOUT_IN_TRAINING = "its dropout is in training mode; export the model in eval mode"
    NORM_OF_POSITIONS = "its batch norm normalises positions, not channels (spatial=0)"
    UNKNOWN_RANK = (
        "the number of dimensions of its input is not known here, so its channel axis is not; "
        "{remedy}"
    )
    CEIL_MODE = "its last windows may be cut off, and divided by less (ceil_mode={value})"
    UNCOUNTED_PADDING = "it pads and does not count its padding (count_include_pad={value})"
    AUTO_PAD = "its padding depends on the size of its input (auto_pad={value})"
    STACKED = "branches are joined through torch.stack, which is not read; add them, and divide"
    UNKNOWN_CHANNELS = (
        "the number of channels of its input, or their axis, is not known here, so its constant "
        "[of shape {shape} ]may not be one number for each"
    )
    NOT_PER_CHANNEL = "its constant[ of shape {shape}] is not one number for each channel"
    NEGATIVE_PADDING = "it pads by a negative number, which onnx's reference evaluator cannot check"

    # Why a region is not possible, or does not pay.
    NO_COMMON_SOURCE = "its branches do not start from one common value"
    AXES_OF_BRANCHES_DIFFER = "the branches have their channels on different axes"
    AXES_DIFFER = "its channels are on another axis than its input's"
    SHAPE_IS_READ = (
        "the shape of [{value}|a value between] is read, which one layer would not compute"
    )
    ALSO_READ = "its input[, {value},] is also read [by {readers}|elsewhere]"
    IS_SEEN = "its input[, {value},] is an output or is changed in place"
    MORE_WORK = (
        "one layer would cost more multiply-adds[: {after:,.0f} against {before:,.0f} per input "
        "position]"
    )
    MORE_WORK_AT_BORDERS = (
        "its output is larger than its input: one layer would cost more at the borders"
    )
    MORE_NUMBERS = "one layer would store more numbers[: {after:,} against {before:,}]"
    NO_LAYER = "it holds no convolution or linear layer that could take the rest"
    PADS_TWICE = "one layer cannot pad twice: zeros around its input's {padding}"

    # What a front end objects to.
    SHIFT_STAYS = (
        "[{shift}|what is added], which stands between it and the layer, cannot be written with "
        "other numbers here"
    )
    INPUT_OF_ITS_OWN = "[{what}|its input] cannot be read by a new layer"
    HOOKED = (
        "[{where}|it] has [{hook}|a hook], which would see other values; remove the hook to fold"
    )
    SHARED_MODULE = (
        "[{where} is called {times} times|its module is called more than once] (a shared module)"
    )
    TIED = "its weight is tied to [that of {to}|another]"
    USED_ELSEWHERE = "its weight is also used elsewhere"
    NUMBERS_WRITTEN = "a forward writes to the numbers that it computes with"
    WRITES_ITS_INPUT = "an in-place operation of it changes its own input, which others may read"
    WRITTEN_BETWEEN = "its input is changed in place [by {by} ]between its operations"
    VIEWED = "what it lays out in memory is viewed[ by {by}], which without it could not be done"
    UNKNOWN_TYPE = "the type of its weight is not known"
    INNER_GRAPH = "the operations in its own graph are left as they are"
    OLD_OPSET = (
        "its opset {found} broadcasts by another rule than opset {needed} and later; convert it "
        "with onnx.version_converter first"
    )
    QUANTISED = (
        "it is quantised ({found}): its scales hold for its layers as they are; fuse the float "
        "model, then quantise it"
    )

    # How a norm is out of reach.
    NOT_CALLED = "no forward that was read calls it"
    PARENT_NOT_TRACED = "the forward of [{parent}|the module], which calls it, cannot be traced"
    NOT_A_SCALE = "its forward is no scale and shift of each channel"

    # How a model could not be read, or not be written.
    NOT_TRACED = "its forward cannot be traced[ ({failure})]"
    NOT_TRACED_ALONE = "its forward cannot be traced by itself[ ({failure})]"
    TRACE_DIFFERS = "its trace is not what it does[: {found}]"
    NOT_IN_EVERY_WAY = "the code goes another way for other inputs, where it does not fold"
    NOT_COMPARED = "its trace could not be compared with eager execution[: {found}]"
    NOT_PROBED = "it cannot be probed without example_inputs"
    PROBED_OTHERWISE = "probed, but [{found}|it is no layer]"
    FOLDS_IN_SOME_CALLS = (
        "its block [is called {calls} times and folds in {folds} of them only"
        "|folds in some of its calls only]"
    )
    NOT_TOGETHER = "another region that would take over a part of the same operation does not fold"
    NOT_REWRITTEN = "[{block}|its block] cannot be rewritten by itself[: {found}]"
    ONE_WAY = (
        "its code goes another way for other inputs[ ({place})]; what is left of it goes the way "
        "of the example, and raises an error where it would have gone another"
    )
    FOLD_DIFFERS = "its folded layer differs[ by {error:.1e} of its largest value] in float64"
    OVERFLOWS = "a number of its folded layer overflows[ {dtype}| its type]"
    NOT_CHOSEN = "it does not lie in the part that was chosen"
    FORWARD_FAILED = "its own forward cannot be run to compare with[ ({error})]"
    NOT_RUN = "onnx's reference evaluator cannot run it to compare with[ ({error})]"

    # Why a scale and shift stands where it does.
    INPUT_ALSO_READ = (
        "the [{before}|layer] before it is also read [by {readers}|elsewhere], and what is read "
        "there must stay as it is"
    )
    NOT_TAKEN = "the [{before}|layer] before it cannot take it"
    OUTPUT_ALSO_READ = (
        "the [{layer}|layer] behind it would have to take it, but "
        "[{readers} reads the same value|the same value is read elsewhere]"
    )
    NO_LAYER_BESIDE = (
        "it stands between [{before} and {readers}|operations], which no scale and shift can pass, "
        "so no convolution or linear layer can take it"
    )

    def __repr__(self) -> str:
        """Name the kind as code writes it."""
        return f"Why.{self.name}"

    def __call__(self, **arguments: str | float) -> Reason:
        """Make a reason of this kind."""
        return Reason(self, tuple(arguments.items()))


@dataclass(frozen=True, slots=True)
class Reason:
    """A kind of reason and what it is about; ``str`` words it.

    Attributes:
        kind: What stands in the way.
        arguments: Names and values of what the sentence speaks of.

    """

    kind: Why
    arguments: tuple[tuple[str, str | float], ...] = ()

    def __str__(self) -> str:
        """The sentence, for a person."""
        # The brackets of the kind, before the arguments bring their own.
        return _DETAIL.sub(r"\1", self.kind.value).format(**dict(self.arguments))

    @property
    def general(self) -> str:
        """The sentence about many such places, without what differs from one to the next."""
        template = _DETAIL.sub(lambda match: match[2] or "", self.kind.value)
        return template.format(**dict(self.arguments))

    @property
    def has_numbers(self) -> bool:
        """Whether it tells a size or a count, which another place of its kind hardly shares."""
        return any(not isinstance(value, str) for _, value in self.arguments)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that looks foldable and is left as it is.

    Attributes:
        where: Path of the module, or name of the operation.
        what: The operation.
        reason: Why, as data: ``reason.kind`` is what code and tests decide on.

    """

    where: str
    what: str
    reason: Reason

    @property
    def why(self) -> str:
        """The reason in words, with what was found and what was needed."""
        return str(self.reason)
