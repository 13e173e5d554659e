"""The fields of a manifest, each read with its type, range and form checked, and its path told when it is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any, Final, TypeVar

from pydatapath.errors import ManifestError

__all__ = [
    "KIND",
    "LABEL",
    "LABEL_VALUE",
    "PORT_NAME",
    "SERVICE_LABEL",
    "SUBDOMAIN",
    "FieldError",
    "boolean_of",
    "choice_of",
    "items_of",
    "map_of",
    "maps_of",
    "name_of",
    "network_of",
    "number_of",
    "port_name_of",
    "port_of",
    "printable",
    "show",
    "string_of",
    "strings_of",
    "type_name",
    "unicast_of",
    "visible",
]

KIND: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,62}")
SERVICE_LABEL: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SUBDOMAIN: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
PORT_NAME: Final = re.compile(r"(?=.{1,15}\Z)(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_PREFIX_LENGTH: Final = re.compile(r"[0-9]{1,3}")
# Nearly every address there is: canonical, and of none of the kinds that are refused below
_OCTET: Final = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_COMMON: Final = re.compile(rf"(?!127\.|169\.254\.|22[4-9]\.|23[0-9]\.|0\.0\.0\.0){_OCTET}(\.{_OCTET}){{3}}")
_DOTTED_QUAD: Final = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+")

_Choice = TypeVar("_Choice", bound=str)


class FieldError(ManifestError):
    """What is wrong with one field; `schema` says it again with the file and the object before it."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)


def show(value: object) -> str:
    """`value` as a message may print it: quoted, short, and without a character that a terminal would obey."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-1]}"


def printable(name: str) -> str:
    """A file's name for a message: as it is, or quoted where a terminal would obey it or a reader miss it."""
    return name if name.isprintable() and 0 < len(name) <= 4096 else show(name)


def visible(text: str) -> str:
    """A line of text with what a terminal would obey, or a reader miss, escaped as in Python."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


# Each reader takes the map that holds the field, the field's name, and the map's own path. Null is the same as absent.


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def type_name(value: object) -> str:
    """What `value` is in words of JSON, with an article: a message says `not a string`."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "a map"}
    return "null" if value is None else names.get(type(value), f"a Python {type(value).__name__}")


def map_of(owner: Mapping[str, Any], key: str, path: str) -> dict[str, Any]:
    """A map; an empty one where the field is absent."""
    value = owner.get(key)
    if isinstance(value, dict):
        return value
    if value is None:
        return {}
    raise FieldError(_join(path, key), f"a map is expected, not {type_name(value)}")


def items_of(owner: Mapping[str, Any], key: str, path: str) -> Iterator[tuple[str, Any]]:
    """The entries of a list, each with its path."""
    value = owner.get(key)
    if value is None:
        return
    if not isinstance(value, list):
        raise FieldError(_join(path, key), f"a list is expected, not {type_name(value)}")
    prefix = _join(path, key)
    for index, item in enumerate(value):
        yield f"{prefix}[{index}]", item


