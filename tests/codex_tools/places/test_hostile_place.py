"""A hostile place can spoil its own run, and nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from dataclasses import replace

import pytest

from codex_tools.codex.place_errors import PlaceLost, PlaceRefused, PlaceUnavailable
from codex_tools.codex.program import NOT_ASKED
from codex_tools.engines.engine import TurnRequest
from codex_tools.places.mirror import Mirror
from codex_tools.places.place import Place
from codex_tools.places.seat import Seat, open_seat
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.snapshot import take_snapshot
from codex_tools.worktree.tree_error import TreeError
from support.lab import Lab

THREAD = "01a20000-0000-7000-8000-000000000001"
OTHER = "01a20000-0000-7000-8000-000000000002"
DAY = "sessions/2026/11/29/rollout-2026-11-29T00-00-00-"

WORKER = """
import json, os, sys
def put(type_, body=b"", **fields):
    head = {"type": type_, **fields}
    if body:
        head["size"] = len(body)
    os.write(1, json.dumps(head, separators=(",", ":")).encode() + b"\\n")
    view = memoryview(body)
    while view:
        view = view[os.write(1, view):]
def raw(data):
    os.write(1, data)
rest = b""
def more():
    global rest
    data = os.read(0, 65536)
    if not data:
        os._exit(0)
    rest += data
def get():
    global rest
    while True:
        while b"\\n" not in rest:
            more()
        line, _, rest = rest.partition(b"\\n")
        head = json.loads(line)
        size = head.get("size", 0)
        while len(rest) < size:
            more()
        body, rest = rest[:size], rest[size:]
        if head["type"] == "ping":
            put("pong")
        elif head["type"] != "pack":
            return head["type"]
PROGRAM = {"path": "/codex", "version": [0, 169, 0], "version_text": "0.169.0", "flags": []}
def hello(**fields):
    put("hello", **{"protocol": 1, "version": "1", "program": PROGRAM, **fields})
def event(**fields):
    put("event", json.dumps(fields).encode())
def laid():
    get(); hello(); get(); put("project", copy=None, known=[]); get()
    put("laid", copy="1-a", folder="/far/project"); get()
    put("started", engine="exec")
    event(type="thread.started", thread_id=%(thread)r)
def finished():
    put("exited", returncode=0); put("dead"); get()
