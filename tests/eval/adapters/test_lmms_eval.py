"""The adapter for lmms-eval: the same answers as by the evaluation's own commands."""

import importlib
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from llava_sp.utils.errors import UserError
from tests.eval.adapters.conftest import GREEDY, SAMPLED
from tests.eval.conftest import QUESTIONS

SETTINGS = {"max_new_tokens": 12, "temperature": 0, "top_p": None, "num_beams": 1, "until": ["\n\n"]}
ALL = range(len(QUESTIONS))


@pytest.fixture(scope="module")
def kit(adapter):
    return adapter("lmms_eval")


@pytest.fixture(scope="module")
def make(kit, checkpoint, image_folder):
    def model(batch_size=1, **arguments):
        made = kit.LlavaSP(str(checkpoint), batch_size=batch_size, device="cpu", **arguments)
        images = [question.image and Image.open(image_folder / question.image) for question in QUESTIONS]
        made.task_dict["shapes"] = {"test": [[image] if image else [] for image in images]}
        return made

    return model


def ask(records=ALL, images_of=lambda record: record, **changed):
    """The requests that lmms-eval makes of records."""
    arguments = [(QUESTIONS[n].text, SETTINGS | changed, images_of, n, "shapes", "test") for n in records]
    return [SimpleNamespace(args=each) for each in arguments]


@pytest.mark.parametrize("batch_size", [1, 3, "16"])
def test_answers_are_those_of_the_evaluation_itself_in_the_requests_order(batch_size, make, expected):
    own = expected(GREEDY)
    assert make(batch_size).generate_until(ask()) == [own[question.id] for question in QUESTIONS]


def test_each_request_gets_the_settings_of_its_task(make, expected):
    long, short = ask(), ask(max_new_tokens=2)
    mixed = [request for pair in zip(long, short, strict=True) for request in pair]
    answers = make(4).generate_until(mixed)
    own = expected(GREEDY)
    assert answers[::2] == [own[question.id] for question in QUESTIONS]
    assert answers[1::2] == make().generate_until(short) != answers[::2]


def test_samples_depend_on_seed_and_turn_not_on_the_batch(make):
    sampling = {"temperature": SAMPLED.temperature, "top_p": SAMPLED.top_p}
    first = make(1, seed=3).generate_until(ask(**sampling))
    assert make(5, seed=3).generate_until(ask(**sampling)) == first
    assert make(5, seed=4).generate_until(ask(**sampling)) != first
    twice = make(5, seed=3).generate_until(ask([0], **sampling) * 4)
    assert twice[0] == first[0]
    assert len(set(twice)) > 1


def test_settings_are_read_as_lmms_eval_writes_them(kit):
    settings = kit.settings_of({"temperature": None, "top_p": 0, "do_sample": False, "until": []}, seed=1)
    assert (settings.temperature, settings.top_p, settings.num_beams, settings.max_new_tokens) == (0, None, 1, 1024)
    settings = kit.settings_of({"temperature": 0.5, "top_p": 0.9, "num_beams": 3, "max_new_tokens": 7}, seed=1)
    assert (settings.temperature, settings.top_p, settings.num_beams, settings.max_new_tokens) == (0.5, 0.9, 3, 7)


@pytest.mark.parametrize(
    ("until", "left"),
    [
        (None, "One.\n\nTwo. Q: 3"),
        ("Two", "One."),
        (["Q:", "\n\n"], "One.\n\nTwo."),  # the blank line is lmms-eval's own default
        (["", "Q:", "Two"], "One."),
    ],
)
def test_an_answer_ends_where_the_task_says(until, left, kit):
    assert kit.cut("One.\n\nTwo. Q: 3", until) == left


def test_images_placed_by_the_task_go_first(make):
    model = make()
    marked = SimpleNamespace(args=("<image>\nWhat is in the image?", *ask([0])[0].args[1:]))
    assert model.generate_until([marked]) == model.generate_until(ask([0]))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([Image.new("RGB", (9, 9))] * 2, "shapes/test/0.*2 images"),
        (["clip.mp4"], "shapes/test/0.*a str, not an image"),
    ],
)
def test_what_the_model_cannot_see_is_refused(images, message, make):
    with pytest.raises(UserError, match=message):
        make().generate_until(ask([0], images_of=lambda record: images))


def test_what_cannot_be_answered_is_empty_and_told(make, caplog):
    too_flat = [Image.new("RGB", (900, 1))]
    answers = make(2).generate_until(ask([2]) + ask([0], images_of=lambda record: too_flat))
    assert answers[0]
    assert answers[1] == ""
    assert "shapes/test/0" in caplog.text
    assert "900 x 1" in caplog.text


def test_other_kinds_of_requests_are_refused_in_a_sentence(make):
    with pytest.raises(NotImplementedError, match="likelihood"):
        make().loglikelihood([])
    with pytest.raises(NotImplementedError, match="several rounds"):
        make().generate_until_multi_round([])


def test_wrong_arguments_are_told(kit, checkpoint):
    with pytest.raises(UserError, match="'auto'"):
        kit.LlavaSP(str(checkpoint), batch_size="auto")
    with pytest.raises(UserError, match=r"no argument 'conv'.*conv_mode"):
        kit.LlavaSP(str(checkpoint), conv="v1")
    with pytest.raises(UserError, match="v99"):
        kit.LlavaSP(str(checkpoint), conv_mode="v99", device="cpu")


def test_the_entry_point_names_the_class(kit):
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    module, function = project["project"]["entry-points"]["lmms_eval.models"]["llava_sp"].split(":")
    manifest = getattr(importlib.import_module(module), function)()
    assert manifest.model_id == "llava_sp"
    assert manifest.simple_class_path == f"{kit.LlavaSP.__module__}.{kit.LlavaSP.__name__}"
    assert kit.LlavaSP.is_simple
