"""The adapter for VLMEvalKit: the same answers as by the evaluation's own commands."""

import pytest

from llava_sp.utils.errors import UserError
from tests.eval.adapters.conftest import GREEDY
from tests.eval.conftest import QUESTIONS


@pytest.fixture(scope="module")
def model(adapter, checkpoint):
    return adapter("vlmeval").LlavaSPVLM(str(checkpoint), GREEDY, device="cpu")


def message(question, image_folder):
    """A question as the kit's data sets build it."""
    image = [{"type": "image", "value": str(image_folder / question.image)}] if question.image else []
    return [*image, {"type": "text", "value": question.text}]


def test_answers_are_those_of_the_evaluation_itself(model, image_folder, expected):
    own = expected(GREEDY)
    for question in QUESTIONS:
        assert model.generate(message(question, image_folder), dataset="shapes") == own[question.id]


def test_texts_are_joined_and_the_image_goes_first(model, image_folder):
    image = {"type": "image", "value": str(image_folder / "a.png")}
    texts = [{"type": "text", "value": value} for value in ("Is it red?", "Answer yes or no.")]
    joined = [image, {"type": "text", "value": "Is it red?\nAnswer yes or no."}]
    assert model.generate([texts[0], image, texts[1]]) == model.generate(joined)


def test_what_the_model_cannot_see_is_refused(model, image_folder):
    image = {"type": "image", "value": str(image_folder / "a.png")}
    with pytest.raises(UserError, match=r"shapes.*2 images"):
        model.generate_inner([image, image, {"type": "text", "value": "Which?"}], dataset="shapes")
    with pytest.raises(UserError, match=r"shapes.*no video"):
        model.generate_inner([{"type": "video", "value": "clip.mp4"}], dataset="shapes")


def test_what_cannot_be_answered_is_empty_and_told(model, tmp_path, caplog):
    missing = {"type": "image", "value": str(tmp_path / "missing.png")}
    assert model.generate_inner([missing, {"type": "text", "value": "What?"}], dataset="shapes") == ""
    assert "missing.png" in caplog.text