def maps_of(owner: Mapping[str, Any], key: str, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a list of maps, each with its path."""
    for where, item in items_of(owner, key, path):
        if not isinstance(item, dict):
            raise FieldError(where, f"a map is expected, not {type_name(item)}")
        yield where, item


def string_of(owner: Mapping[str, Any], key: str, path: str) -> str | None:
    """Any text."""
    value = owner.get(key)
    if value is None or isinstance(value, str):
        return value
    raise FieldError(_join(path, key), f"a string is expected, not {type_name(value)}")


def strings_of(owner: Mapping[str, Any], key: str, path: str) -> dict[str, str]:
    """A map of texts: labels or annotations."""
    texts = map_of(owner, key, path)
    for name, value in texts.items():
        if not isinstance(value, str):
            problem = f"a string is expected, not {type_name(value)} (put it in quotes)"
            raise FieldError(f"{_join(path, key)}[{show(name)}]", problem)
    return texts


def boolean_of(owner: Mapping[str, Any], key: str, path: str) -> bool | None:
    """True or false."""
    value = owner.get(key)
    if value is None or isinstance(value, bool):
        return value
    raise FieldError(_join(path, key), f"true or false is expected, not {type_name(value)}")


def choice_of(
    owner: Mapping[str, Any], key: str, path: str, allowed: tuple[_Choice, ...], default: _Choice | None
) -> _Choice:
    """One of the words `allowed`; without a `default` the field must be there."""
    value = owner.get(key)
    if value is None and default is not None:
        return default
    for option in allowed:
        if value == option:
            return option
    options = " or ".join((*filter(None, [", ".join(allowed[:-1])]), allowed[-1]))
    problem = f"is missing ({options})" if value is None else f"{show(value)} is not {options}"
    raise FieldError(_join(path, key), problem)


def number_of(owner: Mapping[str, Any], key: str, path: str) -> int | None:
    """A whole number, whatever its size."""
    value = owner.get(key)
    if value is None:
        return None
    if isinstance(value, float):
        raise FieldError(_join(path, key), f"{value} is not a whole number")
    if type(value) is not int:  # a boolean is an int to Python
        raise FieldError(_join(path, key), f"a whole number is expected, not {type_name(value)}")
    return value


def port_of(owner: Mapping[str, Any], key: str, path: str, *, or_zero: bool = False) -> int | None:
    """A port number; `or_zero` where 0 stands for none."""
    value = number_of(owner, key, path)
    if value is not None and not (0 if or_zero else 1) <= value <= 65535:
        raise FieldError(_join(path, key), f"{value} is not a port (1 to 65535)")
    return value


_FORMS: Final = {
    SERVICE_LABEL: "a name for a service (at most 63 of a-z, 0-9 and -, a letter first)",
    LABEL: "a DNS label (at most 63 of a-z, 0-9 and -)",
    SUBDOMAIN: "a DNS name (at most 253 of a-z, 0-9, - and .)",
    LABEL_VALUE: "the value of a label (at most 63 of A-Z, a-z, 0-9, -, _ and .)",
}


def name_of(owner: Mapping[str, Any], key: str, path: str, form: re.Pattern[str], default: str | None = None) -> str:
    """A name that is safe to print and to look up by; `default` where it may be missing or empty."""
    value = string_of(owner, key, path)
    if not value:
        if default is None:
            raise FieldError(_join(path, key), "is missing")
        return default
    if not form.fullmatch(value):
        raise FieldError(_join(path, key), f"{show(value)} is not {_FORMS[form]}")
    return value


def port_name_of(entry: Mapping[str, Any], path: str) -> str:
    """The name of a port of a Service or a slice, "" for the only one."""
    return name_of(entry, "name", path, LABEL, default="")


_REFUSED: Final = {
    "is_loopback": "a loopback",
    "is_link_local": "a link-local",
    "is_multicast": "a multicast",
    "is_unspecified": "an unspecified",
}


def unicast_of(value: object, path: str, whose: str = "no service or endpoint") -> str:
    """An address that one host can have, in its canonical form; what is refused is what the API server refuses."""
    if isinstance(value, str) and _COMMON.fullmatch(value):
        return value
    address = _address(value, path)
    for trait, words in _REFUSED.items():
        if getattr(address, trait):
            raise FieldError(path, f"{show(value)} is {words} address, which {whose} can have")
    return str(address)


def network_of(value: object, path: str) -> str:
    """A network in its canonical form, without the host's bits: `10.1.2.3/8` is 10.0.0.0/8 (S9)."""
    if not isinstance(value, str):
        raise FieldError(path, f"a network is expected, not {type_name(value)}")
    address, _, length = value.strip().partition("/")
    try:
        # ip_network also takes an address alone and a netmask, Kubernetes neither
        if _PREFIX_LENGTH.fullmatch(length):
            return str(ip_network(f"{_address(address, path)}/{int(length)}", strict=False))
    except (FieldError, ValueError):
        pass
    raise FieldError(path, f"{show(value)} is not a network (such as 192.0.2.0/24)")


def _address(value: object, path: str) -> IPv4Address | IPv6Address:
    """An IP address as Kubernetes reads it: leading zeros are decimal (S9), zones are not allowed."""
    if not isinstance(value, str):
        raise FieldError(path, f"an IP address is expected, not {type_name(value)}")
    try:
        if ":" not in value:
            return _ipv4(value)
        address = IPv6Address(value)
    except ValueError:
        raise FieldError(path, f"{show(value)} is not an IPv4 or IPv6 address") from None
    if address.scope_id is not None:
        raise FieldError(path, f"{show(value)} is not an IPv4 or IPv6 address (a zone has no place in it)")
    if address.ipv4_mapped is not None:
        raise FieldError(path, f"{show(value)} is an IPv4 address in IPv6 notation (write {address.ipv4_mapped})")
    return address


def _ipv4(value: str) -> IPv4Address:
    try:
        return IPv4Address(value)
    except ValueError:
        if len(value) > 64 or not _DOTTED_QUAD.fullmatch(value):
            raise
        return IPv4Address(".".join(part.lstrip("0") or "0" for part in value.split(".")))
