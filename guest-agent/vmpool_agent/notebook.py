"""Notebook: the interpreter of a Python context, IPython's own with our ends attached.

It runs in a fork of the warm interpreter, which may hold one shell made ready before the snapshot.
What the shell would print is told to the agent: values and displays as MIME bundles, exceptions
with their traceback. It reads requests until the agent closes them.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import fcntl
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import IPython
from IPython.core import page
from IPython.core.compilerop import CachingCompiler
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.formatters import BaseFormatter
from IPython.core.inputtransformer2 import TransformerManager
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.profiledir import ProfileDir
from IPython.lib import pretty
from traitlets import ObjectName
from traitlets.config import Config

from vmpool_agent import display, failure, forms, generators, spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_LIBRARIES = (str(pathlib.Path(IPython.__file__).parent), str(pathlib.Path(__file__).parent))
_INLINE = "module://matplotlib_inline.backend_inline"
_TEXT = "text/plain"
_AS_DATA: tuple[tuple[str, str, str, Callable[[Any], Any]], ...] = (
    # Not `Figure`, whose forms IPython takes away when it begins to draw inline.
    (forms.CHART, "matplotlib.figure", "FigureBase", forms.chart),
    (forms.DATA, "pandas.core.frame", "DataFrame", forms.table),
    (forms.DATA, "pandas", "DataFrame", forms.table),  # as it calls itself from 3.0 on
    ("application/json", "builtins", "list", forms.document),
    ("application/json", "builtins", "dict", forms.document),
)
"""Forms beside IPython's own, the types that have them by module and name, and what makes them."""
_PLAIN = frozenset({bool, int, float, complex, str, bytes})
"""Types without rich forms; asking a value for each of a dozen costs more than most cells."""
_LITERAL = frozenset({int, str, bytes})
"""Of these, those whose text is their `repr` as long as nobody says otherwise."""
_PRINTERS: dict[type, Any] = pretty._type_pprinters
_HAS_MORE = re.compile(r"\A\s|[%!?]|^[ \t\f]*[,;/]|>>>|\.\.\.|In \[", re.MULTILINE)
"""What IPython looks for in a cell that is to be more than Python."""
_OWN_TRANSFORMS = (4, 1, 4)
"""How many of each kind are IPython's own."""
_NO_STDIN = "a context has no stdin: put the value into the code, or run it with exec"
_REHEARSAL = ("x = 6 * 7\nx", "raise ValueError(x)", "print('', end='')")


class _Hook(DisplayHook):
    """Shows a cell's value."""

    shell: Shell

    def quiet(self) -> bool:
        """Whether the cell ends with a semicolon; most have none to look at closely."""
        history = self.shell.history_manager
        assert history is not None
        return ";" in history.input_hist_parsed[-1] and bool(super().quiet())

    def compute_format_data(
        self, result: object
    ) -> tuple[dict[str, object], dict[str, dict[str, object]]]:
        """Return a value's forms; of what Python itself makes, only those that somebody added."""
        kind = type(result)
        if kind not in _PLAIN:
            forms, metadata = super().compute_format_data(result)
            return forms, metadata
        formatter: Any = self.shell.display_formatter
        formatters = formatter.formatters
        if any(kind in one.type_printers for name, one in formatters.items() if name != _TEXT):
            forms, metadata = super().compute_format_data(result)
            return forms, metadata
        plain = formatters[_TEXT]
        if kind in _LITERAL and plain.type_printers.get(kind) is _PRINTERS.get(kind):
            with contextlib.suppress(ValueError):  # a number of more digits than are shown
                return {_TEXT: repr(result)}, {}
        return {_TEXT: plain(result)}, {}

    def write_output_prompt(self) -> None:
        """Nothing: it is no terminal."""

    def write_format_data(
        self, format_dict: dict[str, object], md_dict: dict[str, object] | None = None
    ) -> None:
        """Tell the value's forms."""
        self.shell.show(format_dict, is_main=True)

    def finish_displayhook(self) -> None:
        """Nothing: it is no terminal."""


class _Publisher(DisplayPublisher):
    """Shows what code displays while it runs."""

    shell: Shell

    def publish(
        self,
        data: dict[str, object],
        metadata: dict[str, object] | None = None,
        source: str | None = None,
        *,
        transient: dict[str, object] | None = None,
        update: bool = False,
        **_: object,
    ) -> None:
        """Tell a display's forms; one that is updated comes again under its id."""
        name = (transient or {}).get("display_id")
        self.shell.show(data, display_id=None if name is None else str(name)[:256])

    def clear_output(self, wait: bool = False) -> None:
        """Nothing: what was told is told."""


