"""Languages: how the interpreter of a context is started and asked to run something.

Each interpreter reads requests for as long as it lives and reports `begun` and `ended` for each,
under the request's number, on a descriptor of its own: never among what the code prints. Python is
a fork of the warm interpreter, which knows `notebook`; bash and node are programs. What reports
mean is decided in `context`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

from vmpool_agent import spawn
from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool_agent.pipes import Pipes
    from vmpool_agent.spawn import Launch
    from vmpool_agent.system import System

_REQUEST = 4
"""Where a program that is no shell reads its requests."""
_SHELL_REPORT = 199
"""A descriptor that scripts do not use; bash itself takes those from 10 on and below 64."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class Request(NamedTuple):
    """One execution.

    Attributes:
        number: Under which it is reported.
        executions: How many the interpreter has been given, this one included.
        env: Variables for this execution alone.
        changes: Variables that are to be so from now on.
        rng: How random generators begin anew; `None` where they go on.
    """

    number: int
    executions: int
    source: str
    env: dict[str, str]
    changes: dict[str, str]
    rng: dict[str, Any] | None


class Program(NamedTuple):
    """A language whose interpreter is a program of the image.

    Attributes:
        name: What is looked for on PATH.
        start: Becomes the program; from the child, whose 0 to 4 are nothing, the outputs, the
            reports and the requests.
        greeting: What it is told first, and answers with `ready`.
        phrase: Puts a request in its words.
    """

    name: str
    start: Callable[[System, Launch], int]
    greeting: bytes
    phrase: Callable[[Request], bytes]


def spawn_program(system: System, program: Program, launch: Launch, pipes: Pipes) -> int:
    """Start a program's process; return its process id. The caller closes the child's ends.

    Raises:
        OperationError: `language_unavailable`: the image has no such program; `no_resources`.
    """
    if shutil.which(program.name, path=spawn.PATH) is None:
        raise unavailable(program.name, program.name)
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    requests = pipes.add_stdin()
    try:
        return spawn.fork((null, *pipes.child, requests), lambda: program.start(system, launch))
    except OSError as err:
        raise OperationError("no_resources", f"fork: {err.strerror}") from err
    finally:
        os.close(null)
        os.close(requests)


def unavailable(language: str, what: str) -> OperationError:
    """Return, as an error to raise, that an image lacks what a language needs."""
    return OperationError("language_unavailable", f"no {language} here: the image has no {what}")


def check_env(language: str, env: dict[str, str]) -> None:
    """Refuse variables that a language cannot have.

    Raises:
        OperationError: `bad_request`.
    """
    if language == "bash":
        for name in env:
            if not _NAME.match(name):
                raise OperationError("bad_request", f"bash has no variable named {name[:64]!r}")


def phrase_as_json(request: Request) -> bytes:
    """Return a request as one line of JSON."""
    return json.dumps(request._asdict(), separators=(",", ":")).encode("ascii") + b"\n"


def _start_bash(system: System, launch: Launch) -> int:
    os.dup2(spawn.REPORT, _SHELL_REPORT)
    os.dup2(_REQUEST, 0)
    os.close(_REQUEST)
    # Interactive, so that SIGINT ends what runs and not the shell, and so that it says when it is
    # done with a command: both are what a terminal's shell does.
    spawn.execute(system, launch, ["bash", "--login", "--noediting", "-i"])


_BASH_GREETING = f"""
PS1= PS2=; set +mH +o history; unset HISTFILE PROMPT_COMMAND; \
__vmpool_end() {{ local status=$?; eval "$__vmpool_undo"; __vmpool_undo=; \
printf '{{"type":"ended","number":%d,"exit_code":%d}}\\n' "$__vmpool_number" $status \
>&{_SHELL_REPORT}; return $status; }}; \
__vmpool_number=0; printf '{{"type":"ready"}}\\n' >&{_SHELL_REPORT}; \
PROMPT_COMMAND='{{ __vmpool_end; }} 2>/dev/null'
"""


def _phrase_for_bash(request: Request) -> bytes:
    """Return a request as one command: bash has read all of it before it runs any of it.

    What is to come afterwards stands in PROMPT_COMMAND, which runs after whatever ended it.
    """
    steps = [f"__vmpool_number={request.number}"]
    if request.rng is not None:
        seed = request.rng.get("seed")
        steps.append(f"RANDOM={secrets.randbelow(1 << 31) if seed is None else seed % (1 << 31)}")
    for name, value in request.changes.items():
        steps.append(f"export {name}={shlex.quote(value)}")
    for name, value in request.env.items():
        steps.append(
            f'if [ -n "${{{name}+x}}" ]; then printf -v __vmpool_was \'{name}=%q;\' "${name}"; '
            f"else __vmpool_was='unset {name};'; fi; __vmpool_undo+=$__vmpool_was"
        )
        steps.append(f"export {name}={shlex.quote(value)}")
    begun = json.dumps({"type": "begun", "number": request.number})
    steps.append(f"printf '%s\\n' '{begun}' >&{_SHELL_REPORT}")
    line = f"{{ {'; '.join(steps)}; }} 2>/dev/null; eval {shlex.quote(request.source)} </dev/null\n"
    return os.fsencode(line)


