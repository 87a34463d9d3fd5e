"""The command line. Commands import what they need when they run, so that help comes at once."""

from __future__ import annotations

import os
import sys

import typer

from datafree.cli import failure
from datafree.cli.audit import audit
from datafree.cli.compare import compare
from datafree.cli.compress import compress, demo
from datafree.cli.distill import distill
from datafree.cli.doctor import doctor
from datafree.cli.front import front
from datafree.cli.methods import list_methods, show
from datafree.cli.results import evaluate, export, report
from datafree.cli.sweep import sweep
from datafree.cli.synthesize import synthesize

app = typer.Typer(
    name="datafree",
    help="Compress a trained network without its training data: prune, quantize, and get files that are really smaller "
    "and really faster.\n\nStart with `datafree demo`, which does the whole job offline in a minute. Then "
    "`datafree compress timm:resnet18 --out small`.",
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for function, name in (
    (compress, "compress"),
    (synthesize, "synthesize"),
    (distill, "distill"),
    (front, "front"),
    (sweep, "sweep"),
    (evaluate, "evaluate"),
    (audit, "audit"),
    (report, "report"),
    (compare, "compare"),
    (export, "export"),
    (doctor, "doctor"),
    (list_methods, "list"),
    (show, "show"),
    (demo, "demo"),
):
    app.command(name)(function)

# typer has carried its own copy of click since 0.2x: the class is taken from a subclass that both offer.
_ClickException: type[Exception] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Show the version and stop.")) -> None:
    if version:
        from datafree.run import own_version

        print(own_version())
        raise typer.Exit


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 bad input or refused, 1 our own fault, 130 interrupted."""
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    with failure.stoppable():
        return _run(arguments, as_json="--json" in arguments)


def _run(arguments: list[str], *, as_json: bool) -> int:
    try:
        code = app(args=arguments, prog_name="datafree", standalone_mode=False)
        sys.stdout.flush()
        if code == failure.INTERRUPTED:  # typer says nothing of its own
            return failure.explain(KeyboardInterrupt(), as_json=as_json)
        return code if isinstance(code, int) else failure.DONE
    except _ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "datafree"
        return failure.usage(error.format_message(), command, as_json=as_json)  # type: ignore[attr-defined]
    except (typer.Abort, KeyboardInterrupt):
        return failure.explain(KeyboardInterrupt(), as_json=as_json)
    except BrokenPipeError:  # the reader of our output has gone, as in `datafree list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return failure.DONE
    except Exception as error:
        return failure.explain(error, as_json=as_json)