class _AsData(BaseFormatter):
    """Makes a form for types that are registered; a value that has none asks for none."""

    print_method = ObjectName("_repr_vmpool_")
    _return_type = str


class _Transformer(TransformerManager):
    """Takes a cell apart only when there is more in it than Python."""

    def transform_cell(self, cell: str) -> str:
        """Return a cell as Python alone."""
        transforms = (
            len(self.cleanup_transforms),
            len(self.line_transforms),
            len(self.token_transformers),
        )
        if _HAS_MORE.search(cell) or transforms != _OWN_TRANSFORMS:
            return str(super().transform_cell(cell))
        return cell if cell.endswith("\n") else f"{cell}\n"


class _Compiler(CachingCompiler):
    """Names cells as a traceback should."""

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        """Return the file name of a cell."""
        return f"<cell {number}>"


class Shell(InteractiveShell):
    """IPython without a terminal, a history file or a directory of its own.

    Attributes:
        tell: Takes what is reported; the agent, but for a rehearsal.
        wait: Returns when the agent has taken a report that says `wait`.
    """

    tell: Callable[..., None] = staticmethod(spawn.tell)

    def init_instance_attrs(self) -> None:
        """As IPython's; nothing is held back yet."""
        super().init_instance_attrs()
        self._held: list[dict[str, Any]] = []
        self.wait: Callable[[], None] | None = None

    displayhook_class = _Hook
    display_pub_class = _Publisher
    compiler_class = _Compiler

    def init_profile_dir(self, profile_dir: object = None) -> None:
        """Have one only while it is asked for: nothing is kept there."""
        with tempfile.TemporaryDirectory() as directory:
            self.profile_dir = ProfileDir(location=directory)

    def init_ipython_dir(self, ipython_dir: object) -> None:
        """Leave the home alone."""
        self.ipython_dir = tempfile.gettempdir()

    def init_virtualenv(self) -> None:
        """Look for none: the path is the account's."""

    def should_run_async(self, raw_cell: str, **more: Any) -> bool:
        """Whether a cell awaits at the top; one without these words need not be compiled for it."""
        has_words = "await" in raw_cell or "async" in raw_cell
        return has_words and bool(super().should_run_async(raw_cell, **more))

    def enable_gui(self, gui: str | None = None) -> None:
        """Nothing: there is none."""

    def show(
        self, forms: dict[str, object], *, is_main: bool = False, display_id: str | None = None
    ) -> None:
        """Tell a value's forms, after all that was printed before.

        That of a cell waits for what comes next, which is its end as a rule: one wakes the agent.
        """
        _flush()
        told: dict[str, Any] = {"type": "result", "mime": display.fit(forms), "is_main": is_main}
        if display_id is not None:
            told["display_id"] = display.clean(display_id)
        if is_main:
            self._held.append(told)
        elif self.wait is not None and threading.current_thread() is threading.main_thread():
            self.report(told | {"wait": True})
            self.wait()
        else:
            self.report(told)

    def report(self, value: dict[str, Any]) -> None:
        """Tell something, after what was held back for it."""
        self.tell(*self._held, value)
        self._held.clear()

    def system(self, cmd: str) -> None:
        """Run `!cmd` on our own outputs, in our process group: what interrupts us reaches it."""
        _flush()
        line = self.var_expand(cmd, depth=1)
        self.user_ns["_exit_code"] = subprocess.call(["/bin/bash", "-c", line])

    def showtraceback(self, exc_tuple: Any = None, *_: object, **__: object) -> None:
        """Tell an exception; one that asks for the end is none."""
        err = exc_tuple[1] if exc_tuple else sys.exc_info()[1]
        if err is not None and not isinstance(err, SystemExit):
            self._tell_raised(err)

    def showsyntaxerror(self, *_: object, **__: object) -> None:
        """Tell what could not be compiled."""
        err = sys.exc_info()[1]
        assert err is not None
        self._tell_raised(err.with_traceback(None))

    def _tell_raised(self, err: BaseException) -> None:
        _flush()
        self.report({"type": "raised", **failure.describe(err, _is_ours)})

    def ask_exit(self) -> NoReturn:
        """End the execution; the context goes on."""
        raise SystemExit(0)


