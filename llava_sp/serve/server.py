"""`python -m llava_sp.serve openai`: one model behind OpenAI's chat API, by transformers' own serving code.

Taken from `transformers serve`: generation in a thread of its own, streaming, and the form of answers. Not taken: its
application and its loading. With them any client loads any model by name and has any file or address read as an image,
and only models that are part of transformers are found.
"""

import argparse
import asyncio
import copy
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from jinja2 import TemplateError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from transformers import GenerationConfig
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.utils import GenerateManager, GenerationState, Modality

from llava_sp.flags import add_model_flags, check_model_flags, load_model, parse_flags
from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.serve.requests import ChatRequest, template_messages
from llava_sp.utils.commands import summary
from llava_sp.utils.errors import UserError

MAX_NEW_TOKENS = 1024
"""Longest answer in tokens, where a request does not say."""

MAX_BODY = 32 * 2**20
"""Longest request in bytes: an image of 24 MB, which base64 makes a third longer."""

MAX_CONNECTIONS = 64
"""Clients at a time; further ones are told to come again (503). Their requests lie in memory."""


def main(argv: list[str]) -> None:
    """Loads the model and serves it until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m llava_sp.serve openai", description=summary(__doc__))
    add_model_flags(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one (default: %(default)s)")
    options = parse_flags(parser, argv)

    check_model_flags(options)
    model, processor, template = load_model(options)
    processor.chat_template = template.chat_template()
    path = Path(options.model_path)
    name = path.resolve().name if path.exists() else options.model_path
    app = make_app(model, processor, name, stop=template.stop)
    uvicorn.run(app, host=options.host, port=options.port, limit_concurrency=MAX_CONNECTIONS + 1)


def make_app(model: LlavaSPForCausalLM, processor: LlavaSPProcessor, name: str, *, stop: str) -> FastAPI:
    """Builds the application: `/v1/chat/completions`, `/v1/models` and `/health`.

    Args:
        model: The model in evaluation mode.
        processor: Its processor, with a chat template.
        name: What clients call the model.
        stop: Text that ends an answer of its conversation.
    """
    chat = _Chat(model, processor, name, stop)
    app = FastAPI(title="LLaVA-SP", openapi_url=None)
    app.add_middleware(_BodyLimit)
    started = int(time.time())

    @app.post("/v1/chat/completions")
    async def complete(body: ChatRequest) -> Response:
        # Decoding images takes a while, in which others are answered.
        messages = await run_in_threadpool(template_messages, body.messages, chat.most_images)
        return await chat.handle_request({**dict(body), "messages": messages}, f"chatcmpl-{uuid.uuid4()}")

    @app.get("/v1/models")
    def list_models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"id": name, "object": "model", "created": started, "owned_by": "llava_sp"}],
        }

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.exception_handler(UserError)
    @app.exception_handler(TemplateError)  # what the conversation has no place for
    def refuse(_: Request, error: Exception) -> JSONResponse:
        return _error(str(error))

    @app.exception_handler(HTTPException)
    def refuse_request(_: Request, error: HTTPException) -> JSONResponse:
        return _error(str(error.detail), error.status_code)

    @app.exception_handler(RequestValidationError)
    def refuse_form(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _error(f"{'.'.join(str(step) for step in first['loc'][1:])}: {first['msg']}.")

    return app


class _BodyLimit:
    """Stops reading a request whose body is too long."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = 0

        async def receive_some() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY:
                raise HTTPException(413, f"The request is longer than {MAX_BODY:,} bytes; shrink its images.")
            return message

        await self.app(scope, receive_some, send)


class _Images:
    """Tells transformers' handler that the model takes images; it looks that up for its own models alone."""

    @staticmethod
    def get_model_modality(*_: Any, **__: Any) -> Modality:
        return Modality.VLM


