"""What a chat request may hold, in OpenAI's form, and its images decoded.

The form is closed: a request names no file, no address and no code, and fields that are not here never reach the model.
"""

import base64
import binascii
import io
import re
from typing import Annotated, Any, Literal

from PIL.Image import Image
from pydantic import BaseModel, Field, StringConstraints

from llava_sp.constants import IMAGE_TOKEN, MAX_PIXELS
from llava_sp.data.images import decode_image
from llava_sp.utils.errors import UserError

DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")


class TextPart(BaseModel):
    """A stretch of text."""

    type: Literal["text"]
    text: str


class ImageURL(BaseModel):
    """Where an image is: in the address itself, see `DATA_URL`."""

    url: str


class ImagePart(BaseModel):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageURL


class Message(BaseModel):
    """What one speaker says."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


Stop = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class ChatRequest(BaseModel):
    """The fields of OpenAI's chat completion that are followed; others are ignored."""

    messages: list[Message] = Field(min_length=1)
    model: str | None = None
    stream: bool = False
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)


def template_messages(messages: list[Message], most_images: int) -> list[dict[str, Any]]:
    """Returns the messages as a chat template takes them: content in parts, images decoded.

    Args:
        messages: The conversation.
        most_images: Number of images that the model has room for.

    Raises:
        UserError: An image is no data URL, cannot be decoded or is too large, with those before it or alone; there are
            too many; a message has several images, or writes the placeholder of one.
    """
    parts = (part for message in messages if isinstance(message.content, list) for part in message.content)
    if (images := sum(isinstance(part, ImagePart) for part in parts)) > most_images:
        raise UserError(f"The conversation has {images} images, and the model takes {most_images} at most.")
    decoded: list[Image] = []
    return [{"role": message.role, "content": _parts(message, decoded)} for message in messages]


def _parts(message: Message, decoded: list[Image]) -> list[dict[str, Any]]:
    if isinstance(message.content, str):
        content: list[TextPart | ImagePart] = [TextPart(type="text", text=message.content)]
    else:
        content = list(message.content)
    if sum(isinstance(part, ImagePart) for part in content) > 1:
        raise UserError("A message may hold one image; ask about several in messages of their own.")
    if any(IMAGE_TOKEN in part.text for part in content if isinstance(part, TextPart)):
        raise UserError(f"A message must not hold {IMAGE_TOKEN!r}; send the image as a part of type 'image_url'.")
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, TextPart)
        else {"type": "image", "image": _image(part.image_url.url, decoded)}
        for part in content
    ]


def _image(url: str, decoded: list[Image]) -> Image:
    """Decodes a data URL, and adds it to the request's images; nothing is ever fetched or read from a disk."""
    start = DATA_URL.match(url)
    if start is None:
        raise UserError(
            f"An image must be a data URL (data:image/png;base64,...), not {url[:40]!r}: nothing is fetched here."
        )
    try:
        content = base64.b64decode(url[start.end() :], validate=True)
    except binascii.Error as error:
        raise UserError(f"The image of the request is not base64: {error}.") from None
    name = f"The image of the request ({len(content)} bytes)"
    if decoded:
        name += f", number {len(decoded) + 1} of it,"
    # The images of a request lie in memory together.
    left = MAX_PIXELS - sum(image.width * image.height for image in decoded)
    decoded.append(decode_image(io.BytesIO(content), name, left))
    return decoded[-1]
