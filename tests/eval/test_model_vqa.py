"""The command: file formats, continuing, chunks, flags and what it refuses."""

import json
import logging
import shutil

import pytest

from llava_sp.eval import answering, model_vqa
from llava_sp.model import loading, trainable
from llava_sp.utils.errors import UserError
from tests.eval.conftest import QUESTIONS

SHORT = ["--max_new_tokens", "8", "--device", "cpu"]


@pytest.fixture
def run(checkpoint, image_folder, question_file, tmp_path):
    """Runs the command on the tiny checkpoint; returns the answers file's lines."""

    def command(*flags, answers="answers.jsonl", questions=question_file, model=checkpoint, images=image_folder):
        paths = {"model-path": model, "image-folder": images, "question-file": questions}
        paths["answers-file"] = tmp_path / answers
        named = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
        model_vqa.answer_file(model_vqa.parse([*named, *SHORT, *flags]))
        return (tmp_path / answers).read_text().splitlines()

    return command


def texts(lines):
    return {answer["question_id"]: answer["text"] for answer in map(json.loads, lines)}


def test_answers_have_llavas_format_in_the_order_of_the_questions(run):
    answers = [json.loads(line) for line in run("--temperature", "0", "--batch-size", "3")]
    assert [answer["question_id"] for answer in answers] == [question.id for question in QUESTIONS]
    assert [answer["prompt"] for answer in answers] == [question.text for question in QUESTIONS]
    for answer in answers:
        assert list(answer) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
        assert answer["model_id"] == "tiny-llava"
        assert answer["metadata"] == {}
        assert answer["text"] == answer["text"].strip() != ""
    assert len({answer["answer_id"] for answer in answers}) == len(QUESTIONS)


def test_a_rerun_and_any_batch_size_write_the_same_bytes(run):
    for temperature in ("0", "0.8"):
        first = run("--temperature", temperature, answers=f"first{temperature}.jsonl")
        assert run("--temperature", temperature, "--batch-size", "4", answers=f"4{temperature}.jsonl") == first


def test_the_default_is_to_sample_at_llavas_temperature(run):
    default = texts(run(answers="default.jsonl"))
    assert default == texts(run("--temperature", "0.2", answers="same.jsonl"))
    assert default != texts(run("--temperature", "0", answers="greedy.jsonl"))


def test_an_interrupted_file_is_continued_to_the_same_bytes(run, tmp_path, monkeypatch):
    whole = run("--batch-size", "2", answers="whole.jsonl")
    generate = answering.generate_answers
    asked = []

    def die_after_three(model, processor, questions, **arguments):
        asked.append(len(questions))
        for count, answer in enumerate(generate(model, processor, questions, **arguments)):
            if count == 3 and len(asked) == 1:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(answering, "generate_answers", die_after_three)
    with pytest.raises(KeyboardInterrupt):
        run("--batch-size", "2")
    path = tmp_path / "answers.jsonl"
    assert len(path.read_text().splitlines()) == 3
    path.write_bytes(path.read_bytes()[:-9])  # as if the third had been cut off in writing
    assert run("--batch-size", "3") == whole
    assert asked == [7, 5]


def test_a_complete_file_is_left_as_it_is_without_loading_the_model(run, monkeypatch):
    first = run()
    monkeypatch.delattr(answering, "load_model")
    assert run() == first


def test_answers_of_another_model_or_other_settings_are_refused(run, checkpoint, tmp_path):
    before = run("--temperature", "0")
    with pytest.raises(UserError, match=r"temperature = 0\.0; now it is 0\.5"):
        run("--temperature", "0.5")
    other = shutil.copytree(checkpoint, tmp_path / "other-model")
    with pytest.raises(UserError, match=r"made with model_path = .*tiny-llava"):
        run("--temperature", "0", model=other)
    assert (tmp_path / "answers.jsonl").read_text().splitlines() == before


def test_answers_to_other_questions_are_refused(run, question_file):
    run()
    question_file.write_text(question_file.read_text().replace("b.png", "c.png"))
    with pytest.raises(UserError, match="made with questions = "):
        run()


def test_a_model_that_was_trained_again_in_place_is_another_model(run, checkpoint, tmp_path):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    run(model=model)
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    with pytest.raises(UserError, match="model_files"):
        run(model=model)


def test_chunks_together_are_the_whole(run):
    whole = texts(run("--temperature", "0", "--batch-size", "8", answers="whole.jsonl"))
    parts = {}
    for index in range(9):  # more chunks than questions
        flags = ("--num-chunks", "9", "--chunk-idx", str(index))
        parts |= texts(run("--temperature", "0", *flags, answers=f"{index}.jsonl"))
    assert list(parts.items()) == list(whole.items())


