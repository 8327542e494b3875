"""Write one synthetic rollout, line by line as Codex does; synthetic_home lists the kinds."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from support.synthetic_home import Maker

MODELS = ("gpt-5.1-codex-max", "gpt-5.2-codex", "gpt-5.4")
PROJECTS = tuple(f"/home/dev/{name}" for name in ("api", "web", "infra", "ml", "docs"))
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

_GIT = (
    '"git":{"commit_hash":"2add617522e9988005098da3afdd5bc04d51adf4",'
    '"branch":"main","repository_url":"https://example.com/acme/proj.git"}'
)
_NO_LIMITS_OLD = '{"primary":null,"secondary":null,"credits":null}'
_NO_LIMITS = (
    '{"limit_id":"codex","limit_name":null,"primary":null,"secondary":null,"credits":null,'
    '"individual_limit":null,"spend_control_reached":null,"plan_type":null,'
    '"rate_limit_reached_type":null}'
)
_COUNT_HEAD = '"type":"event_msg","payload":{"type":"token_count","info":{"total'


class Tokens(NamedTuple):
    """The token counts of one reading."""

    input: int = 0
    cached: int = 0
    write: int = 0
    output: int = 0
    reasoning: int = 0

    def plus(self, other: Tokens) -> Tokens:
        """Return the sum of both."""
        return Tokens(*map(sum, zip(self, other, strict=True)))

    def old(self, total: int | None = None) -> str:
        """Return the counts as Codex 0.60.1 writes them."""
        return (
            f'{{"input_tokens":{self.input},"cached_input_tokens":{self.cached},'
            f'"output_tokens":{self.output},"reasoning_output_tokens":{self.reasoning},'
            f'"total_tokens":{self.input + self.output if total is None else total}}}'
        )

    def new(self, total: int | None = None) -> str:
        """Return the counts as Codex 0.169.0 writes them."""
        return (
            f'{{"input_tokens":{self.input},"cached_input_tokens":{self.cached},'
            f'"cache_write_input_tokens":{self.write},'
            f'"output_tokens":{self.output},"reasoning_output_tokens":{self.reasoning},'
            f'"total_tokens":{self.input + self.output if total is None else total}}}'
        )


class Request(NamedTuple):
    """One model response that must be counted."""

    ms: int
    model: str
    cwd: str
    tokens: Tokens


class Thread:
    """One rollout that is being written."""

    def __init__(self, maker: Maker, kind: str, ms: int, parent: Thread | None) -> None:
        is_alone = kind in ("old", "new", "mixed")
        if parent is None and not is_alone:
            kind, is_alone = "new", True
        self.maker, self.draw, self.kind = maker, maker.draw, kind
        self.parent = None if is_alone else parent
        if self.parent is not None:
            ms = max(ms, self.parent.ms + 60_000)
        self.ms: int = ms
        self.created_ms = ms
        self.id = maker.id(ms)
        self.root: str = self.parent.root if self.parent and kind.endswith("agent") else self.id
        self.lines: list[str] = []
        self.requests: list[Request] = []
        self.model, self.cwd = self.draw.choice(MODELS), self.draw.choice(PROJECTS)
        self.is_paginated = kind in ("new", "fork", "sub_agent", "context_agent")
        self.ordinal = 0
        self.total = Tokens()
        self.thread_total = Tokens()
        self.size = self.draw.randint(9000, 16_000)
        self.turns = 0
        self.turn = ""
        self.prompt = ""
        """The first prompt; `asked` is the last one."""
        self.asked = ""
        self.ending = ""

    def put(self, kind: str, payload: str) -> None:
        """Write one line."""
        ordinal = ""
        if self.is_paginated:
            ordinal = f'"ordinal":{self.ordinal},'
            self.ordinal += 1
        self.lines.append(
            f'{{"timestamp":"{stamp(self.ms)}",{ordinal}"type":"{kind}","payload":{payload}}}'
        )

    def event(self, payload: str) -> None:
        self.put("event_msg", payload)

    def item(self, payload: str) -> None:
        self.put("response_item", payload)

    def wait(self, least_ms: int = 200, most_ms: int = 20_000) -> None:
        self.ms += self.draw.randint(least_ms, most_ms)

    def write_all(self) -> None:
        """Write the whole thread."""
        turns = self.maker.turn_count()
        match self.kind:
            case "old" | "mixed":
                self._old_meta()
                for n in range(turns):
                    self._old_turn(resumed=n > 0 and self.draw.random() < 0.25, first=n == 0)
                if self.kind == "mixed":
                    self._come_back()
                    self._new_turns(self.draw.randint(1, 3), first=True)
            case "new":
                self._new_meta()
                self._new_turns(turns, first=True)
            case "fork":
                self._fork()
                self._new_turns(max(1, turns // 2), first=False)
            case "sub_agent":
                self._new_meta(f'"parent_thread_id":"{self._parent.id}",')
                self._new_turns(max(1, turns // 3), first=True)
            case "context_agent":
                self._copy_context()
                self._new_turns(max(1, turns // 3), first=False)
            case _:
                self._copy_all()
                self._new_turns(max(1, turns // 2), first=True)

    @property
    def _parent(self) -> Thread:
        assert self.parent is not None
        return self.parent

    # 0.60.1

    def _old_meta(self) -> None:
        source = self.draw.choice(("exec", "cli", "vscode"))
        self.put(
            "session_meta",
            f'{{"id":"{self.id}","timestamp":"{stamp(self.ms)}","cwd":"{self.cwd}",'
            f'"originator":"codex_exec","cli_version":"0.60.1","instructions":null,'
            f'"source":"{source}","model_provider":"openai",{_GIT}}}',
        )
        self.item(
            '{"type":"message","role":"user","content":[{"type":"input_text","text":'
            f'"<environment_context>\\n  <cwd>{self.cwd}</cwd>\\n</environment_context>"}}]}}'
        )

    def _old_turn(self, resumed: bool, first: bool) -> None:
        if resumed:
            self._come_back()
            self.total = Tokens()
        self._begin_turn()
        self._said("user", "input_text", self.asked)
        self.event(f'{{"type":"user_message","message":"{self.asked}","images":[]}}')
        self._old_context()
        if first or resumed:
            self.event(f'{{"type":"token_count","info":null,"rate_limits":{_NO_LIMITS_OLD}}}')
        self.ending = "asked"
        if self.draw.random() < 0.03:
            return  # The turn failed or was interrupted; 0.60.1 records neither.
        last: Tokens | None = None
        for n in range(calls := self.draw.randint(1, 7)):
            self.wait()
            if last is not None and self.draw.random() < 0.9:
                self._old_count(last)
            last = self._use()
            if n < calls - 1:
                self._old_count(last)
                self._old_call()
        answer = self.maker.prose.text(self.draw.randint(60, 1500))
        self.event('{"type":"agent_reasoning","text":"**Thinking**"}')
        self.event(f'{{"type":"agent_message","message":"{answer}"}}')
        assert last is not None
        self._old_count(last)
        self._said("assistant", "output_text", answer)
        self.ending = "answered"
        if self.draw.random() < 0.05:
            self.size = 9000
            self._old_count(Tokens(), 2721)
            self.put("compacted", f'{{"message":"{self.maker.prose.text(1500)}"}}')

    def _old_context(self) -> None:
        self.put(
            "turn_context",
            f'{{"cwd":"{self.cwd}","approval_policy":"never","sandbox_policy":'
            '{"type":"workspace-write","network_access":false},'
            f'"model":"{self.model}","summary":"auto"}}',
        )

    def _old_count(self, last: Tokens, total: int | None = None) -> None:
        limits = _NO_LIMITS_OLD
        if self.draw.random() < 0.5:
            limits = (
                f'{{"primary":{self._window(300)},"secondary":{self._window(10_080)},'
                '"credits":{"has_credits":true,"unlimited":false,"balance":"9.99"}}'
            )
        self.event(
            f'{{"type":"token_count","info":{{"total_token_usage":{self.total.old()},'
            f'"last_token_usage":{last.old(total)},"model_context_window":258400}},'
            f'"rate_limits":{limits}}}'
        )

    def _old_call(self) -> None:
        call = f"call_{self.draw.getrandbits(32):08x}"
        word = self.draw.choice(self.maker.prose.words)
        self.item(
            '{"type":"function_call","name":"shell_command","arguments":'
            f'"{{\\"command\\":\\"rg -n {word}\\"}}","call_id":"{call}"}}'
        )
        output = self.maker.prose.text(self.maker.output_size())
        self.item(
            f'{{"type":"function_call_output","call_id":"{call}",'
            f'"output":"Exit code: 0\\nWall time: 0.1 seconds\\nOutput:\\n{output}"}}'
        )
        self._old_context()

    def _said(self, role: str, kind: str, text: str) -> None:
        self.item(
            f'{{"type":"message","role":"{role}","content":[{{"type":"{kind}","text":"{text}"}}]}}'
        )

    # 0.169.0

    def _new_meta(self, more: str = "", version: str = "0.169.0") -> None:
        parent = self.parent.id if self.parent is not None else ""
        source, origin = '"exec"', "user"
        if self.kind.endswith("agent"):
            origin = "subagent"
            source = (
                f'{{"subagent":{{"thread_spawn":{{"parent_thread_id":"{parent}","depth":1,'
                '"agent_path":null,"agent_nickname":"Hilbert","agent_role":null}}}'
            )
        mode = "paginated" if self.is_paginated else "legacy"
        self.put(
            "session_meta",
            f'{{"account_scoped":true,"session_id":"{self.root}","id":"{self.id}",{more}'
            f'"timestamp":"{stamp(self.ms)}","cwd":"{self.cwd}",'
            f'"runtime_workspace_roots":["{self.cwd}"],"originator":"codex_exec",'
            f'"cli_version":"{version}","source":{source},"thread_source":"{origin}",'
            f'"model_provider":"openai","base_instructions":{{"text":"{self.maker.instructions}",'
            f'"provenance":{{"type":"model","model":"{self.model}"}}}},"history_mode":"{mode}",'
            f'"context_window":{{"window_id":"{self.maker.id(self.ms)}"}},{_GIT}}}',
        )

    def _fork(self) -> None:
        parent = self._parent
        self.ordinal, self.size = parent.ordinal, parent.size
        self.total = self.thread_total = parent.total
        self._new_meta(
            f'"forked_from_id":"{parent.id}","forked_from_ordinal_exclusive":{self.ordinal},'
            f'"history_base":{{"thread_id":"{parent.id}",'
            f'"end_ordinal_exclusive":{self.ordinal},"end_byte_offset":1}},'
        )
        self._settings()

    def _copy_context(self) -> None:
        """Start like a sub-agent with fork_context: with a copy of the parent's turn, left open."""
        parent = self._parent
        self._new_meta(f'"forked_from_id":"{parent.id}","parent_thread_id":"{parent.id}",')
        self._copy(line for line in parent.lines[:1] if '"session_meta"' in line)
        own, self.turn = self.turn, parent.turn or self.maker.id(parent.ms)
        self._started()
        self._surroundings()
        self._context()
        self._user_item("what the parent was asked")
        self.turn = own
        self._settings()

    def _copy_all(self) -> None:
        """Start like a legacy fork: with a copy of the whole parent, written at once."""
        parent = self._parent
        self.total, self.thread_total, self.size = parent.total, parent.thread_total, parent.size
        version = "0.169.0" if self.kind == "legacy_fork" else "0.144.2"
        self._new_meta(f'"forked_from_id":"{parent.id}",', version)
        self._copy(parent.lines)
        self.ms += 30

    def _copy(self, lines: Iterable[str]) -> None:
        """Write another thread's lines as 0.169 copies them: with new timestamps and ordinals."""
        for n, line in enumerate(lines):
            self.ms += n % 400 == 399
            kind = line.index('"type":"')
            rest = line[kind:]
            is_count = rest.startswith(_COUNT_HEAD)
            if is_count and '"cache_write_input_tokens"' not in rest:
                rest = rest.replace(
                    '"output_tokens"', '"cache_write_input_tokens":0,"output_tokens"'
                )
            ordinal = ""
            if self.is_paginated:
                ordinal = f'"ordinal":{self.ordinal},'
                self.ordinal += 1
            self.lines.append(f'{{"timestamp":"{stamp(self.ms)}",{ordinal}{rest}')

    def _new_turns(self, turns: int, first: bool) -> None:
        for n in range(turns):
            resumed = n > 0 and self.draw.random() < 0.15
            if resumed:
                self._come_back()
                self._settings()
            self._new_turn(first and n == 0, resumed)

    def _new_turn(self, first: bool, switched: bool) -> None:
        self._begin_turn()
        began = self.ms
        self.turn = self.maker.id(self.ms)
        self._started()
        if first:
            self._surroundings()
        if switched:
            self._developer_item(f"<model_switch>{self.maker.switch}")
        self._context()
        if first:
            self._settings()
        self._user_item(self.asked)
        if self.is_paginated:
            self._completed(
                '{"type":"UserMessage","id":"u","content":'
                f'[{{"type":"text","text":"{self.asked}","text_elements":[]}}]}}'
            )
        else:
            self.event(
                f'{{"type":"user_message","message":"{self.asked}","images":[],'
                '"local_images":[],"audio":[],"local_audio":[],"text_elements":[]}'
            )
        fate = self.draw.random()
        self.wait()
        if fate < 0.03:
            self._no_count()
            self.event(f'{{"type":"turn_aborted","turn_id":"{self.turn}","reason":"interrupted"}}')
            self.ending = "interrupted"
        elif fate < 0.06:
            self._no_count()
            self._ended('null,"error":{"message":"bad","codex_error_info":"invalid_prompt"}', began)
            self.ending = "failed"
        else:
            self._work(began, uses=fate < 0.97)
            self.ending = "completed"

    def _work(self, began: int, uses: bool) -> None:
        """Alternate model calls and commands, then write the answer."""
        so_far = Tokens()
        for n in range(calls := self.draw.randint(1, 8)):
            if n:
                self.wait()
            last = self._use() if uses else None
            if last is not None:
                so_far = so_far.plus(last)
            if n < calls - 1:
                self._new_call(last, so_far)
                continue
            answer = self.maker.prose.text(self.draw.randint(60, 1500))
            if self.is_paginated:
                self._completed(
                    '{"type":"AgentMessage","id":"m","content":'
                    f'[{{"type":"Text","text":"{answer}"}}]}}'
                )
            else:
                self.event(
                    f'{{"type":"agent_message","message":"{answer}",'
                    '"phase":null,"memory_citation":null}'
                )
            self.item(
                '{"type":"message","id":"m","role":"assistant","content":'
                f'[{{"type":"output_text","text":"{answer}"}}],{self._passed()}}}'
            )
            if last is not None:
                self._record(last, so_far)
                self._new_count(last)
            else:
                self._no_count()
            self._ended(f'"{answer}"', began)
        if uses and self.draw.random() < 0.05:
            self.size = 9000
            self.put("compacted", f'{{"message":"{self.maker.prose.text(1500)}"}}')
            self._new_count(Tokens(), 6076)

    def _new_call(self, last: Tokens | None, so_far: Tokens) -> None:
        call = f"call_{self.draw.getrandbits(32):08x}"
        word = self.draw.choice(self.maker.prose.words)
        self.item(
            '{"type":"function_call","id":"fc","name":"exec_command","arguments":'
            f'"{{\\"cmd\\":\\"rg -n {word}\\"}}","call_id":"{call}",{self._passed()}}}'
        )
        if last is not None:
            self._record(last, so_far)
        output = self.maker.prose.text(self.maker.output_size())
        if self.is_paginated:
            self._completed(
                f'{{"type":"CommandExecution","id":"{call}","command":["/bin/bash","-lc","rg"],'
                f'"status":"completed","aggregated_output":"{output}","exit_code":0}}'
            )
        self.item(
            f'{{"type":"function_call_output","id":"fco","call_id":"{call}","output":'
            f'"Chunk ID: ee6162\\nProcess exited with code 0\\nOutput:\\n{output}",'
            f"{self._passed()}}}"
        )
        if last is not None:
            self._new_count(last)

    def _started(self) -> None:
        turn = self.turn
        self.event(
            f'{{"type":"task_started","turn_attribution":{{"turn_id":"{turn}",'
            '"turn_trigger":"exec","parent_turn_id":null,"initiating_agent_path":null,'
            f'"root_turn_id":"{turn}"}},"turn_id":"{turn}","root_turn_id":"{turn}",'
            f'"started_at":{self.ms // 1000},"model_context_window":258400,'
            '"collaboration_mode_kind":"default"}'
        )

    def _ended(self, answer: str, began: int) -> None:
        self.event(
            f'{{"type":"task_complete","root_turn_id":"{self.turn}","turn_id":"{self.turn}",'
            f'"last_agent_message":{answer},"started_at":{began // 1000},'
            f'"completed_at":{self.ms // 1000},"duration_ms":{self.ms - began}}}'
        )

    def _surroundings(self) -> None:
        self._developer_item(f"<skills_instructions>{self.maker.developer}")
        self.item(
            f'{{"type":"message","id":"msg_{self.turn}","role":"user","content":'
            f'[{{"type":"input_text","text":"<environment_context>\\n"}}],{self._passed()}}}'
        )
        self.put(
            "world_state",
            f'{{"full":true,"state":{{"model":"{self.model}","host":"{self.maker.world}"}}}}',
        )

    def _developer_item(self, text: str) -> None:
        self.item(
            f'{{"type":"message","id":"msg_{self.turn}","role":"developer","content":'
            f'[{{"type":"input_text","text":"{text}"}}],{self._passed()}}}'
        )

    def _user_item(self, text: str) -> None:
        self.item(
            f'{{"type":"message","id":"msg_{self.turn}","role":"user","content":'
            f'[{{"type":"input_text","text":"{text}"}}],{self._passed("user.text")}}}'
        )

    def _passed(self, kind: str = "unknown") -> str:
        return (
            f'"internal_chat_message_metadata_passthrough":{{"turn_id":"{self.turn}",'
            f'"content_item_kinds":["{kind}"]}}'
        )

    def _context(self) -> None:
        self.put(
            "turn_context",
            f'{{"turn_id":"{self.turn}","root_turn_id":"{self.turn}","disabled_plugin_ids":[],'
            f'"cwd":"{self.cwd}","approval_policy":"never","model":"{self.model}",'
            '"multi_agent_version":"v1","realtime_active":false,"summary":"none",'
            '"sandbox_policy":{"type":"read-only"}}',
        )

    def _settings(self) -> None:
        self.event(
            f'{{"type":"thread_settings_applied","thread_id":"{self.id}","thread_settings":'
            f'{{"model":"{self.model}","model_provider_id":"openai","approval_policy":"never",'
            f'"permission_profile":{{"type":"disabled"}},"cwd":"{self.cwd}",'
            f'"collaboration_mode":{{"mode":"default","settings":{{"model":"{self.model}",'
            '"reasoning_effort":null,"developer_instructions":null}},"disabled_plugin_ids":[]}}'
        )

    def _completed(self, item: str) -> None:
        self.event(
            f'{{"type":"item_completed","thread_id":"{self.id}","turn_id":"{self.turn}",'
            f'"item":{item},"started_at_ms":{self.ms},"completed_at_ms":{self.ms}}}'
        )

    def _record(self, last: Tokens, so_far: Tokens) -> None:
        self.thread_total = self.thread_total.plus(last)
        self.put(
            "token_usage_record",
            f'{{"thread_id":"{self.id}","turn_id":"{self.turn}","session_id":"{self.root}",'
            f'"root_turn_id":"{self.turn}","response_id":"resp_{self.draw.getrandbits(96):x}",'
            f'"usage":{last.new()},"turn_token_usage":{so_far.new()},'
            f'"thread_token_usage":{self.thread_total.new()}}}',
        )

    def _new_count(self, last: Tokens, total: int | None = None) -> None:
        limits = _NO_LIMITS
        if self.draw.random() < 0.5:
            limits = (
                f'{{"limit_id":"codex","limit_name":null,"primary":{self._window(300)},'
                f'"secondary":{self._window(10_080)},"credits":null,"individual_limit":null,'
                '"spend_control_reached":null,"plan_type":"plus","rate_limit_reached_type":null}'
            )
        self.event(
            f'{{"type":"token_count","info":{{"total_token_usage":{self.total.new()},'
            f'"last_token_usage":{last.new(total)},"last_usage_includes_reasoning":false,'
            f'"model_context_window":258400}},"rate_limits":{limits}}}'
        )

    def _no_count(self) -> None:
        self.event(f'{{"type":"token_count","info":null,"rate_limits":{_NO_LIMITS}}}')

    # Both

    def _begin_turn(self) -> None:
        self.wait(1000, 300_000)
        self.turns += 1
        self.asked = self.maker.prose.prompt()
        self.prompt = self.prompt or self.asked

    def _come_back(self) -> None:
        """Continue after some hours, perhaps with another model or in another folder."""
        self.ms += self.draw.randint(HOUR_MS, 40 * HOUR_MS)
        self.model = self.draw.choice(MODELS)
        if self.draw.random() < 0.3:
            self.cwd = self.draw.choice(PROJECTS)

    def _use(self) -> Tokens:
        """Draw one request and add it to the totals."""
        draw = self.draw
        self.size = min(self.size + draw.randint(200, 6000), 240_000)
        cached = int(self.size * draw.choice((0, 0.5, 0.8, 0.9, 0.95, 0.97)))
        output = draw.randint(40, 2500)
        write = draw.choice((0, 0, 0, 777)) if self.turn else 0
        tokens = Tokens(self.size, cached, write, output, int(output * draw.random()))
        self.total = self.total.plus(tokens)
        self.requests.append(Request(self.ms, self.model, self.cwd, tokens))
        return tokens

    def _window(self, minutes: int) -> str:
        used = self.draw.random() * 90
        return f'{{"used_percent":{used:.1f},"window_minutes":{minutes},"resets_at":1795364521}}'


_dates: dict[int, str] = {}


def stamp(ms: int) -> str:
    """Return a time in the format that Codex writes."""
    day, rest = divmod(ms, DAY_MS)
    date = _dates.get(day)
    if date is None:
        date = _dates[day] = datetime.fromtimestamp(day * 86_400, tz=UTC).strftime("%Y-%m-%d")
    seconds, rest = divmod(rest, 1000)
    return f"{date}T{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest:03}Z"
