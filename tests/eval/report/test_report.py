"""`python -m llava_sp.eval.report`, as a user calls it."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from llava_sp.eval.report.results import read_output
from llava_sp.eval.report.sheet import SIDE, samples
from llava_sp.utils.errors import UserError
from tests.eval.benchmarks.helpers import answers_to, with_text

EVIL = "<script>alert(1)</script> & \"'| http://example.org"


class Reader(HTMLParser):
    """Collects a page's tags, attributes and text; a tag that is closed out of turn fails."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page(tmp_path):
    return lambda: Reader((tmp_path / "report.html").read_text())


def test_headlines_rules_bars_and_answers(evaluated, report, page, tmp_path):
    output = evaluated(name="pope")
    evaluated(limit=3, failures=2, strict=True)
    status, printed = report("--results", output)
    assert status == 0 and "report.html is written" in printed
    text = " ".join(page().text)
    markdown = (tmp_path / "report.md").read_text()
    for told in (text, markdown):
        for part in ("POPE", "76.67", "86.4", "86.6", "second-hand", "answers meet labels by position", "adversarial"):
            assert part in told
        assert "50.00 (only the first 3 questions, 2 without an answer, strict)" in told
    assert "2 wrong and 2 right answers of 4" in text
    assert "right: 1 question Where is the red circle? answer Top left. expected top left" in text
    assert ("style", "width:50.00%") in page().attributes
    assert ("class", "wrong") in page().attributes


def test_images_are_small_and_inside(evaluated, report, page):
    report("--results", evaluated())
    images = [value for name, value in page().attributes if name == "src"]
    assert len(images) == 4
    content = base64.b64decode(images[0].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(content)).size == (SIDE, SIDE // 2)


def test_what_others_wrote_is_text(evaluated, report, page, tmp_path):
    answers = with_text(answers_to("tiny"), 0, f"{EVIL} \ud83d")
    report("--results", evaluated(answers=answers, title=EVIL, rule=EVIL, categories={EVIL: 1}, notes={EVIL: 1}))
    found = page()
    assert "script" not in found.tags
    assert sum(EVIL in text for text in found.text) == 6  # in a table, as title, rule, category, note and answer
    assert f"{EVIL} ?" in found.text
    assert "<script" not in (tmp_path / "report.md").read_text().replace("\\<", "")


def test_the_page_loads_nothing(evaluated, report, page, tmp_path):
    report("--results", evaluated("mine"), "--compare", evaluated("theirs"))
    found = page()
    assert not {"script", "link", "iframe", "object", "a"} & set(found.tags)
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in found.attributes
    assert not [value for name, value in found.attributes if name in ("src", "href") and value[:5] != "data:"]
    assert not re.search(r"https?://|url\(|@import", (tmp_path / "report.html").read_text())


def test_the_same_bytes_each_time(evaluated, report, tmp_path):
    arguments = ("--results", evaluated("mine"), "--compare", evaluated("theirs"))
    written = []
    for _ in range(2):
        report(*arguments)
        written.append([(tmp_path / f"report.{suffix}").read_bytes() for suffix in ("md", "html")])
    assert written[0] == written[1]


def test_a_comparison(evaluated, report, page, tmp_path):
    better = with_text(answers_to("tiny"), 1, "Yes")
    mine, theirs = evaluated("mine", answers=better), evaluated("theirs")
    evaluated("mine", "pope")
    report("--compare", mine, theirs)
    markdown = (tmp_path / "report.md").read_text()
    assert "## mine compared with theirs" in markdown
    assert "| tiny world | +25.00 | +25.00 | +0.00 to +75.00 | 4 | no difference told from noise |" in markdown
    assert "- POPE: theirs has no result." in markdown
    assert "mine compared with theirs" in page().text


def test_outputs_of_one_name_are_told_apart(evaluated, report, tmp_path):
    one, other = evaluated("a/results"), evaluated("b/results")
    report("--results", one, "--compare", other)
    assert f"{one} compared with {other}" in (tmp_path / "report.md").read_text().replace("\\", "")


def test_data_that_are_gone_and_data_elsewhere(evaluated, report, page, data):
    output = evaluated()
    moved = data.rename(data.with_name("moved"))
    status, printed = report("--results", output)
    assert status == 0
    assert "tiny world needs" in printed and "The answers to tiny world are shown without" in printed
    assert "img" not in page().tags
    assert "Top left." in page().text
    report("--results", output, "--data-root", moved)
    assert page().tags.count("img") == 4


def test_an_image_that_is_gone_is_named(evaluated, report, page, data):
    output = evaluated()
    gone = data / "tiny/images/held_out/000000.png"
    gone.unlink()
    report("--results", output)
    assert page().text.count(f"The image {gone} does not exist.") == 2
    assert page().tags.count("img") == 2


def test_old_scores_do_not_say_where_their_data_are(evaluated, report):
    _, printed = report("--results", evaluated(made_with={}))
    assert "tiny world: its scores do not say where its data are; name --data-root." in printed


def test_a_benchmark_that_is_no_longer_known(evaluated, report, page):
    status, printed = report("--results", evaluated(benchmark="colours"))
    assert status == 0 and "There is no benchmark 'colours'" in printed
    assert "Top left." in page().text


def test_a_servers_benchmark(evaluated, report, tmp_path):
    output = evaluated()
    (output / "vqav2").mkdir()
    (output / "vqav2/scores.json").write_text(json.dumps({"benchmark": "vqav2", "title": "VQAv2 test-dev"}))
    report("--compare", output, output)
    markdown = (tmp_path / "report.md").read_text()
    assert "| VQAv2 test-dev | - | scored by its server | scored by its server | 79.1 | 79.2 |" in markdown
    assert "there are no scores to compare here" in markdown


def test_what_is_broken_is_told_and_the_rest_goes_on(evaluated, report, tmp_path):
    output = evaluated()
    evaluated(name="pope")
    (output / "pope/scores.json").write_text('{"benchmark": "pope", "title": "POPE", "items": {"1": "x"}}')
    (output / "tiny/answers.jsonl").unlink()
    summary = json.loads((output / "summary.json").read_text())
    (output / "summary.json").write_text(json.dumps(summary | {"not_run": {"gqa": "no data"}}))
    status, printed = report("--results", output)
    markdown = (tmp_path / "report.md").read_text()
    assert status == 0 and "pope/scores.json is not the scores.json of a benchmark" in printed
    for part in ("gqa did not run: no data", "answers.jsonl: No such file", "| tiny world | mean | 50.00 |"):
        assert part in markdown


def test_nothing_to_report_on(evaluated, report, tmp_path):
    assert report() == (2, "error: There is nothing to report on; name an output folder with --results.\n")
    status, printed = report("--results", tmp_path)
    assert status == 2 and f"{tmp_path} holds no summary.json" in printed
    output = evaluated()
    (output / "tiny/scores.json").write_text("{")
    status, printed = report("--results", output)
    assert status == 2 and "holds no benchmark's scores.json" in printed and "not valid JSON" in printed
    (output / "summary.json").write_text("[]")
    with pytest.raises(UserError, match="is not a summary"):
        read_output(output)
    assert report("--results", output, "--samples=-1")[1].startswith("error: --samples must be at least 0")


def test_few_samples_are_spread_over_the_categories(evaluated):
    result = read_output(evaluated(name="pope")).results["pope"]
    shown, _ = samples(result, 3, None)
    right = [sample.expected.category for sample in shown if sample.right]
    assert right == ["adversarial", "popular", "random"]
    assert samples(result, 0, None) == ([], [])
