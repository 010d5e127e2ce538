"""Network security tools for AI agents over the Model Context Protocol, held inside the owner's scope."""

__version__ = "0.1.0"
