"""The intermediate representation: sizes, expressions, primitives, operators, rules, derivatives, costs.

Imports SymPy and the standard library, never torch. Imported as `adaptc.ir`.
"""

from adaptc.ir import operators as operators
