"""Builds a job's config: flags over environment (`HSSL_...`) over file over defaults.

Flags are the config's dotted paths (`--store.url s3://bucket/prefix`); the environment uses two underscores
for the dot (`HSSL_STORE__URL`).
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from hssl_dist.config.parts import JobConfig
from hssl_dist.errors import ConfigError, MissingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic_core import ErrorDetails

Config = TypeVar("Config", bound=JobConfig)

ENVIRONMENT_PREFIX = "HSSL_"
_UNREAD = re.compile(r'(?:encountered for |for field ")(?P<key>\w+(?:\.\w+)*)')


class _Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would print its usage and exit, and takes whole names alone: the
    beginning of one may be a slip for another.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def load_config(schema: type[Config], program: str, argv: Sequence[str]) -> Config:
    """The job's config.

    Raises ConfigError for an unknown key (with the nearest known one), a bad value or a bad combination, and
    MissingError for a config file that is not there. `--help` prints to standard output and exits with 0.
    """
    common = _common_parser(program)
    known, rest = common.parse_known_args(list(argv))
    from_file = read_yaml(known.config) if known.config else {}
    settings = _settings_class(schema, from_file)
    parser = _Parser(
        prog=program,
        usage="%(prog)s [--config FILE.yaml] [--json] [--key value ...]",
        description=schema.__doc__,
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags = _flag_names(schema)
    source: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
        settings,
        root_parser=parser,
        parse_args_method=lambda parser, args: _parse(parser, args, flags),
    )
    try:
        loaded = settings(_cli_settings_source=source(args=rest))
        # Rebuilt as the plain schema, so that no later validation reads the environment again.
        return schema.model_validate(loaded.model_dump())
    except ValidationError as error:
        raise ConfigError(describe(error, schema)) from None
    except SettingsError as error:
        raise ConfigError(_describe_unread(error, schema)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise MissingError(f"config file {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not valid YAML: {_one_line(str(error))}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"config file {path} holds a {type(content).__name__}, expected `key: value` lines")
    return content


def describe(error: ValidationError, schema: type[BaseModel]) -> str:
    """All problems of a config in one line, each with its dotted path and, for unknown keys, a suggestion."""
    problems = error.errors()
    # A list whose entry is wrong is also reported as too short: the entry says more.
    inner = {problem["loc"][0] for problem in problems if len(problem["loc"]) > 1}
    told = [
        problem for problem in problems if not (problem["type"] == "too_short" and problem["loc"][0] in inner)
    ]
    return "; ".join(_describe_one(problem, schema) for problem in told)


def _describe_one(details: ErrorDetails, schema: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        known = list(_model_at(schema, details["loc"][:-1]).model_fields)
        return f"{path}: unknown key{_suggestion(str(details['loc'][-1]), known)}"
    if details["type"] == "missing":
        return f"{path}: required, but not given"
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: {message[0].lower()}{message[1:]}, found {details['input']!r}"


def _describe_unread(error: SettingsError, schema: type[BaseModel]) -> str:
    """Which list or mapping of a flag or the environment could not be parsed, and how to write it."""
    text = str(error)
    match = _UNREAD.search(text)
    if match is None:
        return _one_line(str(error.__cause__ or error))
    path = match["key"].split(".")
    name = f"--{match['key']}"
    if "EnvSettingsSource" in text:
        name = ENVIRONMENT_PREFIX + "__".join(path).upper()
    field = _model_at(schema, path[:-1]).model_fields.get(path[-1])
    form = '{"key": value}' if field is not None and _is_mapping(field.annotation) else "[value, value]"
    return f"{name} cannot be read; write it as JSON in single quotes: {name} '{form}', text in double ones"


def _is_mapping(annotation: Any) -> bool:
    """Whether values of a type are written as a mapping."""
    kind = getattr(annotation, "__origin__", annotation)
    if isinstance(kind, type) and issubclass(kind, BaseModel | Mapping):
        return True
    return not isinstance(kind, type) and any(map(_is_mapping, getattr(annotation, "__args__", ())))


def _suggestion(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"


def _model_at(schema: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    for part in path:
        if isinstance(part, str) and part in schema.model_fields:
            schema = next(_models_in(schema.model_fields[part].annotation), schema)
    return schema


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)


def _flag_names(schema: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, info in schema.model_fields.items():
        names.append(f"--{prefix}{name}")
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            names.extend(_flag_names(info.annotation, f"{prefix}{name}."))
    return names


def _parse(parser: argparse.ArgumentParser, args: Sequence[str], flags: list[str]) -> argparse.Namespace:
    namespace, unknown = parser.parse_known_args(args)
    if unknown:
        word = unknown[0].partition("=")[0]
        if word.startswith("--"):
            raise ConfigError(f"unknown flag {word}{_suggestion(word, [*flags, '--config', '--json'])}")
        raise ConfigError(f"unexpected argument {word!r}; values follow a flag, see --help")
    return namespace


def _common_parser(program: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=program, add_help=False)
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="config file; flags win over it")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON that sums up the job")
    return parser


def _settings_class(schema: type[Config], from_file: dict[str, Any]) -> type[BaseSettings]:
    class Settings(BaseSettings, schema):  # type: ignore[misc, valid-type]
        __doc__ = schema.__doc__
        model_config = SettingsConfigDict(
            env_prefix=ENVIRONMENT_PREFIX,
            env_nested_delimiter="__",
            # `encoder: {steps: 5}` keeps the encoder stage's other defaults, not StageConfig's.
            nested_model_default_partial_update=True,
            extra="forbid",
            frozen=True,
            cli_hide_none_type=True,
            cli_avoid_json=True,
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, from_file)

    return Settings


def _one_line(text: str) -> str:
    return " ".join(text.split())


__all__ = ["ENVIRONMENT_PREFIX", "describe", "load_config", "read_yaml"]
