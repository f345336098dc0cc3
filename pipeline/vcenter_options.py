"""How the commands under ``stagescope infra`` are told which vCenter: a file, --set, options."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from infra.vsphere.settings import VCenterSettings

SECTION = "vcenter"
Command = TypeVar("Command", bound=Callable[..., Any])
OPTIONS = (
    click.option("--recipe", metavar="FILE", help="Take [vcenter] of this recipe, or plan of VMs."),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set one key, e.g. --set vcenter.timeout_s=10. May be repeated.",
    ),
    click.option("--host", help="Name or address of the vCenter; else STAGESCOPE_VCENTER."),
    click.option("--port", type=click.IntRange(1, 65535), help="Its port; 443 if not given."),
    click.option("--user-env", metavar="NAME", help="Environment variable that holds the user."),
    click.option("--password-env", metavar="NAME", help="Environment variable of the password."),
    click.option("--password-file", metavar="FILE", help="File with the password instead."),
    click.option("--ca-file", metavar="FILE", help="PEM with the CA of the vCenter."),
    click.option("--thumbprint", metavar="SHA256", help="Trust this one certificate instead."),
    click.option("--insecure", is_flag=True, default=None, help="Do not verify the server."),
)


def vcenter_options(command: Command) -> Command:
    """Add the options that name a vCenter; they come as ``recipe``, ``overrides`` and the rest."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def vcenter_settings(
    recipe: str | None, overrides: Sequence[str], given: Mapping[str, Any]
) -> VCenterSettings:
    """Typed settings: of the file, then of --set, then of the options in ``given`` (None: not).

    Raises ValueError with all unknown keys and wrong values.
    """
    from pydantic import BaseModel, ValidationError

    from infra.toml_model import override, sentence
    from pipeline.recipe import VCenter

    class OnlyVCenter(BaseModel, extra="forbid"):
        vcenter: VCenter = VCenter()

    wanted: dict[str, Any] = {SECTION: _section(recipe)}
    problems = list(override(wanted, overrides, "vcenter.timeout_s=10"))
    wanted[SECTION].update({name: value for name, value in given.items() if value is not None})
    try:
        vcenter = OnlyVCenter.model_validate(wanted).vcenter
    except ValidationError as error:
        problems += [sentence(one, OnlyVCenter) for one in error.errors(include_url=False)]
        raise ValueError("\n".join(problems)) from None
    if problems:
        raise ValueError("\n".join(problems))
    host = vcenter.host or os.environ.get(vcenter.host_env, "").strip()
    settings = vcenter.model_copy(update={"host": host}).settings()
    if settings is None:
        raise ValueError(
            f"no vCenter is named: give --host, set {vcenter.host_env}, or name a file that has "
            f"[{SECTION}] host with --recipe"
        )
    return settings


def _section(recipe: str | None) -> dict[str, Any]:
    """The [vcenter] of a recipe or a plan of VMs, whatever else is right or wrong with it."""
    from pipeline.recipe import EMBEDDED

    if recipe is None:
        return {}
    if recipe in EMBEDDED:
        text = (resources.files("pipeline") / "recipes" / f"{recipe}.toml").read_text()
    elif Path(recipe).is_file():
        text = Path(recipe).read_text()
    else:
        raise ValueError(
            f"--recipe {recipe}: no such file; name a TOML file that has [{SECTION}], or one of "
            f"{', '.join(EMBEDDED)}"
        )
    try:
        section = tomllib.loads(text).get(SECTION, {})
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{recipe} is not valid TOML: {error}") from error
    if not isinstance(section, dict):
        raise ValueError(f"{recipe}: {SECTION} is a value, not a section")
    return section
