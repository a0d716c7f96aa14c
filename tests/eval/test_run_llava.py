"""One question from the command line."""

import json

import pytest

from llava_sp.eval import model_vqa, run_llava


def test_it_answers_as_the_question_file_would(checkpoint, image_folder, tmp_path, monkeypatch, capsys):
    image = str(image_folder / "b.png")
    flags = ["--model-path", str(checkpoint), "--temperature", "0", "--max_new_tokens", "8", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["run_llava", *flags, "--image-file", image, "--query", "Is there a digit?"])
    run_llava.main()
    answer = capsys.readouterr().out

    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "image": "b.png", "text": "Is there a digit?"}\n')
    files = ["--question-file", str(tmp_path / "q.jsonl"), "--answers-file", str(tmp_path / "a.jsonl")]
    model_vqa.answer_file(model_vqa.parse([*flags, *files, "--image-folder", str(image_folder)]))
    assert json.loads((tmp_path / "a.jsonl").read_text())["text"] == answer.strip()

    monkeypatch.setattr("sys.argv", ["run_llava", *flags, "--query", "Is there a digit?"])
    run_llava.main()
    assert capsys.readouterr().out != answer  # without the image


def test_a_missing_image_is_one_line_before_the_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run_llava", "--model-path", "none", "--image-file", "no.png", "--query", "?"])
    with pytest.raises(SystemExit):
        run_llava.main()
    assert "no.png" in capsys.readouterr().err
