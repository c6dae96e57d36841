"""Classes by the names that configurations use: built in, of installed packages (entry points), and of loaded plug-ins.

A built-in class is declared once, in the registry of its folder:

    CONNECTORS = KindRegistry(ConnectorConfig, "sightline.connectors", (LinearConfig, MLPConfig))
    AnyConnector = Annotated[SerializeAsAny[ConnectorConfig], CONNECTORS]  # annotation of a configuration's field
"""

import difflib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from sightline.runtime import plugins

Base = TypeVar("Base")
Model = TypeVar("Model", bound=BaseModel)


class Registry(Mapping[str, type[Base]]):
    """The built-in classes as a mapping; `find` also gives those of entry points and plug-ins.

    Args:
        base: what every class inherits from.
        group: entry-point group in which installed packages name theirs.
        classes: the built-in ones by name.
    """

    noun: ClassVar[str] = "name"

    def __init__(self, base: type[Base], group: str, classes: Mapping[str, type[Base]]) -> None:
        self.base, self.group, self._classes = base, group, dict(classes)

    def __getitem__(self, name: str) -> type[Base]:
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def find(self, name: str) -> type[Base]:
        """Returns the class of a name: a built-in one, `MODULE:Class` of a loaded plug-in, or a name of an entry point.

        Raises:
            LookupError: there is none, its plug-in is not loaded, or it is no class of this registry; the text has no full stop.
        """
        if name in self._classes:
            return self._classes[name]
        if ":" in name:
            return self._checked(name, plugins.find(name))
        installed = {entry.name: entry for entry in entry_points(group=self.group)}
        if name not in installed:
            raise LookupError(f"unknown {self.noun} {name!r}{suggestion(name, [*self._classes, *installed])}")
        entry = installed[name]
        try:
            loaded = entry.load()
        except Exception as error:  # code of another package can raise anything
            raise LookupError(f"{name!r} is {entry.value} of an installed package, which fails: {error}") from error
        return self._checked(name, loaded)

    def _checked(self, name: str, found: object) -> type[Base]:
        if not isinstance(found, type) or not issubclass(found, self.base):
            raise LookupError(f"{name!r} is no class that inherits from {self.base.__name__}")
        return found


class HasKind:
    """A configuration whose `kind` says of which class it is. A class that declares no `kind` has its own place as kind.

    That place is `MODULE:Class`, as plug-ins are named.
    """

    if TYPE_CHECKING:  # each class has its own field, at its own place among the others
        kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        assert issubclass(cls, BaseModel)
        if "kind" not in cls.__annotations__ and not inspect.isabstract(cls):
            cls.__pydantic_fields__["kind"] = FieldInfo(annotation=str, default=f"{cls.__module__}:{cls.__qualname__}")
            cls.model_rebuild(force=True)


class KindRegistry(Registry[Model]):
    """A registry of configuration classes, and the annotation of a field that holds an instance of any of them.

    Args:
        base: what every class inherits from; also from `HasKind`.
        group: entry-point group in which installed packages name theirs.
        classes: the built-in ones.
    """

    noun: ClassVar[str] = "kind"

    def __init__(self, base: type[Model], group: str, classes: Sequence[type[Model]]) -> None:
        super().__init__(base, group, {cls.model_fields["kind"].default: cls for cls in classes})

    def find(self, name: str) -> type[Model]:
        found = super().find(name)
        field = found.model_fields["kind"]
        if field.annotation is not str and field.default != name:
            raise LookupError(f"{name!r} is a class that declares the kind {field.default!r}; leave `kind` out of the class")
        return found

    def read(self, values: Mapping[str, Any]) -> Model:
        """Makes an instance from the values of a model folder, not strict about their types.

        Raises:
            LookupError: there is no such kind, or its plug-in is not loaded.
            ValidationError: a value does not fit.
        """
        return self.find(str(values.get("kind"))).model_validate(dict(values), strict=False)

    def class_of(self, values: object) -> type[Model] | None:
        """Returns the class that the values of a section choose; None where they choose none."""
        kind = values.get("kind") if isinstance(values, Mapping) else None
        try:
            return self.find(kind) if isinstance(kind, str) else None
        except LookupError:
            return None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._validated, handler(source))

    def _validated(self, values: object) -> object:
        """Returns an instance of the class that the values choose; an error has the place of a field of that class."""
        if not isinstance(values, Mapping):
            return values  # an instance, or what the field refuses
        if "kind" not in values:
            raise ValueError("needs a 'kind'")
        kind = values["kind"]
        try:
            if not isinstance(kind, str):
                raise LookupError(f"the name of a kind is a text, got {json.dumps(kind)}")
            chosen = self.find(kind)
        except LookupError as error:
            # A LookupError prints itself in quotes.
            fault = PydanticCustomError("value_error", "{error}", {"error": error.args[0]})
            raise ValidationError.from_exception_data(
                self.base.__name__, [InitErrorDetails(type=fault, loc=("kind",), input=kind)]
            ) from None
        return chosen.model_validate_json(json.dumps(values))  # JSON mode lets lists stand for tuples


def suggestion(name: str, choices: Sequence[str]) -> str:
    """Returns the end of a message about an unknown name: the nearest valid name, or all of them."""
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?" if len(choices) < 2 else f"; did you mean {near[0]!r}? (known: {', '.join(choices)})"
    return f"; known are {', '.join(choices)}" if choices else ""
