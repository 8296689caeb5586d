"""The facility: its rooms, floors, devices and lists, what they are called in each language, what is guarded."""

from __future__ import annotations

from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from liuyi.core.errors import DataError

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Names(_Part):
    """What a thing is called: at least one name in each language."""

    en: tuple[str, ...] = Field(min_length=1)
    zh: tuple[str, ...] = Field(min_length=1)

    def of(self, language: Language) -> tuple[str, ...]:
        return self.en if language == "en" else self.zh


class Device(Names):
    """A device, sensor, person or list: `domain` is Home Assistant's word for what it is."""

    domain: str
    guarded: bool = False


class Phrases(_Part):
    """Free text for one kind of slot; a language may have none."""

    en: tuple[str, ...] = ()
    zh: tuple[str, ...] = ()

    def of(self, language: Language) -> tuple[str, ...]:
        return self.en if language == "en" else self.zh


class Facility(_Part):
    """Everything that answers may name. Ids are the keys; names map to them."""

    name: str
    intents: tuple[str, ...] = ()
    """What the desk does; empty for every intent that has templates."""
    floors: dict[str, Names]
    areas: dict[str, Names]
    devices: dict[str, Device]
    zones: dict[str, Names]
    guarded_device_classes: tuple[str, ...] = ()
    phrases: dict[str, Phrases] = Field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | None = None) -> Facility:
        """Read a facility description; the one that ships with the package when `path` is None.

        Raises DataError naming the file and the fields that are wrong, or a name that two things share.
        """
        import yaml

        source = path or Path(str(files(__package__) / "facility.yaml"))
        try:
            content: Any = yaml.safe_load(source.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: a date that there is not
            raise DataError(f"the facility description cannot be read: {error}", where=str(source)) from error
        try:
            facility = cls.model_validate(content)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
            raise DataError(
                f"the facility description is not right: {wrong}",
                where=str(source),
                hint="it needs name, floors, areas, devices and zones; each entry has names under en and zh",
            ) from error
        facility._check_names(str(source))
        return facility

    def _check_names(self, where: str) -> None:
        for title, group in (("floor", self.floors), ("area", self.areas), ("device", self.devices)):
            for language in LANGUAGES:
                owner: dict[str, str] = {}
                for key, names in group.items():
                    for name in names.of(language):
                        if owner.setdefault(name.casefold(), key) != key:
                            raise DataError(
                                f"the {title}s '{owner[name.casefold()]}' and '{key}' share the name '{name}'",
                                where=where,
                                hint="give one of them another name: a request could not tell them apart",
                            )

    @cached_property
    def guarded(self) -> frozenset[str]:
        """Ids of the devices whose actions need a person's confirmation."""
        return frozenset(key for key, device in self.devices.items() if device.guarded)

    def domains(self) -> frozenset[str]:
        return frozenset(device.domain for device in self.devices.values())

    def lists(self, language: Language) -> dict[str, Any]:
        """The slot lists `area`, `floor`, `name` and `zone` in hassil's form, ids as output values."""

        def values(group: dict[str, Names]) -> dict[str, Any]:
            return {"values": [{"in": name, "out": key} for key, names in group.items() for name in names.of(language)]}

        names = [
            {"in": name, "out": key, "context": {"domain": device.domain}}
            for key, device in self.devices.items()
            for name in device.of(language)
        ]
        return {
            "area": values(self.areas),
            "floor": values(self.floors),
            "zone": values(self.zones),
            "name": {"values": names},
        }
