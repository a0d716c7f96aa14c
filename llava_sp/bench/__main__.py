"""`python -m llava_sp.bench NAME [flags]`: runs one benchmark."""

from llava_sp.utils.commands import dispatch

NAMES = ("projector", "dataset", "generate", "reliability")
main = dispatch("llava_sp.bench", __doc__, dict(zip(NAMES, NAMES, strict=True)), extra="train")

if __name__ == "__main__":
    main()
