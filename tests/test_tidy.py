"""The house rules that a machine can check: arrows between packages, sizes, idioms."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "common", "hypervisor", "xenstored", "frontend", "hostile", "backend", "machine", "looking",
    "simulator", "toolstack", "bench",
)  # fmt: skip
SIBLINGS = {"hypervisor", "xenstored", "frontend", "backend"}
MAY_IMPORT = {
    "common": {"common"},
    "hypervisor": {"common", "hypervisor"},
    "xenstored": {"common", "xenstored"},
    "frontend": {"common", "frontend"},
    "hostile": {"common", "frontend", "machine", "hostile"},
    "backend": {"common", "backend"},
    "machine": {"common", *SIBLINGS, "machine"},
    "looking": {"common", "looking"},
    "simulator": {"common", *SIBLINGS, "machine", "looking", "simulator"},
    "toolstack": {"common", *SIBLINGS, "hostile", "machine", "looking", "simulator", "toolstack"},
    "bench": set(PACKAGES),
}
FILE_LINES_MAX = 300
FUNCTION_LINES_MAX = 60

MAY_SET_STEP = ("common/steps.py", "backend/blkback.py", "frontend/blkfront_info.py")

# The sans-I/O cores: no clock, no randomness, no thread, no socket, no file.
CORES = (
    "common/abi.py",
    "common/ring.py",
    "common/blkif.py",
    "common/not_done.py",
    "common/u32.py",
    "common/faults.py",
    "common/handshake.py",
    "common/nbd_uri.py",
    "common/nbd_wire.py",
    "common/targets.py",
    "common/xenbus.py",
    "common/xenstore_exchange.py",
    "common/xenstore_talks.py",
    "common/xenstore_wire.py",
    "frontend/blkfront.py",
    "frontend/blkfront_info.py",
    "frontend/grants.py",
    "frontend/page_pool.py",
    "frontend/vbd.py",
    "backend/blkback.py",
    "backend/phases.py",
    "backend/pages.py",
    "backend/nbd_negotiation.py",
    "backend/persistent_grants.py",
    "backend/red_black.py",
    "backend/doors.py",
    "backend/steps.py",
    "backend/taking.py",
    "backend/vbd.py",
    "backend/worker.py",
    "hypervisor/cpus.py",
    "hypervisor/domains.py",
    "hypervisor/event_channels.py",
    "hypervisor/grant_calls.py",
    "hypervisor/grant_copy.py",
    "hypervisor/grant_table.py",
    "hypervisor/hypercalls.py",
    "hypervisor/maptrack.py",
    "hypervisor/port_calls.py",
    "looking/events.py",
    "looking/grants.py",
    "looking/ring_page.py",
    "looking/tree.py",
    "hypervisor/room.py",
    "machine/hypervisor.py",
    "xenstored/access.py",
    "xenstored/connection.py",
    "xenstored/outbox.py",
    "xenstored/paths.py",
    "xenstored/permissions.py",
    "xenstored/quotas.py",
    "xenstored/requests.py",
    "xenstored/schedule.py",
    "xenstored/session.py",
    "xenstored/store.py",
    "xenstored/transactions.py",
    "xenstored/tree.py",
    "xenstored/watches.py",
)
FORBIDDEN_IN_CORES = {
    "time", "random", "threading", "socket", "selectors", "os", "mmap", "zmq", "posix_ipc",
    "multiprocessing", "subprocess", "common.clock", "common.memory", "common.process",
}  # fmt: skip

SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 30


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_only_point_down(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imports_of(path)} & set(PACKAGES)
    assert ours <= MAY_IMPORT[package]


@pytest.mark.parametrize("name", CORES)
def test_a_core_knows_no_outside_world(name: str) -> None:
    assert not imports_of(ROOT / name) & FORBIDDEN_IN_CORES


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= FILE_LINES_MAX
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{node.name}: {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_no_file_is_a_drawer() -> None:
    assert not [p for p in SOURCES if p.name in ("utils.py", "helpers.py", "misc.py")]


def test_no_import_goes_in_a_circle() -> None:
    modules = {name_of(p)[:-3].replace("/", ".").removesuffix(".__init__"): p for p in SOURCES}
    graph = {name: imports_of(path) & set(modules) - {name} for name, path in modules.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_import_of_ours_is_hidden(path: Path) -> None:
    """By importlib or __import__ a circle would go unseen."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).split(".")[-1]
            if called in ("import_module", "__import__", "reload"):
                named = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                assert named, f"line {node.lineno}: who knows what is imported"
                assert str(named[0]).split(".")[0] not in PACKAGES, f"line {node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_swallowed_in_silence(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"
            if [type(n) for n in node.body] == [ast.Pass]:
                line = path.read_text().splitlines()[node.body[0].lineno - 1]
                assert "#" in line, f"line {node.lineno}: a pass that does not say why"


