"""VQAv2: questions about COCO pictures in one file, their answers in another."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from macaw_lit.data.sources.files import json_rows, read_json, rows_of
from macaw_lit.data.sources.roots import MediaRoots, Roots
from macaw_lit.data.sources.rows import RowError, convert, field, instruction_of, response_of, rest, sample_row
from macaw_lit.types import Rejection, Sample, Turn


def sniff(content: Any) -> dict[str, Any] | None:
    """Nothing more is to be said of a file of questions; None for other formats."""
    return {} if {"question_id", "question"} <= sample_row(content, "questions").keys() else None


def read(
    path: Path | str, media_root: Roots, annotations: Path | str | None = None, source: str = "vqa"
) -> Iterator[Sample | Rejection]:
    """One sample per question in file order; the response is the answer that most people gave.

    The ten answers go to `meta["refs"]`. `annotations` is the file of the answers, by default the one that is named
    alike and lies beside the questions; a question without an answer there is rejected. A picture is sought under
    `image_path` if the answer names one, else by COCO's number.

    Raises:
        DataError: a file cannot be read, is not JSON or has another layout; `media_root` is no folder.
    """
    roots = MediaRoots(media_root)
    content = read_json(path)
    subset = content.get("data_subtype", "val2014") if isinstance(content, Mapping) else "val2014"
    answers_file = Path(annotations) if annotations is not None else answers_beside(Path(path))
    answers = _answers(answers_file) if annotations is not None or answers_file.is_file() else {}

    def build(number: int, row: Any) -> Sample:
        question = instruction_of(row, "question")
        key, picture = row.get("question_id"), row.get("image_id")
        answer = answers.get(key) if isinstance(key, int | str) else None
        if answer is None:
            raise RowError("undisclosed", f"no answer to question {key!r} in {answers_file}")
        response = response_of(answer, "multiple_choice_answer")
        if answer.get("image_path") is not None:
            name = field(answer, "image_path")
        elif isinstance(picture, int) and 0 <= picture < 10**12:
            name = f"COCO_{subset}_{picture:012d}.jpg"
        else:
            raise RowError("missing_key", f"image_id {picture!r} is no number of a picture")
        turns = (Turn("user", question, roots.refs("image", name)), Turn("assistant", response))
        given = answer.get("answers")
        people = given if isinstance(given, list) else []
        refs = [each["answer"] for each in people if isinstance(each, Mapping) and "answer" in each]
        meta = rest(row, "question") | rest(answer, "answers", "multiple_choice_answer") | {"refs": refs}
        return Sample(turns, f"{source}/{picture}/{key}", source, meta)

    yield from convert(rows_of(path, content, "questions"), build)


def answers_beside(questions: Path) -> Path:
    """`v2_mscoco_val2014_annotations.json` for `v2_OpenEnded_mscoco_val2014_questions.json`, packed or not."""
    name = questions.name.replace("OpenEnded_", "").replace("MultipleChoice_", "").replace("questions", "annotations")
    paths = [questions.with_name(each) for each in (name, name.removesuffix(".gz"), f"{name}.gz")]
    return next((path for path in paths if path.is_file()), paths[0])


def _answers(path: Path) -> dict[int | str, Mapping[str, Any]]:
    rows = (row for _, row in json_rows(path, "annotations") if isinstance(row, Mapping))
    return {row["question_id"]: row for row in rows if isinstance(row.get("question_id"), int | str)}
