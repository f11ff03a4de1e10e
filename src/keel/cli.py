"""The command line, `keel COMMAND --flags`. Knows configs and where commands live; imports torch only to run one."""

from __future__ import annotations

import difflib
import importlib
import io
import os
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, get_args, get_origin

from keel import __version__
from keel.engine.signals import left_at_once, stopped_by_sigterm
from keel.errors import InputError, KeelError, interruption
from keel.files.target import refuse_existing, require_command
from keel.says import speaks

COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("DemoConfig", "keel.demo:demo", "run the whole story on the embedded world, ending in a report"),
    "sft": ("SFTConfig", "keel.methods.sft:train", "imitate demonstrations; pre-train on plain text"),
    "reward": ("RewardConfig", "keel.methods.reward:train", "train a reward model on preference pairs"),
    "dpo": ("DPOConfig", "keel.methods.dpo:train", "tune a policy on preference pairs directly"),
    "ppo": ("PPOConfig", "keel.methods.ppo:train", "tune a policy against a reward model or a rule"),
    "merge": ("MergeConfig", "keel.commands.merge:merge_adapter", "make one checkpoint of an adapter and its base"),
    "best-of-n": ("BestOfNConfig", "keel.methods.best_of_n:best_of_n", "sample N, keep the best by a reward"),
    "generate": ("GenerateConfig", "keel.methods.best_of_n:generate", "sample completions from any model"),
    "collect": (
        "CollectConfig",
        "keel.commands.collect:collect",
        "draw answers, have them judged, keep both",
    ),
    "annotate": ("AnnotateConfig", "keel.commands.annotate:annotate", "serve the annotation page"),
    "raters add": ("RatersAddConfig", "keel.commands.annotate:add_rater", "let a person sign in to that page"),
    "raters list": ("RatersListConfig", "keel.commands.annotate:list_raters", "list who may sign in"),
    "raters revoke": ("RatersRevokeConfig", "keel.commands.annotate:revoke_rater", "take a person's token away"),
    "data check": ("DataCheckConfig", "keel.audit.check:check", "check whether data are fit to train on, and why not"),
    "data convert": (
        "DataConvertConfig",
        "keel.commands.data:convert_data",
        "convert any format into any other, or into a store",
    ),
    "data stats": ("DataStatsConfig", "keel.commands.data:show_stats", "count judgments, and report their biases"),
    "data agreement": (
        "DataAgreementConfig",
        "keel.commands.data:show_agreement",
        "measure how far raters agree beyond chance",
    ),
    "data split": (
        "DataSplitConfig",
        "keel.commands.data:split_data",
        "write training and held-out files, no prompt in both",
    ),
    "data forget": ("DataForgetConfig", "keel.commands.data:forget_person", "erase a person's judgments and name"),
    "data merge": (
        "DataMergeConfig",
        "keel.commands.data:merge_stores",
        "add prompts, answers and judgments of another store",
    ),
    "data backup": ("DataBackupConfig", "keel.commands.data:backup_store", "copy the whole store into one SQLite file"),
}
"""Name (one word, or two), config, function, and line in `keel --help`."""
REFUSE_EXISTING = "sft", "reward", "dpo", "ppo", "merge", "best-of-n", "generate"
"""Commands whose --out must not exist yet, unless they resume it."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for bad input, 1 for a failed run, 130 by Ctrl-C, 143 by SIGTERM.

    Keel's own errors are printed as one line, never as a traceback.
    """
    arguments = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its notes on kernels and settings would bury our lines
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        print(f"keel {__version__}")
        return 0
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    name, flags = " ".join(arguments[:words]), arguments[words:]
    if _families(name) and flags[:1] in ([], ["-h"], ["--help"]):
        print(overview(name))
        return 0
    try:
        with stopped_by_sigterm():
            return _run(name, flags)
    except KeelError as error:
        print(f"keel {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        stop = interruption(error)
        print(f"keel {name}: {stop}", file=sys.stderr)
        return stop.exit_code


def _families(word: str) -> list[str]:
    """Return the commands of two words that begin with this one."""
    return [name for name in COMMANDS if name.startswith(f"{word} ")]


def overview(family: str = "") -> str:
    """Return the text of `keel --help`, or of `keel data --help` for the commands that begin so."""
    lines = [
        f"keel {__version__}: from human preferences to a better language model, with evidence at every step.",
        "",
    ]
    names = _families(family) if family else list(COMMANDS)
    lines += [f"  keel {name:<14} {COMMANDS[name][2]}" for name in names]
    lines += ["", "keel COMMAND --help shows a command's options; --config FILE.yaml reads them from a file."]
    return "\n".join(lines)


def _run(command: str, flags: list[str]) -> int:
    if command not in COMMANDS:
        raise InputError(_no_command(command, flags))
    config_name, target, _ = COMMANDS[command]
    config = _parse(command, getattr(importlib.import_module("keel.config"), config_name), flags)
    if config is None:
        return 0
    if command in REFUSE_EXISTING and speaks():  # before torch is imported, which takes seconds
        refuse_existing(config.out, getattr(config, "resume", None))
    module, function = target.split(":")
    with left_at_once(command):
        found = importlib.import_module(module)
    result = getattr(found, function)(config)
    if result is not None and speaks():
        print(result.folder)
    return 0


def _no_command(word: str, flags: list[str]) -> str:
    """Return the message for an unknown command: the likeliest one, then all there are."""
    family = _families(word)
    typed = " ".join([word, *flags[:1]]) if family else word
    near = difflib.get_close_matches(typed, COMMANDS, 1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"no such command; {meant}there are {', '.join(family or COMMANDS)}"


def _refuse_unknown(flags: list[str], kind: Any) -> None:
    """Raise InputError for an unknown option, and name the one that was meant."""
    options = [_option(name) for name in kind.model_fields]
    for flag in flags:
        name = flag.partition("=")[0].replace("_", "-")
        if not name.startswith("--") or name.replace("--no-", "--", 1) in options or name in options:
            continue
        meant = ELSEWHERE.get(name.removeprefix("--").removesuffix("-steps"), "")
        initials = {"--" + "".join(word[0] for word in option[2:].split("-")): option for option in reversed(options)}
        near = [initials[name]] if name in initials else difflib.get_close_matches(name, options, 1, 0.75)
        if not meant and near:
            meant = f"did you mean {near[0]}?"
        raise InputError(f"no option {name}; {meant or 'see --help'}")


ELSEWHERE = {
    "gradient-accumulation": "a batch is split into passes of --micro-tokens tokens, whose gradients are added up",
    "per-device-train-batch-size": "--batch-size is the whole batch, --micro-tokens what one pass holds of it",
    "num-train-epochs": "did you mean --epochs?",
    "output-dir": "did you mean --out?",
}
"""Advice for options of other trainers whose names are unlike Keel's."""


def _parse(command: str, kind: Any, flags: list[str]) -> Any:
    """Return the config that the flags give; None after `--help`. Raise InputError of one line if they are refused."""
    import tyro

    if "--help" in flags or "-h" in flags:
        tyro.cli(kind, args=["--help"], prog=f"keel {command}", description=kind.__doc__)
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            flags = _with_file(command, flags, kind)
            _refuse_unknown(flags, kind)
            config = tyro.cli(kind, args=flags, prog=f"keel {command}")
            return kind.model_construct(_named_in(flags, kind), **dict(config))
    except SystemExit as error:
        raise InputError(_essence(out.getvalue() + err.getvalue(), kind)) from error


def _named_in(flags: list[str], kind: Any) -> set[str]:
    """Return the options given in the command or its file; the option parser would count defaults, too."""
    words = {flag.partition("=")[0].replace("_", "-").replace("--no-", "--", 1) for flag in flags}
    return {name for name in kind.model_fields if _option(name) in words}


def _with_file(command: str, flags: list[str], kind: Any) -> list[str]:
    """Put the flags of `--config FILE` before the others, so that the command line wins; read `-n` as `--n`."""
    flags = _with_none(["--n" if flag == "-n" else flag for flag in flags], kind)
    joined = "--config="
    flags = [part for f in flags for part in (["--config", f.removeprefix(joined)] if f.startswith(joined) else [f])]
    if "--config" not in flags:
        return [*_flags_of_run(command, flags, kind), *flags]
    at = flags.index("--config")
    if at + 1 == len(flags):
        raise InputError("--config needs a file")
    return [*_flags_of(Path(flags[at + 1]), kind), *flags[:at], *flags[at + 2 :]]


def _flags_of_run(command: str, flags: list[str], kind: Any) -> list[str]:
    """Return the options of the run that --resume continues; none if no run is there, but all it takes to begin one."""
    if "resume" not in kind.model_fields or "--resume" not in flags:
        return []
    words = [part for flag in flags for part in flag.partition("=")[::2]]
    out = next(filter(None, words[words.index("--out") + 1 :]), "") if "--out" in words else ""
    if not out:
        raise InputError("--resume needs --out, the folder of the run to go on with")
    file = Path(out) / "config.yaml"
    if file.is_file():
        require_command(Path(out), command)
        return _flags_of(file, kind)
    given = _named_in(flags, kind)
    if missing := [
        _option(name) for name, field in kind.model_fields.items() if field.is_required() and name not in given
    ]:
        raise InputError(
            f"{out}: no run to resume is there; give the --out of one, or {', '.join(missing)} to begin it"
        )
    return []


def _with_none(flags: list[str], kind: Any) -> list[str]:
    """Replace `none` and `null`, after an option that takes a number or nothing, by the option parser's `None`."""
    options = {_option(name) for name, field in kind.model_fields.items() if _number_or_none(field.annotation)}
    done: list[str] = []
    for flag in flags:
        name, joined, value = flag.partition("=")
        if joined and name in options and value.lower() in NONE:
            done += [name, "None"]
        else:
            done.append("None" if done and done[-1] in options and flag.lower() in NONE else flag)
    return done


NONE = "none", "null"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _takes_none(annotation: Any) -> bool:
    return type(None) in get_args(annotation)


def _number_or_none(annotation: Any) -> bool:
    return _takes_none(annotation) and not {str, Path} & set(get_args(annotation))


def _flags_of(file: Path, kind: Any) -> list[str]:
    """Return a config file's options as flags; a list becomes several words if its option takes several."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; give an existing file of options") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: not readable as YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: must hold one `option: value` per line")
    several = [n for n, field in kind.model_fields.items() if get_origin(field.annotation) is list]
    flags: list[str] = []
    for name, value in content.items():
        option = _option(str(name))
        if value is None:
            if str(name) in kind.model_fields and not _takes_none(kind.model_fields[str(name)].annotation):
                raise InputError(f"{file}: {name} has no value; give it one, or leave the line out")
            flags += [option, "None"]
        elif isinstance(value, bool):
            flags.append(option if value else option.replace("--", "--no-", 1))
        elif isinstance(value, list) and str(name) in several:
            flags += [option, *map(str, value)]
        else:
            flags += [option, str(value)]
    return flags


PLAINER = (
    (r"Error parsing (\w+: \d+ validation errors? for \w+)?", ""),
    (r"\[type=[^\]]*\]", ""),
    (r"For further information visit \S+", ""),
    (r"For full helptext.*", ""),
    (r"'None', |, 'None'(?=\))", ""),
    (r"invalid literal for int\(\) with base 10", "not a whole number"),
    (r"could not convert string to float", "not a number"),
)
"""Patterns in the option parser's messages, and plainer words for them."""


def _essence(message: str, kind: Any) -> str:
    """Return the sentences of a framed error message, without title, frame, help, links and echoes of the input."""
    lines = [line.strip("│╭╰─╮╯ ").strip() for line in message.splitlines()]
    lines = [line for line in lines if line.strip("-")][1:]
    whole = " ".join(_named(line, kind) for line in lines).partition(" Argument helptext:")[0]
    for pattern, words in PLAINER:
        whole = re.sub(pattern, words, whole)
    said = " ".join(whole.split()).replace(" ;", ";").removeprefix("; ")
    return said or "the options could not be understood; see --help"


def _named(line: str, kind: Any) -> str:
    """Return a line of the message; one that is only an option's name begins the sentence about it."""
    return f"; --{line.replace('_', '-')}:" if line in kind.model_fields else line.replace("Input should be", "must be")


if __name__ == "__main__":
    sys.exit(main())