def _start_node(system: System, launch: Launch) -> int:
    for fd in (spawn.REPORT, _REQUEST):
        os.set_inheritable(fd, True)
    spawn.execute(system, launch, ["node", "--no-warnings", "-e", _NODE])


_NODE = r"""
// In a block, so that code may declare the same names.
{
const fs = require('fs'), repl = require('repl'), stream = require('stream');
const util = require('util'), vm = require('vm');
const tell = (value) => {
  const escape = (c) => '\\u' + c.charCodeAt(0).toString(16).padStart(4, '0');
  let line = Buffer.from(JSON.stringify(value).replace(/[\u0080-\uffff]/g, escape) + '\n');
  while (line.length) line = line.subarray(fs.writeSync(3, line));
};
const read = fs.createReadStream(null, { fd: 4 });
const nowhere = new stream.Writable({ write: (chunk, encoding, done) => done() });
const server = repl.start({
  input: new stream.PassThrough(), output: nowhere, prompt: '', terminal: false,
  useGlobal: true,
});
let stop = null;
const fail = (error) => { if (stop) stop(error); else console.error(error); };
const interrupt = () => { if (stop) stop(new Error('interrupted')); };
process.on('unhandledRejection', fail);
if (server._domain) server._domain.removeAllListeners('error').on('error', fail);
// A cell is no module: what it imports is awaited.
const IMPORT = new RegExp([
  /(?<=^|;)[ \t]*import\s*/, /(?:([\w$]+)\s*,?\s*)?/, /(?:\*\s*as\s+([\w$]+)\s*|\{([^}]*)\}\s*)?/,
  /(?:from\s*)?(['"])([^'"\n]+)\4[ \t]*;?/,
].map((part) => part.source).join(''), 'gm');
const awaited = (source) => source.replace(IMPORT, (_, one, all, some, quote, name) => {
  const module = `await import(${JSON.stringify(name)})`;
  if (all) return `const ${all} = ${module};` + (one ? ` const { default: ${one} } = ${all};` : '');
  const names = [one && `default: ${one}`, some && some.replace(/\bas\b/g, ':')].filter(Boolean);
  return names.length ? `const { ${names.join(', ')} } = ${module};` : `${module};`;
});
// What awaits at the top is rewritten by the shell of node, and all else is run as it stands.
const evaluate = (source) => new Promise((resolve, reject) => {
  stop = reject;
  try {
    resolve(vm.runInThisContext(source, { filename: '<cell>', breakOnSigint: true }));
  } catch (error) {
    const text = awaited(source);
    if (!(error instanceof SyntaxError && /\bawait\b/.test(text))) throw error;
    const done = (failure, value) => failure ? reject(failure) : resolve(value);
    server.eval(text + '\n', server.context, '<cell>', done);
  }
}).finally(() => { stop = null; });
process.on('SIGINT', interrupt);
const raised = (error) => {
  const whole = error instanceof Error;
  const trace = whole ? String(error.stack) : util.inspect(error);
  tell({
    type: 'raised', name: whole ? String(error.name) : typeof error,
    value: String(whole ? error.message : error).slice(0, 32768), traceback: trace.slice(-32768),
  });
};
const run = async (request) => {
  Object.assign(process.env, request.changes);
  const before = {};
  for (const [name, value] of Object.entries(request.env)) {
    before[name] = process.env[name];
    process.env[name] = value;
  }
  tell({ type: 'begun', number: request.number });
  let code = 0;
  try {
    const value = await evaluate(request.source);
    if (value !== undefined) {
      const text = util.inspect(value).slice(0, 65536);
      tell({ type: 'result', mime: { 'text/plain': text }, is_main: true });
    }
  } catch (error) { code = 1; raised(error); }
  for (const [name, value] of Object.entries(before)) {
    if (value === undefined) delete process.env[name]; else process.env[name] = value;
  }
  tell({ type: 'ended', number: request.number, exit_code: code });
};
let rest = '';
read.setEncoding('utf8');
read.on('data', (chunk) => {
  const lines = (rest + chunk).split('\n');
  rest = lines.pop();
  for (const line of lines) run(JSON.parse(line));
});
read.on('end', () => process.exit(0));
tell({ type: 'ready' });
}
"""

PROGRAMS = {
    "bash": Program("bash", _start_bash, _BASH_GREETING.encode(), _phrase_for_bash),
    "javascript": Program("node", _start_node, b"", phrase_as_json),
}
PYTHON = "python"
NAMES = (PYTHON, *PROGRAMS)
