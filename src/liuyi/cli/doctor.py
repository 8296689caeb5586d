"""`liuyi doctor`: what this machine can do, what is installed, and whether all that is needed works."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from liuyi.cli.common import EXIT_ERROR, console, home, print_json, table

if TYPE_CHECKING:
    from liuyi.cli.health import Check
    from liuyi.core.machine import Machine

MARKS = {"ok": ("✓", "green"), "absent": ("·", "dim"), "warning": ("!", "yellow"), "broken": ("✗", "bold red")}


@click.command()
@click.option("--fresh", is_flag=True, help="Measure again, even where the figures of this machine are known.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, fresh: bool, as_json: bool) -> None:
    """Measure this machine and say what is installed.

    Ends with 1 only if something that is needed does not work.
    """
    from liuyi.cli.health import checks
    from liuyi.core.machine import machine_limits

    place = home(ctx)
    found = checks(place)
    usable = not any(check.name == "home" and check.status == "broken" for check in found)
    machine = machine_limits(place.path / "machine.json", fresh=fresh) if usable else None
    broken = [check for check in found if check.status == "broken"]
    if as_json:
        shown = machine.model_dump() if machine else None
        print_json({"ok": not broken, "machine": shown, "checks": [check.__dict__ for check in found]})
    else:
        _print(found, machine)
    if broken:
        sys.exit(EXIT_ERROR)


def _print(found: list[Check], machine: Machine | None) -> None:
    from rich.text import Text

    if machine is not None:
        _print_machine(machine)
    for section in dict.fromkeys(check.section for check in found):
        console().print()
        console().print(Text(section, style="bold"))
        listing = table("", "", "", "")
        listing.show_header = False
        for check in found:
            if check.section == section:
                mark, style = MARKS[check.status]
                listing.add_row(Text(mark, style=style), check.name, Text(check.value), Text(check.note, style="dim"))
        console().print(listing)
    broken = [check.name for check in found if check.status == "broken"]
    console().print()
    if broken:
        console().print(f"broken: {', '.join(broken)}", style="bold red")
    else:
        console().print("all that is needed works", style="green")


def _print_machine(machine: Machine) -> None:
    from rich.text import Text

    console().print(Text("Limits", style="bold"), Text(machine.fingerprint, style="dim"))
    listing = table("", "measured", "what it bounds", right=("measured",))
    cpu, gpu = machine.gemm_flops, machine.gpu_gemm_flops
    for place, rates in (("CPU", cpu), ("GPU", gpu)):
        for dtype, rate in rates.items():
            unit = "GOP/s" if dtype == "int8" else "GFLOP/s"
            listing.add_row(f"{place} matrix product, {dtype}", f"{rate / 1e9:,.0f} {unit}", "training, prompts")
    for what, measured, bounds in (
        ("CPU memory, read", machine.memory_bytes_per_s, "decoding: every token reads the weights"),
        ("GPU memory, read", machine.gpu_memory_bytes_per_s, "decoding on it"),
        ("disk, write and sync", machine.disk_write_bytes_per_s, "checkpoints, publishing"),
        ("disk, read", machine.disk_read_bytes_per_s, "opening and verifying artifacts"),
    ):
        if measured:
            listing.add_row(what, f"{measured / 1e9:,.2f} GB/s", bounds)
    console().print(listing)
    if machine.busy:
        console().print(Text("Others used the machine during the measurement: the limits are higher.", style="yellow"))
