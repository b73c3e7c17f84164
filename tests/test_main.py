"""`python -m bytemtp`: the list of commands, and each of them by its name; and public names that no module hides."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import bytemtp
from bytemtp.__main__ import COMMANDS


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bytemtp", *arguments], capture_output=True, text=True)


def test_alone_it_lists_the_commands():
    lines = run().stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)
    assert run("--help").stdout.splitlines() == lines


def test_the_list_is_complete():
    """A module or folder at the top that can be run is a command."""
    tops = [module.name for module in pkgutil.iter_modules(bytemtp.__path__)]
    entries = {name: f"bytemtp.{name}.__main__" if is_folder(name) else f"bytemtp.{name}" for name in tops}
    runnable = {name for name, entry in entries.items() if importlib.util.find_spec(entry)}
    assert runnable - {"__main__", "testing"} == set(COMMANDS)


def is_folder(name: str) -> bool:
    return importlib.util.find_spec(f"bytemtp.{name}").submodule_search_locations is not None


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_by_its_name_is_the_command(name):
    by_module = subprocess.run([sys.executable, "-m", f"bytemtp.{name}", "--help"], capture_output=True, text=True)
    by_name = run(name, "--help")
    assert by_name.returncode == 0
    assert by_name.stdout == by_module.stdout


def test_a_misspelt_command_is_one_line():
    result = run("trian")
    assert result.returncode == 2
    assert result.stderr == "error: unknown command 'trian'; did you mean 'train'?\n"


def test_a_commands_own_mistakes_come_through():
    result = run("train", "corpus")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "--out is missing" in result.stderr


def test_no_module_hides_a_public_function():
    """`bytemtp.generate` is a function and a folder with the command; importing all modules leaves the function."""
    public = {name: getattr(bytemtp, name) for name in bytemtp.__all__}
    for module in pkgutil.walk_packages(bytemtp.__path__, "bytemtp."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    assert {name: getattr(bytemtp, name) for name in bytemtp.__all__} == public
