"""Why a region that the algebra allows must not be folded in this very model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from torch import Tensor, fx, nn

from reparam.frontends.torch.effects import base_of, metadata_read
from reparam.frontends.torch.frames import Call, Key
from reparam.frontends.torch.lift import Lifted
from reparam.frontends.torch.skeleton import tensors_of
from reparam.fusing.chosen import EVERYTHING, Chosen
from reparam.planner import Candidate
from reparam.program import Affine, Alias, Concat, Layout, Node, Routed, Sum
from reparam.reasons import Reason, Why

Stack = tuple[Call, ...]


class Vetoes:
    """Hooks, shared modules, tied weights and in-place changes around a region of one trace."""

    def __init__(
        self,
        lifted: Lifted,
        hooked: dict[str, str],
        owners: dict[Tensor, set[str]],
        chosen: Chosen,
        written: Collection[Tensor] = (),
        elsewhere: Collection[Tensor] = (),
    ) -> None:
        """Index the trace.

        Args:
            lifted: The lifted trace.
            hooked: Modules with hooks, by path, with the kind of hook.
            owners: Paths of the modules that hold a parameter or buffer.
            chosen: Paths of the modules that may be changed.
            written: Parameters and buffers that some forward writes to.
            elsewhere: Those that code computes with which could not be traced.

        """
        self._lifted = lifted
        self._hooked = hooked
        self._owners = owners
        self._chosen = chosen
        self._written, self._elsewhere = written, elsewhere
        self._module_calls: dict[str, list[Stack]] = defaultdict(list)
        self._readers: dict[Tensor, set[Key]] = defaultdict(set)
        self._asked: dict[Tensor, set[Key]] = defaultdict(set)
        self._index()

    def __call__(self, region: Candidate) -> Reason | None:
        """The reason not to fold a region, or None."""
        whole = self._chosen is EVERYTHING  # asked of every candidate that there is
        if not whole and not all(_place(node) in self._chosen for node in region.nodes):
            return Why.NOT_CHOSEN()
        if region.leaves_host:
            return Why.INPUT_OF_ITS_OWN(what=region.source.what)
        nodes = [self._lifted.node_of(n) for n in region.nodes if not isinstance(n, Alias)]
        shared = common_call([self._full_stack(n) for n in nodes])
        return (
            self._hook(nodes, len(shared))
            or self._hook_on_the_way(region, len(shared))
            or (None if chain_of(region) else self._called_again(nodes, shared))
            or self._past_a_shift(region)
            or self._tied(region)
            or self._stored_once(region)
            or self._changed_in_place(region)
            or self._viewed(region)
        )

    def calls_of(self, path: str) -> int:
        """How often the trace calls a module."""
        return len(self._module_calls[path]) if path != self._lifted.trace.path else 1

    def _index(self) -> None:
        trace, constants = self._lifted.trace, self._lifted.constants
        seen: set[Stack] = set()
        for node in trace.graph.nodes:
            stack = trace.stacks[node]
            for depth in range(2, len(stack) + 1):
                if stack[:depth] not in seen:
                    seen.add(stack[:depth])
                    self._module_calls[stack[depth - 1].path].append(stack[:depth])
            if node.op == "call_module":
                self._module_calls[trace.keys[node].target].append(self._full_stack(node))
                for tensor in tensors_of(trace.module(node)):
                    self._readers[tensor].add(trace.keys[node])
            elif node not in constants:
                for source in node.all_input_nodes:
                    # What is written to is no constant.
                    if constants.is_tensor(source) or source.op == "get_attr":
                        asks = "kind" in {metadata_read(node), metadata_read(source)}
                        readers = self._asked if asks else self._readers
                        for tensor in constants.sources(source):
                            readers[tensor].add(trace.keys[node])

    def _full_stack(self, node: fx.Node) -> Stack:
        """The module calls around a node, a called leaf module included."""
        stack = self._lifted.trace.stacks[node]
        if node.op != "call_module":
            return stack
        key = self._lifted.trace.keys[node]
        return (*stack, Call(key.target, key.number))

    def _hook(self, nodes: list[fx.Node], depth: int) -> Reason | None:
        if not self._hooked:
            return None
        for node in nodes:
            for call in self._full_stack(node)[depth:]:
                if call.path in self._hooked:
                    return Why.HOOKED(where=call.path, hook=self._hooked[call.path])
        return None

    def _hook_on_the_way(self, region: Candidate, depth: int) -> Reason | None:
        """Refuse to move an operation past a hook, which would see what it makes, or would not."""
        if not self._hooked or not any(n.is_copy for n in region.nodes):
            return None
        orders = [n.order for n in region.nodes]
        between = list(self._lifted.trace.graph.nodes)[min(orders) + 1 : max(orders)]
        return self._hook([n for n in between if n.op != "get_attr"], depth)

    def _called_again(self, nodes: list[fx.Node], shared: Stack) -> Reason | None:
        for node in nodes:
            for call in self._full_stack(node)[len(shared) :]:
                times = sum(1 for s in self._module_calls[call.path] if s[: len(shared)] == shared)
                if times > 1:
                    return Why.SHARED_MODULE(where=call.path, times=times)
        return None

    def _past_a_shift(self, region: Candidate) -> Reason | None:
        """Refuse to move a scale past an addition that cannot be written with other numbers."""
        for shift in region.shifts:
            scales = [n for n in region.nodes if isinstance(n, Affine) and n.moved is not None]
            places = {_place(n) for n in scales if n.moved and n.moved.past is shift}
            if self._lifted.trace.frame is None or places != {_place(shift)}:
                return Why.SHIFT_STAYS(shift=shift.place)
            if any(t in self._written for t in shift.reads):
                return Why.NUMBERS_WRITTEN()
            added = self._lifted.node_of(shift)
            if any(change is added for _, change, _ in self._lifted.mutations):
                return Why.WRITES_ITS_INPUT()
            if self._chosen is not EVERYTHING and _place(shift) not in self._chosen:
                return Why.NOT_CHOSEN()
        return None

    def _tied(self, region: Candidate) -> Reason | None:
        keys = {n.key for n in region.nodes}
        chain = chain_of(region)
        held_by = {k.target if k.is_module else k.owner for k in keys if isinstance(k, Key)}
        for node in region.nodes:
            for tensor in self._lifted.reads(node):
                if tensor in self._written:
                    return Why.NUMBERS_WRITTEN()
                others = {path for path in self._owners.get(tensor, set()) if path not in held_by}
                others = {p for p in others if not any(_inside(p, h) for h in held_by)}
                if others:
                    return Why.TIED(to=min(others))
                asked = tensor in self._asked and not self._stays(region, tensor)
                readers = {
                    k for k in self._readers[tensor] if not (k.is_module and k.target in chain)
                }
                if asked or tensor in self._elsewhere or not readers <= keys:
                    return Why.USED_ELSEWHERE()
        return None

    def _stays(self, region: Candidate, tensor: Tensor) -> bool:
        """Whether a tensor is the weight of a layer that is replaced where it stands.

        Its successor has the same name, type and device, so that these can be asked for.
        """
        layers = [node for node in region.nodes if node.is_convolution]
        if len(layers) != 1 or any(isinstance(node, Sum) for node in region.nodes):
            return False
        origin = self._lifted.node_of(layers[0])
        called = origin.op == "call_module"
        return called and getattr(self._lifted.trace.module(origin), "weight", None) is tensor

    def _stored_once(self, region: Candidate) -> Reason | None:
        """Refuse where one layer would store more than layers that share their weight."""
        layers = [n for n in region.nodes if n.is_layer]
        read = [t for n in layers for t in self._lifted.reads(n)]
        once = set(read)
        if len(once) == len(read):
            return None
        twice = sum(t.numel() for t in read) - sum(t.numel() for t in once)
        before, after = region.cost.stored - twice, region.cost_after.stored
        if after <= before:
            return None
        return Why.MORE_NUMBERS(after=after, before=before)

    def _changed_in_place(self, region: Candidate) -> Reason | None:
        """Refuse where an in-place operation changes the source between or within the nodes."""
        if not self._lifted.mutations:
            return None
        inside = {self._lifted.node_of(n) for n in region.nodes}
        orders = [n.order for n in region.nodes]
        bases = _read_since(self._lifted, region.source, min(orders))
        for order, node, target in self._lifted.mutations:
            if target not in bases:
                continue
            if node in inside:
                return Why.WRITES_ITS_INPUT()
            if min(orders) < order < max(orders):
                return Why.WRITTEN_BETWEEN(by=node.name)
        return None

    def _viewed(self, region: Candidate) -> Reason | None:
        """Refuse to move an operation away whose result is viewed, but not what it reads.

        A norm returns memory in order where it reads a permuted value, and only ``reshape`` copies.
        The values of a trace, which hold no numbers, have the order that there is without the norm:
        a view that it does not allow has none.
        """
        values = self._lifted.trace.values
        for copy in (n for n in region.nodes if n.is_copy):
            norm = self._lifted.node_of(copy)
            known = norm in values
            if not known and not any(map(self._is_turned, norm.all_input_nodes)):
                continue
            waiting, seen = [norm], {norm}
            while waiting:
                for user in waiting.pop().users:
                    if user.op == "call_method" and user.target in _VIEWS and user not in values:
                        return Why.VIEWED(by=user.name)
                    if user in values and user not in seen:
                        seen.add(user)
                        waiting.append(user)
        return None

    def _is_turned(self, node: fx.Node) -> bool:
        """Whether a value is the result of a permutation, or of what acts on each element of it."""
        while node.op in {"call_function", "call_method"}:
            name = getattr(node.target, "__name__", str(node.target))
            if name in _TURNS:
                return True
            if len(node.all_input_nodes) != 1:
                return False
            node = node.all_input_nodes[0]
        return False


_VIEWS = {"view", "view_as"}
"""Methods that never copy."""

_TURNS = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t"}


def _read_since(lifted: Lifted, source: Node, order: int) -> set[fx.Node]:
    """The memory behind a value, and behind what it is computed from later than ``order``.

    An operation that was moved returns its input where it stood: the same memory, which is read by
    what follows it there.
    """
    found: set[fx.Node] = set()
    waiting, seen = [source], {source}
    while waiting:
        value = waiting.pop()
        if not value.is_virtual:
            found.add(_base(lifted, value))
        passes = value.is_virtual or isinstance(value, Alias | Layout | Routed | Concat)
        if passes or value.order > order:
            fresh = [v for v in value.inputs if v not in seen]
            seen.update(fresh)
            waiting += fresh
    return found


def chain_of(region: Candidate) -> tuple[str, ...]:
    """Paths of the modules that a region calls one behind the other, if it does nothing else.

    Such a one is folded in the modules themselves, and so in every call of them: what is asked for
    is that all calls are such chains.
    """
    nodes = sorted((n for n in region.nodes if not isinstance(n, Alias)), key=lambda n: n.order)
    keys = [n.key for n in nodes]
    alone = sum(n.is_convolution for n in nodes) <= 1
    if not alone or any(n.is_copy or not isinstance(n, Affine) for n in nodes):
        return ()
    chain = tuple(key.target for key in keys if isinstance(key, Key) and key.is_module)
    return chain if len(set(chain)) == len(nodes) else ()


def common_call(stacks: list[Stack]) -> Stack:
    """The innermost module call that holds all of the given ones."""
    shared = stacks[0]
    for stack in stacks[1:]:
        depth = 0
        for left, right in zip(shared, stack, strict=False):
            if left != right:
                break
            depth += 1
        shared = shared[:depth]
    return shared


def owners_of(model: nn.Module) -> dict[Tensor, set[str]]:
    """Paths of the modules that hold each parameter and buffer."""
    found: dict[Tensor, set[str]] = defaultdict(set)
    for name, module in model.named_modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                found[tensor].add(name)
    return found


def _place(node: Node) -> str:
    key = node.key
    assert isinstance(key, Key)  # noqa: S101 (this front end's keys)
    return key.target if key.is_module else key.owner


def _inside(path: str, holder: str) -> bool:
    return holder == "" or path.startswith(f"{holder}.")


def _base(lifted: Lifted, node: Node) -> fx.Node:
    return base_of(lifted.node_of(node))