def test_checkpoints_of_every_kind_answer_and_their_folders_name_means_nothing(tiny_parts, run, tmp_path):
    llm, tower = tiny_parts
    for stage in ("pretrain", "finetune_lora"):
        model, processor = loading.build(str(llm), str(tower), variant="none", conversation_template="v0")
        if stage == "pretrain":
            trainable.set_trainable(model, ["projector"])
        else:
            model = trainable.add_lora(model, rank=2, alpha=4, dropout=0.0)
        folder = tmp_path / f"mpt-lora-{stage}"
        loading.save(model, processor, folder, stage=stage)
        assert len(run(model=folder, answers=f"{stage}.jsonl")) == len(QUESTIONS)


def test_the_conversation_is_the_checkpoints_and_another_is_warned_of(run, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("llava_sp"), "propagate", True)
    own = texts(run("--temperature", "0", answers="own.jsonl"))
    assert texts(run("--temperature", "0", "--conv-mode", "vicuna_v1", answers="alias.jsonl")) == own
    assert "--conv-mode" not in caplog.text
    assert texts(run("--temperature", "0", "--conv-mode", "v0", answers="v0.jsonl")) != own
    assert "tuned with the conversation 'v1'" in caplog.text


def test_flags_take_both_spellings_and_have_llavas_defaults():
    options = model_vqa.parse(["--model_path=a_b", "--top_p", "0.9", "--num_beams=2", "--max-new-tokens", "7"])
    assert (options.model_path, options.top_p, options.num_beams, options.max_new_tokens) == ("a_b", 0.9, 2, 7)
    options = model_vqa.parse(["--model-path", "m"])
    assert (options.question_file, options.answers_file) == ("tables/question.jsonl", "answer.jsonl")
    assert (options.temperature, options.top_p, options.num_beams, options.max_new_tokens) == (0.2, None, 1, 1024)
    assert (options.num_chunks, options.chunk_idx, options.model_base, options.image_folder) == (1, 0, None, "")


@pytest.mark.parametrize(
    ("path", "name"),
    [("/runs/llava", "llava"), ("owner/llava", "llava"), ("/runs/llava/checkpoint-50", "llava_checkpoint-50")],
)
def test_models_are_labelled_as_llava_labels_them(path, name):
    assert answering.model_name(path) == name


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--conv-mode", "v7"], "v7"),
        (["--question-file", "none.jsonl"], r"none\.jsonl"),
        (["--model-path", "/no/such/model"], "/no/such/model"),
        (["--chunk-idx", "1"], "--chunk-idx 1"),
        (["--batch-size", "0"], "--batch-size"),
        (["--temperature", "-1"], "--temperature"),
        (["--device", "cuda:7"], "cuda:7: PyTorch sees no GPU"),
        (["--device", "gpu"], "--device gpu: no such device"),
    ],
)
def test_mistakes_end_in_one_sentence_and_leave_nothing_behind(flags, message, run, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        run(*flags)
    assert [path.name for path in tmp_path.iterdir()] == ["questions.jsonl"]


def test_a_missing_image_is_found_before_the_model_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.delattr(answering, "load_model")
    questions = tmp_path / "bad.jsonl"
    questions.write_text('{"question_id": "q9", "image": "none.png", "text": "What?"}\n')
    with pytest.raises(UserError, match=r"'q9' .*'none\.png'"):
        run(questions=questions)


def test_a_corrupt_image_keeps_no_other_question_from_its_answer(run, image_folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("llava_sp"), "propagate", True)
    images = shutil.copytree(image_folder, tmp_path / "images")
    whole = run("--temperature", "0", answers="whole.jsonl", images=images)
    intact = (images / "c.png").read_bytes()
    (images / "c.png").write_bytes(intact[:100])
    lines = run("--temperature", "0", "--batch-size", "3", images=images)
    assert lines == [line for line in whole if json.loads(line)["question_id"] != 4]
    [failure] = map(json.loads, (tmp_path / "answers.jsonl.failures.jsonl").read_text().splitlines())
    assert (failure["question_id"], failure["prompt"]) == (4, "Colour?")
    assert "c.png" in failure["failure"]
    assert "1 question(s) could not be answered, the first 4: The image" in caplog.text
    (images / "c.png").write_bytes(intact)
    assert run("--temperature", "0", images=images) == whole
    assert not (tmp_path / "answers.jsonl.failures.jsonl").exists()


def test_the_command_line_prints_one_line_for_a_mistake(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["model_vqa", "--model-path", "m", "--question-file", "none.jsonl"])
    with pytest.raises(SystemExit) as exit_:
        model_vqa.main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: none.jsonl does not exist.\n"
