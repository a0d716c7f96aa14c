"""LLaVA's other commands: its flags, its questions, its answers files."""

import base64
import json

import pytest

from llava_sp.eval import model_vqa, model_vqa_loader, model_vqa_mmbench, model_vqa_science
from llava_sp.eval.model_vqa import answer_file


@pytest.fixture
def answer(checkpoint, image_folder, tmp_path):
    """Runs a command on a question file; returns the answers."""

    def run(command, content, *flags):
        (tmp_path / "questions").write_text(content)
        paths = {"model-path": checkpoint, "image-folder": image_folder, "question-file": tmp_path / "questions"}
        paths["answers-file"] = tmp_path / "deep" / "answers.jsonl"
        named = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
        short = ["--device", "cpu", "--temperature", "0", "--max_new_tokens", "4", "--batch-size", "2"]
        answer_file(command.parse([*named, *short, *flags]))
        return [json.loads(line) for line in paths["answers-file"].read_text().splitlines()]

    return run


def test_the_loader_answers_shortly_and_takes_ids_that_several_questions_share(answer):
    rows = [{"question_id": "a.png", "image": "a.png", "text": text} for text in ("A cat?", "A dog?")]
    answers = answer(model_vqa_loader, "".join(json.dumps(row) + "\n" for row in rows))
    assert [(row["question_id"], row["prompt"]) for row in answers] == [("a.png", "A cat?"), ("a.png", "A dog?")]
    assert len({row["answer_id"] for row in answers}) == 2
    assert model_vqa_loader.parse(["--model-path", "m"]).max_new_tokens == 128


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (model_vqa, "Answers a question file"),
        (model_vqa_loader, "in at most 128 tokens"),
        (model_vqa_science, "Answers ScienceQA"),
        (model_vqa_mmbench, "Answers a table of MMBench"),
    ],
)
def test_every_command_ends_with_its_launcher_and_says_what_it_is_for(command, told, monkeypatch, capsys):
    order = []
    monkeypatch.setattr(model_vqa, "end_with_launcher", lambda: order.append("end_with_launcher"))
    monkeypatch.setattr("sys.argv", ["command", "--help"])
    with pytest.raises(SystemExit):
        command.main()
    printed = capsys.readouterr().out
    assert order and f"usage: python -m {command.__name__} " in printed and told in printed
    assert "`" not in printed and "depends on it (default: 1)" in " ".join(printed.split())


def test_science_answers_with_and_without_images(answer):
    def record(identity, **image):
        return {"id": identity, **image, "conversations": [{"from": "human", "value": f"{identity}?"}]}

    content = json.dumps([record("1", image="a.png"), record("2")])
    with_image, without = answer(model_vqa_science, content, "--single-pred-prompt")
    assert with_image["prompt"].startswith("<image>\n1?\nAnswer with the option's letter")
    assert without["prompt"].startswith("2?\nAnswer with the option's letter")
    assert with_image["text"] and without["text"]


@pytest.mark.parametrize(("flags", "rounds"), [([], [0, 0]), (["--all-rounds"], [0, 1, 0, 1])])
def test_mmbench_answers_a_table(flags, rounds, answer, image_folder):
    image = base64.b64encode((image_folder / "b.png").read_bytes()).decode()
    lines = ["index\tquestion\thint\tA\tB\tC\tD\timage", *(f"{n}\tWhich?\t\tcat\tdog\t\t\t{image}" for n in (3, 4))]
    answers = answer(
        model_vqa_mmbench, "".join(f"{line}\n" for line in lines), "--single-pred-prompt", "--lang", "cn", *flags
    )
    assert [row["round_id"] for row in answers] == rounds
    assert [row["question_id"] for row in answers] == sorted([3, 4] * (len(rounds) // 2))
    assert set(answers[0]) == {
        *("question_id", "round_id", "prompt", "text", "options", "option_char", "answer_id", "model_id", "metadata")
    }
    assert answers[0]["prompt"] == "Which?\nA. cat\nB. dog"
    assert answers[0]["options"] == ["cat", "dog"]