class _Generation(GenerationState):
    """One thread that generates, whatever the request."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = _TokenizerGeneration()

    def get_manager(self, model_id: str, use_cb: bool = False) -> GenerateManager:
        return self.manager


class _TokenizerGeneration(GenerateManager):
    """Generates within the model's context, and leaves out the text at which an answer stops.

    It gives generation the tokenizer, which stop strings need, where transformers gives it the processor.
    """

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: GenerationConfig, *args: Any, **kwargs: Any
    ) -> Any:
        _limit_answer(model, inputs, gen_config)
        queue, streamer = super().generate_streaming(model, processor.tokenizer, inputs, gen_config, *args, **kwargs)
        return _UntilStop(queue, gen_config.stop_strings), streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: GenerationConfig, *args: Any, **kwargs: Any
    ) -> Any:
        _limit_answer(model, inputs, gen_config)
        text, *rest = await super().generate_non_streaming(
            model, processor.tokenizer, inputs, gen_config, *args, **kwargs
        )
        return before_stop(text, gen_config.stop_strings), *rest


def context_length(model: LlavaSPForCausalLM) -> int:
    """Positions that the LLM was made for, of the conversation and the answer together."""
    return model.config.text_config.max_position_embeddings


def _limit_answer(model: LlavaSPForCausalLM, inputs: Any, config: GenerationConfig) -> None:
    """Lets an answer be as long as there is room for, at most.

    Raises:
        UserError: There is none.
    """
    length, longest = inputs["input_ids"].shape[-1], context_length(model)
    if length >= longest:
        raise UserError(
            f"The conversation is {length:,} tokens long with its images, and the model takes {longest:,} with the "
            "answer; leave out its beginning."
        )
    config.max_new_tokens = min(config.max_new_tokens, longest - length)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """Returns a text up to where the first of some stop strings begins."""
    return text[: min((found for stop in stops if (found := text.find(stop)) >= 0), default=len(text))]


class _UntilStop:
    """A queue of an answer's pieces, up to a stop string; what may be the beginning of one waits for the next piece."""

    def __init__(self, queue: asyncio.Queue, stops: Sequence[str]) -> None:
        self._queue = queue
        self._stops = stops
        self._held = ""
        self._ended = False
        self._last: list[Any] = []

    async def get(self) -> Any:
        return self._last.pop() if self._last else self._pass(await self._queue.get())

    def get_nowait(self) -> Any:
        return self._last.pop() if self._last else self._pass(self._queue.get_nowait())

    def _pass(self, item: Any) -> Any:
        if not isinstance(item, str):  # the end of the answer, or an error
            held, self._held = self._held, ""
            if held:
                self._last.append(item)
            return held or item
        text = "" if self._ended else self._held + item
        whole = before_stop(text, self._stops)
        self._ended |= len(whole) < len(text)
        lengths = (n for stop in self._stops for n in range(1, len(stop)) if whole.endswith(stop[:n]))
        cut = len(whole) - (0 if self._ended else max(lengths, default=0))
        self._held = whole[cut:]
        return whole[:cut]


class _Chat(ChatCompletionHandler):
    """Answers chat requests that have been checked, always with the same model."""

    _valid_params_class = None

    def __init__(self, model: LlavaSPForCausalLM, processor: LlavaSPProcessor, name: str, stop: str) -> None:
        super().__init__(_Images, _Generation())
        self.served = name, model, processor
        self.stop = stop
        self.most_images = max(context_length(model) // model.config.image_seq_length, 1)

    def _resolve_model(self, body: dict) -> tuple[str, LlavaSPForCausalLM, LlavaSPProcessor]:
        name = self.served[0]
        if body["model"] not in (None, name):
            raise UserError(f"model: {body['model'][:80]!r} is not served here; the only model is {name!r}.")
        return self.served

    @staticmethod
    def get_processor_inputs_from_messages(messages: list[dict[str, Any]], modality: Modality) -> list[dict[str, Any]]:
        return messages  # decoded already

    def _build_generation_config(
        self, body: dict, model_generation_config: GenerationConfig, use_cb: bool = False
    ) -> GenerationConfig:
        config = copy.deepcopy(model_generation_config)
        stop = body["stop"] or []
        config.stop_strings = [self.stop, *([stop] if isinstance(stop, str) else stop)]
        config.max_new_tokens = body["max_completion_tokens"] or body["max_tokens"] or MAX_NEW_TOKENS
        config.do_sample = body["temperature"] > 0
        if config.do_sample:
            config.temperature, config.top_p, config.top_k = body["temperature"], body["top_p"], 0
        if body["seed"] is not None:
            # The thread that generates takes what it is given in order; this request's answer is next.
            self.generation_state.manager.submit(torch.manual_seed, body["seed"])
        return config


def _error(message: str, status: int = 400) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status_code=status)
