"""`python -m llava_sp.serve NAME [flags]`: answers questions, in the terminal or over HTTP."""

from llava_sp.utils.commands import dispatch

main = dispatch("llava_sp.serve", __doc__, {"chat": "chat", "openai": "server"}, extra="serve")

if __name__ == "__main__":
    main()