"""


@pytest.fixture
def shadow(lab: Lab) -> Generator[Shadow]:
    (lab.project / "a.txt").write_text("one\n")
    yield Shadow.open(lab.state, lab.project)
    # Whatever the place has sent, nothing but the mirror and the shadow has changed.
    assert {each.name for each in lab.project.iterdir()} == {".git", "a.txt"}
    assert (lab.project / "a.txt").read_text() == "one\n"
    assert {each.name for each in lab.state.iterdir()} <= {"trees", "places"}
    box = lab.state / "places" / "box"
    files = {str(each.relative_to(box)) for each in box.rglob("*") if each.is_file()}
    assert files <= {f"{DAY}{THREAD}.jsonl"}, files


def place(code: str) -> Place:
    script = WORKER % {"thread": THREAD} + code + "\nwhile True: get()\n"
    return Place("box", (sys.executable, "-I", "-c", script), worker="x", lease_s=2.0)


async def use(shadow: Shadow, lab: Lab, code: str, *, collects: bool = False) -> None:
    def is_taken(thread_id: str, place: str) -> bool:
        return thread_id == OTHER

    mirror = Mirror(lab.state, "box", is_taken)
    async with open_seat(place(code), mirror, "run_1", shadow, margin_s=0.2) as seat:
        snapshot = take_snapshot(shadow)
        known = await seat.reopen(None)
        await seat.lay(snapshot, known or ())
        await play(seat)
        if collects:
            await seat.collect(snapshot)


def ignore(line: bytes) -> None:
    pass


async def play(seat: Seat) -> None:
    request = TurnRequest(NOT_ASKED, "x", seat.folder, "read-only", 60, 60)
    async with seat.open_turn(request, ignore) as turn:
        async for _ in turn:
            pass


@pytest.mark.parametrize(
    "code",
    [
        "get(); sys.exit()",
        "get(); put('hello')",
        "get(); hello(protocol=2)",
        "get(); hello(protocol=True)",
        "get(); hello(program=None)",
        "get(); hello(program={'path': 1})",
        "get(); hello(program={**PROGRAM, 'version': ['a', 1, 1]})",
        'get(); raw(b\'{"type":"hello","size":99999999999}\\n\')',
        "get(); raw(b'x' * 200000)",
        "get(); put('event', b'{}')",
        "get(); hello(); get(); put('laid', copy='../..', folder='/')",
        "get(); hello(); get(); put('project', copy=None, known=['--upload-pack=x', '../x', 7]);"
        "get(); put('laid', copy='1', folder='relative')",
        "get(); hello(); get(); put('project', copy=None, known=[]); get(); put('laid', copy=1)",
        "get(); hello(); get(); put('refused', problem='no')",
    ],
)
async def test_lies_before_the_turn_make_the_place_unavailable(
    shadow: Shadow, lab: Lab, code: str
) -> None:
    with pytest.raises(PlaceUnavailable):
        await use(shadow, lab, code)


@pytest.mark.parametrize(
    "code",
    [
        "laid(); sys.exit()",
        "laid(); raw(b'no frame\\n')",
        'laid(); raw(b\'{"type":"event","size":50000000}\\n\')',
        "laid(); put('dead')",
        "laid(); put('hello')",
        "laid(); put('trees', b'{}')",
        "laid(); put('rollout', b'x', path='sessions/../../../evil', offset=0)",
        "laid(); put('rollout', b'x', path='/etc/passwd', offset=0)",
        f"laid(); put('rollout', b'x', path='{DAY}{OTHER}.jsonl', offset=0)",
        f"laid(); put('rollout', b'x', path='{DAY}{OTHER}_{THREAD}.jsonl', offset=0)",
        f"laid(); put('rollout', b'x', path='sessions/../{THREAD}.jsonl', offset=0)",
        f"laid(); put('rollout', b'x', path='threads/{THREAD}.json', offset=0)",
        f"laid(); put('rollout', b'x', path='{DAY}{THREAD}.jsonl', offset=7)",
        f"laid(); put('rollout', b'x', path='{DAY}{THREAD}.jsonl', offset=-1)",
        f"laid(); put('rollout', b'x', path='{DAY}{THREAD}.jsonl', offset=2**62)",
        "laid(); put('rollout', b'x', path=3, offset=0)",
        f"laid(); event(type='thread.started', thread_id={OTHER!r}); put('rollout', b'x',"
        f" path='{DAY}{OTHER}.jsonl', offset=0)",
        "laid(); put('started', engine='mine')",
        "laid(); put('started', engine=['exec'])",
        "laid(); put('exited'); ",
    ],
)
async def test_lies_in_a_turn_lose_that_turn_only(shadow: Shadow, lab: Lab, code: str) -> None:
    if "put('exited')" in code:
        await use(shadow, lab, "laid(); put('exited', returncode='x'); put('dead'); get()")
        return
    with pytest.raises((PlaceLost, PlaceRefused)):
        await use(shadow, lab, code)


async def test_the_id_of_a_thread_that_is_here_is_no_new_thread(shadow: Shadow, lab: Lab) -> None:
    code = f"get(); hello(); get(); put('project', copy=None, known=[]); get(); put('laid', copy='1', folder='/far/p'); get(); put('started', engine='exec'); event(type='thread.started', thread_id={OTHER!r})"  # noqa: E501
    with pytest.raises(PlaceLost, match="cannot be the id of a new thread"):
        await use(shadow, lab, code)


_EMPTY = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


@pytest.mark.parametrize(
    "trees",
    [
        {},
        {"": "x"},
        {"": _EMPTY, "../up": _EMPTY},
        {"": _EMPTY, "/etc": _EMPTY},
        {"": _EMPTY, "a/../../b": _EMPTY},
        {"": _EMPTY, "sub/.GIT/hooks": _EMPTY},
        {"": "--help"},
        {"": "1" * 40},
        {"": ["x"]},
    ],
)
async def test_trees_that_lead_out_of_the_project_are_refused(
    shadow: Shadow, lab: Lab, trees: dict[str, object]
) -> None:
    body = json.dumps({"trees": trees, "left_out": []})
    code = f"laid(); finished(); put('trees', {body!r}.encode()); put('collected')"
    with pytest.raises(TreeError):
        await use(shadow, lab, code, collects=True)


def _object(kind: str, data: bytes) -> bytes:
    """Return the code of a pack with one object."""
    import hashlib
    import struct
    import zlib

    number = {"commit": 1, "tree": 2, "blob": 3}[kind]
    size = len(data)
    head = bytearray([(number << 4) | (size & 15)])
    size >>= 4
    while size:
        head[-1] |= 128
        head.append(size & 127)
        size >>= 7
    pack = b"PACK" + struct.pack(">II", 2, 1) + bytes(head) + zlib.compress(data)
    return pack + hashlib.sha1(pack, usedforsecurity=False).digest()


@pytest.mark.parametrize("name", [b"..", b".git", b"a/b", b".GIT", b""])
async def test_a_pack_with_a_tree_that_no_honest_git_writes_is_refused(
    shadow: Shadow, lab: Lab, name: bytes
) -> None:
    import hashlib

    blob = bytes.fromhex("5626abf0f72e58d7a153368ba57db4c673c0e171")  # "one\n", which is here.
    tree = b"100644 " + name + b"\0" + blob
    id_ = hashlib.sha1(b"tree %d\0" % len(tree) + tree, usedforsecurity=False).hexdigest()
    body = json.dumps({"trees": {"": id_}, "left_out": []})
    code = (
        f"laid(); finished(); put('trees', {body!r}.encode());"
        f" put('pack', {_object('tree', tree)!r}); put('collected')"
    )
    with pytest.raises(TreeError):
        await use(shadow, lab, code, collects=True)


async def test_a_pack_without_end_is_refused(shadow: Shadow, lab: Lab) -> None:
    body = json.dumps({"trees": {"": _EMPTY}, "left_out": []})
    code = (
        f"laid(); finished(); put('trees', {body!r}.encode())\n"
        "while True: put('pack', b'x' * 4000000)"
    )
    small = replace(place(code), max_tree_mb=20)
    async with open_seat(small, Mirror(lab.state, "box"), "r", shadow, margin_s=0.2) as seat:
        snapshot = take_snapshot(shadow)
        await seat.lay(snapshot, await seat.reopen(None) or ())
        await play(seat)
        with pytest.raises(TreeError, match="larger than max_tree_mb"):
            await seat.collect(snapshot)
