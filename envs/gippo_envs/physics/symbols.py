"""
Formulas as data: arithmetic on :class:`Symbol` is written down instead of carried out, differentiated, and put out as C.

The equations of :mod:`gippo_envs.physics.dynamics` are written for numbers of any kind. With torch tensors they are the
reference; with symbols they become straight-line code for one robot, without products with 0 and repeated subexpressions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Scalar = Any
"""a float, a torch tensor or a :class:`Symbol`"""

C_CODE = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "neg": "-{0}",
    "reciprocal": "T(1) / {0}",
    "sin": "sine({0})",
    "cos": "cosine({0})",
    "sqrt": "root({0})",
    "relu": "({0} < T(0) ? T(0) : {0})",
    "detach": "{0}",
    "gate": "({0} > T(0) ? {1} : T(0))",
}


class Tape:
    """All that has been written down, every formula once, arguments before what is made of them."""

    def __init__(self) -> None:
        self.formulas: list[tuple[Any, ...]] = []
        self._known: dict[tuple[Any, ...], Symbol] = {}

    def input(self, code: str) -> Symbol:
        """:return: what the C expression ``code`` gives"""
        return self.write("input", code)

    def write(self, operation: str, *arguments: Any) -> Symbol:
        """
        :param arguments: symbols and floats, or the code of an input
        :return: the operation's result
        """
        key = (operation, *(a.index if isinstance(a, Symbol) else (a,) for a in arguments))
        if key not in self._known:
            self._known[key] = Symbol(self, len(self.formulas))
            self.formulas.append((operation, *arguments))
        return self._known[key]

    def gradient(self, output: Scalar, inputs: Sequence[Scalar]) -> list[Scalar]:
        """
        Differentiate in reverse.

        :return: d output / d input, one for each
        """
        if not isinstance(output, Symbol):
            return [0.0 for _ in inputs]
        adjoints: dict[int, Scalar] = {output.index: 1.0}
        for index in range(output.index, -1, -1):
            if (adjoint := adjoints.get(index)) is None:
                continue
            operation, *arguments = self.formulas[index]
            if operation in ("input", "detach"):
                continue
            for argument, slope in zip(arguments, _slopes(operation, arguments, Symbol(self, index), adjoint)):
                if isinstance(argument, Symbol):
                    adjoints[argument.index] = adjoints.get(argument.index, 0.0) + slope
        return [adjoints.get(x.index, 0.0) if isinstance(x, Symbol) else 0.0 for x in inputs]

    def code(self, outputs: Iterable[tuple[str, Scalar]]) -> str:
        """
        :param outputs: where to assign what, as C expression and value
        :return: C statements; ``T`` is the type of the numbers
        """
        outputs = list(outputs)
        uses: dict[int, int] = {}
        pending = [value.index for _, value in outputs if isinstance(value, Symbol)]
        for index in pending:
            uses[index] = uses.get(index, 0) + 1
        while pending:
            index = pending.pop()
            if self.formulas[index][0] == "input":
                continue
            for argument in self.formulas[index][1:]:
                if isinstance(argument, Symbol):
                    uses[argument.index] = uses.get(argument.index, 0) + 1
                    if uses[argument.index] == 1:
                        pending.append(argument.index)
        lines = []
        text: dict[int, str] = {}

        def spell(value: Scalar) -> str:
            return text[value.index] if isinstance(value, Symbol) else f"T({float(value)!r})"

        for index in sorted(uses):
            operation, *arguments = self.formulas[index]
            formula = arguments[0] if operation == "input" else C_CODE[operation].format(*map(spell, arguments))
            if operation == "mul" and uses[index] == 1:
                text[index] = f"({formula})"  # within one expression the compiler may fuse it with the sum it stands in
            else:
                text[index] = f"t{index}"
                lines.append(f"const T t{index} = {formula};")
        return "\n".join([*lines, *(f"{target} = {spell(value)};" for target, value in outputs)])


def _slopes(operation: str, arguments: list[Any], result: Symbol, adjoint: Scalar) -> tuple[Scalar, ...]:
    """What the adjoint of a result adds to those of its arguments."""
    x = arguments[0]
    if operation == "add":
        return adjoint, adjoint
    if operation == "sub":
        return adjoint, -adjoint
    if operation == "mul":
        return adjoint * arguments[1], adjoint * x
    if operation == "neg":
        return (-adjoint,)
    if operation == "reciprocal":
        return (-(adjoint * result * result),)
    if operation == "sin":
        return (adjoint * x.cos(),)
    if operation == "cos":
        return (-(adjoint * x.sin()),)
    if operation == "sqrt":
        return (adjoint * 0.5 * result.reciprocal(),)
    if operation == "relu":
        return (x.tape.write("gate", x, adjoint),)
    raise NotImplementedError(f"The derivative of {operation} is not needed by any equation.")


class Symbol:
    """A formula on a tape. The methods have the names that torch tensors give them."""

    __slots__ = ("index", "tape")

    def __init__(self, tape: Tape, index: int):
        self.tape, self.index = tape, index

    def _is_negative(self) -> bool:
        return self.tape.formulas[self.index][0] == "neg"

    def _negated(self) -> Symbol:
        negated: Symbol = self.tape.formulas[self.index][1]
        return negated

    def __add__(self, other: Scalar) -> Scalar:
        if not isinstance(other, Symbol):
            return self if other == 0 else self.tape.write("add", self, float(other))
        if other._is_negative():
            return self - other._negated()
        if self._is_negative():
            return other - self._negated()
        first, second = sorted((self, other), key=lambda symbol: symbol.index)
        return self.tape.write("add", first, second)

    __radd__ = __add__

    def __sub__(self, other: Scalar) -> Scalar:
        if not isinstance(other, Symbol):
            return self + -other
        if other._is_negative():
            return self + other._negated()
        return 0.0 if other.index == self.index else self.tape.write("sub", self, other)

    def __rsub__(self, other: float) -> Scalar:
        return -self if other == 0 else self.tape.write("sub", float(other), self)

    def __mul__(self, other: Scalar) -> Scalar:
        if not isinstance(other, Symbol):
            if other in (0, 1, -1):
                return 0.0 if other == 0 else self if other == 1 else -self
            if other < 0:
                return -(self * -other)
            if self._is_negative():
                return -(self._negated() * other)
            return self.tape.write("mul", self, float(other))
        if self._is_negative():
            return -(self._negated() * other)
        if other._is_negative():
            return -(self * other._negated())
        first, second = sorted((self, other), key=lambda symbol: symbol.index)
        return self.tape.write("mul", first, second)

    __rmul__ = __mul__

    def __neg__(self) -> Symbol:
        return self._negated() if self._is_negative() else self.tape.write("neg", self)

    def reciprocal(self) -> Symbol:
        return self.tape.write("reciprocal", self)

    def sin(self) -> Symbol:
        return self.tape.write("sin", self)

    def cos(self) -> Symbol:
        return self.tape.write("cos", self)

    def sqrt(self) -> Symbol:
        return self.tape.write("sqrt", self)

    def relu(self) -> Symbol:
        return self.tape.write("relu", self)

    def detach(self) -> Symbol:
        return self.tape.write("detach", self)
