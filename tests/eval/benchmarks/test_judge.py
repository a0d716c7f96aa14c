"""Judges: asked once, kept on disk, asked again where it may help, and never told the key."""

import json
import logging

import pytest

from llava_sp.eval.benchmarks.judge import ATTEMPTS, Judge
from llava_sp.utils.errors import UserError

HELLO = [{"role": "user", "content": "hello"}]


def ask(judge, messages=HELLO, about=None):
    return judge.ask(messages, temperature=0, max_tokens=9, about=about or {"question_id": 1})


def test_the_same_is_asked_once_also_by_another_run(judge, tmp_path):
    path = tmp_path / "deep" / "reviews.jsonl"
    first = Judge(path)
    assert ask(first) == ask(first) == ask(Judge(path)) == "8 9\nfine"
    assert len(judge.requests) == 1
    ask(Judge(path), [{"role": "user", "content": "other"}])
    assert len(judge.requests) == 2
    asked = {"model": "stub", "messages": HELLO, "temperature": 0, "max_tokens": 9, "path": "/v1/chat/completions"}
    assert judge.requests[0] == asked
    row = json.loads(path.read_text().splitlines()[0])
    assert (row["question_id"], row["content"], row["judge"]) == (1, "8 9\nfine", "stub-1")


def test_a_half_written_review_is_asked_for_again(judge, tmp_path):
    path = tmp_path / "reviews.jsonl"
    ask(Judge(path))
    ask(Judge(path), [{"role": "user", "content": "other"}])
    whole = path.read_text()
    path.write_text(whole[:-7])
    again = Judge(path)
    ask(again)
    ask(again, [{"role": "user", "content": "other"}])
    assert len(judge.requests) == 3
    assert path.read_text() == whole


def test_trouble_that_may_pass_is_waited_for(judge, tmp_path):
    said = iter([(429, ""), (503, "busy"), (200, "<html>"), "fine"])
    judge.reply = lambda request: next(said)
    assert ask(Judge(tmp_path / "reviews.jsonl")) == "fine"


def test_a_judge_that_stays_down_ends_it_and_nothing_is_lost(judge, tmp_path, caplog):
    path = tmp_path / "reviews.jsonl"
    there = Judge(path)
    ask(there)
    judge.reply = lambda request: (500, "")
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError) as caught:
        ask(there, [{"role": "user", "content": "other"}])
    assert len(judge.requests) == 1 + ATTEMPTS
    assert "'stub' cannot be asked (HTTP status 500). 1 reviews are kept in" in str(caught.value)
    assert "the same command goes on" in str(caught.value)
    assert judge.headers[0]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in caplog.text + str(caught.value) + path.read_text()


@pytest.mark.parametrize("status", [401, 404, 302])
def test_a_refusal_is_final(judge, tmp_path, status):
    judge.reply = lambda request: (status, "")
    with pytest.raises(UserError, match=f"HTTP status {status}"):
        ask(Judge(tmp_path / "reviews.jsonl"))
    assert len(judge.requests) == 1


@pytest.mark.parametrize("body", ["[]", "{}", '{"choices": []}', '{"choices": [{"message": {"content": null}}]}'])
def test_another_api_is_named(judge, tmp_path, body):
    judge.reply = lambda request: (200, body)
    with pytest.raises(UserError, match="does not speak OpenAI's chat API"):
        ask(Judge(tmp_path / "reviews.jsonl"))
    assert not (tmp_path / "reviews.jsonl").exists()


def test_nobody_there(judge, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")  # the port of discard, where nothing listens
    with pytest.raises(UserError, match="cannot be asked"):
        ask(Judge(tmp_path / "reviews.jsonl"))


@pytest.mark.parametrize("name", ["JUDGE_MODEL", "OPENAI_BASE_URL"])
def test_the_environment_must_name_a_judge(judge, tmp_path, monkeypatch, name):
    monkeypatch.delenv(name)
    with pytest.raises(UserError, match=r"set JUDGE_MODEL .* OPENAI_BASE_URL .* OPENAI_API_KEY"):
        Judge(tmp_path / "reviews.jsonl")


@pytest.mark.parametrize("url", ["file:///etc", "ftp://host"])
def test_only_http_is_spoken(judge, tmp_path, monkeypatch, url):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(UserError, match="A judge scores this"):
        Judge(tmp_path / "reviews.jsonl")


def test_something_else_than_reviews_is_left_alone(judge, tmp_path):
    path = tmp_path / "reviews.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(UserError, match=r"reviews\.jsonl holds something other than a judge's reviews"):
        Judge(path)
    assert path.read_text() == '{"a": 1}\n'
