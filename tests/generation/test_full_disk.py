"""A disk that takes no more: the kernel's own refusal (RLIMIT_FSIZE), one line, and nothing lost that was noted."""

import asyncio
import resource
from contextlib import contextmanager

import pytest

from macaw_lit.errors import DataError
from macaw_lit.generation.budget import Price
from macaw_lit.generation.chat import ChatBackend
from macaw_lit.generation.journal import Journal
from macaw_lit.generation.parse import Completion
from macaw_lit.generation.runner import Limits, Runner
from macaw_lit.generation.writers import write_text


@contextmanager
def files_up_to(size):
    """No file may grow beyond `size` bytes; Python ignores the signal, so that writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_line_that_does_not_fit_is_cut_off_and_the_journal_stays_whole(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.sent("a", 10, 0.0, {})
        before = path.read_bytes()
        with (
            files_up_to(len(before) + 50),
            pytest.raises(DataError, match=r"journal.jsonl: cannot be written \(File too large\)"),
        ):
            journal.answer("a", 1, Completion("x" * 500), None, 0.0, 0.0)
        assert path.read_bytes() == before
        assert journal.history("a").answers == []
        journal.answer("a", 1, Completion("x" * 500), None, 0.0, 0.0)
    with Journal(path) as journal:
        assert len(journal.history("a").answers) == 1


def test_a_run_ends_with_one_line_and_goes_on_where_it_was(server, tmp_path, jobs):
    path, limits = tmp_path / "journal.jsonl", Limits(concurrency=3, timeout=5.0)

    async def run():
        with Journal(path) as journal:
            return await Runner(ChatBackend("tiny", server.url), journal, limits, Price()).run(jobs)

    with files_up_to(4000), pytest.raises(DataError, match="cannot be written.*run again to go on"):
        asyncio.run(run())
    with Journal(path) as journal:
        done = {job.record.texts[0] for job in jobs if journal.history(job.id).settled(limits.re_asks)}
    assert 0 < len(done) < len(jobs)
    asked = len(server.calls)
    outcome = asyncio.run(run())
    assert (outcome.before, outcome.left) == (len(done), 0)
    assert {call.about for call in server.calls[asked:]} == {job.record.texts[0] for job in jobs} - done


def test_a_file_that_cannot_be_written_whole_leaves_the_one_before(tmp_path):
    path = tmp_path / "macaw.json"
    write_text(path, "before")
    with files_up_to(100), pytest.raises(DataError, match=r"macaw.json: cannot be written \(File too large\)"):
        write_text(path, "x" * 200)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("macaw.json", "before")]
    with pytest.raises(DataError, match="cannot be written"):
        write_text(path / "folder" / "x", "y")
    with pytest.raises(DataError, match="cannot be written"):
        Journal(path / "journal.jsonl")