def _is_ours(filename: str) -> bool:
    return filename.startswith(_LIBRARIES)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _make_shell() -> Shell:
    config = Config()
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.compiler_class = _Compiler
    config.PlainTextFormatter.max_seq_length = 0
    shell = Shell.instance(config=config)
    _add_forms(shell.display_formatter)
    atexit.unregister(shell.atexit_operations)
    shell.db = {}
    shell.input_transformer_manager = _Transformer()
    shell.set_hook("show_in_pager", page.as_hook(page.display_page), 90)
    warnings.filterwarnings("ignore", message="To exit: use", category=UserWarning)
    return shell


def _add_forms(formatter: Any) -> None:
    """Have values shown as data, too."""
    for kind, module, name, make in _AS_DATA:
        if kind not in formatter.formatters:
            formatter.formatters[kind] = _AsData(parent=formatter, format_type=kind)
        formatter.formatters[kind].for_type_by_name(module, name, make)


class Notebook:
    """One context's interpreter, between its requests."""

    def __init__(self, shell: Shell, requests: BinaryIO) -> None:
        self._shell = shell
        self._requests = requests
        self._pid = os.getpid()
        shell.wait = self._wait
        signal.signal(signal.SIGINT, _pass)

    def run_all(self) -> None:
        """Run what is asked for until there is no more."""
        while line := self._requests.readline():
            if line != spawn.TAKEN:  # an interrupt came before it was awaited
                self._run(json.loads(line))

    def _wait(self) -> None:
        # A fork of the code's own has no part in what is said to us.
        if os.getpid() == self._pid:
            self._requests.readline()

    def _run(self, request: dict[str, Any]) -> None:
        """Run one request and report how it ended."""
        shell = self._shell
        os.environ.update(request["changes"])
        if request["rng"] is not None:
            generators.reseed(request["rng"])
        number, shell.execution_count = request["number"], request["executions"]
        with _environment(request["env"]):
            code = self._execute(request["source"], number)
        _flush()
        if os.getpid() != self._pid:
            os._exit(code)  # a fork of the code's own that ran to the cell's end
        shell.report({"type": "ended", "number": number, "exit_code": code})

    def _execute(self, source: str, number: int) -> int:
        """Run a cell; return its exit code."""
        try:
            # In this order: whoever interrupts waits for the word that it has begun.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._shell.report({"type": "begun", "number": number})
            outcome = self._shell.run_cell(source, store_history=True)
        except KeyboardInterrupt:  # between two steps of IPython's own
            self._shell.showtraceback()
            return 1
        finally:
            signal.signal(signal.SIGINT, _pass)
        err = outcome.error_before_exec or outcome.error_in_exec
        if isinstance(err, SystemExit):
            return _code_of(err)
        return 0 if err is None else 1


def _pass(_number: int, _frame: FrameType | None) -> None:
    """Take a signal between two cells: were it ignored, what a program starts with were too."""


def rehearse() -> None:
    """Make a shell ready in the warm interpreter, and have it do what each context does first."""
    shell = _make_shell()
    shell.tell = lambda *_: None
    _draw_inline(shell)
    for source in _REHEARSAL:
        shell.run_cell(source, store_history=True)
    shell.reset()
    del shell.tell


def serve() -> int:
    """Run what comes over descriptor 0 until it ends; returns the exit code. From a fresh fork."""
    requests = _take_requests()
    shell = Shell.instance() if Shell.initialized() else _make_shell()
    sys.modules["__main__"] = shell.user_module
    builtins.input = _refuse_input
    _draw_inline(shell)
    notebook = Notebook(shell, requests)
    shell.report({"type": "ready"})
    notebook.run_all()
    return 0


def _take_requests() -> BinaryIO:
    """Return what descriptor 0 was, and leave nothing there."""
    requests = os.fdopen(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, spawn.CONTROL), "rb")
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
    return requests


def _draw_inline(shell: Shell) -> None:
    """Have figures shown as results, those of a matplotlib that is imported later as well."""
    if importlib.util.find_spec("matplotlib_inline") is None:
        return
    os.environ["MPLBACKEND"] = _INLINE
    if "matplotlib" in sys.modules:
        shell.enable_matplotlib("inline")


def _refuse_input(_prompt: object = "") -> NoReturn:
    raise EOFError(_NO_STDIN)


@contextlib.contextmanager
def _environment(env: dict[str, str]) -> Iterator[None]:
    """Set variables for the length of a block."""
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _code_of(err: SystemExit) -> int:
    if err.code is None:
        return 0
    if isinstance(err.code, int):
        return err.code & 0xFF
    print(err.code, file=sys.stderr)
    return 1