def test_the_handshake_diagram_is_drawn_from_the_table() -> None:
    from common.xenbus import diagram

    assert diagram() in (ROOT / "docs/design.md").read_text()


@pytest.mark.parametrize("end", ["frontend", "backend"])
def test_the_order_of_phases_is_drawn_from_the_tables(end: str) -> None:
    from backend import steps as back
    from common.steps import drawn
    from frontend import steps as front

    phases = {"frontend": front, "backend": back}[end].PHASES
    assert f"\n\n{drawn(phases)}\n\n" in (ROOT / "docs/design.md").read_text()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_the_tables_order_phases(path: Path) -> None:
    """A table is made in a `steps.py`; a place in it is set by the loop, and when a ring ends."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            made = ast.unparse(node.func).split(".")[-1] in ("next_steps", "Phase")
            assert not made or path.name == "steps.py", f"line {node.lineno}"
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(re.search(r"\bturn\[(steps\.)?STEP\]", ast.unparse(to)) for to in targets):
                assert name_of(path) in MAY_SET_STEP, f"line {node.lineno}"


PHASES_OF = ("frontend.blkfront", "frontend.responses", "backend.phases", "backend.taking")
MAY_RUN_PHASES = (
    "frontend/stepper.py",  # the guest's loop over the table
    "frontend/load_turn.py",
    "backend/worker.py",  # the backend's
    "backend/doors.py",
)
NOT_PHASES = {
    "enqueue", "end_every_access", "page_address", "touch", "keep_mapped", "ACCESSED_WORDS",
    "copy_sectors", "finish_io",
}  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_the_loops_run_phases(path: Path) -> None:
    """Phases are run by the loops over the tables only."""
    tree, name = ast.parse(path.read_text()), name_of(path)
    homes = {module.rpartition(".")[2]: module for module in PHASES_OF}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in homes:
            home = homes[ast.unparse(node.value)]
            may = node.attr in NOT_PHASES or name in MAY_RUN_PHASES
            assert may or home not in imports_of(path), f"{name}:{node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module in PHASES_OF:
            named = {alias.name for alias in node.names} - NOT_PHASES
            assert not named or name in MAY_RUN_PHASES, f"{name}: {named}"


def test_the_readme_has_a_row_for_each_room() -> None:
    rows = (ROOT / "README.md").read_text().splitlines()
    for room in (*PACKAGES, "docs", "tests"):
        assert sum(row.startswith(f"| `{room}/` |") for row in rows) == 1, room


@pytest.mark.parametrize(
    "document", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_every_file_that_is_named_is_there(document: str) -> None:
    text = (ROOT / document).read_text()
    for name in re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.[a-z]+)", text):
        assert (ROOT / name).exists() or (ROOT / "docs" / name).exists(), name


def test_no_machine_path_or_registry_is_named() -> None:
    named = re.compile(r"https?://(?!github\.com|xenbits\.xen)\S+|/work/|/root/")
    for path in (*SOURCES, ROOT / "README.md", ROOT / "run.sh", ROOT / "requirements.lock"):
        assert not named.search(path.read_text()), name_of(path)
