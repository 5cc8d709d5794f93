"""The chat at a terminal: reads lines, obeys those that begin with a slash, shows answers while they come.

Where standard input is no terminal the lines are a script: they are taken one by one, answers are printed plainly, and
the first error ends it. Models are opened and asked elsewhere.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from posttrain.core.errors import PosttrainError, RequestError, suggest
from posttrain.core.files import user_path, write_jsonl
from posttrain.lab.chat_conversation import CUT, Conversation
from posttrain.lab.chat_models import ChatModel
from posttrain.lab.chat_screen import Screen
from posttrain.lab.chat_stream import Answer, stream_answers
from posttrain.llm_judge.endpoints import is_url

HELP = """\
/system [TEXT | off]     the system message from the next answer on; alone: show it
/temperature [T]         0 is greedy, 1 samples from the model as it is; alone: show it
/compare [NAME | off]    ask a second model too (checkpoint, run, URL [MODEL]); alone: on or off
/save FILE               the conversation as JSON Lines, a line a model, for data.sft (which leaves out
                         a line with an answer that was cut short)
/reset                   forget what was said
/help                    this list
/exit                    leave (Ctrl-D too)
Ctrl-C stops an answer; what has come of it stays. //text sends a message that begins with a slash."""
HOTTEST = 100.0


class TerminalChat:
    """One chat from the first line to the last."""

    def __init__(
        self,
        conversation: Conversation,
        open_model: Callable[[str, str | None], ChatModel],
        screen: Screen,
        script: bool,
    ) -> None:
        """`open_model` opens a name and a URL's model; `script`: the first error ends the chat."""
        self.conversation, self._open, self._screen, self._script = conversation, open_model, screen, script
        sides = conversation.sides
        self._second = sides[1].model if len(sides) > 1 else None
        self._saved: set[Path] = set()
        self._commands: dict[str, Callable[[str], bool]] = {
            "system": self._system,
            "temperature": self._temperature,
            "compare": self._compare,
            "save": self._save,
            "reset": self._reset,
            "help": self._help,
            "exit": lambda _: True,
        }

    def run(self, lines: Iterator[str]) -> None:
        """Takes lines until there are none or one says /exit; raises the first error of a script."""
        for line in lines:
            try:
                if self._take(line.strip()):
                    return
            except KeyboardInterrupt:  # while a service starts; an answer is stopped where it is read
                if self._script:
                    raise
                self._screen.note("[stopped]")
            except PosttrainError as error:
                if self._script:
                    raise
                self._screen.error(str(error))

    def _take(self, line: str) -> bool:
        """Whether the chat ends with this line."""
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line[1:].partition(" ")
            if name not in self._commands:
                known = [f"/{each}" for each in self._commands]
                raise RequestError(f"unknown command '/{name}' {suggest('/' + name, known)}; //text sends it as text")
            return self._commands[name](rest.strip())
        if line:
            self._ask(line[1:] if line.startswith("/") else line)
        return False

    def _ask(self, text: str) -> None:
        conversation = self.conversation
        models = [side.model for side in conversation.sides]
        answers = [Answer(model) for model in models]
        interrupted = False
        with self._screen.answering([model.label for model in models]) as show:
            try:
                for answers in stream_answers(models, conversation.requests(text), conversation.sampling):
                    show([answer.text for answer in answers])
            except KeyboardInterrupt:
                interrupted = True
        conversation.add(text, answers, interrupted)
        if interrupted and self._script:
            raise KeyboardInterrupt
        if interrupted:
            self._screen.note("[stopped]" if any(a.text for a in answers) else "[stopped before anything came]")
        for answer in answers:
            if answer.finish_reason in CUT:
                where = "cut at the most tokens or the end of the context"
                self._screen.note(
                    f"[{answer.model.label}: {where if answer.finish_reason == 'length' else 'withheld'}]"
                )
        if errors := [answer.error for answer in answers if answer.error]:
            raise errors[0]

    def _system(self, text: str) -> bool:
        if text:
            self.conversation.system = None if text == "off" else text
        self._screen.note(f"system: {self.conversation.system or '(none)'}")
        return False

    def _temperature(self, text: str) -> bool:
        if text:
            self.conversation.sampling = replace(self.conversation.sampling, temperature=temperature(text))
        self._screen.note(f"temperature: {self.conversation.sampling.temperature:g}")
        return False

    def _compare(self, named: str) -> bool:
        conversation = self.conversation
        if named == "off" or (not named and len(conversation.sides) > 1):
            conversation.alone()
        elif named or self._second:
            if named:
                name, _, model = named.partition(" ") if is_url(named) else (named, "", "")
                self._second = self._named_apart(self._open(name, model.strip() or None))
            assert self._second is not None
            conversation.compare(self._second)
        else:
            raise RequestError("compare with what? /compare CHECKPOINT_OR_URL")
        self._screen.note("asked: " + " and ".join(side.model.label for side in conversation.sides))
        return False

    def _named_apart(self, model: ChatModel) -> ChatModel:
        same = model.label == self.conversation.sides[0].model.label
        return replace(model, label=f"{model.label} (2)") if same else model

    def _save(self, named: str) -> bool:
        if not named:
            raise RequestError("save where? /save FILE.jsonl")
        if not any(side.turns for side in self.conversation.sides):
            raise RequestError("nothing was said that could be saved")
        path = user_path(named)
        if path.exists() and path.resolve() not in self._saved:
            raise RequestError(f"{path} is there already; name another file")
        rows = [row for row, side in zip(self.conversation.rows(), self.conversation.sides, strict=True) if side.turns]
        write_jsonl(path, rows)
        self._saved.add(path.resolve())
        self._screen.note(f"saved: {path}")
        return False

    def _reset(self, _: str) -> bool:
        self.conversation.reset()
        self._screen.note("a new conversation")
        return False

    def _help(self, _: str) -> bool:
        self._screen.note(HELP)
        return False


def temperature(text: str) -> float:
    """The number in a text; RequestError for anything that no service takes."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= HOTTEST:
        raise RequestError(f"temperature '{text}' is not a number from 0 to {HOTTEST:g}")
    return value


def script_lines(file: TextIO) -> Iterator[str]:
    """The lines of a file or pipe; RequestError where they are not UTF-8."""
    try:
        yield from file
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not UTF-8: {error.reason} at byte {error.start}") from None


def typed_lines(history: Path) -> Iterator[str]:
    """Lines as a person types them, with those of earlier chats at the arrow keys; ends with Ctrl-D.

    `history` is readable by this user only. Where it cannot be read or kept, that is said once and the chat goes on.
    """
    import readline

    kept = True
    try:
        history.parent.mkdir(parents=True, exist_ok=True)
        history.touch(mode=0o600)
        history.chmod(0o600)
        if history.stat().st_size:  # libedit refuses an empty one
            readline.read_history_file(history)
    except OSError as error:
        kept = False
        print(f"note: lines are not kept in {history}: {error.strerror}", file=sys.stderr)
    readline.set_history_length(1000)
    while True:
        try:
            # What stands between \001 and \002 has no width on the screen.
            line = input("\001\033[1m\002you ›\001\033[0m\002 ")
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit leaves)", file=sys.stderr)
            continue
        except EOFError:
            print()
            return
        if kept:
            try:
                readline.write_history_file(history)
                history.chmod(0o600)
            except OSError as error:
                kept = False
                print(f"note: lines are no longer kept in {history}: {error.strerror}", file=sys.stderr)
        yield line
